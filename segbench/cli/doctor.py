"""``segbench doctor``: what this machine can do, and what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from segbench.cli.colors import paint
from segbench.cli.options import Command
from segbench.cli.settings import Settings
from segbench.cli.terminal import wrapped
from segbench.errors import SegbenchError

# Modules, with their packages where the name differs.
LIBRARIES = {
    "torch": "torch",
    "monai": "monai",
    "timm": "timm",
    "pydantic": "pydantic",
    "numpy": "numpy",
    "scipy": "scipy",
    "h5py": "h5py",
    "nrrd": "pynrrd",
    "nibabel": "nibabel",
    "safetensors": "safetensors",
    "rich": "rich",
}
OPTIONAL_LIBRARIES = {"medpy": "medpy"}
STATE_STYLES = {"ok": ("green",), "note": ("dim",), "warn": ("yellow",), "fail": ("bold", "red")}
UNUSABLE = 7  # exit code
SLOWER = 1.2  # ratio of step times from which fewer threads are recommended
LITTLE_SPACE = 2  # GiB


@dataclass(frozen=True)
class Check:
    """One finding. ``state`` is "ok", "note", "warn" or "fail"."""

    state: str
    what: str


def _check_lines(check: Check) -> str:
    """Return a finding as lines that fit the terminal, its state in a color of its own."""
    lines = wrapped(f"{check.state:<5} {check.what}", 6 * " ")
    state = paint(check.state, *STATE_STYLES[check.state])
    return "\n".join([state + lines[0][len(check.state) :], *lines[1:]])


@click.command(cls=Command)
@click.pass_obj
def doctor(settings: Settings) -> None:
    """Check Python, libraries, devices, disks, locks, SLURM, Ray, data and plug-ins.

    Attach the output of `segbench doctor --json` to a bug report.

    \b
    segbench doctor
    """
    checks = [
        *_libraries(),
        *_devices(),
        _threads(),
        _disk(settings),
        _file_system("results", settings.root),
        _file_system("data", settings.data_root),
        _slurm(),
        _ray(),
        *_datasets(settings),
        *_plugins(),
    ]
    failed = any(check.state == "fail" for check in checks)
    document = {
        "status": "failed" if failed else "ok",
        "checks": [asdict(check) for check in checks],
    }
    settings.show(document, map(_check_lines, checks))
    settings.exit_code = UNUSABLE if failed else 0


def _libraries() -> list[Check]:
    system = f"{platform.system()} {platform.machine()}"
    checks = [Check("ok", f"python {platform.python_version()} on {system}")]
    for name, package in LIBRARIES.items():
        version, problem = _version(name, package)
        checks.append(Check("fail" if problem else "ok", problem or f"{name} {version}"))
    for name, package in OPTIONAL_LIBRARIES.items():
        version, problem = _version(name, package)
        note = f"{problem} (optional: only tests of our metrics use it)"
        checks.append(Check("note", note) if problem else Check("ok", f"{name} {version}"))
    return checks


def _version(name: str, package: str) -> tuple[str, str]:
    """Return the version of a library, and why it cannot be imported; one of them is empty."""
    try:
        module: Any = importlib.import_module(name)
        version = getattr(module, "__version__", None) or importlib.metadata.version(package)
    except Exception as error:  # a broken library may raise anything
        return "", f"{name}: {type(error).__name__}: {error}"
    return str(version), ""


def _devices() -> list[Check]:
    import torch

    if not torch.cuda.is_available():
        note = (
            "no CUDA device: phantoms and the mini protocols run on the CPU, "
            "full protocols need a GPU"
        )
        return [Check("note", note)]
    checks = []
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        checks.append(Check("ok", f"cuda:{i} {torch.cuda.get_device_name(i)}, {memory:.0f} GiB"))
    return checks


def _threads() -> Check:
    """Time a small convolution with one thread and with all threads.

    On shared machines more threads can be slower.
    """
    import torch

    all_threads = torch.get_num_threads()
    seconds = {threads: _seconds_per_step(threads) for threads in (1, all_threads)}
    torch.set_num_threads(all_threads)
    parts = []
    for threads, value in seconds.items():
        parts.append(f"{threads} thread{'s' if threads > 1 else ''} {value * 1000:.0f} ms")
    text = f"{', '.join(parts)} per small convolution"
    if seconds[all_threads] > SLOWER * seconds[1]:
        return Check("warn", f"{text}; set OMP_NUM_THREADS=1")
    return Check("ok", text)


def _seconds_per_step(threads: int, repeats: int = 3) -> float:
    import torch

    torch.set_num_threads(threads)
    image = torch.randn(2, 8, 32, 32, 32)
    convolution = torch.nn.Conv3d(8, 8, 3, padding=1)
    convolution(image)  # the first call also allocates memory
    started = time.perf_counter()
    for _ in range(repeats):
        convolution(image).sum().backward()
    return (time.perf_counter() - started) / repeats


def _disk(settings: Settings) -> Check:
    from segbench.storage import existing

    place = existing(settings.root.resolve())
    if not os.access(place, os.W_OK):
        return Check("fail", f"results cannot be written to {settings.root}")
    free = shutil.disk_usage(place).free / 2**30
    state = "ok" if free > LITTLE_SPACE else "warn"
    return Check(state, f"{free:.0f} GiB free for results in {settings.root}")


def _file_system(what: str, folder: Path) -> Check:
    """Name the file system of a folder and the lock that keeps two processes from one run."""
    from segbench.mounts import mount_of
    from segbench.storage import LEASE_FILE, existing, lock_kind

    place = existing(folder.resolve())
    mount = mount_of(place)
    text = f"{what}: {folder}"
    if mount is not None:
        text += f" on {mount.kind} ({mount.source} at {mount.point})"
    if mount is not None and mount.is_read_only:
        return Check("note", f"{text}, read-only")
    if lock_kind(place / "lock") == LEASE_FILE:
        options = ", ".join(mount.local_locks) if mount is not None else ""
        why = f"mounted with {options}" if options else "it has no POSIX locks"
        return Check("ok", f"{text}, lease files as locks ({why})")
    if mount is None:
        return Check("ok", f"{text}, POSIX locks (lockf)")
    shared = "" if mount.is_shared else ", which other machines do not see"
    return Check("ok", f"{text}{shared}, POSIX locks (lockf)")


def _slurm() -> Check:
    """Name the programs that ``bench submit`` calls, or those that are missing."""
    from segbench.suites.slurm_engine import SLURM_PROGRAMS

    missing = [name for name in SLURM_PROGRAMS if shutil.which(name) is None]
    if missing:
        return Check(
            "note",
            f"bench submit --engine slurm: no {', '.join(missing)} here; --engine print needs none",
        )
    try:
        version = importlib.metadata.version("submitit")
    except importlib.metadata.PackageNotFoundError:
        return Check("note", "bench submit --engine slurm: needs pip install 'segbench[slurm]'")
    return Check(
        "ok", f"bench submit --engine slurm: {', '.join(SLURM_PROGRAMS)}, submitit {version}"
    )


def _ray() -> Check:
    """Name the version of Ray, or how to install it."""
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return Check("note", "bench submit --engine ray: needs pip install 'segbench[ray]'")
    return Check("ok", f"bench submit --engine ray: ray {version}")


def _datasets(settings: Settings) -> list[Check]:
    from segbench import registry

    checks = []
    for name in registry.names("dataset"):
        try:
            dataset = registry.get("dataset", name).cls
        except SegbenchError:
            continue  # reported with the plug-ins
        folder = settings.data_root / name
        if dataset.embedded or dataset.members or dataset.family:
            checks.append(Check("ok", f"data set {name}: built in"))
        elif (folder / "store.json").exists():
            checks.append(Check("ok", f"data set {name}: prepared in {folder}"))
        else:
            fix = f"segbench data prepare {name} --from DIR"
            checks.append(Check("note", f"data set {name}: not prepared; {fix}"))
    return checks


def _plugins() -> list[Check]:
    from segbench import registry

    checks = []
    for kind in registry.KINDS:
        names = registry.names(kind)
        broken = []
        for name in names:
            try:
                registry.get(kind, name)
            except SegbenchError as error:
                broken.append(Check("fail", error.what))
        checks.append(Check("ok", f"{len(names) - len(broken)} {kind}s"))
        checks += broken
    return checks
