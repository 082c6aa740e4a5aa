"""The processes that train one student together, and how their embeddings are combined.

torchrun starts the processes; a process started alone is the only one. All processes see the same
batches, and each encodes its own places of them. The embeddings of all processes are gathered in
the order of the places, so what is computed from them does not depend on the number of processes.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from dimefm.errors import DimefmError, RecipeError
from dimefm.runtime.torchrun import end_with_torchrun, rank_of

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others, which may be decoding or writing a checkpoint."""

ABSENT = -1  # the place of padding in the list of a process's places


@dataclass(frozen=True)
class DistributedContext:
    """Process ``rank`` of ``size``, counted from 0; it communicates tensors on ``device``."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def places(self, batch_size: int) -> range:
        """Return this process's places in a batch; processes differ by at most one place."""
        start = batch_size * self.rank // self.size
        end = batch_size * (self.rank + 1) // self.size
        return range(start, end)

    def barrier(self) -> None:
        """Return when all processes have called this."""
        if self.size > 1:
            self.gather(torch.zeros(1, device=self.device))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        flags = self.gather(torch.tensor([flag], device=self.device))
        return bool(flags.any())

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the body in the main process, then in the others, which find its results."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def gather(self, value: Tensor) -> Tensor:
        """Return the values of all processes [size, ...], without gradient.

        They need one shape and type. Raises DimefmError when another process has ended.
        """
        if self.size == 1:
            return value.detach()[None]
        values = [torch.empty_like(value) for _ in range(self.size)]
        with self.peer_errors():
            dist.all_gather(values, value.detach().contiguous())
        return torch.stack(values)

    def average(self, values: Sequence[Tensor]) -> None:
        """Replace each value by its mean over the processes.

        The values need the same shapes and type in all processes. Raises DimefmError when another
        process has ended.
        """
        if self.size == 1 or not values:
            return
        joined = torch.cat([value.reshape(-1) for value in values])
        with self.peer_errors():
            dist.all_reduce(joined)
        lengths = [value.numel() for value in values]
        means = (joined / self.size).split(lengths)
        for value, mean in zip(values, means, strict=True):
            value.copy_(mean.view_as(value))

    @contextmanager
    def peer_errors(self) -> Iterator[None]:
        """Turn the error of a collective whose peer has ended into a DimefmError."""
        try:
            yield
        except RuntimeError as error:
            is_of_peer = isinstance(error, dist.DistError) or "gloo" in str(error)
            if self.size == 1 or not is_of_peer:
                raise
            raise DimefmError(
                f"process {self.rank} of {self.size}: another process of this run has ended, see"
                " its message above. Fix: resume with --resume"
            ) from error

    def gather_objects(self, objects: Sequence[dict]) -> list[dict]:
        """Return the objects of all processes, in the order of their ranks.

        They travel as JSON. ``torch.distributed.all_gather_object`` would serialize them in a
        format that can run code when it is read.
        """
        encoded = bytearray(json.dumps(objects).encode())
        text = torch.frombuffer(encoded, dtype=torch.uint8).to(self.device)
        lengths = self.gather(torch.tensor([len(text)], device=self.device))[:, 0].tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device=self.device)
        padded[: len(text)] = text
        gathered = []
        for row, length in zip(self.gather(padded).cpu(), lengths, strict=True):
            gathered.extend(json.loads(bytes(row[:length].tolist())))
        return gathered


@contextmanager
def init_distributed(
    device: torch.device, environment: Mapping[str, str] = os.environ
) -> Iterator[DistributedContext]:
    """Yield the context that torchrun's RANK and WORLD_SIZE describe, connected to the others.

    Raises RecipeError when CUDA processes would share a GPU, and DimefmError when the other
    processes cannot be reached.
    """
    rank, size = rank_of(environment)
    end_with_torchrun(environment)
    if size == 1:
        yield DistributedContext(0, 1, device)
        return
    if device.type == "cuda":
        device = _gpu_of_process(device, environment)
        torch.cuda.set_device(device)
    context = DistributedContext(rank, size, device)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=COLLECTIVE_TIMEOUT,
            rank=rank,
            world_size=size,
        )
    except (RuntimeError, ValueError) as error:
        raise DimefmError(
            f"process {rank} of {size}: the other processes cannot be reached ({error}). Fix: check"
            " the network between the machines, then resume"
        ) from error
    try:
        yield context
    finally:
        dist.destroy_process_group()


def _gpu_of_process(device: torch.device, environment: Mapping[str, str]) -> torch.device:
    """Return the GPU of this process; raise RecipeError when it would share one."""
    processes = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    number = int(environment.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise RecipeError(
            f"torchrun started {processes} processes on a machine with {gpus} GPUs;"
            " expected one GPU per process. Fix: lower --nproc-per-node"
        )
    if processes > 1 and device.index not in (None, number):
        raise RecipeError(
            f"--device {device}: {processes} processes of this machine would share one GPU. Fix:"
            " remove --device, and each process uses the GPU of its number"
        )
    if device.index is None:
        return torch.device("cuda", number)
    return device


class GlobalBatch:
    """The samples of a batch that could be read in any process, in the order of their places.

    The argument ``places`` [n] are those of this process, ascending, at most ``most``. The
    attribute ``places`` [B] are those of all processes; ``mine`` [n] are the positions of this
    process's samples among them.
    """

    def __init__(self, context: DistributedContext, places: np.ndarray, most: int):
        self.context = context
        self.most = most
        self.count = len(places)
        padded = torch.full((most,), ABSENT, dtype=torch.long)
        padded[: self.count] = torch.from_numpy(np.asarray(places, dtype=np.int64))
        gathered = context.gather(padded.to(context.device)).reshape(-1)
        order = torch.argsort(gathered, stable=True)
        self.order = order[gathered[order] != ABSENT]
        self.places = gathered[self.order]
        own_places = padded[: self.count].to(context.device)
        self.mine = torch.searchsorted(self.places, own_places)

    def __len__(self) -> int:
        return len(self.order)

    def rows(self, values: Tensor) -> Tensor:
        """Return the rows [B, ...] of all processes in the order of their places.

        ``values`` [n, ...] are the rows of this process.
        """
        if self.context.size == 1:
            return values.detach()
        padded = values.new_zeros(self.most, *values.shape[1:])
        padded[: self.count] = values.detach()
        return self.context.gather(padded).flatten(0, 1)[self.order]
