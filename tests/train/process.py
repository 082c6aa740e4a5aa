"""One process of several that train together; run by test_world.py with torchrun's variables in the
environment.

    python process.py FOLDER

Each ``FOLDER/NAME.toml`` is a recipe. Process 0 leaves ``NAME.pt`` with the loss and the gradients
of its first step in float64, every process ``NAME.RANK.sha256`` with the digest of its gradients;
recipes whose name begins with "run" are trained to their end into ``NAME.run``.
"""

import hashlib
import sys
from pathlib import Path

import torch

from dimefm.recipe import read
from dimefm.train.distributed import init_distributed
from dimefm.train.grad_cache import Gradients
from dimefm.train.trainer import Trainer


def quiet(line):
    """Say nothing."""


def first_step(recipe, out, world):
    """Return the loss terms and gradients of the first step, as float64 weights have them."""
    run = Trainer(recipe, out, False, quiet, world)
    run.gradients = Gradients(run.student.double(), world)
    batches = [run.task.batches(number) for number in range(recipe.accum_freq)]
    losses, rows = run.backward(0, batches)
    gradients = {
        name: parameter.grad
        for name, parameter in run.student.named_parameters()
        if parameter.requires_grad
    }
    return {
        "rows": rows,
        "losses": {k: v.detach() for k, v in losses.items()},
        "gradients": gradients,
    }


def main(folder, world):
    """Do all recipes of a folder."""
    for path in sorted(folder.glob("*.toml")):
        recipe, out = read(path), path.with_suffix(".run")
        if path.stem.startswith("run"):
            run = Trainer(recipe, out, False, quiet, world)
            run.loop()
            run.finish()
            continue
        found = first_step(recipe, out, world)
        if world.is_main:
            torch.save(found, path.with_suffix(".pt"))
        digest = hashlib.sha256(b"".join(g.numpy().tobytes() for g in found["gradients"].values()))
        path.with_suffix(f".{world.rank}.sha256").write_text(digest.hexdigest())


if __name__ == "__main__":
    with init_distributed(torch.device("cpu")) as world:
        main(Path(sys.argv[1]), world)
