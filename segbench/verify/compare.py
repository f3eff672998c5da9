"""Compare a method with its authors' code and say what differs, by how much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import segbench
from segbench.data.sampling.crops import take
from segbench.errors import PluginError, SegbenchError, UsageError
from segbench.evaluation.sliding_window import labels_from, predict_probabilities
from segbench.training.plan import Stage
from segbench.verify.description import Description, Part, load_description
from segbench.verify.draws import EqualDraws
from segbench.verify.examples import example_volumes
from segbench.verify.ours import Ours, Recorded, load_networks, twin
from segbench.verify.sampling import composition, cut_again, epoch_of

STEPS = 3
LIMITS = {"fp64": 1e-10, "fp32": 1e-5}
SCHEDULE_LIMIT = 1e-12
WINDOW_LIMIT = 1e-5  # of float32 probabilities


@dataclass(frozen=True)
class ComparedValue:
    """One line of the comparison."""

    check: str  # terms, gradients, weights, schedule, sampling, window
    what: str
    difference: float  # the largest, relative unless ``what`` says otherwise
    limit: float

    @property
    def passed(self) -> bool:
        """Return whether both sides agree."""
        return self.difference <= self.limit


@dataclass(frozen=True)
class Verification:
    """The comparison of a method with an official repository."""

    method: str
    description: Description
    precision: str
    rows: tuple[ComparedValue, ...]

    @property
    def failed(self) -> list[ComparedValue]:
        """Return the rows in which the sides differ."""
        return [row for row in self.rows if not row.passed]


def verify_method(
    name: str,
    official: Path,
    precision: str = "fp64",
    say: Callable[[str], object] = str,
    dataset: str = "",
) -> Verification:
    """Make three equal steps of every phase with ours and with the authors' code.

    The code in ``official`` is executed.

    Args:
        official: a clone of the authors' repository.
        precision: fp64 or fp32.
        say: receives remarks on the progress.
        dataset: data set of the authors' script, if they have several; empty for the main one.

    Raises:
        UsageError: no repository is described for the method, or it is not in ``official``.
        PluginError: the authors' script fails.
    """
    description = load_description(name, dataset)
    script = official.resolve() / description.folder / description.script
    if not script.is_file():
        raise UsageError(
            "the official repository is not there, or has another layout",
            where=official,
            expected=str(Path(description.folder) / description.script),
            fix=f"git clone https://{description.repository}, then --official with its folder",
        )
    ours = Ours(name, description)
    with tempfile.TemporaryDirectory() as folder:
        say(f"running {script}")
        theirs = _run_authors(description, official.resolve(), ours, precision, Path(folder))
    comparison = Comparison(description, ours, theirs, precision)
    say("running ours")
    return Verification(name, description, precision, tuple(comparison.rows()))


@dataclass(frozen=True)
class Theirs:
    """What the authors' side recorded."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def states(self, place: str) -> dict[str, dict[str, Tensor]]:
        """Return tensors by network and name, for a place such as ``0/last``."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in self.tensors.items():
            if key.startswith(f"{place}/"):
                network, name = key.removeprefix(f"{place}/").split("/")
                found.setdefault(network, {})[name] = value
        return found


def _run_authors(
    description: Description, official: Path, ours: Ours, precision: str, folder: Path
) -> Theirs:
    """Run the authors' script in another process and return what it recorded."""
    work = folder / "repository" / "code"
    work.mkdir(parents=True)
    batch = ours.experiment.protocol.batch
    job = {
        "description": description.model_dump(mode="json"),
        "official": str(official),
        "work": str(work),
        "patch": ours.method.setting.patch,
        "steps": STEPS,
        "lengths": [stage.steps for stage in ours.plan],
        "batch": [batch.labeled, batch.unlabeled],
        "sets": len(ours.experiment.datasets),
        "wide": precision == "fp64",
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    package = str(Path(segbench.__file__).parents[1])
    places = [package, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # nothing is written into the repository
    command = [sys.executable, "-m", "segbench.verify.authors", str(file)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    if finished.returncode:
        raise _failure(file, finished.stderr)
    facts = json.loads(file.with_suffix(".facts").read_text(encoding="utf-8"))
    return Theirs(load_file(file.with_suffix(".safetensors")), facts)


def _failure(job: Path, output: str) -> SegbenchError:
    """Return the error for a script that failed."""
    answer = {"what": (output.strip().splitlines() or ["no output"])[-1], "where": None}
    file = job.with_suffix(".error")
    if file.exists():
        answer = json.loads(file.read_text(encoding="utf-8"))
    return PluginError(
        "the authors' script failed",
        where=answer["where"],
        found=answer["what"],
        fix="git checkout of the version that the description in benchmarks/official is for, or "
        "install what the script imports",
    )


class Comparison:
    """Both sides, and the rows that compare them."""

    def __init__(
        self, description: Description, ours: Ours, theirs: Theirs, precision: str
    ) -> None:
        self.description = description
        self.ours = ours
        self.theirs = theirs
        self.limit = LIMITS[precision]
        self.wide = precision == "fp64"

    def rows(self) -> Iterator[ComparedValue]:
        """Run our side and yield all rows."""
        if self.wide:
            self.ours.method.double()
        parts = self.description.parts
        self._load(self.ours.method, parts[0], self.theirs.states("0/first"))
        axes = len(self.ours.method.setting.patch)
        draws = EqualDraws(self.wide, axes, self.description.dropout)
        records = self.ours.run(STEPS, draws)
        for stage, part, record in zip(self.ours.plan, parts, records, strict=True):
            prefix = f"{stage.phase.name}: " if len(parts) > 1 else ""
            for row in self._part_rows(stage, part, record):
                yield ComparedValue(row.check, prefix + row.what, row.difference, row.limit)
        yield from self._batch_rows()
        yield from self._crop_rows()
        yield from self._window_rows()

    def _load(self, method: Any, part: Part, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        load_networks(method, part.networks, states, self.description.without_counterpart)

    # -- the steps -----------------------------------------------------------------------------

    def _part_rows(self, stage: Stage, part: Part, record: Recorded) -> Iterator[ComparedValue]:
        for player in part.players:
            yield from self._term_rows(stage, player, record)
            yield self._gradient_row(stage, part, player, record)
        other = twin(self.ours.method)
        other.load_state_dict(record.weights)
        self._load(other, part, self.theirs.states(f"{stage.index}/last"))
        difference = distance(record.weights, other.state_dict())
        yield ComparedValue("weights", f"all networks after {STEPS} steps", difference, self.limit)
        yield from self._schedule_rows(stage, part)

    def _term_rows(self, stage: Stage, player: str, record: Recorded) -> Iterator[ComparedValue]:
        theirs = self.theirs.facts["terms"][stage.index].get(player, [])
        ours = record.terms.get(player, [])
        for name in theirs[0] if theirs else ["total"]:
            parts = name.split(" + ")
            mine = [sum(terms.get(part, inf) for part in parts) for terms in ours]
            others = [terms[name] for terms in theirs]
            yield ComparedValue("terms", f"{player}, {name}", largest(mine, others), self.limit)

    def _gradient_row(
        self, stage: Stage, part: Part, player: str, record: Recorded
    ) -> ComparedValue:
        trained = {id(weight) for weight in self.ours.method.trainable(player)}
        named = self.ours.method.named_parameters()
        names = [name for name, weight in named if id(weight) in trained]
        worst = 0.0
        for step, gradients in enumerate(record.gradients[player]):
            states = self.theirs.states(f"{stage.index}/last")
            for network, found in self.theirs.states(f"{stage.index}/{player}/{step}").items():
                states[network] = {**states[network], **found}
            other = twin(self.ours.method)
            for weight in other.parameters():
                weight.data.zero_()  # layers without a counterpart have no gradient
            self._load(other, part, states)
            others = dict(other.named_parameters())
            mine = {name: gradients[name] for name in names}
            worst = max(worst, distance(mine, {name: others[name] for name in names}))
        return ComparedValue("gradients", f"{player}, {len(names)} tensors", worst, self.limit)

    def _schedule_rows(self, stage: Stage, part: Part) -> Iterator[ComparedValue]:
        theirs = self.theirs.facts["schedule"][stage.index]
        length = self.theirs.facts["steps"][stage.index]
        if length is not None:
            yield ComparedValue("schedule", f"{length:,} steps", abs(length - stage.steps), 0)
        rows = []
        for player, names in part.players.items():
            rates = self.ours.rates(stage, player)
            rows.append((f"rate of {player}", rates, theirs[f"{names.optimizer}.lr"]))
        for variable, parameter in part.weights.items():
            weights = self.ours.weights(stage, parameter)
            rows.append((f"weight {variable}", weights, theirs[variable]))
        for variable, function in part.functions.items():
            rows.append((variable, self.ours.values(stage, function), theirs[variable]))
        for what, mine, others in rows:
            text = f"{what} at {stage.steps:,} steps"
            yield ComparedValue("schedule", text, largest(mine, others), SCHEDULE_LIMIT)

    # -- sampling ------------------------------------------------------------------------------

    def _batch_rows(self) -> Iterator[ComparedValue]:
        facts = self.theirs.facts
        if "epoch" not in facts:
            return
        labeled = len(facts["labeled"])
        order = [*facts["labeled"], *facts["unlabeled"]]
        epoch = epoch_of(self.ours.experiment.protocol, len(order), labeled)
        theirs = [[order.index(case) for case in group] for group in facts["epoch"]]
        mine = composition(epoch, labeled)
        others = composition(theirs, labeled)
        what = f"batches of an epoch: {others[0]} of {others[1]} + {others[2]} cases"
        different = sum(a != b for a, b in zip(mine, others, strict=True))
        yield ComparedValue("sampling", what, different, 0)

    def _crop_rows(self) -> Iterator[ComparedValue]:
        draws = self.theirs.facts.get("crops")
        if draws is None:
            return
        protocol = self.ours.experiment.protocol
        patch = self.ours.method.setting.patch
        volumes = example_volumes(patch)
        different = 0
        for number, drawn in enumerate(draws):
            image, label = volumes[number % len(volumes)]
            cut = cut_again(protocol, image.shape, patch, drawn)
            equal = cut is not None
            for kind, volume in (("image", image), ("label", label)):
                found = self.theirs.tensors[f"crop/{number}/{kind}"].numpy()
                if cut is not None:
                    mine = take(volume, cut, patch)
                    equal = equal and np.array_equal(np.squeeze(found), mine)
            different += not equal
        what = f"patches that differ, of {len(draws)} with equal draws"
        yield ComparedValue("sampling", what, different, 0)

    # -- prediction ----------------------------------------------------------------------------

    def _window_rows(self) -> Iterator[ComparedValue]:
        if self.description.window is None:
            return
        protocol = self.ours.experiment.protocol
        across, along = self.theirs.facts["strides"]
        wanted = (across, across, along)
        found = protocol.inference.stride
        different = sum(a != b for a, b in zip(wanted, found, strict=True))
        yield ComparedValue("window", f"strides {across}, {across}, {along}", different, 0)
        if tuple(protocol.patch) != tuple(self.description.patch):
            yield ComparedValue("window", "patch", inf, 0)
        method = self.ours.method.float().eval()
        patch = method.setting.patch
        returns_scores = self.description.window.probabilities
        wrong = 0
        voxels = 0
        worst = 0.0
        for number, (image, _) in enumerate(example_volumes(patch)):
            volume = torch.from_numpy(image)[None]
            stride = tuple(map(min, found, patch))
            probabilities = predict_probabilities(method.predict, volume, patch, stride, batch=1)
            labels = labels_from(probabilities)
            others = self.theirs.tensors[f"window/{number}/labels"].numpy()
            wrong += int((labels != others).sum())
            voxels += labels.size
            if returns_scores:
                foreground = self.theirs.tensors[f"window/{number}/foreground"]
                worst = max(worst, float((probabilities[-1] - foreground).abs().max()))
        yield ComparedValue("window", f"labels that differ, of {voxels:,} voxels", wrong, 0)
        if returns_scores:
            yield ComparedValue("window", "probabilities, absolute", worst, WINDOW_LIMIT)


def largest(mine: Sequence[float], others: Sequence[float]) -> float:
    """Return the largest relative difference of two sequences; infinity for other lengths."""
    if len(mine) != len(others) or not mine:
        return inf
    worst = 0.0
    for a, b in zip(mine, others, strict=True):
        if a != b:
            difference = abs(a - b) / max(abs(a), abs(b))
            worst = max(worst, difference if isfinite(difference) else inf)
    return worst


def distance(mine: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """Return the relative Euclidean distance of all floating-point tensors together."""
    names: Iterable[str] = [name for name, value in mine.items() if value.is_floating_point()]
    squared = 0.0
    size = 0.0
    for name in names:
        a = mine[name].detach().double()
        b = others[name].detach().double()
        squared += float((a - b).square().sum())
        size += float(b.square().sum())
    if not isfinite(squared):
        return inf
    if squared == 0:
        return 0.0
    return (squared / size) ** 0.5 if size else inf
