"""Readers of raw rows, one file each; the file's name is the ``--input-format``. The contract
is in ``data/rows.py``.
"""
