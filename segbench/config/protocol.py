"""Protocols: what comparable runs share. Named, versioned files in ``benchmarks/protocols``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import cache
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from segbench.config.schema import Strict, leaves, validate
from segbench.config.yaml import Document, load_yaml
from segbench.contracts.optim import Optim
from segbench.errors import UsageError, unknown
from segbench.storage import file_version

__all__ = [
    "BackboneChoice",
    "BatchSize",
    "Crop",
    "Expected",
    "Optim",
    "Protocol",
    "SlidingWindow",
    "load_protocol",
    "protocol_names",
]

NO_PROTOCOL = "default"  # what data sets have that name no protocol of their own
SPEED_KEYS = frozenset({"inference.batch"})  # keys that decide speed and memory only

Edge = tuple[int, ...]
Factor = Annotated[int, Field(ge=1, le=8)]
# zoom: the whole image, resized by the nearest neighbor
Position = Literal["random", "center", "zoom"]
Augment = Literal["none", "mirror", "turn", "strong", "strong_mirror"]


CONVERGED = 1.0  # Dice in %: an oracle that gains less in its last quarter has converged


class BatchSize(Strict):
    """Items of one batch."""

    labeled: int = Field(default=2, ge=1, le=1024, description="labeled patches per batch")
    unlabeled: int = Field(default=2, ge=0, le=1024, description="unlabeled patches per batch")
    fill: bool = Field(
        default=True,
        description="labeled patches take the places of unlabeled ones in phases without them",
    )


class Crop(Strict):
    """How training patches are cut; reflects differences between published loaders."""

    labeled: Position = Field(default="random", description="place of labeled patches")
    unlabeled: Position = Field(default="random", description="place of unlabeled patches")
    pad: int = Field(
        default=3, ge=0, le=64, description="voxels added on each side when a volume must be padded"
    )
    last_offset: bool = Field(
        default=False, description="may the last admissible position be drawn"
    )
    foreground: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of labeled patches drawn around a foreground voxel",
    )


class SlidingWindow(Strict):
    """Sliding window of the evaluation."""

    stride: Edge = Field(description="voxels between windows, per axis")
    batch: int = Field(
        default=4, ge=1, le=1024, description="windows at once; no part of the identity"
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = Field(
        default=None, description="of predictions; default: that of the training"
    )


class BackboneChoice(Strict):
    """The backbone used when none is named."""

    name: str = Field(default="vnet", min_length=1, description="registered name")
    params: dict[str, Any] = Field(
        default={}, description="its parameters where they differ from its defaults"
    )


class Expected(Strict):
    """What unmodified runs of a protocol reached when it was made. It changes no run.

    A protocol that needs a GPU and was not run yet names published numbers, if there are any for
    its network and test cases.
    """

    oracle: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="mean Dice in % of supervised training on all labels",
    )
    last_quarter: float | None = Field(
        default=None,
        ge=-100,
        le=100,
        description="Dice in % that the oracle gains in the last quarter of the steps (of several "
        "tasks, the one furthest from 0): near 0 if it has converged",
    )
    supervised: float | None = Field(
        default=None, ge=0, le=100, description="mean Dice in % on the usual number of labels"
    )
    seconds: float | None = Field(
        default=None, gt=0, description="CPU seconds of a training, mean over the methods"
    )
    data: str = Field(
        default="", description="which runs and images oracle, last_quarter and supervised are of"
    )
    published: bool = Field(
        default=False, description="oracle and supervised are published numbers, not of segbench"
    )

    def summary(self) -> str:
        """Return in a few sentences what was reached, and how far from converged it is."""
        known = self.oracle is not None or self.supervised is not None
        if self.published and known:
            return self._published_summary()
        if self.oracle is None:
            return "Not known: the oracle of this protocol was not measured."
        sentence = f"The oracle reached {self.oracle:.1f} % Dice"
        if self.last_quarter is not None:
            converged = abs(self.last_quarter) < CONVERGED
            gain = f"{self.last_quarter:+.1f}"
            if converged and abs(float(gain)) >= CONVERGED:  # the limit would be shown
                gain = f"{self.last_quarter:+.2f}"
            state = "converged" if converged else "NOT converged"
            sentence += f", {gain} of it in the last quarter ({state})"
        if self.supervised is not None:
            sentence += f"; supervised training {self.supervised:.1f} %"
        return f"{sentence}. Measured on {self.data}." if self.data else f"{sentence}."

    def _published_summary(self) -> str:
        """Return what others published for supervised training."""
        found = []
        if self.supervised is not None:
            found.append(f"{self.supervised:.1f} % Dice")
        if self.oracle is not None:
            found.append(f"{self.oracle:.1f} % with all labels")
        about = f" ({self.data})" if self.data else ""
        numbers = ", ".join(found)
        return f"Not measured here. Published for supervised training: {numbers}{about}."


class Protocol(Strict):
    """One way to train and evaluate.

    ``labeled``, ``methods`` and ``backbone`` are defaults that a user may overrule.
    """

    name: str = Field(min_length=1, description="the file's stem")
    version: int = Field(1, ge=1, description="raised whenever a value changes")
    title: str = Field("", description="one line for tables")
    steps: int = Field(
        ge=1, le=10_000_000, description="optimizer steps for each data set of a training"
    )
    patch: Edge = Field(
        description="voxels per axis of a training patch and of an inference window"
    )
    batch: BatchSize = Field(default_factory=BatchSize)
    optim: Optim = Field(default_factory=Optim)
    crop: Crop = Field(default_factory=Crop)
    augment: Augment = Field(
        "none",
        description="mirror: quarter turn and mirror in plane; "
        "turn: that, or a rotation by up to 20 degrees; "
        "strong: rotation, scaling, noise, blur, brightness, contrast, low resolution and gamma; "
        "strong_mirror: that, and mirrors along all axes",
    )
    datasets: tuple[str, ...] = Field(
        (), description="used when exactly these are named together and no protocol is"
    )
    downsample: Factor | tuple[Factor, ...] | dict[str, tuple[Factor, ...]] = Field(
        1,
        description="volumes are reduced by this factor first, by factors per axis, "
        "or by factors per axis for each data set named; for slices, by factors in plane",
    )
    sampling: Literal["proportional", "balanced"] = Field(
        "proportional", description="of data sets in joint training"
    )
    inference: SlidingWindow
    backbone: BackboneChoice = Field(default_factory=BackboneChoice)
    methods: dict[str, dict[str, Any]] = Field(
        {},
        description="parameters of methods, where they differ from the methods' defaults",
    )
    labeled: tuple[int, ...] = Field((), description="usual numbers of labeled cases")
    selection: Literal["last", "validation"] = Field(
        "last", description="checkpoint evaluated; see training/selection.py"
    )
    policy: Literal["worst_distance"] = Field(
        "worst_distance", description="score of an empty prediction"
    )
    largest_component: bool = Field(
        False, description="keep only the largest component of each class"
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32", description="of the forward pass; tf32 equals fp32 on a CPU"
    )
    planned: str = Field(
        "",
        description="of a planned protocol: from which data, for which device and by which rules; "
        "it changes no run",
    )
    expected: Expected = Field(default_factory=Expected)
    published: dict[str, tuple[str, ...]] = Field(
        {},
        description="by data set, the methods whose authors trained like this (--as-published)",
    )

    @property
    def least(self) -> Edge | None:
        """The size to which smaller volumes are padded; None if slices are resized to the patch."""
        return None if self.crop.labeled == "zoom" else self.patch

    @model_validator(mode="after")
    def _check_patch(self) -> Protocol:
        axes = len(self.patch)
        if axes not in (2, 3) or min(self.patch) < 1:
            raise ValueError(f"patch: expected two or three edges ≥ 1, got {list(self.patch)}")
        stride = self.inference.stride
        fits = len(stride) == axes
        for step, edge in zip(stride, self.patch, strict=False):
            fits = fits and 1 <= step <= edge
        if not fits:
            raise ValueError(
                f"inference.stride: expected {axes} numbers from 1 to the patch's edge "
                f"{list(self.patch)}, got {list(stride)}"
            )
        return self

    @model_validator(mode="after")
    def _check_downsample(self) -> Protocol:
        axes = len(self.patch)
        factor = self.downsample
        if isinstance(factor, int):
            if factor > 1 and axes == 2:  # it would join slices, too
                raise ValueError(
                    f"downsample: expected two factors in plane for a patch of two edges, got one "
                    f"for all axes; write [{factor}, {factor}]"
                )
            return self
        per_axis = tuple(factor.values()) if isinstance(factor, dict) else (factor,)
        for factors in per_axis:
            if len(factors) != axes:
                raise ValueError(
                    f"downsample: expected {axes} factors for each data set, got {self.downsample}"
                )
        return self

    @model_validator(mode="after")
    def _check_crop(self) -> Protocol:
        crop = self.crop
        if (crop.labeled == "zoom") != (crop.unlabeled == "zoom"):
            raise ValueError("crop: zoom is for both streams or for none")
        if crop.foreground and (crop.labeled != "random" or self.augment == "turn"):
            raise ValueError("crop.foreground needs crop.labeled random, and no augment turn")
        if len(self.patch) == 3 and (self.augment == "turn" or crop.labeled == "zoom"):
            raise ValueError(
                "augment turn and crop zoom are for slices: they need a patch of two edges"
            )
        return self

    @model_validator(mode="after")
    def _check_optimizer(self) -> Protocol:
        milestones = list(self.optim.milestones)
        if self.optim.schedule == "step" and not milestones:
            raise ValueError("optim.milestones: a step schedule needs at least one")
        rising = milestones == sorted(set(milestones))
        last = self.optim.reference if self.optim.scale_milestones else inf
        within = all(0 < step <= last for step in milestones)
        if not rising or not within:
            raise ValueError(
                f"optim.milestones: expected rising steps from 1 to {last} "
                f"(optim.reference), got {milestones}"
            )
        if not all(0 <= beta < 1 for beta in self.optim.betas):
            raise ValueError(
                f"optim.betas: expected numbers in [0, 1), got {list(self.optim.betas)}"
            )
        return self

    @model_validator(mode="after")
    def _check_labeled(self) -> Protocol:
        if any(count < 1 for count in self.labeled):
            raise ValueError(f"labeled: expected counts ≥ 1, got {list(self.labeled)}")
        return self

    def factors(self, dataset: str, dims: int) -> tuple[int, ...]:
        """Return by how much a data set's volumes of ``dims`` axes are reduced along each axis."""
        if isinstance(self.downsample, int):
            return (self.downsample,) * dims
        chosen = self.downsample
        if isinstance(chosen, dict):
            chosen = chosen.get(dataset, (1,) * dims)
        # A protocol for slices has two factors: the number of slices stays as it is.
        unchanged = (1,) * (dims - len(chosen))
        return chosen + unchanged


