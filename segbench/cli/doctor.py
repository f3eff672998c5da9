"""``segbench doctor``: what this machine can do, and what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import time
from typing import Any

import click

from segbench.cli.common import Command, Settings, safe
from segbench.errors import SegbenchError

LIBRARIES = (
    "torch",
    "monai",
    "timm",
    "pydantic",
    "numpy",
    "scipy",
    "h5py",
    "nrrd",
    "nibabel",
    "safetensors",
    "rich",
    "medpy",
)


@click.command(cls=Command)
@click.pass_obj
def doctor(settings: Settings) -> None:
    """Check Python, libraries, devices, threads, disk, data and plug-ins. Attach ``doctor --json`` to a bug report."""
    checks = [
        *_libraries(),
        *_device(),
        *_threads(),
        _disk(settings),
        *_data(settings),
        *_plugins(),
    ]
    settings.document = {
        "status": "ok" if all(c["state"] != "fail" for c in checks) else "failed",
        "checks": checks,
    }
    if not settings.json:
        for check in checks:
            click.echo(f"{check['state']:<5} {safe(check['what'])}")
    settings.exit_code = 7 if settings.document["status"] == "failed" else 0


def _check(state: str, what: str) -> dict[str, str]:
    return {"state": state, "what": what}


def _libraries() -> list[dict[str, str]]:
    rows = [
        _check(
            "ok", f"python {platform.python_version()} on {platform.system()} {platform.machine()}"
        )
    ]
    for name in LIBRARIES:
        try:
            module: Any = importlib.import_module(name)
            version = getattr(module, "__version__", None) or importlib.metadata.version(
                {"nrrd": "pynrrd"}.get(name, name)
            )
            rows.append(_check("ok", f"{name} {version}"))
        except Exception as error:  # a broken library may raise anything at import
            optional = name == "medpy"
            rows.append(
                _check(
                    "note" if optional else "fail",
                    f"{name}: {type(error).__name__}: {error}"
                    + (" (optional: only used to check our metrics)" if optional else ""),
                )
            )
    return rows


def _device() -> list[dict[str, str]]:
    import torch

    if torch.cuda.is_available():
        return [
            _check(
                "ok",
                f"cuda:{i} {torch.cuda.get_device_name(i)}, "
                f"{torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB",
            )
            for i in range(torch.cuda.device_count())
        ]
    return [
        _check(
            "note",
            "no CUDA device: phantoms and the mini protocols run on the CPU, full protocols need a GPU",
        )
    ]


def _threads() -> list[dict[str, str]]:
    """Time a small convolution with one thread and with all: on shared machines more threads can be slower."""
    import torch

    x, conv = torch.randn(2, 8, 32, 32, 32), torch.nn.Conv3d(8, 8, 3, padding=1)
    seconds, many = {}, torch.get_num_threads()
    for threads in (1, many):
        torch.set_num_threads(threads)
        conv(x)
        start = time.perf_counter()
        for _ in range(3):
            conv(x).sum().backward()
        seconds[threads] = (time.perf_counter() - start) / 3
    slower = seconds[many] > 1.2 * seconds[1]
    text = (
        ", ".join(f"{n} thread{'s' * (n > 1)} {s * 1000:.0f} ms" for n, s in seconds.items())
        + " a small convolution"
    )
    return [
        _check("warn" if slower else "ok", text + ("; set OMP_NUM_THREADS=1" if slower else ""))
    ]


def _disk(settings: Settings) -> dict[str, str]:
    from segbench.storage import existing

    place = existing(settings.root.resolve())
    free = shutil.disk_usage(place).free / 2**30
    if not os.access(place, os.W_OK):
        return _check("fail", f"results cannot be written to {settings.root}")
    return _check(
        "ok" if free > 2 else "warn", f"{free:.0f} GiB free for results in {settings.root}"
    )


def _data(settings: Settings) -> list[dict[str, str]]:
    from segbench import registry

    rows = []
    for name in registry.names("dataset"):
        try:
            cls = registry.get("dataset", name).cls
        except SegbenchError:
            continue  # reported with the plug-ins
        if cls.embedded or cls.members or cls.family:
            rows.append(_check("ok", f"data set {name}: built in"))
        elif (settings.data_root / name / "store.json").exists():
            rows.append(_check("ok", f"data set {name}: prepared in {settings.data_root / name}"))
        else:
            rows.append(
                _check(
                    "note",
                    f"data set {name}: not prepared; segbench data prepare {name} --from DIR",
                )
            )
    return rows


def _plugins() -> list[dict[str, str]]:
    from segbench import registry

    rows = []
    for kind in registry.KINDS:
        names, broken = registry.names(kind), []
        for name in names:
            try:
                registry.get(kind, name)
            except SegbenchError as error:
                broken.append(_check("fail", error.what))
        rows += [_check("ok", f"{len(names) - len(broken)} {kind}s"), *broken]
    return rows
