"""``segbench config``: effective values and where each came from."""

from __future__ import annotations

from typing import Any

import click

from segbench.cli.common import Group, Settings, table
from segbench.cli.run import science_options


@click.group(cls=Group)
def config() -> None:
    """Show effective settings."""


@config.command("show")
@click.argument("words", metavar="[run] METHOD", nargs=-1, required=True)
@science_options
@click.option("--sources", is_flag=True, help="Also where each value came from.")
@click.pass_obj
def show(settings: Settings, words: tuple[str, ...], sources: bool, dataset: str, seeds: str | None, seed: int | None,
         overrides: tuple[str, ...], **science: Any) -> None:
    """Show what `segbench run METHOD ...` would use, key by key.

    \b
    segbench config show versemi --dataset la --sources -o optim.lr=0.005
    """
    from segbench.config import resolve
    from segbench.data.store import open_store
    from segbench.errors import UsageError

    method, *rest = words[1:] if len(words) > 1 and words[0] == "run" else words
    if rest:
        raise UsageError(f"one method at a time, got {', '.join(words)}", fix=f"segbench config show {method}")

    def size(name: str) -> int:
        return len(open_store(name, settings.data_root).patients)

    resolved = resolve(method, dataset=dataset, seed=seed or 0, overrides=list(overrides), train_sizes=size, **science)
    experiment = resolved.experiments[0]
    settings.document = {"status": "ok", "experiment": experiment.model_dump(mode="json"), "sources": resolved.sources}
    if settings.json:
        return
    columns = [("key", "<"), ("value", "<"), *([("from", "<")] if sources else [])]
    click.echo(table(columns, [(f"{k} *" if k in experiment.modified else k, v, *([resolved.sources[k]] if sources else []))
                               for k, v in resolved.values.items()]))
    if experiment.modified:
        click.echo("* differs from the protocol: such a run is ranked apart")
    machine = settings.machine
    click.echo("\nthis machine\n" + table(columns, [(k, getattr(machine, k), *([v] if sources else []))
                                                  for k, v in machine.sources.items()]))

