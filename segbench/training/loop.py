"""The training loop: one step is seed, batch, one update a player, the method's own bookkeeping.

Everything random in a step is a function of (seed, step): the batch, and torch's generators, which are seeded anew before
the step. So a checkpoint needs no generator state, and evaluation, logging or a restart cannot change what follows.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from segbench.contracts.method import Batch, Clock, Method, Optim
from segbench.errors import Interrupted, TrainingError
from segbench.training import checkpoint
from segbench.training.cost import Cost
from segbench.training.distributed import World
from segbench.training.plan import Stage, clock, stage_of
from segbench.training.reporter import StepReport
from segbench.training.setup import Cadence
from segbench.training.signals import StopRequest

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Data(Protocol):
    """What the loop asks of the training data (segbench.data.sampling.batches.TrainingData)."""

    def epoch(self, phase_step: int, labeled: int) -> int: ...


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of torch's generators in a step, another one for each process."""
    key = hashlib.blake2b(
        f"model-{seed}-{step}{f'-{rank}' if rank else ''}".encode(), digest_size=8
    ).digest()
    return int.from_bytes(key, "little") >> 1


def make_optimizer(spec: Optim, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer a spec describes."""
    if spec.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay
        )
    kind = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay)


class Trainer:
    """Trains a built method; its folder and the step are all that is needed to go on after a kill."""

    def __init__(
        self,
        method: Method,
        data: Data,
        stages: list[Stage],
        optim: Optim,
        seed: int,
        folder: Path,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        header: dict[str, Any] | None = None,
        without: Collection[str] = (),
        world: World | None = None,
    ) -> None:
        self.method, self.data, self.stages, self.optim = method.to(device), data, stages, optim
        self.seed, self.folder, self.device = seed, folder, torch.device(device)
        self.precision, self.header, self.without = precision, header or {}, without
        self.world = world or World()
        self.total = stages[-1].start + stages[-1].steps
        self.step = 0  # completed
        self.stage = stages[0]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.seconds = 0.0  # spent in training, over all attempts
        self.cost = Cost(self.device)
        self.warnings: list[str] = []
        self.snapshots: frozenset[int] = (
            frozenset()
        )  # completed steps after which the weights are kept for a later choice

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        return {
            "method": self.method.state_dict(),
            "scaler": self.scaler.state_dict(),
            "optimizers": {p: o.state_dict()["state"] for p, o in self.optimizers.items()},
        }

    def _restore(self, log: Path) -> None:
        found = checkpoint.load(self.folder)
        if found is None:
            if self.world.rank == 0:
                log.write_bytes(b"")
            return
        self.step, state, header, warnings = found
        self.warnings += warnings
        # A checkpoint is taken after a step: what the phases up to that step's have changed is changed again, in order.
        for stage in self.stages[: stage_of(self.stages, max(self.step - 1, 0)).index + 1]:
            self._start(stage)
        changed = [
            f"{k} {header.get(k)} -> {v}" for k, v in self.header.items() if header.get(k) != v
        ]
        if changed:
            self.warnings.append(
                f"resumed with {', '.join(changed)}: the result may differ in the last digits from one run "
                "without a stop"
            )
        self.method.load_state_dict(state["method"])
        self.seconds = header["seconds"]
        self.cost.restore(header.get("cost"))
        if self.step < self.total:  # the weights of a finished training are kept alone
            self.scaler.load_state_dict(state["scaler"])
            for player, optimizer in self.optimizers.items():
                optimizer.load_state_dict(
                    {
                        "state": state["optimizers"][player],
                        "param_groups": optimizer.state_dict()["param_groups"],
                    }
                )
        if self.world.rank == 0:
            with log.open("r+b") as file:  # lines of steps that will be done again
                file.truncate(header["log_bytes"])

    def _save(self, log: IO[bytes]) -> None:
        if self.world.rank:
            return
        log.flush()
        os.fsync(log.fileno())
        checkpoint.save(self.folder, self.step, self.state(), self._header(log.tell()))

    def _header(self, log_bytes: int) -> dict[str, Any]:
        return {
            **self.header,
            "seconds": self.seconds,
            "cost": self.cost.to_dict(),
            "log_bytes": log_bytes,
        }

    def keep_weights_only(self, log: Path) -> None:
        """Replace the checkpoints of a finished training by one of the weights alone."""
        checkpoint.save(
            self.folder,
            self.step,
            {"method": self.method.state_dict()},
            self._header(log.stat().st_size),
            keep=1,
        )

    def _snapshot(self) -> None:
        """Keep the weights beside the checkpoints; a step that is done again writes the same file."""
        checkpoint.save(
            self.folder.with_name("snapshots"),
            self.step,
            {"method": self.method.state_dict()},
            {"run_id": self.header.get("run_id")},
            keep=len(self.snapshots),
        )

    # -- running -------------------------------------------------------------------------------------------------------

    def fit(
        self,
        batches: Callable[[list[tuple[int, int, int, int]]], Iterator[Batch]],
        log: Path,
        cadence: Cadence | None = None,
        report: Callable[[StepReport], None] = lambda report: None,
    ) -> None:
        """Train to the end, from the newest checkpoint if there is one.

        ``batches`` gives the batches of a plan of (phase, step, labeled, unlabeled).

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            TrainingError: a loss is not finite, or the method failed.
        """
        cadence = cadence or Cadence()
        self._restore(log)
        plan = [
            (s.index, step - s.start, s.labeled, s.unlabeled)
            for s in self.stages
            for step in range(s.start, s.start + s.steps)
        ]
        every = max(1, self.total // 1000)
        started, base, saved = time.monotonic(), self.seconds, time.monotonic()
        with (
            (log if self.world.rank == 0 else Path(os.devnull)).open("ab") as file,
            StopRequest() as stop,
        ):
            for batch in batches(plan[self.step :]):
                terms, t, lr = self.train_step(batch)
                self.seconds = base + time.monotonic() - started
                if t.step % every == 0 or self.step == self.total:
                    line = {
                        "step": t.step,
                        "phase": t.phase,
                        "lr": lr,
                        "seconds": round(self.seconds, 3),
                        **terms,
                    }
                    file.write(json.dumps(line).encode() + b"\n")
                if self.step in self.snapshots and self.world.rank == 0:
                    self._snapshot()
                report(StepReport(self.step, self.total, t.phase, terms, lr))
                code = self.world.largest(stop.code or 0)  # all processes stop after the same step
                if (
                    self.step == self.total
                    or code
                    or cadence.due(self.step, time.monotonic() - saved)
                ):
                    self._save(file)
                    saved = time.monotonic()
                if code:
                    raise Interrupted(
                        f"{stop.name or 'signal'}: stopped after step {self.step}, saved", code
                    )

    def train_step(self, batch: Batch) -> tuple[dict[str, float], Clock, float]:
        """One step: every player's update in turn. Returns the terms as numbers, the clock and the learning rate."""
        stage = self.stage = stage_of(self.stages, self.step)
        torch.manual_seed(step_seed(self.seed, self.step))
        if self.step == stage.start:
            self._start(stage)
        if self.world.rank:
            torch.manual_seed(step_seed(self.seed, self.step, self.world.rank))
        epoch = self.data.epoch(self.step - stage.start, stage.labeled)
        t = clock(stage, self.step, self.total, epoch, self.seed, self.world.rank)
        batch = batch.to(self.device, non_blocking=True)
        terms: dict[str, float] = {}
        with self.cost.counted(self.method, t.phase):
            for number, player in enumerate(self.method.players):
                self.method.train()
                terms.update(
                    self._update(
                        player,
                        self.method.loss if number == 0 else getattr(self.method, f"loss_{player}"),
                        batch,
                        t,
                    )
                )
        with torch.no_grad():
            self.method.after_step(t)
            self.world.follow_first(self.method)
        self.step += 1
        return terms, t, self.optimizers[self.method.players[0]].param_groups[0]["lr"]

    def _start(self, stage: Stage) -> None:
        self.stage = stage
        with torch.no_grad():
            self.method.start_phase(stage.phase)
        if (
            stage.phase.fresh_optimizer or stage.start == 0
        ):  # after the phase: it may have changed what is trained
            self.specs = {
                p: self.method.optimizer(p, self.optim, stage.phase) for p in self.method.players
            }
            self.optimizers = {
                p: make_optimizer(self.specs[p], self.method.trainable(p))
                for p in self.method.players
            }

    def _update(
        self, player: str, loss: Callable[[Batch, Clock], dict[str, Tensor]], batch: Batch, t: Clock
    ) -> dict[str, float]:
        optimizer, spec = self.optimizers[player], self.specs[player]
        lr = spec.lr_at(t.step - self.stage.origin, self.stage.span)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with self._autocast():
            terms = {k: v for k, v in loss(batch, t).items() if k not in self.without}
        if not terms:
            return {}
        numbers = self.world.mean(torch.stack([v.detach().float() for v in terms.values()]))
        values = dict(zip(terms, numbers.tolist(), strict=True))
        self._check_finite(player, values, t)
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(torch.stack([v.float() for v in terms.values()]).sum()).backward()
        self.world.average(p for group in optimizer.param_groups for p in group["params"])
        self.scaler.step(optimizer)
        self.scaler.update()
        return values

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self.device.type, DTYPES.get(self.precision), enabled=self.precision != "fp32"
        )

    def _check_finite(self, player: str, values: dict[str, float], t: Clock) -> None:
        bad = {k: v for k, v in values.items() if v != v or v in (float("inf"), float("-inf"))}
        if bad:
            raise TrainingError(
                f"the loss of {self.method.name} is not finite",
                where=f"step {t.step}, {player}",
                found=", ".join(f"{k} = {v}" for k, v in values.items()),
                expected="finite terms",
                fix="lower the learning rate (-o optim.lr=...), or use --precision fp32",
            )
