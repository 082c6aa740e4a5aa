"""Sentences through extraction, against a plain open_clip loop at full context; and the
tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks import _extract_models as models
from benchmarks import _extract_peers as peers
from benchmarks._extract_data import Sizes, captions, written
from benchmarks._extract_images import Ours
from benchmarks._timing import Line, Work, interleaved
from dimefm.extract.extract import Settings
from dimefm.models import open_clip

UNIT = "sentences/s"
GOALS = {"ViT-B-32": (">=", 4.5)}
PEER_BATCH = 64  # the loop at full context is no faster with more
COMPARED = 5000  # sentences whose tokens are compared


def sentences(sizes: Sizes, arch: str) -> list[Line]:
    """Time a text tower. The loop sees every k-th sentence: at full context each costs it the same,
    whatever its length.
    """
    encoder, found = models.eager(arch), captions(sizes.data, 0, sizes.sentences)
    step = max(1, len(found) // sizes.slow)
    few = [" ".join(sentence.split()) for sentence in found[::step][: sizes.slow]]
    warm = written(found[:PEER_BATCH], sizes.folder / "warm.txt")
    ours = Ours(
        encoder,
        written(found, sizes.folder / "sentences.txt"),
        sizes,
        f"sentences {arch}",
        warm,
        "text",
    )
    ours.settings = Settings(
        dtype="float32", long_texts="truncate", progress=False
    )  # as the loop has it, to compare rows
    tokenizer, saved = open_clip.tokenizer_of(arch), sizes.folder / "sentences.npy"

    def loop(repeat: int) -> None:
        peers.sentence_script(
            encoder.text_model, tokenizer, few if repeat else few[:PEER_BATCH], PEER_BATCH, saved
        )

    seen = interleaved(
        {"ours": Work(ours, len(found)), "loop": Work(loop, len(few))}, sizes.repeats
    )
    mine = np.asarray(ours.cache[np.arange(len(few)) * step])
    lengths = np.minimum(encoder.tokenize(found)[1], encoder.card.context_length or 77)
    ideal = (encoder.card.context_length or 77) / float(np.mean(lengths))
    what = (
        f"{arch}: {len(found):,} sentences, against open_clip's loop at full context ({len(few):,}"
        " of them)"
    )
    return [
        Line(f"sentences {arch} / loop", what, seen["ours"], UNIT, seen["loop"], GOALS.get(arch)),
        Line(
            f"sentences {arch} ideal",
            f"{arch}: places at full context over places with a token",
            ideal,
            "times",
        ),
        Line(
            f"sentences {arch} difference",
            f"{arch}: largest difference of unit rows, {len(few):,} sentences",
            float(np.abs(mine - np.load(saved)).max()),
            "",
            goal=("<=", 1e-5),
        ),
    ]


def tokenizing(sizes: Sizes, arch: str) -> list[Line]:
    """Time the tokenizers on sentences that neither has met; each round has others, words become
    known as they do in use.
    """
    encoder, theirs = models.eager(arch), open_clip.tokenizer_of(arch)
    count = min(COMPARED, sizes.sentences)
    rounds = [captions(sizes.data, repeat * count, count) for repeat in range(sizes.repeats + 1)]
    batches = [[part[start : start + 256] for start in range(0, len(part), 256)] for part in rounds]

    def over(tokenize: Callable) -> Work:
        return Work(lambda repeat: [tokenize(batch) for batch in batches[repeat]], count)

    seen = interleaved({"ours": over(encoder.tokenize), "theirs": over(theirs)}, sizes.repeats)
    wrong = sum(
        bool((a != b).any())
        for a, b in zip(encoder.tokenize(rounds[-1])[0], theirs(rounds[-1]), strict=True)
    )
    return [
        Line(
            "tokenizer / open_clip",
            "256 sentences at a time, against open_clip's tokenizer",
            seen["ours"],
            UNIT,
            seen["theirs"],
        ),
        Line(
            "tokenizer mismatches",
            f"sentences of {count:,} with other tokens",
            float(wrong),
            "",
            goal=("<=", 0),
        ),
    ]
