"""The processes that train one student together: who takes which rows, and how their rows meet.

torchrun starts the processes; a process that was started alone is a world of one. All processes see
the same batches, each encodes its own places of them, and the rows of all are put together in the
order of the places: what is computed from them does not depend on how many processes there are.
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
from dimefm.runtime.torchrun import rank_of

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others, which may be decoding or writing a checkpoint."""


@dataclass(frozen=True)
class DistributedContext:
    """Process ``rank`` of ``size``, counted from 0; its tensors that travel are on ``device``."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def places(self, batch_size: int) -> range:
        """Return this process's places in a batch; they differ by one place at most between
        processes.
        """
        return range(batch_size * self.rank // self.size, batch_size * (self.rank + 1) // self.size)

    def barrier(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            self.gather(torch.zeros(1, device=self.device))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self.gather(torch.tensor([flag], device=self.device)).any())

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let the first process do what stands in this context, and then the others, who find it
        done.
        """
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def gather(self, value: Tensor) -> Tensor:
        """Return the values of all processes [size, ...], which have one shape; no gradient flows.

        Raises DimefmError when another process is gone.
        """
        if self.size == 1:
            return value.detach()[None]
        found = [torch.empty_like(value) for _ in range(self.size)]
        with self.peer_errors():
            dist.all_gather(found, value.detach().contiguous())
        return torch.stack(found)

    def average(self, values: Sequence[Tensor]) -> None:
        """Replace each of the values, which have one shape and type in all processes, by its mean
        over them.

        Raises DimefmError when another process is gone.
        """
        if self.size == 1 or not values:
            return
        together = torch.cat([value.reshape(-1) for value in values])
        with self.peer_errors():
            dist.all_reduce(together)
        parts = (together / self.size).split([value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view_as(value))

    @contextmanager
    def peer_errors(self) -> Iterator[None]:
        """Turn what is raised in this context when another process is gone into a DimefmError."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise DimefmError(
                f"process {self.rank} of {self.size}: another process of this run has ended; see"
                " its message above, and go on with --resume"
            ) from error

    def gather_objects(self, ours: Sequence[dict]) -> list[dict]:
        """Return the records of all processes, in the order of their ranks."""
        text = torch.frombuffer(bytearray(json.dumps(ours).encode()), dtype=torch.uint8).to(
            self.device
        )
        lengths = self.gather(torch.tensor([len(text)], device=self.device))[:, 0].tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device=self.device)
        padded[: len(text)] = text
        texts = zip(self.gather(padded).cpu(), lengths, strict=True)
        return [
            record for text, length in texts for record in json.loads(bytes(text[:length].tolist()))
        ]


def _own_gpu(device: torch.device, environment: Mapping[str, str]) -> torch.device:
    """Return the GPU of this process; raise RecipeError when several processes of one machine would
    share one.
    """
    here, number = (
        int(environment.get("LOCAL_WORLD_SIZE", "1")),
        int(environment.get("LOCAL_RANK", "0")),
    )
    if here > torch.cuda.device_count():
        raise RecipeError(
            f"torchrun started {here} processes on a machine with {torch.cuda.device_count()} GPUs;"
            " expected one GPU a process: lower --nproc-per-node"
        )
    if here > 1 and device.index not in (None, number):
        raise RecipeError(
            f"--device {device}: {here} processes of this machine would share one GPU; leave"
            " --device out, and each takes the one of its number"
        )
    return torch.device("cuda", number) if device.index is None else device


@contextmanager
def init_distributed(
    device: torch.device, environment: Mapping[str, str] = os.environ
) -> Iterator[DistributedContext]:
    """Yield the world that torchrun's RANK and WORLD_SIZE say, in touch with its other processes.

    Raises RecipeError when CUDA processes share a GPU, and DimefmError when the others cannot be
    reached.
    """
    rank, size = rank_of(environment)
    if size == 1:
        yield DistributedContext(0, 1, device)
        return
    if device.type == "cuda":
        device = _own_gpu(device, environment)
        torch.cuda.set_device(device)
    world = DistributedContext(rank, size, device)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=COLLECTIVE_TIMEOUT,
            rank=rank,
            world_size=size,
        )
    except (RuntimeError, ValueError) as error:
        raise DimefmError(
            f"process {rank} of {size}: the other processes cannot be reached ({error})"
        ) from error
    try:
        yield world
    finally:
        dist.destroy_process_group()


class GlobalBatch:
    """Where the rows of all processes stand in a batch: ``places`` [n] are those that this process
    could read.

    At most ``most`` of them, ascending; each place is of one process. ``mine`` [n] is where this
    process's rows stand among those of all.
    """

    def __init__(self, world: DistributedContext, places: np.ndarray, most: int):
        self.world, self.most, self.own = world, most, len(places)
        padded = torch.full((most,), -1, dtype=torch.long)
        padded[: self.own] = torch.from_numpy(np.asarray(places, dtype=np.int64))
        everyone = world.gather(padded.to(world.device)).reshape(-1)
        order = torch.argsort(everyone, stable=True)
        self.order = order[everyone[order] >= 0]
        self.places = everyone[self.order]
        self.mine = torch.searchsorted(self.places, padded[: self.own].to(world.device))

    def __len__(self) -> int:
        return len(self.order)

    def rows(self, ours: Tensor) -> Tensor:
        """Return the rows [B, ...] of all processes in the order of their places; ``ours`` are this
        process's [n, ...].
        """
        if self.world.size == 1:
            return ours.detach()
        padded = ours.new_zeros(self.most, *ours.shape[1:])
        padded[: self.own] = ours.detach()
        return self.world.gather(padded).flatten(0, 1)[self.order]
