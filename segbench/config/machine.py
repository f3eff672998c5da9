"""Machine settings: where files lie and how fast they are computed. They never decide a number.

Later layers win: defaults, ``~/.config/segbench/config.yaml``, ``SEGBENCH_*``, flags.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from segbench.config.overrides import FLAGS, protocol_keys
from segbench.config.schema import Strict, flatten, suggest, validate
from segbench.config.yaml import Document, load_yaml, parse_scalar
from segbench.errors import UsageError

__all__ = ["Cadence", "Machine", "machine_settings"]

ENVIRONMENT_PREFIX = "SEGBENCH_"
SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600}
DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:\d+)?)$"


class Cadence(Strict):
    """How often to save: every so many steps, or after so many seconds, whichever is set."""

    steps: int | None = Field(
        default=None, ge=1, description="optimizer steps between two checkpoints"
    )
    seconds: float | None = Field(
        default=300.0, gt=0, description="wall time between two checkpoints"
    )

    def due(self, completed: int, since: float) -> bool:
        """Return whether to save after ``completed`` steps and ``since`` seconds without a save."""
        if self.steps and completed % self.steps == 0:
            return True
        return bool(self.seconds and since >= self.seconds)

    @classmethod
    def parse(cls, text: str) -> Cadence:
        """Return the cadence of ``500`` (steps), ``30s``, ``5m`` or ``1h``.

        Raises:
            UsageError: the text is none of these.
        """
        match = re.fullmatch(r"(\d+)([smh]?)", text)
        if match is None or int(match[1]) == 0:
            raise UsageError(
                f"--save-every: '{text}'",
                expected="a number of steps (500) or a time (30s, 5m, 1h)",
            )
        number = int(match[1])
        unit = match[2]
        if not unit:
            return cls(steps=number, seconds=None)
        return cls(seconds=number * SECONDS_PER_UNIT[unit])

    def to_text(self) -> str | None:
        """Return the text that ``parse`` reads back, or None for a cadence that never saves."""
        if self.steps:
            return str(self.steps)
        return f"{round(self.seconds)}s" if self.seconds else None


class Machine(Strict):
    """Everything that may differ between two runs of one identity."""

    root: Path = Field(Path("segbench-out"), description="folder of the runs")
    data_root: Path = Field(Path("segbench-data"), description="folder of the prepared data")
    device: str = Field(
        "auto", pattern=DEVICE_PATTERN, description="auto, cpu, mps, cuda or cuda:N"
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field(
        "auto", description="loader processes"
    )
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="CPU threads"
    )
    recompute: bool = Field(
        False, description="recompute activations in the backward pass, which saves memory"
    )
    compile: bool = Field(
        False, description="compile the stages of the networks, which takes a minute and saves time"
    )
    cuda_graphs: bool = Field(
        False, description="compile the networks and replay them as CUDA graphs"
    )
    resident: Literal["auto", "yes", "no"] = Field(
        "auto", description="keep the training images on the device; auto: on CUDA if they fit"
    )
    save_every: Cadence = Field(Cadence(), description="how often checkpoints are written")
    plugins: tuple[str, ...] = Field((), description="plug-in files given with --plugin")
    leak_meter: bool = Field(
        False, description="keep the checkpoints that the leak meter evaluates"
    )
    log: tuple[str, ...] = Field((), description="experiment trackers given with --log")
    sources: dict[str, str] = Field({}, description="who set each of SETTINGS")

    @property
    def loader_processes(self) -> int:
        """Processes that load batches.

        ``auto`` means none: measured, passing batches between processes costs more time than
        cropping them in a thread beside the training step.
        """
        return 0 if self.workers == "auto" else self.workers

    def place_options(self) -> list[str]:
        """Return the command-line options for the folders and the device, which all runs need."""
        return [
            "--root",
            str(self.root),
            "--data-root",
            str(self.data_root),
            "--device",
            self.device,
        ]

    def to_argv(self) -> list[str]:
        """Return the options with which ``segbench resume`` trains as this machine does.

        The plug-in files are not among them, because every run stores its own.
        """
        options = [*self.place_options(), "--workers", str(self.loader_processes)]
        save_every = self.save_every.to_text()
        if save_every is not None:
            options += ["--save-every", save_every]
        if self.leak_meter:
            options.append("--leak-meter")
        if self.recompute:
            options.append("--recompute")
        if self.compile:
            options.append("--compile")
        if self.cuda_graphs:
            options.append("--cuda-graphs")
        if self.resident != "auto":
            options += ["--resident", self.resident]
        if self.log:
            options += ["--log", ",".join(self.log)]
        return options


# Settings that the user's file and the environment may contain; the others belong to one command.
SETTINGS = (
    "root",
    "data_root",
    "device",
    "workers",
    "threads",
    "recompute",
    "compile",
    "cuda_graphs",
    "resident",
)
NOT_TEXT = ("workers", "threads", "recompute", "compile", "cuda_graphs")

Layer = dict[str, tuple[Any, str]]  # values and who set them


def machine_settings(
    environment: Mapping[str, str] | None = None,
    user_config_path: Path | None = None,
    **flags: Any,
) -> Machine:
    """Return the settings in force; flags that are None were not given.

    Raises:
        UsageError: a wrong value, an unknown key, or a key that decides numbers in the user's
            file or in the environment.
    """
    config_path = user_config_path or Path.home() / ".config" / "segbench" / "config.yaml"
    layers = (
        _user_file(config_path),
        _from_environment(os.environ if environment is None else environment),
        _from_flags(flags),
    )
    values: dict[str, Any] = {}
    sources = dict.fromkeys(SETTINGS, "default")
    for layer in layers:
        for key, (value, origin) in layer.items():
            if value is not None:
                values[key] = value
                sources[key] = origin
    for key in ("root", "data_root"):
        if isinstance(values.get(key), (str, Path)):
            values[key] = str(Path(values[key]).expanduser())

    def origin_of(key: str) -> str:
        return sources.get(key.partition(".")[0], "")

    return validate(Machine, {**values, "sources": sources}, origin_of)


def _user_file(path: Path) -> Layer:
    if not path.is_file():
        return {}
    document = load_yaml(path)
    for key in flatten(document):
        if key not in SETTINGS:
            raise _refused_key(key, document)
    return {key: (value, document.where(key, column=False)) for key, value in document.items()}


def _refused_key(key: str, document: Document) -> UsageError:
    parts = (key,) if key in document else key.split(".")
    place = document.where(*parts)
    if _decides_numbers(key):
        return _decisive(key, place)
    return UsageError(
        f"unknown setting '{key}'.{suggest(key, SETTINGS)}",
        where=place,
        expected="one of " + ", ".join(SETTINGS),
    )


def _from_environment(environment: Mapping[str, str]) -> Layer:
    found: Layer = {}
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        text = environment[variable]
        if key in NOT_TEXT:
            found[key] = (parse_scalar(text, variable), variable)
        elif key in SETTINGS:
            found[key] = (text or None, variable)  # an empty variable counts as not set
        elif _decides_numbers(key):
            raise _decisive(key, variable)
    return found


def _from_flags(flags: Mapping[str, Any]) -> Layer:
    found = {}
    for key, value in flags.items():
        flag = "--" + key.replace("_", "-")
        found[key] = (value, flag)
    return found


def _decides_numbers(key: str) -> bool:
    """Return whether ``key`` is, or is part of, a protocol key or a flag (``lr``, ``optim``)."""
    names = {*FLAGS, "seeds", "params"}
    for dotted in protocol_keys():
        first_part = dotted.partition(".")[0]
        last_part = dotted.rpartition(".")[2]
        names |= {dotted.replace(".", "_"), first_part, last_part}
    return key.replace(".", "_") in names or key.partition(".")[0] in names


def _decisive(key: str, where: str) -> UsageError:
    return UsageError(
        f"'{key}' decides a run's numbers and cannot be set for a whole machine",
        where=where,
        expected="one of " + ", ".join(SETTINGS),
        fix="give it with the command (flag or -o), in a suite or in a protocol",
    )
