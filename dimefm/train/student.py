"""The student in training: its towers, its heads and what its losses learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dimefm.errors import ModelError
from dimefm.losses import Features, Need, Provider, TextTokenStates, outputs_of
from dimefm.models import intermediate
from dimefm.models import projection as projections
from dimefm.models.student import StudentSpec, new_tower
from dimefm.models.towers import TextTower
from dimefm.models.trimmed_text import trimmed
from dimefm.runtime.seeding import seed_of


@dataclass(frozen=True)
class Extras:
    """What losses ask of a student in addition to rows: of the image tower ``hidden`` and
    ``patches``, of the text tower ``words``.

    ``apart``: the last caption of each pair is there for its words alone.
    """

    image: tuple[str, ...] = ()
    words: bool = False
    apart: bool = False

    @staticmethod
    def of(needs: frozenset[Need], apart: bool) -> Extras:
        """Return what terms with these ``needs`` ask for."""
        image = [need.value for need in outputs_of(Provider.IMAGE_TOWER, needs)]
        words = Need.WORDS in needs
        return Extras(tuple(image), words, apart)


class Student(nn.Module):
    """What trains: an image tower, a text tower, or a whole CLIP; ``features`` gives ``forward`` in
    a loss's words.

    The rows of a tower live in the first teacher's space: the model's own rows or, of a model that
    keeps another dimension, those of a ``projection`` behind it. ``heads`` lead from there into the
    space of each further teacher. A whole CLIP keeps its own space; what its losses learn to
    compare it with a teacher are their parts, ``loss_modules``, one set a teacher, see
    :meth:`~dimefm.losses.Objective.loss_modules`. They learn here and are no part of what is
    finished. ``extras`` says what losses ask of the towers in addition to rows, and ``mask`` hides
    a part of prepared pixels, see :func:`~dimefm.models.patch_dropout.hide`.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: dict | None,
        heads: Sequence[nn.Module] = (),
        projection: nn.Linear | None = None,
        loss_modules: nn.ModuleList | None = None,
        extras: Extras | None = None,
    ):
        super().__init__()
        self.model = model
        self.extras = extras or Extras()
        self.heads = nn.ModuleList(heads)
        self.projection = projection or nn.Identity()
        self.loss_modules = loss_modules or nn.ModuleList()
        self.mask: nn.Module = nn.Identity()
        self._trimmed = trimmed(model) if preprocess is None or self.extras.words else None
        if preprocess is None:
            return
        self.register_buffer(
            "mean", torch.tensor(preprocess["mean"]).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(preprocess["std"]).view(1, 3, 1, 1), persistent=False
        )

    def prepared(self, pixels: Tensor) -> Tensor:
        """Return what the image tower reads, [B, 3, S, S], of uint8 pixels [B, S, S, 3]."""
        pixels = pixels.permute(0, 3, 1, 2).to(self.mean.dtype).div(255)
        return self.mask(
            ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        )

    def images(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return image rows, not normalised, of uint8 pixels [B, S, S, 3], or [B, V, S, S, 3] of V
        views: [B, D] or [B, V, D]. With them come ``hidden`` and ``patches`` where they are asked
        for."""
        shape = pixels.shape[:-3]
        ready = self.prepared(pixels.flatten(0, -4))
        if not self.extras.image:
            return {"image": self.projection(self.model.encode_image(ready)).unflatten(0, shape)}
        found = intermediate.image(self.model, ready)
        rows, hidden, patches = (
            value.unflatten(0, shape) for value in (self.projection(found.rows), *found[1:])
        )
        more = {"hidden": hidden, "patches": patches if pixels.ndim == 4 else patches[:, 0]}
        return {"image": rows} | {name: more[name] for name in self.extras.image}

    def sentences(self, tokens: Tensor) -> Tensor:
        """Return a text tower's rows [B, D], not normalised, of tokens [B, L]; places that are
        never read are not computed."""
        if self._trimmed is None:
            return self.projection(self.model.encode_text(tokens))
        return self.projection(
            self._trimmed.encode_text(tokens[:, : int(self._trimmed.lengths(tokens).max())])
        )

    def captions(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return text rows, not normalised, of tokens [B, L], or [B, C, L] of C captions: [B, D] or
        [B, C, D].

        Where words are asked for they are those of the first caption, or of one more, the last,
        that is there for its words alone; with them come its ``lengths``.
        """
        shape = tokens.shape[:-1]
        if not self.extras.words:
            return {"text": self.model.encode_text(tokens.flatten(0, -2)).unflatten(0, shape)}
        found = intermediate.text(self.model, tokens.flatten(0, -2))
        rows, words = found.rows.unflatten(0, shape), found.states.unflatten(0, shape)
        if tokens.ndim == 3:
            place = -1 if self.extras.apart else 0
            rows = rows[:, :-1] if self.extras.apart else rows
            rows, words, tokens = (
                rows[:, 0] if rows.shape[1] == 1 else rows,
                words[:, place],
                tokens[:, place],
            )
        lengths = tokens.new_full(
            tokens.shape[:1], tokens.shape[1]
        )  # of a tower that looks at padding
        return {
            "text": rows,
            "words": words,
            "lengths": lengths if self._trimmed is None else self._trimmed.lengths(tokens),
        }

    def forward(
        self, pixels: Tensor | None, tokens: Tensor | None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return all that is learned from, by name; rows are not normalised.

        Of pixels or tokens alone a tower's ``rows`` [B, D] and, for each further teacher,
        ``rows.1`` and so on; of both (pairs) ``image`` and ``text`` rows, the factor on cosines
        (``scale``) and, of a SigLIP, the ``bias``. ``labels`` [B, L] are the tokens that were
        hidden from the sentences; they are handed on.
        """
        if pixels is None:
            return self._own(self.sentences(tokens))
        if tokens is None:
            found = self.images(pixels)
            return self._own(found.pop("image")) | found
        bias = getattr(self.model, "logit_bias", None)
        scalars = {"scale": self.model.logit_scale.exp()} | (
            {} if bias is None else {"bias": bias.clone()}
        )
        further = {} if labels is None else {"labels": labels}
        return self.images(pixels) | self.captions(tokens) | scalars | further

    def _own(self, rows: Tensor) -> dict[str, Tensor]:
        return {"rows": rows} | {
            f"rows.{number}": head(rows) for number, head in enumerate(self.heads, 1)
        }

    @staticmethod
    def features(outputs: Mapping[str, Tensor], teachers: Sequence[Features]) -> list[Features]:
        """Return the student's features for each teacher, with that teacher's rows of the other
        side and scale.

        ``outputs`` are those of ``forward``. Of a text tower the sentences stand in ``image``, see
        :class:`~dimefm.losses.Features`. Of a whole CLIP its own sentences and scale make one set,
        the same for each teacher.
        """
        more: dict = {name: outputs[name] for name in ("hidden", "patches") if name in outputs}
        if "rows" in outputs:
            names = ["rows", *(f"rows.{number}" for number in range(1, len(teachers)))]
            return [
                teacher.with_image(outputs[name], **more)
                for name, teacher in zip(names, teachers, strict=True)
            ]
        if "words" in outputs:
            more["words"] = TextTokenStates(
                outputs["words"], outputs["lengths"], outputs.get("labels")
            )
        scale, bias = outputs["scale"], outputs.get("bias", 0.0)
        return [Features.from_rows(outputs["image"], outputs["text"], scale, bias, **more)] * max(
            1, len(teachers)
        )

    def finished(self, config: dict) -> tuple[nn.Module, dict]:
        """Return (model, open_clip config) of what has been learned: the model of ``config``, with
        the bridge folded into it where there is one, and then its dimension in the config."""
        if not isinstance(self.projection, nn.Linear):
            return self.model, config
        return projections.folded(self.model, self.projection), {
            **config,
            "embed_dim": self.projection.out_features,
        }


def heads(dims: Sequence[int], seed: int) -> list[nn.Module]:
    """Return a linear map from ``dims[0]`` to each further dimension, with random weights drawn
    from ``seed``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "heads") % 2**32)
        return [nn.Linear(dims[0], dim, bias=False) for dim in dims[1:]]


def projection_of(model: nn.Module, spec: StudentSpec, dim: int, seed: int) -> nn.Linear:
    """Return a bridge from the tower ``model`` of a spec to ``dim`` dimensions, with random weights
    drawn from ``seed``.

    Raises ModelError when the tower could not take it in at the end.
    """
    found, noise = (
        projections.draw(spec.config["embed_dim"], dim, seed),
        torch.Generator().manual_seed(0),
    )
    if isinstance(model, TextTower):
        inputs = torch.randint(
            model.text.vocab_size, (2, model.text.context_length), generator=noise
        )
    else:
        inputs = torch.randn(2, 3, spec.image_size, spec.image_size, generator=noise)
    with torch.random.fork_rng(devices=[]):
        ordinary = new_tower({**spec.config, "embed_dim": dim}, isinstance(model, TextTower))
    try:
        projections.check(model, found, ordinary, inputs)
    except ModelError as error:
        raise ModelError(
            f"{spec.name}: cannot take in a projection: {error}; remove --projection"
        ) from error
    return found