def _files() -> dict[str, Path]:
    """Return the protocol files by name: the built-in ones, then those of ``SEGBENCH_PATH``."""
    package = importlib.import_module("segbench")
    folders = [Path(root) / "benchmarks" / "protocols" for root in package.__path__]
    return _files_in(tuple(folders), tuple(map(file_version, folders)))


@cache
def _files_in(folders: tuple[Path, ...], versions: tuple[tuple[int, int], ...]) -> dict[str, Path]:
    """Return the protocol files of folders, as of their versions."""
    found: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.yaml")):
            old = found.setdefault(file.stem, file.resolve())
            if old != file.resolve():
                raise UsageError(
                    f"protocol '{file.stem}' exists twice",
                    where=file,
                    found=old,
                    fix="rename one of the two files and the name in it",
                )
    return found


def protocol_names() -> list[str]:
    """Return the names of all protocols, sorted."""
    return sorted(_files())


def protocols_for(datasets: Iterable[str]) -> list[str]:
    """Return the names of the protocols made for exactly these data sets together."""
    wanted = set(datasets)
    return [name for name in protocol_names() if set(load_protocol(name).datasets) == wanted]


def published_recipes(datasets: str) -> dict[str, str]:
    """Return the protocols with which authors trained on data sets, by method.

    Args:
        datasets: one name, or several of a joint training with commas between them.
    """
    wanted = set(datasets.split(","))
    found = {}
    for name in protocol_names():
        for trained_on, methods in load_protocol(name).published.items():
            if set(trained_on.split(",")) == wanted:
                found.update(dict.fromkeys(methods, name))
    return found


