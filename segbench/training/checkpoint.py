"""Checkpoints that survive a kill at any instruction, notice a flipped bit and execute nothing when opened.

A checkpoint is one safetensors file (tensors, plus the rest of the state as JSON in its metadata) named after its step and
the start of its sha256. It is written as a temporary file in the same folder, synced, renamed, the folder synced, and only
then listed in ``last.json``; older files are removed after that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from segbench.errors import IntegrityError, TrainingError
from segbench.storage import atomic_write

SCHEMA = "segbench.checkpoint/1"
NAME = re.compile(r"ck-(\d{8})-([0-9a-f]{16})\.st")


def pack(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Replace the tensors of a nested state by references and return what is left, fit for JSON.

    Raises:
        TypeError: the state holds something else than tensors, numbers, text, None, dicts, lists and tuples.
    """
    if isinstance(state, Tensor):
        tensors[path] = state.detach().cpu().contiguous().clone()
        return {"$tensor": path}
    if isinstance(state, Mapping):
        return {"$dict": [[k, pack(v, tensors, f"{path}.{k}")] for k, v in state.items()]}
    if isinstance(state, tuple):
        return {"$tuple": [pack(v, tensors, f"{path}.{i}") for i, v in enumerate(state)]}
    if isinstance(state, list):
        return [pack(v, tensors, f"{path}.{i}") for i, v in enumerate(state)]
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    raise TypeError(
        f"the state at '{path}' has type {type(state).__name__}, which a checkpoint cannot hold; "
        "keep it as a buffer (register_buffer) or a plain number"
    )


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``pack``."""
    if isinstance(tree, list):
        return [unpack(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$tuple" in tree:
        return tuple(unpack(v, tensors) for v in tree["$tuple"])
    return {k: unpack(v, tensors) for k, v in tree["$dict"]}


def digest(state: Any) -> str:
    """sha256 over a nested state: two runs agree in it exactly if they agree in every bit."""
    tensors: dict[str, Tensor] = {}
    tree = pack(state, tensors)
    total = hashlib.sha256(json.dumps(tree, sort_keys=True).encode())
    for name in sorted(tensors):
        total.update(name.encode() + str(tensors[name].dtype).encode())
        total.update(
            tensors[name].view(-1).view(torch.uint8).numpy().tobytes()
            if tensors[name].numel()
            else b""
        )
    return total.hexdigest()


def save(folder: Path, step: int, state: Any, header: Mapping[str, Any], keep: int = 2) -> Path:
    """Write the state after ``step`` completed steps and return its file; the ``keep`` newest are kept.

    Raises:
        TrainingError: a tensor of the state is not finite; such a state is never stored.
        StorageError: disk full or not writable; what was there before is intact.
    """
    tensors: dict[str, Tensor] = {}
    tree = pack(state, tensors)
    bad = [
        name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()
    ]
    if bad:
        raise TrainingError(
            "the state is not finite, so it is not saved",
            where=f"after step {step}",
            found=bad[0],
            fix="lower the learning rate, or use --precision fp32",
        )
    meta = {
        "schema": SCHEMA,
        "step": str(step),
        "tree": json.dumps(tree),
        "header": json.dumps(dict(header)),
    }
    data = save_tensors(tensors, meta)
    sha = hashlib.sha256(data).hexdigest()
    file = folder / f"ck-{step:08d}-{sha[:16]}.st"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(file, data)
    listed = [{"file": file.name, "step": step, "bytes": len(data), "sha256": sha}]
    others = [
        e for e in _listed(folder) if e["file"] != file.name and (folder / e["file"]).exists()
    ]
    listed += [e for e in others if e.get("step") != step][
        : keep - 1
    ]  # a step that was done again has one file
    atomic_write(folder / "last.json", json.dumps(listed, indent=1).encode())
    wanted = {e["file"] for e in listed}
    for old in folder.iterdir():
        if NAME.fullmatch(old.name) and old.name not in wanted:
            old.unlink(missing_ok=True)
    return file


def load(folder: Path) -> tuple[int, Any, dict[str, Any], list[str]] | None:
    """(step, state, header, warnings) of the newest checkpoint that verifies; None if there never was one.

    Raises:
        IntegrityError: there are checkpoints, but none verifies.
    """
    warnings: list[str] = []
    candidates = _candidates(folder)
    for file, sha in candidates:
        try:
            return (*_read(file, sha), warnings)
        except IntegrityError as error:
            warnings.append(
                f"checkpoint {file.name} cannot be used ({error.what}); trying the one before"
            )
    if candidates:
        raise IntegrityError(
            "no usable checkpoint",
            where=folder,
            found="; ".join(warnings),
            fix="add --restart to train from the beginning",
        )
    return None


def files(folder: Path) -> list[Path]:
    """All checkpoint files of a folder, in order of their steps."""
    return sorted((f for f in folder.glob("*.st") if NAME.fullmatch(f.name)), key=lambda f: f.name)


def read(file: Path) -> tuple[int, Any, dict[str, Any]]:
    """(step, state, header) of one file.

    Raises:
        IntegrityError: it is not what was written.
    """
    return _read(file, file.stem.rsplit("-", 1)[1])


def _listed(folder: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads((folder / "last.json").read_text())
        return [e for e in entries if NAME.fullmatch(e["file"])]
    except (OSError, ValueError, TypeError, KeyError):
        return []  # a lost pointer is rebuilt from the files, whose names verify them


def _candidates(folder: Path) -> list[tuple[Path, str]]:
    """Checkpoints newest first with what is known of their sha256. The order is by step, never by time stamps."""
    if not folder.is_dir():
        return []
    known = {e["file"]: str(e["sha256"]) for e in _listed(folder)}
    order = list(reversed(known))  # of two files of one step the one listed first is the newer
    files = [f for f in folder.iterdir() if NAME.fullmatch(f.name)]
    files.sort(
        key=lambda f: (f.name[:11], order.index(f.name) if f.name in order else -1), reverse=True
    )
    return [(f, known.get(f.name, f.stem.rsplit("-", 1)[1])) for f in files]


def _read(file: Path, sha: str) -> tuple[int, Any, dict[str, Any]]:
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(sha):
        raise IntegrityError(f"sha256 is {found[:16]}, expected {sha[:16]}", where=file)
    try:
        tensors = load_tensors(data)
        size = int.from_bytes(data[:8], "little")
        meta = json.loads(data[8 : 8 + size])["__metadata__"]
        if meta["schema"] != SCHEMA:
            raise IntegrityError(
                f"schema {meta['schema']}, expected {SCHEMA}",
                where=file,
                fix="use the segbench version that wrote it",
            )
        return (
            int(meta["step"]),
            unpack(json.loads(meta["tree"]), tensors),
            json.loads(meta["header"]),
        )
    except (SafetensorError, ValueError, KeyError) as error:
        raise IntegrityError(f"not a checkpoint: {error}", where=file) from error
