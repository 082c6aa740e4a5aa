"""What several commands share: groups that import late, and options that take many values after one
flag.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from dimefm.cli._open_clip_habits import advice
from dimefm.cli._output import FIRST, HEADING, common_options
from dimefm.errors import did_you_mean

# Every command has these by itself, not only below the main one: click keeps the help option that a
# command's first context gave it.
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def open_sources(found: Sequence[str], kind: str, flags: Mapping):
    """Return the rows of ``found``, opened as the options --dataroot, --input-format, --scratch and
    the columns say.

    Where a command has the options of :func:`selection_options`, only the selected ones.
    """
    from dimefm.data import Columns, open_rows
    from dimefm.data.selection import Selection, select
    from dimefm.data.sources import local_root

    selection = Selection.parse(flags.get("rows"), flags.get("split"), flags.get("limit"))
    columns = Columns(
        image=flags["image_column"],
        text=flags["text_column"],
        key=flags["key_column"],
        separator=flags["separator"],
        root=local_root(flags["dataroot"], flags["scratch"]),
    )
    where = {name: flags[name] for name in ("dataroot", "input_format", "scratch")}
    return select(open_rows(found, kind, columns=columns, **where), selection)


def refuse_absent_inputs(
    sources: Sequence[str],
    dataroot: str | None,
    image_caches: Sequence[str] = (),
    text_caches: Sequence[str] = (),
    eval_root: str | None = None,
    student: str = "",
) -> None:
    """Raise a DimefmError for a local source, cache, folder of datasets or student's config that
    does not exist.

    This takes milliseconds; a command calls it before it imports what takes seconds.
    """
    from dimefm.data.resolver import Resolver

    resolver = Resolver("pair", None, dataroot, scratch=Path())
    for source in sources:
        resolver.refuse_absent(source)
    for cache in image_caches:
        refuse_absent_cache(cache, "image")
    for cache in text_caches:
        refuse_absent_cache(cache, "text")
    refuse_absent_root(eval_root)
    refuse_absent_config(student)


def refuse_absent_cache(root: str, kind: str) -> None:
    """Raise CacheError for a local folder that holds no cache; name the cache inside it."""
    from dimefm.cache.manifest import FILE, Manifest
    from dimefm.errors import CacheError
    from dimefm.storage.remote import is_url

    if is_url(root) or Path(root, FILE).exists():
        return
    inner = Path(root, f"{kind}s")
    if (inner / FILE).exists():
        raise CacheError(
            f"--{kind}-cache {root}: no {FILE}, so no cache. Fix: name {inner}, if that is meant"
        )
    Manifest.read(root)


def refuse_absent_root(root: str | Path | None) -> None:
    """Raise DataError for a folder of datasets that does not exist."""
    from dimefm.errors import DataError

    if root is not None and not Path(root).is_dir():
        raise DataError(
            f"{root}: there is no such folder. Fix: give the folder that holds one folder per"
            " dataset"
        )


def refuse_absent_config(student: str) -> None:
    """Raise ModelError for a student that is the path of a JSON file, and nothing is there."""
    from dimefm.errors import ModelError

    if student.endswith(".json") and not Path(student).exists():
        raise ModelError(
            f"{student}: cannot be read as an open_clip config: no such file. Fix: check the path"
        )


def dashed(name: str) -> str:
    """Return an option's name with dashes: ``--use_pvl_loss``, as DIME-FM spells it, is
    ``--use-pvl-loss``.
    """
    return name.replace("_", "-") if name.startswith("--") else name


def add_common_options(command: click.Command) -> None:
    """Add ``-q``, ``-v``, ``--json`` and ``--debug`` to a command and to all commands below it."""
    if any(FIRST in param.opts for param in command.params):
        return
    command.params += common_options()
    if isinstance(command, ManyValues) and command.sections:
        command.sections = {**command.sections, FIRST: HEADING}
    if isinstance(command, click.Group):
        for below in command.commands.values():
            add_common_options(below)


class Lazy(click.Group):
    """A group whose commands (name -> module that holds ``command``) are imported when they are
    asked for, so that ``--help`` is quick."""

    def __init__(self, *args, modules: Mapping[str, str], **settings):
        super().__init__(*args, **{"context_settings": CONTEXT, **settings})
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which ``modules`` has them."""
        return list(self.modules)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return one command, None when there is none of that name."""
        if name not in self.modules:
            return None
        command = importlib.import_module(self.modules[name]).command
        add_common_options(command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]):
        """Find the command of ``args``; an unknown one is answered with the nearest known."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(
                f"no command '{args[0]}': {did_you_mean(args[0], self.modules)}", ctx
            ) from error


class ManyValues(click.Command):
    """A command whose repeatable options also take several values at once: ``--images a b c`` is
    ``--images a --images b --images c``, also after ``--images=a``, so that a shell may expand a
    pattern there. Underscores in option names are read as dashes. ``sections`` (option -> heading)
    divide the options in ``--help``, each from that option on.
    """

    def __init__(self, *args, sections: Mapping[str, str] | None = None, **settings):
        super().__init__(*args, **{"context_settings": CONTEXT, **settings})
        self.sections = sections or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in their sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        heading = "Options"
        for param in self.get_params(ctx):
            if not isinstance(param, click.Option):
                continue  # the usage line shows arguments
            heading = self.sections.get(param.opts[0], heading)
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the flag before each further value, then parse as usual."""
        many = {
            flag
            for p in self.params
            if isinstance(p, click.Option) and p.multiple
            for flag in p.opts
        }
        spelled: list[str] = []
        flag, filled = None, False
        for arg in args:
            name, equals, value = arg.partition("=")
            arg = dashed(name) + equals + value
            if arg.startswith("-") and arg != "-":
                flag = dashed(name) if dashed(name) in many else None
                filled = bool(equals)
            elif flag is not None:
                spelled += [flag] if filled else []
                filled = True
            spelled.append(arg)
        try:
            return super().parse_args(ctx, spelled)
        except click.NoSuchOption as error:
            known = {flag for param in self.params for flag in param.opts}
            told = advice(self.name, [dashed(arg) for arg in args], known)
            if told:
                raise click.UsageError(
                    f"no such option '{error.option_name}'. {told}", ctx
                ) from error
            raise
