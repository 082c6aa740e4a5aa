"""Probes: classifiers that are trained on the embeddings of a dataset's training images.

:mod:`dimefm.evaluate.probe.heads` trains many linear heads at once,
:mod:`dimefm.evaluate.probe.protocols` has the ways to choose one, and
:mod:`dimefm.evaluate.probe.job` scores a model on datasets.
"""

from dimefm.evaluate.probe.confidence import bootstrap, over_seeds, paired_bootstrap

__all__ = ["bootstrap", "over_seeds", "paired_bootstrap"]
