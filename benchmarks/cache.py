"""What the feature cache does, beside the limit of the machine and beside DIME-FM's way, as ratios
with their goals.

    python -m benchmarks.cache [--rows 200000] [--dim 768] [--repeats 7] [--data FOLDER] [--out
    results.jsonl] [--quick]

Made rows are random directions in float16. All that is compared is interleaved in one process;
medians. ``--quick`` leaves out the caches of millions of rows and simulates a ten times smaller
manifest. Up to 5 GB lie in ``--folder`` for a while.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks._cache_bytes import effects, sizes_of_rows
from benchmarks._cache_data import Sizes
from benchmarks._cache_memory import MOST, memory, opening
from benchmarks._cache_pitfalls import pitfalls
from benchmarks._cache_speed import Stores, block_shuffle, gathers, many, ranges
from benchmarks._cache_write import writes
from benchmarks._timing import Line, machine, record, table

DATA = Path(__file__).parents[2] / "shared/data"
PARTS = ("read", "write", "bytes", "memory", "open", "pitfalls")


def sections(sizes: Sizes, parts: Sequence[str], data: Path | None) -> list[tuple[str, list[Line]]]:
    """Return (title, lines) of the parts asked for."""
    made = f"{sizes.rows:,} rows of {sizes.dim} float16"
    found: list[tuple[str, list[Line]]] = []
    if "read" in parts:
        stores = Stores(sizes)
        found.append((f"Random rows, {made}; many shards: {many(sizes.rows)}", gathers(stores)))
        found.append(("Sequential, page cache warm", ranges(stores)))
        found.append(("Block shuffle", block_shuffle(stores)))
        del stores
        _empty(sizes.folder)
    if "write" in parts:
        found.append((f"Writing to durable files, {made}, 10 shards", writes(sizes)))
    if "bytes" in parts and data is not None:
        found.append(
            ("Bytes a row of real CLIP features, in units of 2D", sizes_of_rows(data, sizes.folder))
        )
        found.append(("What a dtype does to real CLIP features", effects(data, sizes.folder)))
    for part, title, run in (
        ("memory", "Memory of a process", memory),
        ("open", "Opening a large cache, no shard touched", opening),
        ("pitfalls", "Other ways to store rows", pitfalls),
    ):
        if part in parts:
            _empty(sizes.folder)
            found.append((title, run(sizes)))
    return found


def _room(sizes: Sizes) -> int:
    """Return the most bytes that lie in the folder at once: a dozen forms of the rows, or the
    largest cache.
    """
    row = 2 * sizes.dim
    return max(14 * sizes.rows * row, 0 if sizes.quick else int(1.2 * MOST * row))


def _empty(folder: Path) -> None:
    """Remove what lies in the temporary folder, so that the next part has the disk and the page
    cache.
    """
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def main() -> None:
    """Run the benchmark, print the table and append its lines to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--repeats", type=int, help="rounds that are counted (7; 3 with --quick)")
    parser.add_argument("--data", type=Path, default=DATA if (DATA / "features").is_dir() else None)
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--out", type=Path, help="file that lines of JSON are appended to")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="comma-separated; all of them unless given"
    )
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if wrong := set(parts) - set(PARTS):
        parser.error(f"--parts {', '.join(sorted(wrong))}: expected some of {','.join(PARTS)}")
    repeats = options.repeats or (3 if options.quick else 7)
    with tempfile.TemporaryDirectory(prefix="dimefm-bench-", dir=options.folder) as folder:
        sizes = Sizes(options.rows, options.dim, repeats, Path(folder), options.quick)
        if shutil.disk_usage(folder).free < (room := _room(sizes)):
            parser.error(
                f"{folder}: {room / 1e9:.1f} GB must be free; name another --folder, or take fewer"
                " --rows or --quick"
            )
        place = machine(sizes.folder)
        found = sections(sizes, parts, options.data)
    print("  ".join(f"{name} {value}" for name, value in place.items()))
    print(table(found))
    if "bytes" in parts and options.data is None:
        print("\nno real features: bytes a row and int8's effect are left out (--data FOLDER)")
    if options.out:
        settings = {
            "rows": options.rows,
            "dim": options.dim,
            "repeats": repeats,
            "quick": options.quick,
            "parts": parts,
        }
        record(options.out, "cache", settings, found, place)


if __name__ == "__main__":
    main()
