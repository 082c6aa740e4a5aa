"""Keys that say what a run learns from."""

from __future__ import annotations

from typing import ClassVar, Literal

from dimefm.recipe.conditions import (
    NEIGHBOURS,
    PAIRS,
    PAIRS_WITH_IMAGE_CACHE,
    PAIRS_WITH_TEXT_CACHE,
    UNCACHED_TEXTS,
    UNPAIRED_TEXTS,
)
from dimefm.recipe.keys import OneOrMore, Shares, Strings, key
from dimefm.recipe.section import Section


class Data(Section):
    """Raw images and texts, and the teacher's features of them."""

    title: ClassVar[str] = "Data"

    images: Strings = key(
        (),
        "Image sources: files, folders, patterns, .list files, or URLs.",
        more="With text = 'student' they are sources of pairs.",
        metavar="SRC...",
    )
    texts: Strings = key(
        (),
        "Text sources, to train a text tower on.",
        metavar="SRC...",
        applies_when=[UNPAIRED_TEXTS],
    )
    image_cache: OneOrMore = key(
        (),
        "Feature caches of the images: one for each teacher.",
        metavar="DIR...",
        folder=True,
    )
    text_cache: OneOrMore = key(
        (),
        "Feature caches of texts, of the same teachers in the same order; for --text student, of "
        "the pairs' captions.",
        metavar="DIR...",
        folder=True,
    )
    tsv_file_list: Strings = key(
        (),
        "DIME-FM's own files, in place of --images and caches: image, image_feat, text and "
        "text_feat.",
        more="A file or command line that sets it and none of images, image_cache and text_cache "
        "clears these three. The student then sees free crops unless the same place sets others.",
        metavar="LIST...",
    )
    captions: Literal["text", "label"] = key(
        "text",
        "Captions of pairs: the texts of the source, or prompts made from its labels.",
        applies_to=PAIRS,
    )
    long_texts: Literal["truncate", "quarantine"] = key(
        "truncate",
        "Captions that are longer than the student's context: truncate them, as open_clip does, or "
        "leave their pairs out.",
        more="extract-features leaves such texts out unless its --long-texts is truncate.",
        applies_to=PAIRS,
        applies_when=[UNCACHED_TEXTS],
    )
    dataroot: str | None = key(
        None,
        "Folder or URL that relative sources are looked up in.",
        metavar="DIR",
    )
    input_format: str | None = key(
        None,
        "Format of the sources, when it cannot be told from them.",
        metavar="NAME",
    )
    image_column: str | None = key(
        None,
        "Column or tar ending that holds images.",
        metavar="NAME",
    )
    text_column: str | None = key(
        None,
        "Column or tar ending that holds texts.",
        metavar="NAME",
    )
    key_column: str | None = key(
        None,
        "Column that holds keys.",
        metavar="NAME",
    )
    separator: str | None = key(
        None,
        "Separator of CSV and TSV tables: one character, or tab.",
        more="By default it is told from the header.",
        metavar="CHAR",
    )
    rows: str | None = key(
        None,
        "Range of samples to use: A to B - 1, counted from 0 through all shards.",
        metavar="A:B",
    )
    split: str | None = key(
        None,
        "Share of these samples to use, by a hash of their keys: 0:0.9, and 0.9:1 for the rest; "
        "photo.jpg#3 goes with photo.jpg.",
        metavar="A:B",
    )
    limit: int | None = key(
        None,
        "Number of these samples to use, from the first: of the images and of the texts each.",
        metavar="N",
        gt=0,
    )
    scratch: str | None = key(
        None,
        "Folder for local copies of remote files.",
        metavar="DIR",
        folder=True,
        unset="~/.cache/dimefm",
        may_differ_on_resume=True,
    )
    source_weights: Shares = key(
        (),
        "Shares of a batch, one for each source in --images (of a text tower, --texts).",
        formerly="mix",
        more="By default every sample comes equally often, or as weight= in a .list file says.",
        metavar="SHARE...",
        expected="positive numbers, one for each source",
    )
    shuffle: Literal["auto", "rows", "blocks"] = key(
        "auto",
        "Shuffling: of all samples, or of blocks and then of the samples of some blocks at a time; "
        "auto: blocks for large Parquet files.",
        more="A block is a row group of a Parquet file, or 1,000 samples of another file. Parquet "
        "is large above the 2 GiB that stay in memory.",
    )
    neighbours: OneOrMore = key(
        (),
        "Nearest-neighbour graphs of `dimefm cache neighbours`, one for each text cache.",
        flag=False,
        applies_when=[PAIRS_WITH_TEXT_CACHE],
        for_losses="neighbours",
    )
    neighbours_among: int = key(
        1,
        "Number of nearest neighbours of which every step draws one.",
        flag=False,
        gt=0,
        applies_to=PAIRS,
        applies_when=[NEIGHBOURS],
    )
    image_tokens: OneOrMore = key(
        (),
        "Caches of `extract-features --tokens`, one for each image cache.",
        flag=False,
        applies_when=[PAIRS_WITH_IMAGE_CACHE],
        for_losses="tokens",
    )
    text_tokens: OneOrMore = key(
        (),
        "Caches of `extract-features --tokens`, one for each text cache.",
        flag=False,
        applies_when=[PAIRS_WITH_TEXT_CACHE],
        for_losses="tokens",
    )
