"""Parquet shards with columns of another form, with nulls, or with row groups that fill the
memory.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dimefm.cache import FeatureCache
from dimefm.cache.formats import BLOCK
from dimefm.storage.files import sha256_keys
from tests.faults import forging
from tests.faults.conftest import refused, shard


def column(rows, dim=4, kind=None):
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(rows).reshape(-1), kind), dim
    )


def with_nulls(rows):
    return pa.array(
        [None if i == 2 else list(row) for i, row in enumerate(rows)], pa.list_(pa.float16(), 4)
    )


def with_null_numbers(rows):
    return pa.array(
        [[None, *list(row)[1:]] if i == 2 else list(row) for i, row in enumerate(rows)],
        pa.list_(pa.float16(), 4),
    )


TABLES = {
    "rows of float32": lambda rows, keys: {"key": keys, "row": column(rows.astype("f4"))},
    "rows of float64": lambda rows, keys: {"key": keys, "row": column(rows.astype("f8"))},
    "rows of int8": lambda rows, keys: {"key": keys, "row": column(rows.astype("i1"))},
    "rows of another dim": lambda rows, keys: {"key": keys, "row": column(rows[:, :2], 2)},
    "rows of any length": lambda rows, keys: {
        "key": keys,
        "row": pa.array([list(row) for row in rows], pa.list_(pa.float16())),
    },
    "rows as numbers": lambda rows, keys: {"key": keys, "row": pa.array(rows[:, 0])},
    "rows as bytes": lambda rows, keys: {
        "key": keys,
        "row": pa.array([row.tobytes() for row in rows]),
    },
    "rows missing": lambda rows, keys: {"key": keys},
    "rows null": lambda rows, keys: {"key": keys, "row": with_nulls(rows)},
    "numbers null": lambda rows, keys: {"key": keys, "row": with_null_numbers(rows)},
    "rows too few": lambda rows, keys: {"key": keys[:5], "row": column(rows[:5])},
    "rows too many": lambda rows, keys: {
        "key": [*keys, "x"],
        "row": column(np.concatenate([rows, rows[:1]])),
    },
    "keys missing": lambda rows, keys: {"row": column(rows)},
    "keys null": lambda rows, keys: {"key": [None, *keys[1:]], "row": column(rows)},
    "keys all null": lambda rows, keys: {
        "key": pa.array([None] * 6, pa.string()),
        "row": column(rows),
    },
    "keys of numbers": lambda rows, keys: {"key": list(range(6)), "row": column(rows)},
    "keys of bytes": lambda rows, keys: {
        "key": [key.encode() for key in keys],
        "row": column(rows),
    },
    "keys in a dictionary": lambda rows, keys: {
        "key": pa.array(keys).dictionary_encode(),
        "row": column(rows),
    },
}


@pytest.mark.parametrize("name", TABLES)
def test_parquet_columns_of_another_form_are_refused(made, reader, name):
    root = made("parquet")
    cache = FeatureCache(root)
    keys, rows = cache.read(cache.manifest.shards[0])
    try:
        pq.write_table(pa.table(TABLES[name](rows, keys)), shard(root))
    except pa.ArrowNotImplementedError as error:  # older releases cannot write empty lists so
        pytest.skip(str(error))
    forging.forge(root)
    refused(reader(root), "read", "rows", "some", "verify all")


def test_a_parquet_row_group_beyond_the_largest_that_is_written_is_refused(made, reader):
    root, rows = made("parquet", counts=(6, 1)), BLOCK + 1
    schema = pa.schema([("key", pa.string()), ("row", pa.list_(pa.float16(), 4))])
    table = pa.table([["k"] * rows, column(np.zeros((rows, 4), "f2"))], schema=schema)
    digest = sha256_keys(["k"] * rows)
    for group in (rows, BLOCK):
        pq.write_table(table, shard(root), row_group_size=group)
        forging.forge(
            root,
            lambda fields: fields["shards"][0].update(
                rows=rows, source_rows=rows + 1, keys_sha256=digest
            ),
        )
        found = reader(root)
        if group > BLOCK:
            refused(found, "read", "rows", "some", "verify all")
        else:
            assert found["read"] == "fine"
