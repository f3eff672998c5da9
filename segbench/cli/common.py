"""What all commands share: settings, global options before or after the verb, escaped text, tables."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.errors import SegbenchError
from segbench.text import safe

if TYPE_CHECKING:
    from rich.console import Console

    from segbench.config import Machine


@dataclass
class Settings:
    """Values of the global options; flags win over the environment, which wins over the user's configuration file."""

    flags: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] | None = None  # what --json prints at the end
    exit_code: int = 0

    @cached_property
    def machine(self) -> Machine:
        """Machine settings with the flags applied."""
        from segbench.config import machine_settings

        return machine_settings(
            os.environ,
            root=self.flags.get("root"),
            data_root=self.flags.get("data_root"),
            recompute=self.flags.get("recompute"),
        )

    @property
    def root(self) -> Path:
        """Where results go."""
        return Path(self.machine.root)

    @property
    def data_root(self) -> Path:
        """Where prepared data lies."""
        return Path(self.machine.data_root)

    @property
    def json(self) -> bool:
        """One JSON document on stdout instead of text."""
        return bool(self.flags.get("json"))

    @property
    def debug(self) -> bool:
        """Show tracebacks."""
        return bool(self.flags.get("debug"))

    @property
    def yes(self) -> bool:
        """Answer yes to every question."""
        return bool(self.flags.get("yes"))

    @property
    def quiet(self) -> int:
        """How many -q."""
        return int(self.flags.get("quiet", 0))

    @property
    def verbose(self) -> int:
        """How many -v."""
        return int(self.flags.get("verbose", 0))

    @property
    def plugins(self) -> list[str]:
        """Files of --plugin."""
        return list(self.flags.get("plugin", ()))

    def say(self, text: str, level: int = 0) -> None:
        """Talk, on stderr; ``level`` 1 needs -v."""
        if level <= self.verbose - self.quiet:
            click.echo(text, err=True)


def keep_flag(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Callback of options that every verb takes: the settings of the whole command keep them."""
    if value in (None, (), False, 0) or ctx.resilient_parsing:
        return
    settings = ctx.find_root().ensure_object(Settings)
    if param.name == "plugin":
        from segbench import registry

        for file in value:
            registry.add_file(file)
        value = (*settings.flags.get("plugin", ()), *(str(Path(file).resolve()) for file in value))
    settings.flags[str(param.name)] = value


def global_options(hidden: bool) -> list[click.Option]:
    """Options accepted before or after the verb; shown in the top help only."""

    def option(*names: str, **kwargs: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=keep_flag, hidden=hidden, **kwargs)

    return [
        option(
            "--root",
            metavar="DIR",
            type=click.Path(file_okay=False),
            help="Results [./segbench-out].",
        ),
        option(
            "--data-root",
            metavar="DIR",
            type=click.Path(file_okay=False),
            help="Prepared data [./segbench-data].",
        ),
        option(
            "--plugin",
            metavar="FILE",
            multiple=True,
            is_eager=True,
            help="Add a plug-in file; may be repeated.",
        ),
        option("--json", is_flag=True, help="One JSON document on stdout."),
        option("--yes", is_flag=True, help="Ask nothing."),
        option("-q", "--quiet", count=True, help="Say less."),
        option("-v", "--verbose", count=True, help="Say more."),
        option("--debug", is_flag=True, is_eager=True, help="Show tracebacks."),
    ]


def _keep_limit(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value and not ctx.resilient_parsing:
        from segbench.data.formats.limits import limited, limits

        ctx.with_resource(limited(replace(limits(), **{str(param.name): value})))


size_option = click.option(
    "--max-voxels",
    "voxels",
    type=click.IntRange(1),
    metavar="N",
    expose_value=False,
    callback=_keep_limit,
    help="Largest volume that is read [1e9].",
)
mismatch_option = click.option(
    "--allow-affine-mismatch",
    "other_spacing",
    is_flag=True,
    expose_value=False,
    callback=_keep_limit,
    help="Headers that differ in spacing: take the voxels by index.",
)


class Command(click.Command):
    """A command that accepts the global options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options(hidden=True)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's, with the user's own data sets known by their names."""
        settings = ctx.find_object(Settings)
        if settings is not None:
            with suppress(SegbenchError):  # a broken configuration is told by what needs it
                if any(settings.data_root.glob("*/link.json")):
                    from segbench.data.links import load_links

                    for problem in load_links(settings.data_root):
                        settings.say(f"warning: {problem.what} ({problem.details['where']})")
        return super().invoke(ctx)


class Group(click.Group):
    """A group whose commands accept the global options, and which accepts them itself."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options(hidden=self.name not in (None, "cli"))


def counts(settings: Settings) -> dict[str, Any]:
    """What ``resolve`` asks of prepared data sets."""
    from segbench.data.open import open_store

    store = cache(lambda name: open_store(name, settings.data_root))
    return {
        "train_sizes": lambda name: len(store(name).patients),
        "labels": lambda name: len(store(name).patients_with_label),
    }


def message(error: SegbenchError) -> str:
    """An error as one screen."""
    lines = [f"error: {error.what}"]
    for name, value in error.details.items():
        if value is not None:
            first, *rest = [line.strip() for line in str(value).splitlines() if line.strip()] or [
                ""
            ]
            lines += [f"  {name:<9} {first}", *(f"  {'':<9} {line}" for line in rest)]
    return "\n".join(safe(line) for line in "\n".join(lines).splitlines())


def console(stderr: bool = False) -> Console:
    """A rich console that never wraps or colors where nobody looks, and never fails on a poor terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    columns = None if stream.isatty() else _columns(200)
    return Console(
        file=stream,
        width=columns,
        highlight=False,
        emoji=False,
        markup=False,
        safe_box=True,
        legacy_windows=False,
    )


def table(
    columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]], drop: Sequence[str] = ()
) -> str:
    """A plain table: (title, "<" or ">") a column. Text is escaped; no digit is ever cut off.

    Where the terminal is too narrow, the columns in ``drop`` are left out, one after the other.
    """
    cells = [[safe(c) for c in row] for row in rows]
    widths = [
        max(len(row[i]) for row in [[t for t, _ in columns], *cells]) for i in range(len(columns))
    ]
    kept = list(range(len(columns)))
    for title in drop:
        if sum(widths[i] + 2 for i in kept) - 2 > width():
            kept = [i for i in kept if columns[i][0] != title]

    def line(values: Sequence[str]) -> str:
        return "  ".join(f"{values[i]:{columns[i][1]}{widths[i]}}" for i in kept).rstrip()

    lines = [line([title for title, _ in columns]), *map(line, cells)]
    bar = "─" if _can(sys.stdout, "─") else "-"
    return "\n".join([lines[0], bar * max(map(len, lines)), *lines[1:]])


def width() -> int:
    """Columns of the terminal; off a terminal COLUMNS, or no limit."""
    if sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return _columns(10_000)


def _columns(default: int) -> int:
    """What COLUMNS says, if that is a width."""
    text = os.environ.get("COLUMNS", "")
    return int(text) if re.fullmatch("[1-9][0-9]{0,5}", text) else default


def _can(stream: Any, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
