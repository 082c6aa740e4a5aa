"""dimefm distils a large vision-language model into a small one, without running the teacher during
training.

Importing this package imports no torch; the verbs do::

    from dimefm.extract.extract import extract
    from dimefm.train.trainer import train
    from dimefm.evaluate.zero_shot import evaluate
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dimefm")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
