"""Raw data: sources of images and sentences, opened by :func:`open_rows`."""

from dimefm.data.rows import Columns, Row, Rows, Shard
from dimefm.data.sources import open_rows

__all__ = ["Columns", "Row", "Rows", "Shard", "open_rows"]
