"""Sentences of the speed page: what a table means, what was tried, what is open.

Numbers in them are computed from the stored measurements. What was tried without a script that
stores its measurements is reported in words.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEVICE_TESTS = ROOT / "tests" / "contract" / "test_devices.py"
DESCRIPTIONS = ROOT / "benchmarks" / "official"
METHODS = ROOT / "methods"
Row = dict[str, Any]

# How a changed number shows in the identity of a run, by the name of a change in changes.py.
IDENTITY = {
    "freed memory kept in the process": "same identity",
    "labels by a running maximum": "same identity",
    "channels last": "`ENGINE` 3; runs record `memory_format`",
    "instance norm as group norm": "new digests of the backbones' source",
    "one pass for all groups of images": "new digest of the method's source",
    "one scoring pass for voxels and mm": "same identity",
    "moving average of all weights at once": "new digests of the methods' source",
    "batch norm folded (not part of segbench)": "not part of segbench",
}


def rows_of(name: str) -> list[Row]:
    """Return the rows of a stored measurement."""
    content = json.loads((HERE / f"{name}.json").read_bytes())
    rows: list[Row] = content["rows"]
    return rows


# -- remarks about tables --------------------------------------------------------------------------


def about_classes(rows: list[Row]) -> str:
    """Compare speed and memory with MONAI's loss."""
    by_side = {row["side"]: row for row in rows}
    ours, monai = by_side["segbench"], by_side["MONAI"]
    more = "higher" if ours["peak_mb"] > monai["peak_mb"] else "lower"
    speed = monai["cpu"] / ours["cpu"]
    return (
        f"The loss is {speed:.2f} times as fast as MONAI's by CPU time, and its peak memory is "
        f"{more}: {ours['peak_mb']} MB against {monai['peak_mb']} MB."
    )


def about_official(rows: list[Row]) -> str:
    """Name the methods that the tables of authors' code leave out."""
    measured = {row["method"] for row in rows if "method" in row}
    for file in HERE.glob("speed-official-*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        measured |= {row["method"] for row in content["rows"] if "method" in row}
    methods = {file.stem for file in METHODS.glob("[!_]*.py")}
    # Other files describe a second script of a method, such as mc_net_acdc.
    described = methods & {file.stem for file in DESCRIPTIONS.glob("*.yaml")}
    open_ones = ", ".join(f"`{name}`" for name in sorted(described - measured))
    without = ", ".join(f"`{name}`" for name in sorted(methods - described))
    return (
        "Not measured, although `benchmarks/official` describes their authors' code: "
        f"{open_ones}. Not comparable, because it describes none: {without}."
    )


def about_larger_patches(rows: list[Row]) -> str:
    """Compare the ratios in float32 with those of smaller patches."""

    def ratios(rows: list[Row]) -> dict[str, float]:
        return {
            row["method"]: row["ratio_cpu"]
            for row in rows
            if row.get("side") == "segbench" and row["precision"] == "fp32"
        }

    smaller = ratios([*rows_of("speed-official"), *rows_of("speed-official-ssl4mis")])
    larger = ratios(rows)
    edges = [rows_of("speed-official")[0]["edge"], rows[0]["edge"]]
    compared = ", ".join(
        f"{name} {smaller[name]:.2f} and {larger[name]:.2f}"
        for name in sorted(larger.keys() & smaller.keys())
    )
    return (
        f"Speed in float32 relative to the authors' code with patches of {edges[0]} and of "
        f"{edges[1]} voxels along an edge: {compared}. The patches of the literature are larger "
        "still (112 x 112 x 80 voxels). With larger tensors the system spends more time on memory "
        "that the authors' code frees and asks for again, which segbench keeps. With smaller ones "
        "most of a step are convolutions, which both sides compute with the same kernels."
    )


def about_quick_suite(rows: list[Row]) -> str:
    """Return the minutes that all replicates of the measured rows take."""
    before, after = (20 * row["cpu"] / 60 for row in rows)
    return (
        f"The suite has twenty such replicates: by this measurement, {before:.0f} CPU minutes "
        f"before and {after:.0f} now. The oracle and the rows without unlabeled images come on "
        "top, which are as many runs again."
    )


def about_ssl4mis(rows: list[Row]) -> str:
    """Say what limits the speed of the 3-D U-Net."""
    ours = [row for row in rows if row.get("side") == "segbench" and row["precision"] == "fp32"]
    ratios = sorted(row["ratio_cpu"] for row in ours)
    return (
        f"The 3-D U-Net of SSL4MIS has instance normalization. In float32, our steps are "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} times as fast: most of the time goes into "
        "convolutions, which both sides compute with the same kernels. CPS is compared with the "
        "script of SSL4MIS, because its authors' code is for natural images."
    )


REMARKS: dict[str, Callable[[list[Row]], str]] = {
    "speed-classes": about_classes,
    "speed-official": about_official,
    "speed-official-64": about_larger_patches,
    "speed-official-ssl4mis": about_ssl4mis,
    "speed-quick-suite": about_quick_suite,
    "speed-inference": lambda rows: (
        "The plain loop is a loop in the style of the published code (one window at a time, sums "
        "in NumPy), written for this comparison. It is not a script of any authors. Folding batch "
        "normalization was tried and is not part of segbench."
    ),
    "speed-metric-peers": lambda rows: (
        "DisTorch is not compared: the package registry that was used has no package of this name."
    ),
    "speed-plain": lambda rows: (
        "The plain code is what a training script of its own would contain: the same networks and "
        "batches, Dice and cross entropy, SGD, and the moving average in a loop over the weights "
        "(`benchmarks/speed/plain.py`). It has neither channels last nor freed memory kept."
    ),
    "speed-changes": lambda rows: (
        "Where an option of segbench leads back to the old way, both sides are segbench's own "
        "code; elsewhere the script contains the old way in a few lines. The sizes are small: "
        "sizes of the literature may give other ratios."
    ),
}


