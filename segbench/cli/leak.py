"""``segbench leak``."""

from __future__ import annotations

import click

from segbench.cli.common import Command, Settings, table
from segbench.errors import UsageError


@click.command(cls=Command)
@click.argument("wanted", metavar="RUN")
@click.option("--device", metavar="DEV", help="auto, cpu, cuda, cuda:N or mps [auto].")
@click.pass_obj
def leak(settings: Settings, wanted: str, device: str | None) -> None:
    """Tell what choosing the checkpoint of RUN on the test cases would have gained.

    The run must have kept its checkpoints, as --leak-meter does, which also calls this. The result stays as it is.

    \b
    segbench run supervised --dataset phantom_ct_organ --leak-meter
    segbench leak 3f9c2a7b
    """
    from segbench.cli.reporter import reporter
    from segbench.cli.run import machine_of, restore
    from segbench.results.rundir import find_run
    from segbench.training.leak import measure

    folder = find_run(settings.root, wanted)
    stored = folder.result()
    if stored is None:
        raise UsageError(
            "the run is not finished", where=folder.path, fix=f"segbench resume {folder.run_id}"
        )
    machine, show = machine_of(settings, None, device, None), reporter(settings)
    try:
        record = measure(restore(folder, machine), stored, machine.device, show.evaluate)
    finally:
        show.stop()
    settings.document = {"status": "done", "dir": str(folder.path), **record}
    if settings.json:
        return
    click.echo(
        table(
            [("step", ">"), ("validation Dice %", ">"), ("test Dice %", ">")],
            [
                (r["step"], f"{r['validation']:.2f}", f"{r['test']:.2f}")
                for r in record["checkpoints"]
            ],
        )
    )
    click.echo(
        f"test Dice: last {record['last']:.2f}, best on validation {record['validation_best']:.2f}, best on the test "
        f"cases {record['test_best']:.2f}\nchoosing on the test cases would have gained {record['gap']:.2f} "
        f"(selection of the run: {record['selection']}; {record['test_evaluations']} evaluations on the test cases)"
    )
