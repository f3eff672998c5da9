"""What ``lease.py`` measures: one function per kind of point, each returns a row of JSON types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from training import Training, Work, peak_bytes, seconds_of, wait_for

from segbench import Batch, registry
from segbench.config import Machine, resolve
from segbench.config.machine import Cadence
from segbench.data.sampling.batches import TrainingData
from segbench.data.sampling.loader import loader
from segbench.data.sampling.resident import ResidentData
from segbench.errors import Interrupted
from segbench.evaluation.precision import use_precision
from segbench.nn.compiled import compile_networks
from segbench.nn.layout import FORMATS
from segbench.nn.ops import Ema
from segbench.training.reporter import Reporter, StepReport
from segbench.training.run import execute
from segbench.training.setup import prepare

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests/plugins/tiny.py"
Row = dict[str, Any]


# -- point 1: it runs ----------------------------------------------------------------------------


def steps(work: Work, count: int) -> Row:
    """Make steps of every phase; return whether all losses are finite, the seconds and memory."""
    training = Training(work)
    if work.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    phases = {}
    for stage in training.plan:
        first = training.step(stage).report()  # raises if a term is not finite
        last = seconds_of(training, stage, count)
        phases[stage.phase.name] = {
            "seconds_per_step": last,
            "first_terms": first.terms,
            "last_terms": training.step(stage).report().terms,
        }
    return {"phases": phases, "peak_bytes": peak_bytes(work.device), "steps": count}


def agreement(work: Work) -> Row:
    """Compare the loss terms of one step on the device with those on the CPU, in fp32.

    Terms that depend on torch's random numbers cannot agree: those are the terms that differ
    between two seeds on the CPU.
    """
    first = _one_step(replace(work, device="cpu"), seed=0)
    other = _one_step(replace(work, device="cpu"), seed=1)
    device = _one_step(work, seed=0)
    differences = {}
    random_terms = []
    for name, value in first.items():
        if other[name] != value:
            random_terms.append(name)
        else:
            differences[name] = abs(device[name] - value) / max(abs(value), 1e-12)
    return {
        "relative_differences": differences,
        "random_terms": random_terms,
        "agrees": all(value <= 1e-4 for value in differences.values()),
    }


def _one_step(work: Work, seed: int) -> dict[str, float]:
    training = Training(work)  # the weights and the batch depend on the seed of the work alone
    training.train.settings = replace(training.train.settings, seed=seed)
    terms: dict[str, float] = training.step(training.plan[-1]).report().terms
    return terms


def gpu_tests(names: str, collect_only: bool) -> Row:
    """Run the tests that are marked ``gpu``."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", names]
    command += ["--timeout=0", "-p", "no:cacheprovider", "tests/training/test_loop.py"]
    if collect_only:
        command.append("--collect-only")
    done = subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False
    )
    return {"code": done.returncode, "output": done.stdout[-2000:] + done.stderr[-1000:]}


# -- point 2: where the time goes, and what helps ------------------------------------------------


