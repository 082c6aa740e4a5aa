"""Probes: classifiers that are trained on the embeddings of a dataset's training images.

:mod:`dimefm.evaluate.probe.heads` trains many linear heads at once, and
:mod:`dimefm.evaluate.probe.protocols` has the ways to choose one.
"""

from dimefm.evaluate.probe.confidence import bootstrap, over_seeds, paired_bootstrap
from dimefm.evaluate.probe.data import Features, ProbeOutcome, load_data
from dimefm.evaluate.probe.protocols import DEFAULT, PROTOCOLS

__all__ = [
    "DEFAULT",
    "PROTOCOLS",
    "Features",
    "ProbeOutcome",
    "bootstrap",
    "load_data",
    "over_seeds",
    "paired_bootstrap",
]
