"""The values of the global options, and the ways in which a command reports."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.streams import is_beside_first, remark
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.config import Machine


@dataclass
class Settings:
    """The global options of one call, and what the program prints and returns at its end.

    Options win over the environment, which wins over the user's configuration file.
    """

    chosen_root: str | None = None
    chosen_data_root: str | None = None
    plugins: tuple[str, ...] = ()  # files of --plugin
    json: bool = False
    yes: bool = False
    quiet: int = 0
    verbose: int = 0
    debug: bool = False
    recompute: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    resident: str | None = None
    document: dict[str, Any] | None = None  # printed at the end with --json
    exit_code: int = 0

    @cached_property
    def machine(self) -> Machine:
        """Machine settings with the options applied."""
        from segbench.config import machine_settings

        return machine_settings(
            os.environ,
            root=self.chosen_root,
            data_root=self.chosen_data_root,
            recompute=self.recompute or None,
            compile=self.compile or None,
            cuda_graphs=self.cuda_graphs or None,
            resident=self.resident,
        )

    @property
    def root(self) -> Path:
        """Folder of the results."""
        return Path(self.machine.root)

    @property
    def data_root(self) -> Path:
        """Folder of the prepared data."""
        return Path(self.machine.data_root)

    def show(self, document: dict[str, Any], lines: Iterable[str] = ()) -> None:
        """Report a command's result: ``document`` with ``--json``, ``lines`` without."""
        self.document = document
        self.echo(lines)

    def echo(self, lines: Iterable[str]) -> None:
        """Print lines of a result on stdout, unless ``--json`` keeps stdout for the document."""
        if self.json:
            return
        for line in lines:
            click.echo(line)

    def say(self, text: str, level: int = 0) -> None:
        """Print a remark on stderr; ``level`` 1 is printed with -v only."""
        if level <= self.verbose - self.quiet and not is_beside_first():
            remark(text)

    def warn(self, text: object) -> None:
        """Print a warning on stderr."""
        if not is_beside_first():
            remark(f"warning: {safe(text)}")