def profile(work: Work, count: int) -> Row:
    """Return the share of time of the dearest operations in a step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    training = Training(work)
    stage = training.plan[-1]
    seconds_of(training, stage, 2)
    activities = [ProfilerActivity.CPU]
    if work.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profiler(activities=activities) as found:
        seconds_of(training, stage, count)
    key = "self_device_time_total" if work.device == "cuda" else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events) or 1
    shares = {}
    for event in events[:20]:
        shares[event.key[:60]] = round(getattr(event, key) / total, 4)
    return {"share_of_time": shares, "calls_per_step": sum(e.count for e in events) / count}


def pair(work: Work, variant: str, rounds: int, count: int) -> Row:
    """Return the seconds per step without and with a variant, made in turn in one process."""
    plain = Training(work)
    changed, around = VARIANTS[variant](work)
    stage = plain.plan[-1]
    seconds: dict[str, list[float]] = {"plain": [], variant: []}
    terms = {}
    for number in range(rounds + 1):
        for name, training in (("plain", plain), (variant, changed)):
            with around() if name == variant else _nothing():
                taken = seconds_of(training, stage, count)
                terms[name] = training.step(stage).report().terms
            if number > 0:  # the first round prepares kernels
                seconds[name].append(taken)
    plain_seconds = median(seconds["plain"])
    variant_seconds = median(seconds[variant])
    return {
        "plain": plain_seconds,
        "variant": variant_seconds,
        "ratio": plain_seconds / variant_seconds,
        "all_seconds": seconds,
        "terms": terms,
    }


Around = Callable[[], Any]


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _tf32() -> Iterator[None]:
    """Round the inputs of convolutions and matrix products to TF32."""
    use_precision("tf32")
    yield
    use_precision("fp32")


@contextmanager
def _benchmark() -> Iterator[None]:
    """Let cuDNN try its algorithms and take the fastest."""
    torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cudnn.benchmark = False


def _with_bf16(work: Work) -> tuple[Training, Around]:
    return Training(replace(work, precision="bf16")), _nothing


def _with_tf32(work: Work) -> tuple[Training, Around]:
    return Training(work), _tf32


def _with_benchmark(work: Work) -> tuple[Training, Around]:
    return Training(work), _benchmark


def _with_channels_last(work: Work) -> tuple[Training, Around]:
    training = Training(work)
    for weight in training.method.parameters():
        chosen = FORMATS.get(weight.ndim)
        if chosen is not None:
            weight.data = weight.data.contiguous(memory_format=chosen)
    return training, _nothing


def _with_compile(work: Work) -> tuple[Training, Around]:
    training = Training(work)
    compile_networks(training.method)
    return training, _nothing


def _with_cuda_graphs(work: Work) -> tuple[Training, Around]:
    training = Training(work)
    compile_networks(training.method, cuda_graphs=True)
    return training, _nothing


def _with_plain_optimizer(work: Work) -> tuple[Training, Around]:
    """Update the weights without the fused kernels that the engine uses on CUDA."""
    training = Training(work)
    training.step(training.plan[-1])  # makes the optimizers
    for optimizer in training.train.optimizers.values():
        for group in optimizer.param_groups:
            group["fused"] = None
    return training, _nothing


def _with_plain_moving_average(work: Work) -> tuple[Training, Around]:
    """Let teachers follow with two calls per weight, not with two calls for all weights."""
    training = Training(work)
    for module in training.method.modules():
        if isinstance(module, Ema):
            module.follow = partial(_follow_one_by_one, module)  # type: ignore[method-assign]
    return training, _nothing


@torch.no_grad()
def _follow_one_by_one(teacher: Ema, student: torch.nn.Module, decay: float) -> None:
    for mine, theirs in zip(teacher.model.parameters(), student.parameters(), strict=True):
        mine.mul_(decay).add_(theirs, alpha=1 - decay)


def _with_losses_read_at_once(work: Work) -> tuple[Training, Around]:
    """Wait for the loss terms after every step, as the engine does on the CPU."""
    training = Training(work)
    step = training.step

    def waiting(stage: Any) -> Any:
        made = step(stage)
        made.report()
        return made

    training.step = waiting
    return training, _nothing


def _with_pinned_batches(work: Work) -> tuple[Training, Around]:
    training = Training(work)
    stage = training.plan[-1]
    batch = training.batch(stage)
    if work.device == "cuda":
        pinned = {name: value.pin_memory() for name, value in vars(batch).items()}
        training.batches[stage.index] = Batch(**pinned)
    return training, _nothing


VARIANTS: dict[str, Callable[[Work], tuple[Training, Around]]] = {
    "bf16": _with_bf16,
    "channels_last": _with_channels_last,
    "cudnn_benchmark": _with_benchmark,
    "tf32": _with_tf32,
    "losses_read_at_once": _with_losses_read_at_once,
    "pinned_batches": _with_pinned_batches,
    "plain_moving_average": _with_plain_moving_average,
    "plain_optimizer": _with_plain_optimizer,
    "compile": _with_compile,
    "cuda_graphs": _with_cuda_graphs,
}


def loading(
    device: str, shape: list[int], patch: list[int], batches: int, augment: str = "mirror"
) -> Row:
    """Compare batches that are cut in main memory and copied with batches cut on the device.

    Seconds per batch of four patches, with nothing else to do: the time that loading takes of a
    step if it cannot be hidden behind it.
    """
    sys.path.insert(0, str(ROOT / "benchmarks/speed"))
    from loader import LABELED, Folder, crops_protocol, write_volumes

    cases = 8
    plan = [(0, number, LABELED, LABELED) for number in range(batches)]
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        write_volumes(Path(folder), cases, tuple(shape))
        stores = {"noise": Folder(Path(folder), cases)}
        labeled = {"noise": cases // 2}
        protocol = crops_protocol(patch, augment)
        host = TrainingData(stores, labeled, protocol, 0)
        resident = ResidentData(
            stores, labeled, protocol, 0, device=torch.device(device), share=_all_places
        )
        for name, data, pin in (
            ("main memory", host, False),
            ("main memory, pinned", host, device == "cuda"),
            ("resident", resident, False),
        ):
            for _ in range(2):  # the first pass reads the files
                wait_for(device)
                started = time.perf_counter()
                for batch in loader(data, plan, workers=0, pin=pin):
                    batch.to(device, non_blocking=True)
                wait_for(device)
                seconds[name] = (time.perf_counter() - started) / batches
    return {"seconds_per_batch": seconds, "ratio": seconds["main memory"] / seconds["resident"]}


def _all_places(places: range) -> range:
    return places


# -- points 3 and 4: trainings -------------------------------------------------------------------


def training(options: list[str], data: str, out: str, device: str) -> Row:
    """Train and evaluate with the command line, and return the result's rows."""
    command = [sys.executable, "-m", "segbench.cli.main"]
    if data == "tiny":
        command += ["--plugin", str(TINY)]
    command += ["run", *options, "--device", device]
    environment = _environment()
    environment["SEGBENCH_ROOT"] = out
    if data != "tiny":
        environment["SEGBENCH_DATA_ROOT"] = data
    done = subprocess.run(
        command, cwd=out, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(options)}: {(done.stderr or done.stdout)[-800:]}")
    newest = max(Path(out).rglob("result.json"), key=lambda file: file.stat().st_mtime)
    return {"result": json.loads(newest.read_text(encoding="utf-8"))}


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


