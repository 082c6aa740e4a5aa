"""The student in training: its towers, its heads and the trainable modules of its losses."""

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
from dimefm.models.weights.inheritance.cut import cut
from dimefm.models.weights.inheritance.gated import Gates
from dimefm.runtime.seeding import seed_of
from dimefm.runtime.text import without_remedy


@dataclass(frozen=True)
class Extras:
    """What losses need of a student in addition to embeddings.

    ``image`` names outputs of the image tower, ``hidden`` or ``patches`` or both. ``words`` asks
    for the token states of the text tower. ``extra_mlm_caption`` says that the last caption of each
    pair is encoded for its words alone.
    """

    image: tuple[str, ...] = ()
    words: bool = False
    extra_mlm_caption: bool = False

    @staticmethod
    def from_needs(needs: frozenset[Need], extra_mlm_caption: bool) -> Extras:
        """Return what losses with these ``needs`` need of the towers."""
        image = [need.value for need in outputs_of(Provider.IMAGE_TOWER, needs)]
        words = Need.WORDS in needs
        return Extras(tuple(image), words, extra_mlm_caption)


class Student(nn.Module):
    """The model that is trained, an image tower, a text tower or a whole CLIP, with its modules.

    A tower embeds into the space of the first teacher: directly, or through ``projection`` when its
    own dimension differs. ``heads`` map from there into the space of each further teacher. A whole
    CLIP keeps its own space.

    ``loss_modules`` holds the trainable modules of the losses, one set for each teacher, see
    :meth:`~dimefm.losses.Objective.loss_modules`. They are not part of the finished model.
    ``frozen`` are normalizations in it that never learn. ``extras`` says what losses need in
    addition to embeddings, and ``mask`` hides a part of the prepared pixels, see
    :func:`~dimefm.models.patch_dropout.hide`. ``gates`` are the gates that the model computes
    through, None for most students.
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
        self.reads_trimmed_text = preprocess is None or self.extras.words
        self.heads = nn.ModuleList(heads)
        self.projection = projection or nn.Identity()
        self.loss_modules = loss_modules or nn.ModuleList()
        self.mask: nn.Module = nn.Identity()
        self.frozen: tuple[nn.Module, ...] = ()
        self.use(model)
        if preprocess is not None:
            self._register_channels("mean", preprocess["mean"])
            self._register_channels("std", preprocess["std"])

    def use(self, model: nn.Module, gates: Gates | None = None) -> None:
        """Make ``model`` the student's model, which computes through ``gates`` if there are any."""
        self.model = model
        self.gates = gates
        self._trimmed = trimmed(model) if self.reads_trimmed_text else None

    def _register_channels(self, name: str, values: Sequence[float]) -> None:
        """Keep one value for each color channel as a buffer, not in checkpoints."""
        channels = torch.tensor(values).view(1, 3, 1, 1)
        self.register_buffer(name, channels, persistent=False)

    def train(self, mode: bool = True) -> Student:
        """Set the training mode; ``frozen`` normalizations keep their running statistics."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def prepared(self, pixels: Tensor) -> Tensor:
        """Return the input of the image tower [B, 3, S, S] from uint8 pixels [B, S, S, 3]."""
        scaled = pixels.permute(0, 3, 1, 2).to(self.mean.dtype).div(255)
        normalized = (scaled - self.mean) / self.std
        return self.mask(normalized.contiguous(memory_format=torch.channels_last))

    def images(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the image embeddings, not normalized, of uint8 pixels, as ``image``.

        They are [B, D] for pixels [B, S, S, 3], and [B, V, D] for the V views of pixels [B, V, S,
        S, 3]. ``hidden`` and ``patches`` of the first view are returned where losses need them.
        """
        shape = pixels.shape[:-3]
        prepared = self.prepared(pixels.flatten(0, -4))
        if not self.extras.image:
            embeddings = self.model.encode_image(prepared)
            return {"image": self.projection(embeddings).unflatten(0, shape)}
        outputs = intermediate.image(self.model, prepared)
        patches = outputs.patches.unflatten(0, shape)
        has_views = pixels.ndim > 4
        first_patches = patches[:, 0] if has_views else patches
        hidden = outputs.hidden.unflatten(0, shape)
        extras = {"hidden": hidden, "patches": first_patches}
        embeddings = self.projection(outputs.rows)
        images = {"image": embeddings.unflatten(0, shape)}
        for name in self.extras.image:
            images[name] = extras[name]
        return images

    def sentences(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, D], not normalized, of a text tower for tokens [B, L].

        Positions behind the longest text are not computed where the tower does not read them.
        """
        if self._trimmed is None:
            return self.projection(self.model.encode_text(tokens))
        longest = int(self._trimmed.lengths(tokens).max())
        return self.projection(self._trimmed.encode_text(tokens[:, :longest]))

    def captions(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the text embeddings, not normalized, of a whole CLIP, as ``text``.

        They are [B, D] for tokens [B, L], and [B, C, D] for the C captions of tokens [B, C, L].
        Where losses need ``words``, these are the token states of the first caption, or of the last
        one if it is encoded for its words alone; ``lengths`` are their numbers of tokens.
        """
        shape = tokens.shape[:-1]
        flat = tokens.flatten(0, -2)
        if not self.extras.words:
            return {"text": self.model.encode_text(flat).unflatten(0, shape)}
        outputs = intermediate.text(self.model, flat)
        embeddings = outputs.rows.unflatten(0, shape)
        words = outputs.states.unflatten(0, shape)
        if tokens.ndim == 3:
            caption = 0
            if self.extras.extra_mlm_caption:
                caption = -1
                embeddings = embeddings[:, :-1]
            if embeddings.shape[1] == 1:
                embeddings = embeddings[:, 0]
            words = words[:, caption]
            tokens = tokens[:, caption]
        return {"text": embeddings, "words": words, "lengths": self._lengths(tokens)}

    def _lengths(self, tokens: Tensor) -> Tensor:
        """Return the numbers of tokens [B] to read of tokens [B, L]; all, if padding is read."""
        if self._trimmed is not None:
            return self._trimmed.lengths(tokens)
        samples, length = tokens.shape
        return tokens.new_full((samples,), length)

    def forward(
        self, pixels: Tensor | None, tokens: Tensor | None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the outputs that losses use, by name; embeddings are not normalized.

        A tower (pixels or tokens alone) gives ``rows`` [B, D] and ``rows.1``, ``rows.2`` and so on
        for further teachers. Pairs (both) give ``image`` and ``text``, the factor on cosines
        ``scale`` and, for a SigLIP, the ``bias``. ``labels`` [B, L] are the tokens that were hidden
        from the captions; they are returned unchanged.
        """
        if self.gates is None:
            return self._outputs(pixels, tokens, labels)
        return self.gates.run(self.model, self._outputs, pixels, tokens, labels)

    def _outputs(
        self, pixels: Tensor | None, tokens: Tensor | None, labels: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the outputs of :meth:`forward` without regard to gates."""
        if pixels is None:
            return self._for_teachers(self.sentences(tokens))
        if tokens is None:
            images = self.images(pixels)
            return self._for_teachers(images.pop("image")) | images
        scalars = {"scale": self.model.logit_scale.exp()}
        bias = getattr(self.model, "logit_bias", None)
        if bias is not None:
            scalars["bias"] = bias.clone()
        outputs = self.images(pixels)
        outputs.update(self.captions(tokens))
        outputs.update(scalars)
        if labels is not None:
            outputs["labels"] = labels
        return outputs

    def _for_teachers(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Return the embeddings of a tower in the space of each teacher."""
        outputs = {"rows": embeddings}
        for number, head in enumerate(self.heads, 1):
            outputs[f"rows.{number}"] = head(embeddings)
        return outputs

    @staticmethod
    def features(outputs: Mapping[str, Tensor], teachers: Sequence[Features]) -> list[Features]:
        """Return the student's features to compare with each teacher's.

        ``outputs`` are those of ``forward``. A tower is compared through the teacher's embeddings
        and scale of the other side; texts of a text tower are in ``image``, see
        :class:`~dimefm.losses.Features`. A whole CLIP has its own texts and scale, the same for
        every teacher.
        """
        extras: dict = {}
        for name in ("hidden", "patches"):
            if name in outputs:
                extras[name] = outputs[name]
        if "rows" in outputs:
            features = []
            for number, teacher in enumerate(teachers):
                name = f"rows.{number}" if number else "rows"
                embeddings = outputs[name]
                features.append(teacher.with_image(embeddings, **extras))
            return features
        if "words" in outputs:
            extras["words"] = TextTokenStates(
                outputs["words"], outputs["lengths"], outputs.get("labels")
            )
        scale = outputs["scale"]
        bias = outputs.get("bias", 0.0)
        clip = Features.from_rows(outputs["image"], outputs["text"], scale, bias, **extras)
        return [clip] * max(1, len(teachers))

    def cut(self, config: dict) -> tuple[nn.Module, dict]:
        """Return (the model that the gates leave, its config), see :func:`cut`."""
        return cut(self.model, config, self.gates)

    def finished(self, config: dict) -> tuple[nn.Module, dict]:
        """Return (model, open_clip config) of the finished student, which began with ``config``.

        A projection is folded into the model, which then has its dimension. A gated model is cut.
        """
        model = self.model
        if self.gates is not None:
            model, config = self.cut(config)
        if not isinstance(self.projection, nn.Linear):
            return model, config
        model = projections.folded(model, self.projection)
        return model, {**config, "embed_dim": self.projection.out_features}


def heads(dims: Sequence[int], seed: int) -> list[nn.Module]:
    """Return a linear map from ``dims[0]`` to each further dimension, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "heads") % 2**32)
        return [nn.Linear(dims[0], dim, bias=False) for dim in dims[1:]]


def projection_of(model: nn.Module, spec: StudentSpec, dim: int, seed: int) -> nn.Linear:
    """Return a projection from a tower to ``dim`` dimensions, with random weights.

    Raises ModelError when the projection could not be folded into the tower at the end.
    """
    projection = projections.draw(spec.config["embed_dim"], dim, seed)
    generator = torch.Generator().manual_seed(0)
    is_text = isinstance(model, TextTower)
    if is_text:
        shape = (2, model.text.context_length)
        inputs = torch.randint(model.text.vocab_size, shape, generator=generator)
    else:
        inputs = torch.randn(2, 3, spec.image_size, spec.image_size, generator=generator)
    with torch.random.fork_rng(devices=[]):
        ordinary = new_tower({**spec.config, "embed_dim": dim}, is_text)
    try:
        projections.check(model, projection, ordinary, inputs)
    except ModelError as error:
        raise ModelError(
            f"{spec.name}: cannot take in a projection: {without_remedy(error)}."
            " Fix: remove --projection"
        ) from error
    return projection
