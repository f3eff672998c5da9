"""``segbench config``: effective values and where each came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from segbench.cli.options import Group, ScienceOptions, science_options
from segbench.cli.settings import Settings
from segbench.cli.terminal import table
from segbench.errors import UsageError

if TYPE_CHECKING:
    from segbench.config import Experiment
    from segbench.config.experiment import Resolved


@click.group(cls=Group)
def config() -> None:
    """Show effective settings."""


@config.command("show")
@click.argument("words", metavar="[run] METHOD", nargs=-1, required=True)
@science_options
@click.option("--sources", is_flag=True, help="Also show where each value came from.")
@click.pass_obj
def show(
    settings: Settings, words: tuple[str, ...], science: ScienceOptions, sources: bool
) -> None:
    """Show the settings that `segbench run METHOD` would use, key by key.

    \b
    segbench config show mean_teacher --dataset la --sources -o optim.lr=0.005
    """
    from segbench.cli.training import resolved

    seed = science.chosen_seeds()[0]
    fold = science.chosen_folds()[0]
    resolution = resolved(settings, _method(words), science, seed, fold)
    document = {
        "status": "ok",
        "experiment": resolution.experiments[0].model_dump(mode="json"),
        "sources": resolution.sources,
    }
    settings.show(document, _lines(settings, resolution, sources))


def _method(words: tuple[str, ...]) -> str:
    """Return the method of ``METHOD`` or ``run METHOD``."""
    if len(words) > 1 and words[0] == "run":
        words = words[1:]
    if len(words) > 1:
        raise UsageError(
            "one method at a time", found=" ".join(words), fix=f"segbench config show {words[0]}"
        )
    return words[0]


def _lines(settings: Settings, resolution: Resolved, sources: bool) -> Iterator[str]:
    experiment = resolution.experiments[0]
    yield _table(
        [
            (f"{key} *" if key in experiment.modified else key, value, resolution.sources[key])
            for key, value in resolution.values.items()
        ],
        sources,
    )
    if experiment.modified:
        yield "* differs from the protocol: such runs are ranked in a table of their own"
    yield from _own_optimizers(settings, experiment)
    yield "\nthis machine"
    machine = settings.machine
    yield _table(
        [(key, getattr(machine, key), source) for key, source in machine.sources.items()], sources
    )


def _table(rows: list[tuple[str, object, str]], sources: bool) -> str:
    """Return a table of keys, values and, if wanted, sources."""
    columns = [("key", "<"), ("value", "<"), ("from", "<")]
    shown = 3 if sources else 2
    return table(columns[:shown], [row[:shown] for row in rows])


def _own_optimizers(settings: Settings, experiment: Experiment) -> Iterator[str]:
    """Return a line for each optimizer that the method sets differently from the protocol."""
    from segbench.data.open import open_store
    from segbench.training.build import optimizers

    usual = experiment.protocol.optim
    stores = [open_store(name, settings.data_root) for name in experiment.datasets]
    for player, own in optimizers(experiment, stores, usual).items():
        if own != usual:
            values = own.model_dump(exclude_defaults=True)
            parts = ", ".join(f"{key} {value}" for key, value in values.items())
            yield f"{experiment.method} has its own optimizer for {player}: {parts}"
