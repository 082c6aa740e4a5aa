"""Shard formats of the feature cache, one file each; the file's name is the format's name.

A format has ``SUFFIXES`` (the last is the shard itself, others are companions), ``DEFAULT_DTYPE``, ``write(paths, keys,
rows)``, ``read(path, dtype, dim) -> (keys, rows)`` and ``map(path, shape, dtype)``, a memory map or None.
"""