def recipes_of(method: str) -> dict[str, str]:
    """Return the protocols with which a method's authors trained, by data sets as in the file."""
    found = {}
    for name in protocol_names():
        for trained_on, methods in load_protocol(name).published.items():
            if method in methods:
                found[trained_on] = name
    return found


def load_protocol(name_or_path: str | Path) -> Protocol:
    """Return a protocol by its name, or from a ``.yaml`` file.

    Raises:
        UsageError: no such protocol, a key or value is wrong, or a file's ``name`` is not its stem
            or is taken.
    """
    return read_protocol(name_or_path)[0]


def read_protocol(name_or_path: str | Path) -> tuple[Protocol, dict[str, str]]:
    """Return a protocol and who set each key: ``protocol la``, ``mine.yaml:14`` or ``default``."""
    known = _files()
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        file = Path(text)
        document, protocol = _parsed(file)
        _require_free_name(protocol, file, known)
        shown_name = ""
    else:
        document, protocol = _parsed(_file_of(text, known))
        shown_name = protocol.name
    origins = {key: _origin(key, document, shown_name) for key in leaves(Protocol)}
    return protocol, origins


def _file_of(name: str, known: dict[str, Path]) -> Path:
    """Return the file of a protocol; ``-`` and ``_`` are the same in its name."""
    for spelling in (name, name.replace("-", "_"), name.replace("_", "-")):
        if spelling in known:
            return known[spelling]
    raise unknown(
        "protocol",
        name,
        known,
        fix="segbench list protocols, or give a file: --protocol ./mine.yaml",
    )