# -- sections --------------------------------------------------------------------------------------


def without_gain() -> Iterator[str]:
    """Yield what was tried and is not used, or is used and gains nothing on the CPU."""
    changes = {row["change"]: row for row in rows_of("speed-changes")}
    sides = {row["kind"]: row for row in rows_of("speed-inference") if "kind" in row}
    half = [row["ratio"] for row in rows_of("speed-half")]
    ways = {row["way"]: row for row in rows_of("speed-distributed")}
    folded = changes["batch norm folded (not part of segbench)"]["ratio"]
    average = changes["moving average of all weights at once"]["ratio"]
    yield (
        "Points with a number are in a table of this page. The others were tried by hand in a copy "
        "of an early version; no script stored what was measured, so they have no numbers here."
    )
    yield ""
    yield (
        f"- Batch normalization folded into convolutions for predictions: {folded:.2f} times as "
        "fast (two small windows), and "
        f"{sides['segbench']['cpu'] / sides['segbench, folded']['cpu']:.2f} times at the size of "
        "the literature."
    )
    yield (
        f"- The moving average of all weights in two calls: {average:.2f} times as fast on the "
        "CPU. It is made for GPUs, where it was not measured."
    )
    yield (
        "- Predictions in bfloat16 with trained weights at the size of `la-mini`: "
        f"{min(half):.2f} to {max(half):.2f} times as fast."
    )
    yield (
        "- DistributedDataParallel in place of segbench's own exchange of gradients: a step with "
        f"the own exchange takes {ways['buckets']['of_ddp']:.2f} times as long."
    )
    yield from (
        "- Fused optimizers and those that update all weights in one call, on the CPU: no gain.",
        "- `torch.inference_mode` in place of `torch.no_grad` in predictions: no gain.",
        "- `torch.compile` on the CPU beside channels last: within the noise, after a long start.",
        "- Larger batches of windows on the CPU: no gain.",
        "- Huge pages by torch's switch: faster predictions, slower steps of VerSemi.",
        "- Channels last for networks with instance normalization: slower, so they stay as they "
        "are.",
        "- One pass for the noisy predictions of UA-MT's teacher: not possible with batch "
        "normalization, whose statistics are those of one pass.",
        "- Sharing computation between overlapping windows: not possible exactly, because padding "
        "at a window's border reaches into it.",
    )


def alters_numbers() -> Iterator[str]:
    """Yield which changes alter numbers and how it shows in the identity of runs."""
    yield (
        "The second column is what the script above found; for a training step it compares the "
        "gradients of the first step. Several sizes of one change have the same row."
    )
    yield ""
    yield "| change | both sides compute | identity of runs |"
    yield "|---|---|---|"
    results: dict[str, list[str]] = {}
    for row in rows_of("speed-changes"):
        found = results.setdefault(row["change"], [])
        if row["result"] not in found:
            found.append(row["result"])
    for change, found in results.items():
        yield f"| {change} | {'; '.join(found)} | {IDENTITY[change]} |"
    yield ""
    yield (
        "The Dice loss of more than two classes, which is computed one class at a time, also has "
        "other last digits and gave the methods new digests. Only channels last changes numbers in "
        "code that no digest covers and `ENGINE` stands for. `ENGINE` is 3 since networks keep "
        "this layout from the first convolution, whose weights for one channel are in both "
        "layouts at once, to the heads. `ENGINE` 2 stood for all settings in the identity of a run."
    )


def on_a_gpu() -> Iterator[str]:
    """Yield what is built for GPUs, what is not, and which steps wait for the device."""
    yield (
        "Nothing was measured on a GPU, because none was available; `benchmarks/gpu/lease.py` is "
        "the list of what to measure."
    )
    yield ""
    yield from (
        "- `--compile`, `--cuda-graphs`, `--resident` and `--precision tf32` are options of the "
        "command line. Whether the graphs are recorded and replayed as they should was not tried: "
        "on the CPU, the option compiles the networks and records nothing. Fused "
        "updates of the optimizers, loss terms that are read one step late, and pinned batches are "
        "not: on CUDA they are always used, on the CPU never, and only code can choose otherwise "
        "(`make_optimizer(fused=)`, `Loop(late=)`, `loader(pin=)`).",
        "- A test counts the calls in a training step that make the CPU wait for the device. There "
        "are none, except in these functions:",
    )
    yield ""
    yield "| method | function | why |"
    yield "|---|---|---|"
    for method, functions in allowed_waits().items():
        for function, why in functions.items():
            yield f"| {method} | `{function}` | {why} |"


def allowed_waits() -> dict[str, dict[str, str]]:
    """Return the functions that may wait and why, by method, from the test that counts them."""
    names: dict[str, Any] = {}
    for node in ast.parse(DEVICE_TESTS.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        name = node.targets[0].id
        if name in ("MASKS", "COMPONENTS", "ALLOWED_WAITS"):
            names[name] = _value(node.value, names)
    waits: dict[str, dict[str, str]] = names["ALLOWED_WAITS"]
    return waits


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """Return the value of a text, a name or a dictionary of such."""
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {ast.literal_eval(key): _value(value, names) for key, value in pairs if key}
    return ast.literal_eval(node)


SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    "What was tried without gain": without_gain,
    "Which changes alter numbers": alters_numbers,
    "On a GPU": on_a_gpu,
}
