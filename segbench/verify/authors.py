"""The authors' side: run their script in a process of its own and record what it computes.

    python -m segbench.verify.authors JOB.json

The job names the repository and the description. Loaders yield synthetic batches, ``cuda()`` does
nothing, and random draws are those of ``EqualDraws``. Nothing is written into the repository.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segbench.verify import libraries
from segbench.verify.description import Description, Part
from segbench.verify.draws import EqualDraws
from segbench.verify.examples import example_batch, example_volumes
from segbench.verify.source import Repository, ScheduleStatements, strides_in, value_of

CROPS = 6  # patches of each volume
JITTER = 0.05  # relative to the size of a tensor's values


class SyntheticSet:
    """A data set of the script: its length, its transform, and no files."""

    def __init__(self, *values: Any, transform: Any = None, **options: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 1000


class SyntheticLoader:
    """A loader of the script, which yields the batches of a few steps."""

    def __init__(self, dataset: Any, **options: Any) -> None:
        self.dataset = dataset
        self.options = options

    def __len__(self) -> int:
        return 1000

    def __iter__(self) -> Iterator[Any]:
        frame = SESSION.script_frame()
        return SESSION.batches(self, frame)


class WatchedDraws(EqualDraws):
    """Also shows the session every call of ``backward`` by the script."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        is_backward = func is Tensor.backward
        frame = SESSION.calling_frame() if is_backward else None
        if frame is None:
            return super().__torch_function__(func, types, args, kwargs)
        return SESSION.backward(args[0], names_in(frame))