def _parsed(file: Path) -> tuple[Document, Protocol]:
    """Return a protocol file's content; a file that is needed again and unchanged is read once."""
    return _parsed_version(file, file_version(file))


@cache
def _parsed_version(file: Path, version: tuple[int, int]) -> tuple[Document, Protocol]:
    document = load_yaml(file)
    protocol = validate(Protocol, document, lambda key: document.where(*key.split(".")))
    if protocol.name != file.stem:
        raise UsageError(
            "a protocol's name must be its file's stem",
            where=document.where("name"),
            found=protocol.name,
            expected=file.stem,
        )
    return document, protocol


def _require_free_name(protocol: Protocol, file: Path, known: dict[str, Path]) -> None:
    """Refuse a file that has the name of a known protocol and other content."""
    other = known.get(protocol.name)
    if other is None or other == file.resolve() or protocol == load_protocol(protocol.name):
        return
    raise UsageError(
        f"'{protocol.name}' is the name of another protocol: the results would be mixed up",
        where=file,
        found=other,
        fix="rename the file and the name in it",
    )


def _origin(key: str, document: Document, name: str) -> str:
    """Return who set a key: the protocol ``name``, or a line of the file if it has no name."""
    place: Any = document
    for part in key.split("."):
        if not isinstance(place, dict) or part not in place:
            return "default"
        place = place[part]
    return f"protocol {name}" if name else document.where(*key.split("."), column=False)
