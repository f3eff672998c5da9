"""Machine settings: where files are and how fast things run. Nothing that decides a number is set here.

Later layers overrule earlier ones: built in, ``~/.config/segbench/config.yaml``, ``SEGBENCH_*``, flags.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from segbench.config.overrides import FLAGS, protocol_keys
from segbench.config.schema import Strict, flatten, suggest, validate
from segbench.config.yaml import load_yaml, parse_scalar
from segbench.errors import UsageError

__all__ = ["MachineSettings", "machine_settings"]

ENV = "SEGBENCH_"


class MachineSettings(Strict):
    """Settings of this machine; ``sources`` holds where each one was set."""

    root: Path = Field(Path("segbench-out"), description="where runs are written")
    data_root: Path = Field(Path("segbench-data"), description="where prepared data lie")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, mps, cuda or cuda:N",
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field(
        "auto", description="loader processes"
    )
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="CPU threads"
    )
    recompute: bool = Field(
        False, description="activations are computed again going backward, which saves memory"
    )
    sources: dict[str, str] = Field({}, description="origin of each setting")


SETTINGS = tuple(name for name in MachineSettings.model_fields if name != "sources")


def machine_settings(
    env: Mapping[str, str] | None = None, user_config_path: Path | None = None, **flags: Any
) -> MachineSettings:
    """Return the settings in force; flags that are None were not given.

    Raises:
        UsageError: a wrong value, an unknown key, or a key that decides numbers in the user's file or environment.
    """
    env = os.environ if env is None else env
    values: dict[str, Any] = {}
    sources = dict.fromkeys(SETTINGS, "default")
    for layer in (
        _user_file(user_config_path or Path.home() / ".config" / "segbench" / "config.yaml"),
        _environment(env),
        {key: (value, f"--{key.replace('_', '-')}") for key, value in flags.items()},
    ):
        for key, (value, origin) in layer.items():
            if value is not None:
                values[key] = value
                sources[key] = origin
    for key in ("root", "data_root"):
        if isinstance(values.get(key), (str, Path)):
            values[key] = str(Path(values[key]).expanduser())
    return validate(
        MachineSettings,
        {**values, "sources": sources},
        lambda key: sources.get(key.partition(".")[0], ""),
    )


def _user_file(path: Path) -> dict[str, tuple[Any, str]]:
    if not path.is_file():
        return {}
    document = load_yaml(path)
    for key in flatten(document):
        if key in SETTINGS:
            continue
        place = document.where(key) if key in document else document.where(*key.split("."))
        if _is_science(key):
            raise _refuse(key, place)
        raise UsageError(
            f"unknown setting '{key}'.{suggest(key, SETTINGS)}",
            where=place,
            expected="one of " + ", ".join(SETTINGS),
        )
    return {key: (value, document.where(key, column=False)) for key, value in document.items()}


def _environment(env: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    for variable in sorted(name for name in env if name.startswith(ENV)):
        key = variable.removeprefix(ENV).lower()
        if key in SETTINGS:
            text = env[variable]  # an empty variable counts as none
            parsed = (
                parse_scalar(text, variable)
                if key in ("workers", "threads", "recompute")
                else text or None
            )
            found[key] = (parsed, variable)
        elif _is_science(key):
            raise _refuse(key, variable)
    return found


def _is_science(key: str) -> bool:
    """Return whether ``key`` is a protocol key, a part of one (``lr``, ``optim``), or a choice with a flag."""
    names = {*FLAGS, "seeds", "params"}
    for dotted in protocol_keys():
        names |= {dotted.replace(".", "_"), dotted.partition(".")[0], dotted.rpartition(".")[2]}
    return key.replace(".", "_") in names or key.partition(".")[0] in names


def _refuse(key: str, where: str) -> UsageError:
    return UsageError(
        f"'{key}' decides a run's numbers and cannot be set for a whole machine",
        where=where,
        expected="one of " + ", ".join(SETTINGS),
        fix="give it with the command (flag or -o), in a suite or in a protocol",
    )
