"""The report of an extraction: counts of rows and shards, and the seconds of each stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from dimefm.cache import Manifest
from dimefm.cache.plan import QUARANTINE
from dimefm.data.skipped import Skipped

STAGES = ("read", "decode", "encode", "write")


def _no_seconds() -> dict[str, float]:
    return dict.fromkeys(STAGES, 0.0)


@dataclass
class Report:
    """What one call of ``extract`` did for one cache.

    ``seconds`` of reading and decoding are summed over threads. Rows that are read and decoded once
    for several caches count in the report of the first.
    """

    manifest: Manifest | None = None
    out: str = ""
    rows_done: int = 0
    unused_captions: int = 0
    seconds: dict[str, float] = field(default_factory=_no_seconds)
    wall: float = 0.0
    streamed: float = 0.0  # seconds of ``wall`` in which the encoder could have been busy
    encode_threads: int = 1  # batches that are encoded at the same time
    resumed: int = 0  # shards that an earlier run finished
    missing: int = 0  # shards that other processes have not finished yet
    tried: int = 0  # quarantined rows that were tried again
    recovered: int = 0
    already_finished: bool = False
    skipped: Skipped = field(default_factory=Skipped)  # what the sources hold besides rows
    selection: str = ""  # the flags that selected the rows

    @property
    def busy(self) -> float:
        """Share of the streaming time in which the encoder was at work."""
        available = max(self.encode_threads * self.streamed, 1e-9)
        return min(1.0, self.seconds["encode"] / available)

    def as_dict(self) -> dict:
        """Return the figures of :meth:`describe`, for JSON."""
        figures: dict = {
            "out": self.out,
            "finished": self.manifest is not None,
            "already_finished": self.already_finished,
            "missing_shards": self.missing,
            "resumed_shards": self.resumed,
            "rows_done": self.rows_done,
            "seconds": {**self.seconds, "wall": self.wall},
            "encoder_busy": self.busy,
            "unused_captions": self.unused_captions,
            "tried": self.tried,
            "recovered": self.recovered,
        }
        figures["skipped"] = len(self.skipped)
        if self.manifest is not None:
            shards = self.manifest.shards
            figures["rows"] = self.manifest.rows
            figures["quarantined"] = sum(len(shard.bad) for shard in shards)
            figures["bytes"] = sum(shard.bytes for shard in shards)
            figures["format"] = self.manifest.format
            figures["dtype"] = self.manifest.dtype
            figures["dim"] = self.manifest.dim
        return figures

    def describe(self) -> str:
        """Return a human-readable summary of a few lines."""
        if self.already_finished:
            return f"{self.out}: finished already, {self.manifest.rows:,} rows; nothing to do"
        if self.manifest is None:
            lines = [
                f"{self.out}: {self.missing:,} shards of other parts are not there yet; the cache"
                " is finished with the last"
            ]
        else:
            lines = self._cache_lines(self.manifest)
        lines.append(self._speed_line())
        if self.resumed:
            shards = "shards were" if self.resumed > 1 else "shard was"
            lines.append(f"  {self.resumed} {shards} finished by an earlier run")
        if self.tried:
            lines.append(f"  {self.recovered:,} of {self.tried:,} quarantined rows were recovered")
        if self.selection:
            lines.append(f"  selected by {self.selection}, of the images and of the texts each")
        if self.skipped:
            lines.append(f"  in the sources, but no rows: {self.skipped.describe()}")
        if self.unused_captions:
            lines.append(
                f"  {self.unused_captions:,} further captions of these rows were not used;"
                f" {self._how_to_use_captions()}"
            )
        return "\n".join(lines)

    def _cache_lines(self, manifest: Manifest) -> list[str]:
        bad = sum(len(shard.bad) for shard in manifest.shards)
        stored_bytes = sum(shard.bytes for shard in manifest.shards)
        bytes_per_row = stored_bytes / max(manifest.rows, 1)
        counts = (
            f"{self.out}: {manifest.rows + bad:,} rows in = {manifest.rows:,} rows out"
            f" + {bad:,} quarantined"
        )
        if bad:
            counts += f" (listed in {self.out}/{QUARANTINE})"
        return [
            counts,
            f"  {manifest.format} {manifest.dtype}[{manifest.dim}], {bytes_per_row:.0f} bytes/row",
        ]

    def _speed_line(self) -> str:
        stages = [f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items()]
        rate = self.rows_done / max(self.wall, 1e-9)
        return (
            f"  {self.wall:.1f} s wall, {rate:,.0f} rows/s; {', '.join(stages)}\n"
            f"  encoder at work {self.busy:.0%} of the time; the rest is reading and decoding, or"
            " other programs' share of the machine"
        )

    def _how_to_use_captions(self) -> str:
        views = None if self.manifest is None else self.manifest.how.get("text_views")
        if views is None:
            return "--captions all encodes them"
        if views["augment"] == "none":
            return "a larger --text-views takes more"
        return "variants are of the first"
