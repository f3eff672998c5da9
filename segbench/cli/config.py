"""``segbench config``: effective values and where each came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from segbench.cli.common import Group, Settings, counts, table
from segbench.cli.run import parse_seeds, science_options

if TYPE_CHECKING:
    from segbench.config import Experiment


@click.group(cls=Group)
def config() -> None:
    """Show effective settings."""


@config.command("show")
@click.argument("words", metavar="[run] METHOD", nargs=-1, required=True)
@science_options
@click.option("--sources", is_flag=True, help="Also where each value came from.")
@click.pass_obj
def show(
    settings: Settings,
    words: tuple[str, ...],
    sources: bool,
    dataset: str,
    seeds: str | None,
    seed: int | None,
    overrides: tuple[str, ...],
    **science: Any,
) -> None:
    """Show what `segbench run METHOD ...` would use, key by key.

    \b
    segbench config show mean_teacher --dataset la --sources -o optim.lr=0.005
    """
    from segbench.config import resolve
    from segbench.errors import UsageError

    method, *rest = words[1:] if len(words) > 1 and words[0] == "run" else words
    if rest:
        raise UsageError(
            f"one method at a time, got {', '.join(words)}", fix=f"segbench config show {method}"
        )

    if seed is not None and seeds is not None:
        raise UsageError("--seed and --seeds exclude each other", fix="use one of them")
    first = parse_seeds(seeds)[0] if seeds else seed or 0
    resolved = resolve(
        method,
        dataset=dataset,
        seed=first,
        overrides=list(overrides),
        **counts(settings),
        **science,
    )
    experiment = resolved.experiments[0]
    settings.document = {
        "status": "ok",
        "experiment": experiment.model_dump(mode="json"),
        "sources": resolved.sources,
    }
    if settings.json:
        return
    columns = [("key", "<"), ("value", "<"), *([("from", "<")] if sources else [])]
    click.echo(
        table(
            columns,
            [
                (
                    f"{k} *" if k in experiment.modified else k,
                    v,
                    *([resolved.sources[k]] if sources else []),
                )
                for k, v in resolved.values.items()
            ],
        )
    )
    if experiment.modified:
        click.echo("* differs from the protocol: such a run is ranked apart")
    _show_own_optimizers(settings, experiment)
    machine = settings.machine
    click.echo(
        "\nthis machine\n"
        + table(
            columns,
            [
                (k, getattr(machine, k), *([v] if sources else []))
                for k, v in machine.sources.items()
            ],
        )
    )


def _show_own_optimizers(settings: Settings, experiment: Experiment) -> None:
    """Where a method is defined with another optimizer than the protocol's, say with which."""
    from segbench.data.open import open_store
    from segbench.training.build import optimizers

    usual = experiment.protocol.optim
    stores = [open_store(name, settings.data_root) for name in experiment.datasets]
    for who, spec in optimizers(experiment, stores, usual).items():
        if spec != usual:
            parts = ", ".join(f"{k} {v}" for k, v in spec.model_dump(exclude_defaults=True).items())
            click.echo(f"{experiment.method} has its own optimizer for {who}: {parts}")
