"""Images without the border that their publisher drew around them, such as ObjectNet's red one."""

from __future__ import annotations

import io

from dimefm.data import Row, Rows, Shard
from dimefm.data.images.decode import decode
from dimefm.errors import BadRow
from dimefm.storage.files import sha256_keys

PNG = b"\x89PNG\r\n\x1a\n"
QUICK = 1  # level of compression: the file is read once


def without_borders(rows: Rows, pixels: int) -> Rows:
    """Return the same rows, with ``pixels`` cropped from each side of every PNG file."""
    shards = [Borderless(shard, pixels) for shard in rows.shards]
    return Rows(shards, rows.skipped, rows.selection)


class Borderless(Shard):
    """The rows of another shard; their PNG files lack a border of ``pixels``.

    Files of other formats are left as they are: they are copies, which were cropped before.
    """

    def __init__(self, whole: Shard, pixels: int):
        super().__init__(whole.path, whole.name)
        self.entry = whole.entry
        self.weight = whole.weight
        self.skipped = whole.skipped
        self.whole = whole
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.whole)

    def keys(self) -> list[str]:
        return self.whole.keys()

    def digest(self) -> str:
        return sha256_keys([self.whole.digest(), f"border {self.pixels}"])

    def __getitem__(self, index: int) -> Row:
        row = self.whole[index]
        if row.image is None or not row.image.startswith(PNG):
            return row
        image = self._cropped(row.image)
        return Row(row.key, image=image, texts=row.texts, label=row.label)

    def _cropped(self, data: bytes) -> bytes:
        """Return a PNG file without its border; raise BadRow when nothing is left."""
        image = decode(data)
        right = image.width - self.pixels
        lower = image.height - self.pixels
        if right <= self.pixels or lower <= self.pixels:
            raise BadRow(
                f"image has {image.width} x {image.height} pixels, all of them in its border of"
                f" {self.pixels}"
            )
        file = io.BytesIO()
        inner = image.crop((self.pixels, self.pixels, right, lower))
        inner.save(file, "PNG", compress_level=QUICK)
        return file.getvalue()