# -- point 5: kill and resume --------------------------------------------------------------------


def resuming(method: str, device: str, count: int) -> Row:
    """Train three times: twice in one go and once with an interruption; return the digests."""
    registry.add_file(TINY)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "root": Path(folder) / "out",
            "data_root": Path(folder) / "data",
            "device": device,
            "save_every": Cadence(steps=1, seconds=None),
        }
        machine = Machine.model_validate(settings)
        request = resolve(
            method, dataset="tiny", protocol=ROOT / "tests/plugins/tiny.yaml", steps=count
        )
        run = prepare(request.experiments[0], machine)
        digests = {}
        for name in ("straight", "straight again"):
            digests[name] = execute(run, machine, restart=True)["weights_sha256"]
        try:
            execute(run, machine, _Stopping(count // 2), restart=True)
        except Interrupted:
            digests["resumed"] = execute(run, machine)["weights_sha256"]
    return {"digests": digests, "equal": len(set(digests.values())) == 1}


class _Stopping(Reporter):
    """Ends a training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def train(self, report: StepReport) -> None:
        if report.step == self.step:
            raise Interrupted("stopped by the measurement", 130)


# -- point 6: prediction -------------------------------------------------------------------------


def prediction(task: dict[str, Any], batches: list[int]) -> Row:
    """Compare ways to predict a volume; see benchmarks/speed/inference.py."""
    sys.path.insert(0, str(ROOT / "benchmarks/speed"))
    from inference import Task, compare

    return {"rows": compare(Task(**task), batches, rounds=2)}


KINDS: dict[str, Callable[..., Row]] = {
    "steps": lambda work, count: steps(Work(**work), count),
    "agreement": lambda work: agreement(Work(**work)),
    "gpu_tests": gpu_tests,
    "loading": loading,
    "profile": lambda work, count: profile(Work(**work), count),
    "pair": lambda work, variant, rounds, count: pair(Work(**work), variant, rounds, count),
    "training": training,
    "resuming": resuming,
    "prediction": prediction,
}