class Session:
    """One run of a script."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.description = Description.model_validate(job["description"])
        self.small = tuple(job["patch"])
        self.steps: int = job["steps"]
        self.lengths: list[int] = job["lengths"]  # steps of our phases
        self.labeled, self.unlabeled = job["batch"]
        self.sets: int = job["sets"]
        self.root = Path(job["official"])
        self.folder = self.root / self.description.folder
        self.script = self.folder / self.description.script
        self.repository = Repository(self.root, self.description.patch, self.small)
        dropout = self.description.dropout
        self.draws = WatchedDraws(job["wide"], len(self.small), dropout)
        self.tensors: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {"terms": [], "schedule": [], "steps": []}
        self.part = -1
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: list[torch.optim.Optimizer] = []
        self.files: list[str] = []  # of weights that the script asked for

    # -- what the script is given --------------------------------------------------------------

    def prepare(self) -> None:
        """Replace what the script must not find: its data, a GPU, its files."""
        libraries.install(self.root)
        sys.meta_path.insert(0, self.repository)
        sys.path.insert(0, str(self.folder))
        sys.argv = [self.description.script, *self.description.arguments]
        replace(torch.utils.data, DataLoader=SyntheticLoader)
        replace(torch, load=self.pretrained, save=nothing)
        replace(torch.cuda, is_available=lambda: False, device_count=lambda: 0)
        replace(nn.Module, cuda=lambda module, *_: module)
        replace(shutil, copytree=nothing, copy=nothing, rmtree=nothing)
        replace(np.random, randint=self.draws.integer)
        replace(sys.modules["random"], uniform=self.draws.between)
        for module, classes in self.description.datasets.items():
            found = __import__(module, fromlist=["*"])
            replace(found, **dict.fromkeys(classes, SyntheticSet))

    def pretrained(self, file: Any, *values: Any, **options: Any) -> dict[str, Any]:
        """Return the weights that the training loop before this one ended with.

        The first file that the script asks for holds the first network of the description, the
        next one the second network, each with the state of its optimizer.
        """
        if str(file) not in self.files:
            self.files.append(str(file))
        place = self.files.index(str(file))
        network = list(self.networks.values())[place]
        state = {"net": copy.deepcopy(network.state_dict())}
        weights = {id(weight) for weight in network.parameters()}
        for optimizer in self.optimizers:
            if id(optimizer.param_groups[0]["params"][0]) in weights:
                state["opt"] = copy.deepcopy(optimizer.state_dict())
        return state

    def batches(self, loader: SyntheticLoader, frame: FrameType) -> Iterator[Any]:
        """Yield the batches of one training loop."""
        role = self.role(loader, frame)
        leads = self.leads(role)
        if leads:
            self.start_part(loader, frame)
        first = self.part * self.steps
        for step in range(first, first + self.steps):
            if leads:
                self.draws.begin(step)
            yield self.items(step, role)
        if leads:
            self.keep_weights("last")

    def role(self, loader: SyntheticLoader, frame: FrameType) -> str:
        """Return what a loader of the script yields, see ``Description.loaders``."""
        names = names_in(frame)
        loaders = self.description.loaders.items()
        return next(role for name, role in loaders if names.get(name) is loader)

    def leads(self, role: str) -> bool:
        """Return whether the script asks the loader with this role first."""
        return role == next(iter(self.description.loaders.values()))

    def items(self, step: int, role: str) -> Any:
        """Return a batch as the script expects it."""
        classes = self.description.classes
        batch, hidden = example_batch(
            step, self.small, self.labeled, self.unlabeled, self.sets, classes
        )
        if not self.draws.wide:
            batch = type(batch)(batch.x.float(), batch.y, batch.u.float(), batch.source)
        kind, _, half = role.partition(" ")
        tasks = 1 + batch.source
        count = len(batch.x)
        if half.isdigit():
            images, labels = (batch.x, batch.y) if kind == "labeled" else (batch.u, hidden)
            part = int(half) - 1
            return images.chunk(2)[part], labels.chunk(2)[part]
        if kind == "labeled":
            return batch.x, batch.y, tasks[:count]
        if kind == "unlabeled":
            return batch.u, hidden, tasks[count:]
        images = torch.cat([batch.x, batch.u])
        items = {"image": images, "label": torch.cat([batch.y, hidden])}
        return [items, items] if role == "both twice" else items

    # -- what is recorded ----------------------------------------------------------------------

    def start_part(self, loader: SyntheticLoader, frame: FrameType) -> None:
        """Begin a training loop: record its first weights, its schedule and its sampling."""
        names = names_in(frame)
        part = self.enter_part(names)
        self.step_terms: dict[str, list[dict[str, float]]] = {}
        self.facts["terms"].append(self.step_terms)
        if self.part == 0:
            for number, network in enumerate(self.networks.values()):
                jitter(network, seed=number)
            self.keep_weights("first")
        if self.description.sampling:
            self.record_sampling(loader)
        length = value_of(part.steps, names) if part.steps else None
        self.facts["steps"].append(length)
        self.facts["schedule"].append(self.schedule(part, frame))

    def enter_part(self, names: dict[str, Any]) -> Part:
        """Go on to the next training loop, whose variables are given, and return its description.

        Raises:
            RuntimeError: the description has no further one.
        """
        self.part += 1
        if self.part == len(self.description.parts):
            raise RuntimeError(f"the script goes through its data more than {self.part} times")
        part = self.description.parts[self.part]
        self.networks = {name: names[name] for name in part.networks}
        self.optimizers = [
            value for value in names.values() if isinstance(value, torch.optim.Optimizer)
        ]
        return part

    def backward(self, loss: Tensor, names: dict[str, Any]) -> None:
        """Record the terms of a loss and the gradients of its networks."""
        torch.autograd.backward(loss)
        part = self.description.parts[self.part]
        for player, description in part.players.items():
            last = description.total.split(" + ")[-1]
            if names.get(last) is not loss:
                continue
            terms = {"total": value_of(description.total, names).item()}
            for name, expression in description.terms.items():
                value = torch.as_tensor(value_of(expression, names))
                terms[name] = value.item()
            steps = self.step_terms.setdefault(player, [])
            self.keep_gradients(player, len(steps))
            steps.append(terms)

    def keep_gradients(self, player: str, step: int) -> None:
        """Record the gradients of all networks."""
        for variable, network in self.networks.items():
            for name, weight in network.named_parameters():
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                key = f"{self.part}/{player}/{step}/{variable}/{name}"
                self.tensors[key] = gradient.detach().clone()

    def keep_weights(self, when: str) -> None:
        """Record the weights and statistics of all networks."""
        for variable, network in self.networks.items():
            for name, value in network.state_dict().items():
                self.tensors[f"{self.part}/{when}/{variable}/{name}"] = value.clone()

    def schedule(self, part: Part, frame: FrameType) -> dict[str, list[float]]:
        """Return rates and weights at every step: only what sets them in the loop is executed."""
        wanted = [*part.weights, *part.functions]
        optimizers = {player.optimizer for player in part.players.values()}
        steps = [f"{name}.step" for name in optimizers]
        tree = self.repository.tree(self.script)
        statements = ScheduleStatements(tree, frame.f_lineno, wanted, steps)
        loader = statements.loader(self.script)
        module = ModuleType("schedule")
        module.__dict__.update(names_in(frame))
        recorders = {}
        for name, value in module.__dict__.items():
            # All of them: the statements must not change a rate of the script's own optimizers.
            if isinstance(value, torch.optim.Optimizer):
                recorders[name] = RateRecorder(value)
        module.__dict__.update(recorders)
        values: dict[str, list[float]] = {name: [] for name in wanted}
        for _ in range(self.lengths[self.part]):
            loader.exec_module(module)
            for name in wanted:
                values[name].append(float(module.__dict__[name]))
        rates = {f"{name}.lr": recorders[name].rates for name in optimizers}
        return {**values, **rates}

    def record_sampling(self, loader: SyntheticLoader) -> None:
        """Record the batches of an epoch and, in the first training loop, patches."""
        if self.part == 0:
            self.record_crops(loader)
        self.record_batches(loader)

    def record_batches(self, loader: SyntheticLoader) -> None:
        """Record the cases of one epoch, if the script has a sampler of two streams."""
        sampler = loader.options.get("batch_sampler")
        if sampler is None:
            return
        self.facts["labeled"] = [int(index) for index in sampler.primary_indices]
        self.facts["unlabeled"] = [int(index) for index in sampler.secondary_indices]
        self.facts["epoch"] = [[int(index) for index in group] for group in sampler]

    def record_crops(self, loader: SyntheticLoader) -> None:
        """Record patches that the script's transform cuts, with the numbers that it draws."""
        transform = loader.dataset.transform
        if transform is None:
            return
        drawn: list[tuple[int, int, int]] = []

        def record(low: int, high: int) -> int:
            value = self.draws.integer(low, high)
            drawn.append((low, high, value))
            return value

        usual = np.random.randint
        replace(np.random, randint=record)
        self.facts["crops"] = []
        for number, (image, label) in enumerate(example_volumes(self.small) * CROPS):
            self.draws.begin(number)
            sample = transform({"image": image, "label": label})
            self.tensors[f"crop/{number}/image"] = sample["image"].clone()
            self.tensors[f"crop/{number}/label"] = sample["label"].clone()
            self.facts["crops"].append(list(drawn))
            drawn.clear()
        replace(np.random, randint=usual)

    def record_windows(self) -> None:
        """Record predictions of whole volumes by the authors' sliding window, in float32."""
        window = self.description.window
        if window is None:
            return
        strides = strides_in(self.folder / window.script, self.description.patch)
        if strides is None:
            raise ValueError(f"{window.script} does not call the window for this patch")
        self.facts["strides"] = strides
        module = __import__(window.module, fromlist=["*"])
        predict = getattr(module, window.function)
        networks = []
        for name in window.networks:
            network = copy.deepcopy(self.networks[name])
            networks.append(network.to(torch.float32).eval())
        classes = self.description.classes
        returns_scores = window.probabilities
        for number, (image, _) in enumerate(example_volumes(self.small)):
            with EqualDraws(wide=False), torch.no_grad():
                found = predict(*networks, image, *strides, self.small, num_classes=classes)
            labels = np.ascontiguousarray(found[0] if returns_scores else found, dtype=np.uint8)
            self.tensors[f"window/{number}/labels"] = torch.from_numpy(labels)
            if returns_scores:
                foreground = np.ascontiguousarray(found[1][-1], dtype=np.float32)
                self.tensors[f"window/{number}/foreground"] = torch.from_numpy(foreground)

    # -- where the script is -------------------------------------------------------------------

    def script_frame(self) -> FrameType:
        """Return the innermost frame of the script."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != str(self.script):
            frame = frame.f_back
        if frame is None:
            raise RuntimeError("a loader was used outside the script")
        return frame

    def calling_frame(self) -> FrameType | None:
        """Return the frame that called torch if it is one of the script."""
        frame: FrameType | None = sys._getframe(1)
        own = (__file__, str(Path(torch.__file__).parent))
        while frame is not None and frame.f_code.co_filename.startswith(own):
            frame = frame.f_back
        is_script = frame is not None and frame.f_code.co_filename == str(self.script)
        return frame if is_script else None

    def run(self) -> None:
        """Run the script and what the description adds to it."""
        with self.draws:
            self.prepare()
            module = self.repository.run(self.script)
            if self.description.afterwards:
                function, *arguments = self.description.afterwards
                values = [module.__dict__[name] for name in arguments]
                module.__dict__[function](*values)
        if self.part + 1 < len(self.description.parts):
            raise RuntimeError(f"the script has {self.part + 1} training loops")
        self.record_windows()


class RateRecorder:
    """Takes the place of an optimizer and records its learning rate at every step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.param_groups = [{"lr": group["lr"]} for group in optimizer.param_groups]
        self.rates: list[float] = []

    def step(self) -> None:
        """Record the rate of a step."""
        self.rates.append(float(self.param_groups[0]["lr"]))


