"""``segbench``: the top group, and the translation of errors into a message and an exit code."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import click

import segbench
from segbench.cli import namesake, streams
from segbench.cli.options import Group
from segbench.cli.settings import Settings
from segbench.cli.terminal import error_text, is_width
from segbench.errors import (
    PluginError,
    SegbenchError,
    StorageError,
    did_you_mean,
    ended_by_plugin,
)
from segbench.training.signals import exit_at_once

BUG = 1
USAGE = 2
INTERRUPTED = 130
CLOSED_PIPE = 141
REPEATABLE = ("run", "resume", "bench", "demo", "ablate", "data")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# The commands by the headings of the help, each with its module. A module is imported when its
# command is used or the help is shown, so none of them may import torch.
GROUPS = {
    "Start": {
        "demo": "demo",
        "doctor": "doctor",
        "list": "catalog",
        "describe": "catalog",
        "config": "config",
    },
    "Train and evaluate": {
        "run": "run",
        "resume": "run",
        "bench": "bench",
        "ablate": "extend",
    },
    "Results": {
        "leaderboard": "leaderboard",
        "compare": "compare",
        "report": "report",
        "runs": "runs",
        "site": "site",
        "cite": "cite",
        "leak": "leak",
    },
    "Data and new scans": {
        "data": "data",
        "protocol": "protocol",
        "predict": "predict",
        "evaluate": "evaluate",
    },
    "Extend": {
        "new": "new",
        "test": "extend",
        "verify-method": "verify",
    },
}
COMMANDS = {name: module for group in GROUPS.values() for name, module in group.items()}


class Main(Group):
    """The top group. It imports a command's module when the command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under their headings, with their summaries in one column."""
        widest = max(map(len, COMMANDS))
        for heading, group in GROUPS.items():
            rows = []
            for name in group:
                command = self.get_command(ctx, name)
                assert command is not None
                rows.append((name.ljust(widest), command.get_short_help_str()))
            with formatter.section(heading):
                formatter.write_dl(rows)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"segbench.cli.{COMMANDS[cmd_name]}")
        # Some names are taken: `list` is a function of Python, `test_...` a test.
        name = cmd_name.replace("-", "_")
        found = getattr(module, f"{name}_command", None) or getattr(module, name)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find a command; suggest one if the name is mistyped."""
        if args and args[0] not in COMMANDS:
            ctx.fail(f"unknown command '{args[0]}'.{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Main, invoke_without_command=True)
@click.version_option(getattr(segbench, "__version__", "?"), prog_name="segbench")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Honest benchmarks for semi-supervised medical image segmentation.

    \b
    segbench demo                                  see it work, without any data
    segbench run versemi --dataset phantom         train and evaluate one method
    segbench leaderboard                           rank the finished runs
    segbench data prepare la --from DIR            prepare real data
    segbench list methods                          list what is available
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code: the entry point of the program."""
    exit_at_once()
    streams.open_missing()
    streams.replace_unknown_characters()
    if not is_width(os.environ.get("COLUMNS", "80")):
        del os.environ["COLUMNS"]  # libraries would try to use it as a width, and fail
    if streams.is_beside_first():
        sys.stdout = io.StringIO()  # only the first of torchrun's processes prints results
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run a command and return its exit code."""
    settings = Settings()
    try:
        _require_posix()
        namesake.require_own_package()
        return _call(settings, argv)
    except SystemExit as error:
        # Click leaves in this way when the reader of our output has gone.
        if "Pacify" in type(sys.stdout).__name__:
            return CLOSED_PIPE
        known = ended_by_plugin(error)
        return _fail(settings, argv, known.to_dict(), error_text(known))
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        document = _error_document("UsageError", USAGE, error.format_message())
        return _fail(settings, argv, document, _usage_text(error))
    except SegbenchError as error:
        # Add what is known although the command failed, such as a suite's counts.
        document = {**(settings.document or {}), **error.to_dict()}
        return _fail(settings, argv, document, error_text(error))
    except (KeyboardInterrupt, click.Abort):
        streams.remark(_stopped_text(argv))
        return INTERRUPTED
    except BrokenPipeError:
        streams.abandon_stdout()
        return CLOSED_PIPE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            full = _cannot_write(error)
            return _fail(settings, argv, full.to_dict(), error_text(full))
        if settings.debug:
            raise
        what = f"{type(error).__name__}: {error}"
        document = _error_document(type(error).__name__, BUG, what)
        hint = "this is a bug in segbench or in a plug-in; --debug shows where"
        return _fail(settings, argv, document, f"error: {what}\n  {hint}")


def _stopped_text(argv: list[str]) -> str:
    """Return what is said after Ctrl-C, with the way back where repeating continues the work."""
    is_repeatable = any(word in REPEATABLE for word in argv)
    return "stopped; repeat the command to continue" if is_repeatable else "stopped"


def _require_posix() -> None:
    """Refuse to run on Windows, before anything is imported that needs POSIX."""
    if platform.system() == "Windows":
        raise PluginError(
            "segbench does not run on Windows directly",
            found="Windows",
            expected="Linux, macOS, or WSL (Windows Subsystem for Linux)",
            fix="wsl --install, then install and start segbench inside WSL",
        )


def _cannot_write(error: OSError) -> StorageError:
    """Return the error for a full disk, which may be the one that the output is redirected to."""
    where = error.filename or "standard output"
    if not error.filename:
        streams.abandon_stdout()
    return StorageError(
        f"cannot write: {os.strerror(error.errno or 0)}",
        where=where,
        fix="free some space, or write to another place",
    )


def _call(settings: Settings, argv: list[str]) -> int:
    warning = namesake.warning_about_namesakes()
    if warning is not None:
        settings.warn(warning)
    # Whatever plug-ins and libraries print must not mix with the document.
    as_json = "--json" in argv
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        cli.main(args=argv, prog_name="segbench", standalone_mode=False, obj=settings)
    if settings.json and settings.document is not None:
        click.echo(json.dumps(settings.document, allow_nan=False))
    sys.stdout.flush()
    return settings.exit_code


def _usage_text(error: click.ClickException) -> str:
    text = f"error: {error.format_message()}"
    context = getattr(error, "ctx", None)
    if context is not None:
        text += f"\n  fix       {context.command_path} --help"
    return text


def _error_document(kind: str, code: int, what: str) -> dict[str, Any]:
    return {
        "schema": "segbench.error/1",
        "status": "error",
        "kind": kind,
        "code": code,
        "what": what,
    }


def _fail(settings: Settings, argv: list[str], document: dict[str, Any], text: str) -> int:
    """Print an error and return its exit code."""
    if settings.debug:
        import traceback

        traceback.print_exc()
    if "--json" in argv:
        with contextlib.suppress(OSError):
            click.echo(json.dumps(document))
    code = int(document["code"])
    streams.remark(f"{text}  (exit {code})")
    return code


if __name__ == "__main__":
    main()
