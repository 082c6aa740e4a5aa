"""Evaluation: benchmarks and their rows, zero-shot classification, retrieval and the metrics that
score them.

A metric is a pure function of scores and labels (:mod:`dimefm.evaluate.metrics`); a benchmark is a
card in ``benchmarks/`` (:mod:`dimefm.evaluate.benchmark`); the user's folders become rows and
labels in :mod:`dimefm.evaluate.datasets.layouts`.
"""
