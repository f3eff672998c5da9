"""``segbench leak``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from segbench.cli.options import Command, MachineOptions, device_option
from segbench.cli.settings import Settings
from segbench.cli.terminal import table


@click.command(cls=Command)
@click.argument("wanted", metavar="RUN")
@device_option
@click.pass_obj
def leak(settings: Settings, wanted: str, device: str | None) -> None:
    """Report how much choosing the checkpoint of RUN on the test cases would gain.

    The run must have kept its checkpoints, as it does with --leak-meter, which calls this command.
    The run's result does not change.

    \b
    segbench run supervised --dataset phantom_ct_organ --leak-meter
    segbench leak 3f9c2a7b
    """
    from segbench.cli.reporter import reporting
    from segbench.cli.training import machine_of
    from segbench.training.leak import measure
    from segbench.training.stored import finished_run, restore

    folder, result = finished_run(settings.root, wanted)
    machine = machine_of(settings, MachineOptions(device=device))
    with reporting(settings) as reporter:
        record = measure(restore(folder, machine), result, machine.device, reporter.evaluate)
    settings.show({"status": "done", "dir": str(folder.path), **record}, _lines(record))


def _lines(record: dict[str, Any]) -> Iterator[str]:
    rows = []
    for checkpoint in record["checkpoints"]:
        shares = [f"{checkpoint[split]:.2f}" for split in ("validation", "test")]
        rows.append([checkpoint["step"], *shares])
    yield table([("step", ">"), ("validation Dice %", ">"), ("test Dice %", ">")], rows)
    yield (
        f"test Dice: last {record['last']:.2f}, best on validation "
        f"{record['validation_best']:.2f}, best on the test cases {record['test_best']:.2f}"
    )
    yield (
        f"choosing on the test cases would have gained {record['gap']:.2f} "
        f"(selection of the run: {record['selection']}; "
        f"{record['test_evaluations']} evaluations on the test cases)"
    )
