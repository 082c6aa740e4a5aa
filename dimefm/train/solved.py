"""The last projection of a tower, solved in closed form before the first step.

One pass over the run's images, or texts, gives what the tower computes before its last projection
and the cached embeddings of the first teacher. Ridge regression between them is the best linear
projection; a tenth of the rows is held out to choose its strength and to say how good it is. The
solution is scaled to the size of the weights that it replaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimefm.errors import DataError, ModelError
from dimefm.models import projection
from dimefm.models.least_squares import NormalEquations, solve
from dimefm.recipe import Recipe
from dimefm.runtime.progress import Progress
from dimefm.train.distributed import DistributedContext
from dimefm.train.inputs.batch import Batch
from dimefm.train.inputs.image_batches import prefetch
from dimefm.train.student import Student

HELD_OUT = 10  # one row of so many; of fewer rows, the last one
MOST_SCORED = 2048  # held-out rows of a process whose cosine is measured
PROJECTION = "projection"  # of the student, and its key in the record of a start
CLOSE = 1e-3


def solve_projection(
    recipe: Recipe,
    student: Student,
    load: Callable[[int], Batch],
    rows: int,
    context: DistributedContext,
    echo: Callable[[str], None],
) -> dict:
    """Replace the last projection of a single tower by the solution; return its record.

    ``load`` loads a batch by its number, and the sources have so many ``rows``. Raises ModelError
    when the tower does not end in a linear projection, and DataError when no row can be read.
    """
    wanted = min(rows, recipe.init_rows or rows)
    batches = max(1, math.ceil(wanted / recipe.batch_size))
    solver = _Solver(student, context, wanted)
    training = student.training
    student.eval()
    bar = Progress(batches, "least squares", "batch", quiet=not context.is_main)
    with bar, closing(prefetch(load, iter(range(batches)), recipe.workers)) as loaded:
        solver.read(loaded, recipe.batch_size, bar)
    record = solver.finish()
    student.train(training)
    echo(
        f"last projection: solved by least squares on {record['rows']:,} rows: held-out rows have"
        f" R² {record['r2']:.3f} and mean cosine {record['cosine']:.3f} to the teacher"
        f" (ridge {record['ridge']:g})"
    )
    return record


class _Solver:
    """The sums of the regression, and the layer that takes its solution."""

    def __init__(self, student: Student, context: DistributedContext, wanted: int):
        self.student = student
        self.context = context
        self.wanted = wanted
        self.every = min(HELD_OUT, wanted)
        self.layer = _layer(student)
        self.kept: NormalEquations | None = None
        self.held_out: NormalEquations | None = None
        self.scored: list[tuple[Tensor, Tensor]] = []
        self.is_checked = False

    @torch.no_grad()
    def read(self, loaded: Iterator[Batch], batch_size: int, bar: Progress) -> None:
        """Add the first ``wanted`` rows of the batches.

        The last batch may reach into the next pass over the rows. Its rows beyond ``wanted`` are
        left out: a row that was held out must not be learned as well.
        """
        for number, batch in enumerate(loaded):
            if len(batch):
                features, targets = self._rows(batch)
                views = len(features) // len(batch)
                places = torch.from_numpy(batch.places) + number * batch_size
                places = places.repeat_interleave(views)
                is_wanted = (places < self.wanted).to(features.device)
                self._add(features[is_wanted], targets[is_wanted], places[is_wanted.cpu()])
            bar.update()

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what the last projection reads [N, D], and the teacher's embeddings [N, K]."""
        student = self.student
        device = self.context.device
        targets = batch.same_modality[0][torch.from_numpy(batch.places)]
        targets = F.normalize(targets.to(device).float().flatten(0, -2), dim=-1)
        if batch.pixels is not None:
            inputs = student.prepared(batch.pixels.to(device).flatten(0, -4))
        else:
            inputs = batch.tokens.to(device)
        if not self.is_checked:
            self._check(inputs)
        return self._features(inputs), targets

    def _encode(self, inputs: Tensor) -> Tensor:
        model = self.student.model
        if inputs.is_floating_point():
            return model.encode_image(inputs).float()
        return model.encode_text(inputs).float()

    def _features(self, inputs: Tensor) -> Tensor:
        if isinstance(self.student.projection, nn.Linear):
            return self._encode(inputs)
        with projection.removed(self.student.model):
            return self._encode(inputs)

    def _check(self, inputs: Tensor) -> None:
        """Raise ModelError unless the last projection is the last thing that the tower does."""
        self.is_checked = True
        if isinstance(self.student.projection, nn.Linear):
            return
        expected = self._encode(inputs)
        features = self._features(inputs)
        if isinstance(self.layer, nn.Linear):
            found = self.layer(features)
        else:
            found = features @ self.layer
        off = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        if not off <= CLOSE:
            raise ModelError(
                "init_projection = 'least-squares': the student's last projection is not the last"
                " thing that it does. Fix: remove it, or set projection = 'linear'"
            )

    def _add(self, features: Tensor, targets: Tensor, places: Tensor) -> None:
        """Add rows at their places in the epoch; some are held out."""
        if self.kept is None or self.held_out is None:
            shape = (features.shape[1], targets.shape[1], features.device)
            self.kept = NormalEquations(*shape)
            self.held_out = NormalEquations(*shape)
        is_held_out = (places % self.every == self.every - 1).to(features.device)
        self.kept.add(features[~is_held_out], targets[~is_held_out])
        self.held_out.add(features[is_held_out], targets[is_held_out])
        if sum(len(x) for x, _ in self.scored) < MOST_SCORED:
            self.scored.append((features[is_held_out], targets[is_held_out]))

    def finish(self) -> dict:
        """Solve, write the solution into the layer, and return the record."""
        kept, held_out = self._of_all_processes()
        if held_out.rows < 1 or kept.rows < 1:
            raise DataError(
                f"init_projection = 'least-squares': {kept.rows + held_out.rows:.0f} rows can be"
                f" read, expected at least 2. Fix: use more rows, or remove it"
            )
        layer = self.layer
        has_bias = isinstance(layer, nn.Linear) and layer.bias is not None
        solution = solve(kept, held_out, has_bias)
        cosine = self._cosine(kept.solve(solution.ridge, has_bias))
        scale = self._scale(solution.weight)
        bias = None if solution.bias is None else solution.bias * scale
        projection.replace(layer, solution.weight * scale, bias)
        self._share()
        return {
            "by": "least-squares",
            "rows": int(kept.rows + held_out.rows),
            "held_out": int(held_out.rows),
            "features": solution.weight.shape[1],
            "ridge": solution.ridge,
            "r2": round(solution.r2, 6),
            "cosine": round(cosine, 6),
            "parameters": self._names(),
        }

    def _of_all_processes(self) -> tuple[NormalEquations, NormalEquations]:
        """Return the sums over the rows of all processes."""
        sums = []
        for equations in (self.kept, self.held_out):
            if equations is None:
                raise DataError(
                    "init_projection = 'least-squares': no row can be read, expected some. Fix:"
                    " correct the sources, or extract them again"
                )
            for tensor in equations.tensors:
                tensor.copy_(self.context.gather(tensor).sum(0))
            sums.append(equations)
        return sums[0], sums[1]

    def _cosine(self, solution: Tensor) -> float:
        """Return the mean cosine of held-out rows to the teacher's, by a solution without them."""
        total = torch.zeros(2, dtype=torch.float64, device=self.context.device)
        for features, targets in self.scored:
            rows = features.double() @ solution[:, :-1].T + solution[:, -1]
            cosines = F.cosine_similarity(rows, targets.double(), dim=-1)
            total += torch.stack([cosines.sum(), torch.ones_like(cosines).sum()])
        summed = self.context.gather(total).sum(0)
        return float(summed[0] / summed[1].clamp(min=1))

    def _scale(self, weight: Tensor) -> float:
        """Return the factor that gives a solution the size of the weights that it replaces.

        Rows are compared by their direction alone. Steps of an optimizer are of the size that suits
        the usual weights, and would soon drown much smaller ones.
        """
        layer = self.layer
        replaced = layer.weight if isinstance(layer, nn.Linear) else layer
        size = float(weight.norm())
        return float(replaced.detach().norm()) / size if size > 0 else 1.0

    @torch.no_grad()
    def _share(self) -> None:
        """Give all processes the main one's solution, to the last bit."""
        layer = self.layer
        parameters = [layer] if isinstance(layer, nn.Parameter) else list(layer.parameters())
        for parameter in parameters:
            parameter.copy_(self.context.gather(parameter)[0])

    def _names(self) -> list[str]:
        layer = self.layer
        parameters = [layer] if isinstance(layer, nn.Parameter) else list(layer.parameters())
        ids = {id(parameter) for parameter in parameters}
        return [name for name, value in self.student.named_parameters() if id(value) in ids]


def _layer(student: Student) -> nn.Linear | nn.Parameter:
    """Return the layer that leads to the teacher's dimension."""
    if isinstance(student.projection, nn.Linear):
        return student.projection
    try:
        owner, name = projection.last_projection(student.model)
    except ModelError as reason:
        raise ModelError(
            f"init_projection = 'least-squares': the student cannot take it: {reason}. Fix: remove"
            " it, or choose another student"
        ) from reason
    return getattr(owner, name)