def names_in(frame: FrameType) -> dict[str, Any]:
    """Return all variables that a frame sees."""
    return {**frame.f_globals, **frame.f_locals}


def replace(owner: Any, **values: Any) -> None:
    """Set attributes of a module or a class."""
    for name, value in values.items():
        setattr(owner, name, value)


def nothing(*values: Any, **options: Any) -> None:
    """Do nothing."""


def jitter(network: nn.Module, seed: int) -> None:
    """Move weights and statistics away from their initial values, where errors can hide."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if name.endswith("running_var"):
            noise = noise.abs()
        scale = value.abs().mean() + 0.1
        value += JITTER * scale * noise


SESSION: Session


def main(job_file: str) -> int:
    """Do a job and return the exit code; an error is written beside the job."""
    global SESSION
    file = Path(job_file)
    job = json.loads(file.read_text(encoding="utf-8"))
    os.chdir(job["work"])
    SESSION = Session(job)
    try:
        SESSION.run()
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)
        own = [entry for entry in place if entry.filename.startswith(job["official"])]
        last = (own or place)[-1]
        answer = {"what": f"{type(error).__name__}: {error}"}
        answer["where"] = f"{last.filename}:{last.lineno}"
        file.with_suffix(".error").write_text(json.dumps(answer), encoding="utf-8")
        return 1
    tensors = {name: value.contiguous() for name, value in SESSION.tensors.items()}
    save_file(tensors, file.with_suffix(".safetensors"))
    file.with_suffix(".facts").write_text(json.dumps(SESSION.facts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
