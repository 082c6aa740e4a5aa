"""Scores of any number of evaluations as one page, with Markdown and CSV.

:mod:`~dimefm.evaluate.report.collect` reads the scores, each file in ``sections/`` makes a part of
the page of them, :mod:`~dimefm.evaluate.report.page` writes HTML and
:mod:`~dimefm.evaluate.report.text` Markdown and CSV.
"""
