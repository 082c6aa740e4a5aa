"""Flags of DIME-FM's training script that have another name in ``dimefm train``.

Source: DIME-FM, released Training/utils/opts.py. The flags are taken as they are; what each means
is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

STUDENTS = {
    "vitb32_large_language.yaml": "dime-ViT-B-32",
    "swin_tiny.yaml": "dime-Swin-T",
}
"""The released student configs (Training/configs/models), and the students that they describe."""

RENAMED: dict[str, tuple[str, type]] = {
    "base_lr": ("lr", float),
    "warmup_lr": ("warmup_lr", float),
    "warmup_epochs": ("warmup", float),
    "num_workers": ("workers", int),
    "print_freq": ("log_every", int),
    "w_vl_loss": ("w_vl", float),
    "w_pvl_loss": ("w_pvl", float),
    "w_udist_loss": ("w_udist", float),
}
"""Flag of DIME-FM -> key of a recipe with the same meaning."""

OTHERS = ("amp", "local_rank", "student_config_file", "output_dir", "prefix")
OUTPUT_DIR = "snapshots"  # the release's default


def dime_fm_options(command: Callable) -> Callable:
    """Add the flags, which ``--help`` does not list."""
    hidden: dict[str, Any] = {"hidden": True, "default": None, "help": "A flag of DIME-FM."}
    options = [click.option("--amp", is_flag=True, **hidden)]
    for name in ("student_config_file", "output_dir", "prefix"):
        options.append(click.option(_flag(name), name, **hidden))
    options.append(click.option("--local-rank", type=int, **hidden))
    for name, (_, kind) in RENAMED.items():
        options.append(click.option(_flag(name), f"dime_fm_{name}", type=kind, **hidden))
    for option in options:
        command = option(command)
    return command


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def translate(flags: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Take DIME-FM's flags out of ``flags``.

    Returns (the settings that they stand for, a line for each that says so). ``out`` among the
    settings is the run folder. Raises UsageError for a setting that is also given by its own flag.
    """
    settings: dict[str, Any] = {}
    lines: list[str] = []

    def take(flag: str, value: Any, key: str, meaning: Any) -> None:
        if flags.get(key) not in (None, ()):
            raise click.UsageError(
                f"{_flag(flag)} and {_flag(key)} mean the same. Fix: leave one out"
            )
        settings[key] = meaning
        stated = "" if value is True else f" {value}"
        name = f"--set {key}=" if key == "warmup_lr" else f"{_flag(key)} "
        lines.append(f"{_flag(flag)}{stated}: {name}{meaning}")

    given = {name: flags.pop(name, None) for name in OTHERS}
    for name, (key, _) in RENAMED.items():
        value = flags.pop(f"dime_fm_{name}", None)
        if value is not None:
            take(name, value, key, value)
    if given["amp"]:
        take("amp", True, "precision", "bf16")
    if given["student_config_file"] is not None:
        config = given["student_config_file"]
        take("student_config_file", config, "student", _student_of(config))
    if given["local_rank"] is not None:
        lines.append("--local-rank: not used; torchrun says which process this is")
    if given["output_dir"] is not None or given["prefix"] is not None or (settings or lines):
        folder = Path(given["output_dir"] or OUTPUT_DIR, given["prefix"] or "")
        if given["output_dir"] is not None or given["prefix"] is not None:
            take("output_dir", folder, "out", folder)
        elif flags.get("out") is None:
            settings["out"] = folder
            lines.append(f"no --output-dir: --out {folder}")
    return settings, [f"DIME-FM's {line}" for line in lines]


def _student_of(config: str) -> str:
    name = Path(config).name
    if name not in STUDENTS:
        known = ", ".join(STUDENTS)
        raise click.BadParameter(
            f"{ascii(name)} is none of the released configs ({known}). Fix: use --student, with an"
            " open_clip config or a name",
            param_hint="--student-config-file",
        )
    return STUDENTS[name]
