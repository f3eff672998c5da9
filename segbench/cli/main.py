"""``segbench``: the group, its global options, and the translation of errors into one screen and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import click

from segbench import __version__
from segbench.cli.common import Command, Group, Settings, message
from segbench.errors import SegbenchError, did_you_mean

# Commands in the order of the help, with the module that holds them; a module is imported when its command is used or
# the help is shown, so none of them may import torch.
COMMANDS = {
    "demo": "demo",
    "run": "run",
    "resume": "run",
    "evaluate": "evaluate",
    "predict": "predict",
    "bench": "bench",
    "leaderboard": "leaderboard",
    "compare": "compare",
    "runs": "runs",
    "cite": "cite",
    "report": "report",
    "leak": "leak",
    "list": "catalog",
    "describe": "catalog",
    "data": "data",
    "new": "extend",
    "test": "extend",
    "ablate": "extend",
    "config": "config",
    "doctor": "doctor",
}


class Main(Group):
    """The top group: commands are found by name, in files of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"segbench.cli.{COMMANDS[cmd_name]}")
        return getattr(module, f"{cmd_name}_command", None) or getattr(module, cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click's, with a suggestion for a mistyped command."""
        if args and args[0] not in COMMANDS:
            ctx.fail(f"unknown command '{args[0]}'.{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Main, invoke_without_command=True)
@click.version_option(__version__, prog_name="segbench")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Honest benchmarks for semi-supervised medical image segmentation.

    \b
    segbench demo                                  see it work, no data needed
    segbench run versemi --dataset phantom         train and evaluate one method
    segbench leaderboard                           rank what has been run
    segbench data prepare la --from DIR            get real data ready
    segbench list methods                          what there is
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and leaves with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a poor terminal shows ? and not a traceback
    if not re.fullmatch("[1-9][0-9]{0,5}", os.environ.get("COLUMNS", "80")):
        del os.environ["COLUMNS"]  # no width; libraries would take it for one, and fail
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0":
        sys.stdout = io.StringIO()  # of torchrun's processes the first one speaks
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run a command and return its exit code."""
    settings = Settings()
    try:
        with (
            contextlib.redirect_stdout(sys.stderr) if "--json" in argv else contextlib.nullcontext()
        ):
            cli.main(args=argv, prog_name="segbench", standalone_mode=False, obj=settings)
        if settings.json and settings.document is not None:
            click.echo(json.dumps(settings.document, allow_nan=False))
        sys.stdout.flush()
        return settings.exit_code
    except SystemExit as error:  # click leaves so when the reader of our output has gone
        return 141 if "Pacify" in type(sys.stdout).__name__ else int(error.code or 0)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _fail(
            settings,
            argv,
            {
                "schema": "segbench.error/1",
                "status": "error",
                "kind": "UsageError",
                "code": 2,
                "what": error.format_message(),
            },
            _usage_text(error),
            2,
        )
    except SegbenchError as error:
        # What is known in spite of the error: a suite's counts, a report of checks.
        return _fail(
            settings,
            argv,
            {**(settings.document or {}), **error.to_dict()},
            message(error),
            error.code,
        )
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        return 130
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if settings.debug:
            raise
        what = f"{type(error).__name__}: {error}"
        return _fail(
            settings,
            argv,
            {
                "schema": "segbench.error/1",
                "status": "error",
                "kind": type(error).__name__,
                "code": 1,
                "what": what,
            },
            f"error: {what}\n  this is a bug in segbench or in a plug-in; --debug shows where",
            1,
        )


def _usage_text(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    hint = f"\n  fix       {ctx.command_path} --help" if ctx is not None else ""
    return f"error: {error.format_message()}{hint}"


def _fail(
    settings: Settings, argv: list[str], document: dict[str, Any], text: str, code: int
) -> int:
    if settings.debug:
        import traceback

        traceback.print_exc()
    if "--json" in argv:
        click.echo(json.dumps(document))
    click.echo(f"{text}  (exit {code})", err=True)
    return code


__all__ = ["Command", "cli", "main", "run"]

if __name__ == "__main__":
    main()
