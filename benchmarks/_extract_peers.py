"""How others extract features, in our own words: a plain open_clip script, and clip-retrieval
2.45's reader, mapper, writer.

clip-retrieval itself does not install beside today's torch and numpy. What is kept of it: PIL opens
the file and open_clip's transform runs in worker processes of a DataLoader, each item carries its
name, a batch is collated by torch; rows are divided by their length and made float16 batch by
batch; one .npy and one Parquet file of names are written at the end.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

WORKERS = 2


class Pictures(Dataset):
    """Files through a transform; the dataset of every open_clip tutorial."""

    def __init__(self, files: Sequence[Path], transform: Callable):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int):
        return self.transform(Image.open(self.files[number]))


def script(model: nn.Module, transform: Callable, folder: Path, batch: int, out: Path) -> None:
    """Encode a folder of JPEGs with open_clip's ``encode_image`` and save unit rows: DataLoader,
    loop, ``np.save``.
    """
    files, rows = sorted(folder.glob("*.jpg")), []
    with torch.no_grad():
        for pixels in DataLoader(Pictures(files, transform), batch_size=batch, num_workers=WORKERS):
            features = model.encode_image(pixels)
            features /= features.norm(dim=-1, keepdim=True)
            rows.append(features.cpu().numpy())
    np.save(out, np.concatenate(rows))


def sentence_script(
    model: nn.Module, tokenizer: Callable, sentences: Sequence[str], batch: int, out: Path
) -> None:
    """Encode sentences with open_clip's tokenizer and ``encode_text`` at full context and save unit
    rows.
    """
    rows = []
    with torch.no_grad():
        for start in range(0, len(sentences), batch):
            features = model.encode_text(tokenizer(list(sentences[start : start + batch])))
            features /= features.norm(dim=-1, keepdim=True)
            rows.append(features.cpu().numpy())
    np.save(out, np.concatenate(rows))


class _Folder(Dataset):
    """clip-retrieval's reader of files: keys are relative paths in order, an item is a dict; bad
    images become None.
    """

    def __init__(self, folder: Path, transform: Callable):
        endings = (
            ending
            for name in ("png", "jpg", "jpeg", "bmp", "webp")
            for ending in (name, name.upper())
        )
        found = (file for ending in endings for file in folder.glob(f"**/*.{ending}"))
        self.files = {file.relative_to(folder).as_posix(): file for file in found}
        self.keys, self.transform = sorted(self.files), transform

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int):
        file = self.files[self.keys[number]]
        try:
            pixels = self.transform(Image.open(file))
        except OSError:
            return None
        return {"image_filename": str(file), "image_tensor": pixels}


class _Tars(IterableDataset):
    """clip-retrieval's reader of webdataset tars: each worker streams its share of them."""

    def __init__(self, folder: Path, transform: Callable):
        self.tars, self.transform = sorted(folder.glob("*.tar")), transform

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        mine = self.tars if worker is None else self.tars[worker.id :: worker.num_workers]
        for tar in mine:
            with tarfile.open(tar, "r|") as archive:
                for member in archive:
                    image = Image.open(io.BytesIO(archive.extractfile(member).read()))
                    yield {
                        "image_filename": member.name.partition(".")[0],
                        "image_tensor": self.transform(image),
                    }


def _whole(items: list) -> dict:
    return default_collate([item for item in items if item is not None])


def clip_retrieval(
    model: nn.Module, transform: Callable, folder: Path, batch: int, out: Path
) -> None:
    """Encode a folder of images, or of tars if it holds any, into ``out``.npy and
    ``out``.parquet.
    """
    tars = any(folder.glob("*.tar"))
    data = (_Tars if tars else _Folder)(folder, transform)
    collate = None if tars else _whole
    loader = DataLoader(data, batch, num_workers=WORKERS, prefetch_factor=2, collate_fn=collate)
    rows, names = [], []
    with torch.no_grad():
        for items in loader:
            features = model.encode_image(items["image_tensor"])
            features /= features.norm(dim=-1, keepdim=True)
            rows.append(features.cpu().to(torch.float16).numpy())
            names += items["image_filename"]
    np.save(out.with_suffix(".npy"), np.concatenate(rows))
    pyarrow.parquet.write_table(pyarrow.table({"image_path": names}), out.with_suffix(".parquet"))
