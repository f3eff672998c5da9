"""Plan a protocol for a data set that names none: written rules from facts to values.

The facts are those of the prepared training cases (shape, spacing, channels, classes) and the
device. Every value comes with its reason, which is written into the protocol file. The sources:

nnU-Net   Isensee et al., Nature Methods 2021; rules of version 2 as published in MIC-DKFZ/nnUNet
          (Apache-2.0), experiment_planning. Read, not copied.
UA-MT     Yu et al., MICCAI 2019: the left-atrium recipe of the semi-supervised literature.
SSL4MIS   Luo et al., github.com/HiLab-git/SSL4MIS: its two-dimensional recipe.
mini      benchmarks/results/mini-development.json and heart-mini-tuning.json: supervised training
          on a CPU, evaluated on training cases that were held out.

docs/explanation/planning.md compares the choices with those of nnU-Net.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any, Literal

from segbench.config.protocol import Protocol, load_protocol
from segbench.config.schema import nest, validate

__all__ = ["DataFacts", "Device", "PlannedProtocol", "Topology", "make_plan", "topology"]

RULES = 1  # raised whenever a rule changes
BACKBONE = "unet3d"  # a plain U-Net for two and three axes, whose levels may differ per axis
GIB = 2**30

LEAST_EDGE = 4  # voxels of the coarsest map along a pooled axis (nnU-Net)
THICK = 3  # ratio of spacings, and of edges, from which slices count as thick (nnU-Net)
NEAR = 2  # axes whose spacings differ by less are pooled together (nnU-Net)
LARGEST = {2: 2048**2, 3: 256**3}  # voxels of the patch that the search begins with (nnU-Net)
FOREGROUND = 0.33  # share of patches around a foreground voxel (nnU-Net)

# On a CPU.
CPU_VOXELS = {2: 64 * 64, 3: 64 * 32 * 16}  # of a patch
COVERED = 0.25  # share of the median volume that a patch covers at least (nnU-Net)
CPU_WIDTH = {2: 16, 3: 8}
CPU_LEVELS = 4
CPU_STEPS = {2: 800, 3: 400}
CPU_BATCH = {2: 4, 3: 2}
MOST_DOWNSAMPLED = 8  # what a protocol allows
SHORT = "la-mini"  # the protocol whose methods were adjusted to a few hundred steps

# On a GPU.
GPU_WIDTH = 32
GPU_LEVELS = 5  # the depth of all backbones of the literature that methods ask for
GPU_STEPS = {2: 30_000, 3: 6_000}
GPU_BATCH = {2: 12, 3: 2}
MOST_MEMORY = 24 * GIB  # a larger GPU gets the same plan
USED_MEMORY = 0.8  # the rest is for weights, convolution buffers and other programs
NETWORKS = 2  # that some methods train at once; the plan must fit all of them


@dataclass(frozen=True)
class DataFacts:
    """What a plan depends on. Counts are those of the training cases."""

    name: str  # of the data set
    fingerprint: str
    shape: tuple[int, ...]  # median, in voxels
    spacing: tuple[float, ...] | None  # median, in mm; None if the files do not state it
    channels: int
    classes: int  # with the background
    cases: int
    labeled: int

    @property
    def known_spacing(self) -> tuple[float, ...]:
        """The spacing; voxels of unknown spacing count as cubes."""
        return self.spacing or (1.0,) * len(self.shape)


@dataclass(frozen=True)
class Device:
    """Where the plan is to be trained."""

    kind: Literal["cpu", "gpu"]
    memory: int = 0  # bytes of the GPU

    @property
    def title(self) -> str:
        """A short text for titles."""
        return "CPU" if self.kind == "cpu" else f"GPU with {self.memory / GIB:.0f} GiB"


@dataclass(frozen=True)
class Topology:
    """Pooling factors between levels and kernel sizes of levels, per axis."""

    pooling: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def multiple(self) -> tuple[int, ...]:
        """The number that a patch must be a multiple of, along each axis."""
        axes = range(len(self.kernels[0]))
        return tuple(prod(factors[axis] for factors in self.pooling) for axis in axes)

    def params(self, width: int) -> dict[str, Any]:
        """Return the parameters of the backbone where they differ from its defaults."""
        params: dict[str, Any] = {"width": width, "depth": len(self.kernels)}
        if any(1 in factors for factors in self.pooling):
            params["pooling"] = [list(factors) for factors in self.pooling]
        if any(1 in sizes for sizes in self.kernels):
            params["kernels"] = [list(sizes) for sizes in self.kernels]
        return params


# Bytes that one voxel of a patch occupies in training, for the parameters of the backbone.
BytesPerVoxel = Callable[[dict[str, Any], int], float]


@dataclass
class PlannedProtocol:
    """A planned protocol: values by dotted key, in the order of the file, with their reasons."""

    name: str
    title: str
    origin: str  # what it was planned from and for
    head: list[str]  # sentences at the top of the file
    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, reason: str = "") -> None:
        """Add a value."""
        self.values[key] = value
        self.reasons[key] = reason

    def protocol(self, name: str = "") -> Protocol:
        """Return the protocol, under its own or another name."""
        values = {
            "name": name or self.name,
            "version": 1,
            "title": self.title,
            "planned": self.origin,
            **self.values,
        }
        return validate(Protocol, nest(values), lambda key: f"plan {self.name}")

    def text(self, name: str = "") -> str:
        """Return the commented protocol file, under the plan's own or another name."""
        lines = _comment(" ".join(self.head))
        lines += [
            f"name: {name or self.name}",
            "version: 1",
            f'title: "{self.title}"',
            f'planned: "{self.origin}"',
            "",
        ]
        group = ""
        for key, value in self.values.items():
            parent, _, last = key.rpartition(".")
            indent = "  " if parent else ""
            reason = _comment(self.reasons[key], indent)
            if parent and parent != group:
                lines.append(f"{parent}:")
            group = parent
            lines += reason
            if last == "methods":
                lines.append("methods:")
                lines += [f"  {name}: {_flow(params)}" for name, params in value.items()]
            else:
                lines.append(f"{indent}{last}: {_flow(value)}")
        return "\n".join(lines) + "\n"


def _comment(text: str, indent: str = "") -> list[str]:
    if not text:
        return []
    return textwrap.wrap(text, 98, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    return str(value)


# -- the network -----------------------------------------------------------------------------------


def topology(patch: Sequence[int], spacing: Sequence[float], levels: int) -> Topology:
    """Return how a network pools a patch, by the rules of nnU-Net.

    An axis is pooled as long as its map keeps ``LEAST_EDGE`` voxels, together with the axes that
    are nearly as fine: whose spacing is below ``NEAR`` times the finest one. A kernel spans a
    single voxel along an axis until its spacing is that near to the finest one. nnU-Net has no
    limit of ``levels``.

    Args:
        patch: its edges in voxels.
        spacing: mm along each axis.
        levels: most levels of the network.
    """
    axes = range(len(patch))
    size = list(patch)
    current = list(spacing)
    spans = [False for _ in axes]
    pooling: list[tuple[int, ...]] = []
    kernels: list[tuple[int, ...]] = []
    while len(pooling) + 1 < levels:
        chosen = _pooled_axes(size, current)
        if not chosen:
            break
        for axis in axes:
            spans[axis] = spans[axis] or current[axis] < NEAR * min(current)
        kernels.append(tuple(3 if spans[axis] else 1 for axis in axes))
        pooling.append(tuple(2 if axis in chosen else 1 for axis in axes))
        for axis in chosen:
            size[axis] = ceil(size[axis] / 2)
            current[axis] *= 2
    kernels.append((3,) * len(patch))
    return Topology(tuple(pooling), tuple(kernels))


def _pooled_axes(size: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """Return the axes that are pooled next."""
    long = [axis for axis, edge in enumerate(size) if edge >= 2 * LEAST_EDGE]
    if not long:
        return []
    finest = min(spacing[axis] for axis in long)
    chosen = [axis for axis in long if spacing[axis] < NEAR * finest]
    # A single axis is pooled only if it is longer, so that it does not end as the shortest.
    if len(chosen) == 1 and size[chosen[0]] < 3 * LEAST_EDGE:
        return []
    return chosen


def fitted_patch(
    shape: Sequence[int],
    spacing: Sequence[float],
    levels: int,
    fits: Callable[[tuple[int, ...], Topology], bool],
) -> tuple[tuple[int, ...], Topology]:
    """Return the largest patch that fits, and its topology, by the rules of nnU-Net.

    The search begins with a patch of equal edges in mm, at most as large as the median volume, and
    then shortens the axis along which the patch covers most of the volume.

    Args:
        shape: median shape in voxels.
        spacing: mm along each axis.
        levels: most levels of the network.
        fits: whether a patch is small enough.

    Returns:
        The smallest patch that can be pooled at all if none fits.
    """
    dims = len(shape)
    scale = (LARGEST[dims] * prod(spacing)) ** (1 / dims)
    patch = [min(round(scale / s), edge) for s, edge in zip(spacing, shape, strict=True)]
    net = topology(patch, spacing, levels)
    patch = _rounded_up(patch, net.multiple)
    while not fits(tuple(patch), net):
        shorter = _shortened(patch, shape, spacing, levels)
        if shorter is None:
            break
        patch, net = shorter
    return tuple(patch), net


def _rounded_up(patch: Sequence[int], multiple: Sequence[int]) -> list[int]:
    return [ceil(edge / unit) * unit for edge, unit in zip(patch, multiple, strict=True)]


def _shortened(
    patch: Sequence[int], shape: Sequence[int], spacing: Sequence[float], levels: int
) -> tuple[list[int], Topology] | None:
    """Return the next smaller patch and its topology, None if there is none.

    The step along the axis is the multiple of the shortened patch, not of the present one: it may
    be smaller, and no size in between is skipped.
    """
    covered = [edge / whole for edge, whole in zip(patch, shape, strict=True)]
    for axis in sorted(range(len(patch)), key=lambda axis: -covered[axis]):
        shorter = list(patch)
        shorter[axis] -= topology(patch, spacing, levels).multiple[axis]
        if shorter[axis] < LEAST_EDGE:
            continue
        step = topology(shorter, spacing, levels).multiple[axis]
        shorter = list(patch)
        shorter[axis] -= step
        net = topology(shorter, spacing, levels)
        rounded = _rounded_up(shorter, net.multiple)
        if prod(rounded) < prod(patch):
            return rounded, net
    return None


# -- two or three axes, and the resolution ---------------------------------------------------------


def has_thick_slices(facts: DataFacts) -> bool:
    """Return whether the last axis is that of thick slices, as nnU-Net decides it.

    It is both much coarser and much shorter in voxels than the others.
    """
    if len(facts.shape) < 3 or facts.spacing is None:
        return False
    *in_plane, across = facts.spacing
    *edges, slices = facts.shape
    return across > THICK * max(in_plane) and slices * THICK < min(edges)


def reduction(shape: Sequence[int], spacing: Sequence[float], voxels: float) -> tuple[int, ...]:
    """Return whole factors that bring a volume down to at most so many voxels.

    The finest axis is reduced first, which brings the spacings nearer to each other (nnU-Net's
    low-resolution configuration); of equally fine axes, the longest.
    """
    factors = [1] * len(shape)

    def size() -> int:
        return prod(ceil(edge / factor) for edge, factor in zip(shape, factors, strict=True))

    while size() > voxels:
        open_axes = [axis for axis, factor in enumerate(factors) if factor < MOST_DOWNSAMPLED]
        if not open_axes:
            break
        finest = min(
            open_axes, key=lambda axis: (round(spacing[axis] * factors[axis], 6), -shape[axis])
        )
        factors[finest] += 1
    return tuple(factors)


# -- plans -----------------------------------------------------------------------------------------


def make_plan(
    facts: DataFacts, device: Device, bytes_per_voxel: BytesPerVoxel | None = None
) -> PlannedProtocol:
    """Return the plan of a data set for a device.

    Args:
        facts: about the data set.
        device: where it will be trained.
        bytes_per_voxel: memory of one voxel of a training patch for parameters of the backbone and
            a number of axes; needed for a GPU.
    """
    plan = PlannedProtocol(
        name=f"{facts.name}_{device.kind}",
        title="",
        origin=f"from {facts.name} ({facts.fingerprint[:12]}), for a {device.title}, rules {RULES}",
        head=[],
    )
    if device.kind == "cpu":
        _plan_for_cpu(plan, facts)
    else:
        assert bytes_per_voxel is not None
        _plan_for_gpu(plan, facts, device, bytes_per_voxel)
    return plan


def _plan_for_cpu(plan: PlannedProtocol, facts: DataFacts) -> None:
    is_flat = facts.shape[-1] == 1
    in_slices = len(facts.shape) == 2 or is_flat or has_thick_slices(facts)
    axes = 2 if in_slices else 3
    shape = facts.shape[:axes]
    spacing = facts.known_spacing[:axes]
    factors = reduction(shape, spacing, CPU_VOXELS[axes] / COVERED)
    reduced = tuple(ceil(edge / factor) for edge, factor in zip(shape, factors, strict=True))
    coarse = tuple(s * factor for s, factor in zip(spacing, factors, strict=True))

    def fits(patch: tuple[int, ...], net: Topology) -> bool:
        return prod(patch) <= CPU_VOXELS[axes]

    patch, net = fitted_patch(reduced, coarse, CPU_LEVELS, fits)
    plan.title = (
        f"Planned for {facts.name}: {_by(patch)} at {_mm(facts, coarse)}, "
        f"{CPU_STEPS[axes]} steps (CPU)"
    )
    plan.head = [
        "A SMALL plan for a CPU: a low resolution, a small network and a few hundred steps, to try",
        "methods on this data set in minutes. It does not show what they reach on a GPU.",
        *_about(facts),
    ]
    plan.put(
        "steps",
        CPU_STEPS[axes],
        "minutes on one core; supervised training gained little after them (mini)",
    )
    plan.put("patch", list(patch), _patch_reason(facts, reduced, patch, in_slices))
    _put_batch(plan, CPU_BATCH[axes], "the smallest batches that trained well on a CPU (mini)")
    plan.put("optim.name", "adamw", "learned thin classes where SGD did not in so few steps (mini)")
    plan.put("optim.lr", 0.003, "as above")
    plan.put("optim.weight_decay", 0.01, "as above")
    plan.put("optim.schedule", "poly", "ends near zero (nnU-Net, SSL4MIS)")
    _put_crop(plan)
    plan.put("augment", "none", "costs more than it gains in a training this short (mini)")
    plan.put("downsample", list(factors), _downsample_reason(facts, factors, coarse))
    _put_inference(plan, patch, 8)
    _put_backbone(plan, net, CPU_WIDTH[axes], "narrow, for a CPU")
    methods = load_protocol(SHORT).methods
    plan.put("methods", methods, f"parameters for short trainings, as in protocol {SHORT}")


def _plan_for_gpu(
    plan: PlannedProtocol, facts: DataFacts, device: Device, bytes_per_voxel: BytesPerVoxel
) -> None:
    axes = 2 if facts.shape[-1] == 1 else len(facts.shape)
    shape = facts.shape[:axes]
    spacing = facts.known_spacing[:axes]
    patches = 2 * GPU_BATCH[axes]
    usable = min(device.memory, MOST_MEMORY) * USED_MEMORY / NETWORKS

    def needed(patch: tuple[int, ...], net: Topology) -> float:
        return patches * prod(patch) * bytes_per_voxel(net.params(GPU_WIDTH), axes)

    def fits(patch: tuple[int, ...], net: Topology) -> bool:
        return needed(patch, net) <= usable

    patch, net = fitted_patch(shape, spacing, GPU_LEVELS, fits)
    plan.title = (
        f"Planned for {facts.name}: {_by(patch)}, {GPU_STEPS[axes]:,} steps ({device.title})"
    )
    memory = needed(patch, net)
    plan.head = [
        f"A plan for a {device.title}: the activations of a batch take {memory / GIB:.1f} GiB per",
        f"network, and {NETWORKS} networks (some methods train so many) fit.",
        *_about(facts),
    ]
    source = "SSL4MIS" if axes == 2 else "UA-MT"
    plan.put("steps", GPU_STEPS[axes], f"the literature of semi-supervised learning ({source})")
    plan.put("patch", list(patch), _patch_reason(facts, shape, patch, in_slices=axes == 2))
    _put_batch(plan, GPU_BATCH[axes], f"the literature of semi-supervised learning ({source})")
    plan.put("optim.name", "sgd", f"{source}; nnU-Net: also SGD, with a momentum of 0.99")
    plan.put("optim.lr", 0.01, f"{source} and nnU-Net")
    plan.put("optim.momentum", 0.9, source)
    plan.put("optim.weight_decay", 1e-4, f"{source}; nnU-Net: 3e-5")
    plan.put("optim.schedule", "poly", "ends near zero (nnU-Net, SSL4MIS)")
    _put_crop(plan)
    plan.put(
        "augment",
        "strong",
        "nnU-Net's, without its mirrors: it is not known which mirror images can occur",
    )
    plan.put(
        "downsample",
        1,
        "the prepared resolution. The patch covers "
        f"{_percent(patch, shape)} of the median volume; where this is below 25 %, nnU-Net adds a "
        "low-resolution network. Reduce the resolution here if the target needs more context",
    )
    _put_inference(plan, patch, 4)
    _put_backbone(plan, net, GPU_WIDTH, "32 channels, as nnU-Net")


# -- parts that both devices share -----------------------------------------------------------------


def _about(facts: DataFacts) -> list[str]:
    """Return sentences on the data set, and on what is decided elsewhere."""
    spacing = "no spacing is stated, so voxels count as cubes"
    if facts.spacing is not None:
        spacing = f"{' x '.join(f'{s:.3g}' for s in facts.spacing)} mm"
    return [
        f"Planned from the {facts.cases} training cases of {facts.name}, {facts.labeled} of them",
        f"labeled: median shape {' x '.join(map(str, facts.shape))}, {spacing},",
        f"{facts.channels} channel(s), {facts.classes - 1} class(es).",
        "Spacing and gray values are those of the prepared data: segbench data prepare resamples",
        "to the median spacing and normalizes by channel name as nnU-Net does (CT: a window of the",
        "foreground's percentiles; others: z-scores); segbench data link --spacing, --window,",
        "--crop change that.",
        "The values are yours to change: under another name they are another protocol.",
        "Sources: docs/explanation/planning.md.",
    ]


def _patch_reason(
    facts: DataFacts, shape: Sequence[int], patch: Sequence[int], in_slices: bool
) -> str:
    kind = ""
    if in_slices and len(facts.shape) == 3:
        why = "the volumes have one slice"
        if facts.shape[-1] > 1:
            why = "slices are thick: two axes learn faster on a CPU (SSL4MIS, mini)"
        kind = f"slices, because {why}; "
    return (
        f"{kind}{_percent(patch, shape)} of the median {_by(shape)} at this resolution: the "
        "largest that fits, shortened along the axis of which it covers most (nnU-Net)"
    )


def _downsample_reason(facts: DataFacts, factors: Sequence[int], coarse: Sequence[float]) -> str:
    if set(factors) == {1}:
        return "volumes are small enough at their own resolution"
    return (
        f"to {_mm(facts, coarse)}, the finest axis first, until a patch covers at least "
        f"{COVERED:.0%} of the median volume (nnU-Net's limit, below which it adds a network of "
        "low resolution); predictions are scored on the full grid"
    )


def _put_batch(plan: PlannedProtocol, items: int, reason: str) -> None:
    plan.put("batch.labeled", items, reason)
    plan.put("batch.unlabeled", items)


def _put_crop(plan: PlannedProtocol) -> None:
    plan.put("crop.pad", 0, "volumes smaller than the patch are padded just to its size")
    plan.put("crop.last_offset", True, "every position can be drawn")
    plan.put(
        "crop.foreground", FOREGROUND, "a third of the patches around the foreground (nnU-Net)"
    )


def _put_inference(plan: PlannedProtocol, patch: Sequence[int], batch: int) -> None:
    stride = [max(1, edge // 2) for edge in patch]
    plan.put("inference.stride", stride, "half the patch (nnU-Net)")
    plan.put("inference.batch", batch)


def _put_backbone(plan: PlannedProtocol, net: Topology, width: int, reason: str) -> None:
    plan.put("backbone.name", BACKBONE, f"the plain U-Net, which nnU-Net also trains; {reason}")
    plan.put(
        "backbone.params",
        net.params(width),
        "an axis is pooled together with those of nearly its spacing, and kernels span it from "
        "then on (nnU-Net); without pooling and kernels: 2 and 3 along every axis",
    )


def _by(edges: Sequence[int]) -> str:
    return "x".join(map(str, edges))


def _mm(facts: DataFacts, spacing: Sequence[float]) -> str:
    unit = "mm" if facts.spacing is not None else "voxels"
    return f"{'x'.join(f'{s:.3g}' for s in spacing)} {unit}"


def _percent(patch: Sequence[int], shape: Sequence[int]) -> str:
    share = 1.0
    for edge, whole in zip(patch, shape, strict=True):
        share *= min(edge / whole, 1)
    return f"{100 * share:.0f} %"
