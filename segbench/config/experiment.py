"""From names, numbers and files to fully resolved experiments: one for each training.

Precedence, lowest to highest: built-in defaults, protocol, data set, method, suite, flags, ``-o``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from segbench import registry
from segbench.config.overrides import NOT_SETTABLE, Keys, Value, parse_overrides
from segbench.config.protocol import SPEED_KEYS, Protocol, protocols_for, read_protocol
from segbench.config.schema import Strict, flatten, nest, validate
from segbench.errors import UsageError

__all__ = ["Experiment", "Resolved", "resolve"]

TrainSizes = Mapping[str, int] | Callable[[str], int]


class Experiment(Strict):
    """One training with all its choices made. Machine settings are no part of it."""

    method: str = Field(description="registered name")
    params: dict[str, Any] = Field(description="of the method, defaults filled in")
    backbone: str = Field(description="registered name, with its variant where the family has some")
    backbone_params: dict[str, Any] = Field(description="defaults filled in")
    datasets: tuple[str, ...] = Field(min_length=1, description="several in joint training")
    labeled: dict[str, int] = Field(
        description="labeled patients of each data set: the first of its training list"
    )
    draw: int = Field(
        0,
        ge=0,
        le=9999,
        description="which labeled patients: 0 the list's first, others at random",
    )
    protocol: Protocol = Field(
        description="effective; its backbone and labeled are overruled by the fields here"
    )
    modified: tuple[str, ...] = Field(
        (), description="keys that differ from the protocol of that name"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of everything random")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the forward pass")
    without: tuple[str, ...] = Field((), description="loss terms left out (segbench ablate)")
    processes: int = Field(1, ge=1, description="that share every batch (torchrun)")


@dataclass(frozen=True)
class Resolved:
    """Experiments, and for each key its value and where it was set (``protocol la``, ``suite.yaml:14``, ``-o``)."""

    experiments: list[Experiment]
    sources: dict[str, str]
    values: dict[str, Any]


@dataclass(frozen=True)
class _Data:
    """A data set and what it brings along; members of a group take the group's choices where it makes any."""

    name: str
    cls: Any
    protocol: str
    labeled: int


def resolve(
    method: str,
    *,
    dataset: str | Sequence[str],
    labeled: str | int | None = None,
    backbone: str | None = None,
    protocol: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    precision: str | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    suite: Mapping[str, Any] | None = None,
    suite_where: Mapping[str, str] | None = None,
    train_sizes: TrainSizes | None = None,
    labels: Callable[[str], int] | None = None,
    draw: int = 0,
) -> Resolved:
    """Resolve one command line.

    Args:
        dataset: ``la``, ``la,acdc``, a group such as ``phantom``, or a list of names.
        labeled: ``8``, ``"8"`` or ``"10%"`` of the patients of each training list (rounded down, at least 1).
        draw: 0 labels the first patients of the training list, as the literature does; 1, 2, ... are other choices.
        suite: a suite's ``params`` for this method; ``suite_where`` gives the origin of its keys.
        train_sizes: patients in each training list; without it the published split's length is taken.
        labels: patients with a label there; asked where the data set's folder is not there now to tell the usual number.

    Raises:
        UsageError: an unknown name or key, a wrong value, or choices that do not fit together.
    """
    data = _datasets(dataset)
    method_cls = registry.get("method", method).cls
    named, sources = read_protocol(protocol if protocol is not None else _common_protocol(data))
    name, backbone_cls = find_backbone(backbone or named.backbone.name)
    sources |= {
        "protocol": "--protocol" if protocol is not None else _of_data(data),
        "backbone": "--backbone" if backbone else sources["backbone.name"],
        **{
            key: f"--{key}" if value != 0 else "default"
            for key, value in (("seed", seed), ("draw", draw))
        },
    }
    keys = Keys.of(method_cls, backbone_cls)
    flags = {"steps": steps, "precision": precision}
    user = {**keys.suite(suite, suite_where or {}), **_flags(flags), **parse_overrides(overrides)}
    keys.check(user)
    params = _method_params(method_cls, user, sources)
    backbone_params, larger = _backbone_params(method_cls, backbone_cls, name, named, user, sources)
    effective = _effective(named, keys, user, sources)
    _check_fit(effective, data, method_cls, backbone_cls, backbone_params)
    counts = {d.name: _labeled(d, labeled, effective, train_sizes, labels, sources) for d in data}
    common = {
        "method": method_cls.name,
        "params": params,
        "backbone": name,
        "backbone_params": backbone_params,
        "protocol": effective.model_dump(),
        "modified": _modified(named, effective, keys) + larger,
        "seed": seed,
        "draw": draw,
        "precision": effective.precision,
    }
    groups = [tuple(counts)] if method_cls.joint else [(name,) for name in counts]
    experiments = [_experiment(common, {n: counts[n] for n in group}, sources) for group in groups]
    return _resolved(experiments, sources)


def _flags(flags: Mapping[str, Any]) -> dict[str, Value]:
    return {key: Value(value, f"--{key}") for key, value in flags.items() if value is not None}


def _experiment(
    common: dict[str, Any], counts: dict[str, int], sources: dict[str, str]
) -> Experiment:
    data = {**common, "datasets": list(counts), "labeled": counts}
    return validate(Experiment, data, lambda key: sources.get(key, ""))


def _modified(named: Protocol, effective: Protocol, keys: Keys) -> tuple[str, ...]:
    usual, now = _flat(named), _flat(effective)
    return tuple(
        key for key in keys.protocol if key not in SPEED_KEYS and now.get(key) != usual.get(key)
    )


def _resolved(experiments: list[Experiment], sources: dict[str, str]) -> Resolved:
    one = experiments[0]
    counts = {name: n for e in experiments for name, n in e.labeled.items()}
    values = {
        **_flat(one.protocol),
        **one.params,
        **{f"backbone.{k}": v for k, v in one.backbone_params.items()},
        **{f"labeled.{name}": n for name, n in counts.items()},
        "protocol": one.protocol.name,
        "backbone": one.backbone,
        "seed": one.seed,
        "draw": one.draw,
    }
    shown = [key for key in sources if key in values and key not in NOT_SETTABLE]
    return Resolved(
        experiments, {key: sources[key] for key in shown}, {key: values[key] for key in shown}
    )


def _flat(protocol: Protocol) -> dict[str, Any]:
    """Dotted keys; the backbone's parameters and the factors of data sets stay one value."""
    plain = protocol.model_dump(mode="json")
    chosen, factors = plain.pop("backbone"), plain.pop("downsample")
    return {
        **flatten(plain),
        "downsample": factors,
        "backbone.name": chosen["name"],
        "backbone.params": chosen["params"],
    }


def _datasets(names: str | Sequence[str]) -> list[_Data]:
    wanted = [
        part.strip()
        for name in ([names] if isinstance(names, str) else names)
        for part in name.split(",")
    ]
    found: dict[str, _Data] = {}
    for name in (n for n in wanted if n):
        cls = registry.get("dataset", name).cls
        whole = vars(cls) if cls.members else {}
        for member in cls.members or (name,):
            entry = registry.get("dataset", member)
            if entry.name in found:
                raise UsageError(
                    f"data set '{entry.name}' is named twice (--dataset)", found=",".join(wanted)
                )
            found[entry.name] = _Data(
                entry.name,
                entry.cls,
                whole.get("protocol", entry.cls.protocol),
                whole.get("labeled", entry.cls.labeled),
            )
    if not found:
        raise UsageError("no data set is named", fix="--dataset NAME; segbench list datasets")
    return list(found.values())


def _canonical(registered: str, asked: str) -> str:
    """``family:variant`` keeps its variant."""
    same = asked.replace("-", "_") == registered
    return registered if same else f"{registered}:{asked.partition(':')[2]}"


def find_backbone(name: str) -> tuple[str, Any]:
    """Name and class of a backbone that can be built.

    Raises:
        UsageError: unknown, or a family without its member.
    """
    entry = registry.get("backbone", name)
    if entry.cls.variants and ":" not in entry.name:
        raise UsageError(
            f"'{entry.name}' is a family of backbones",
            expected=f"one of its members, such as "
            f"{', '.join(f'{entry.name}:{v}' for v in entry.cls.variants)}",
            fix=f"--backbone {entry.name}:{entry.cls.variants[0]}",
        )
    return entry.name, entry.cls


def _common_protocol(data: list[_Data]) -> str:
    """The protocol all data sets have for their own, else the one that was made for them together."""
    if len({d.protocol for d in data}) == 1:
        return data[0].protocol
    made = protocols_for(d.name for d in data)
    if len(made) != 1:
        raise UsageError(
            "the data sets have different protocols of their own",
            found=", ".join(f"{d.name}: {d.protocol}" for d in data),
            expected=f"one of {', '.join(made)}, made for them together" if made else None,
            fix=f"name one: --protocol {made[0] if made else 'NAME'}",
        )
    return made[0]


def _of_data(data: list[_Data]) -> str:
    same = len({d.protocol for d in data}) == 1
    return f"data set {data[0].name}" if same else f"data sets {', '.join(d.name for d in data)}"


def _method_params(
    method: Any, user: Mapping[str, Value], sources: dict[str, str]
) -> dict[str, Any]:
    fields = method.Params.model_fields
    sources |= {key: user[key].origin if key in user else f"method {method.name}" for key in fields}
    mine = {key: user[key].value for key in fields if key in user}
    return validate(
        method.Params, mine, lambda key: sources.get(key, f"method {method.name}")
    ).model_dump(mode="json")


def _backbone_params(
    method: Any,
    backbone: Any,
    name: str,
    named: Protocol,
    user: Mapping[str, Value],
    sources: dict[str, str],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Parameters, and the keys a user changed: a larger network is no longer the protocol's."""
    base: dict[str, Any] = {}
    preset = named.backbone.params if name == find_backbone(named.backbone.name)[0] else {}
    for layer, origin in (
        (preset, sources["backbone.params"]),
        (method.backbone_defaults.get(name, {}), f"method {method.name}"),
    ):
        base |= layer
        sources |= {f"backbone.{key}": origin for key in layer}
    for key in backbone.Params.model_fields:
        sources.setdefault(f"backbone.{key}", "default")
    usual = validate(
        backbone.Params, base, lambda key: sources.get(key, ""), "backbone."
    ).model_dump(mode="json")
    mine = {key: user[f"backbone.{key}"].value for key in usual if f"backbone.{key}" in user}
    sources |= {f"backbone.{key}": user[f"backbone.{key}"].origin for key in mine}
    chosen = validate(
        backbone.Params, {**usual, **mine}, lambda key: sources.get(key, ""), "backbone."
    )
    final = chosen.model_dump(mode="json")
    return final, tuple(f"backbone.{key}" for key in final if final[key] != usual[key])


def _effective(
    named: Protocol, keys: Keys, user: Mapping[str, Value], sources: dict[str, str]
) -> Protocol:
    mine = {key: user[key] for key in keys.protocol if key in user}
    sources |= {key: value.origin for key, value in mine.items()}
    merged = nest({**_flat(named), **{key: value.value for key, value in mine.items()}})
    return validate(Protocol, merged, lambda key: sources.get(key, f"protocol {named.name}"))


def _check_fit(
    protocol: Protocol, data: list[_Data], method: Any, backbone: Any, params: dict[str, Any]
) -> None:
    """Patch, data, method and backbone must fit, before anything is loaded."""
    for d in data:
        if d.cls.dims not in (
            len(protocol.patch),
            len(protocol.patch) + 1,
        ):  # slices of volumes are trained on too
            raise UsageError(
                f"data set '{d.name}' has {d.cls.dims} spatial axes, the patch {len(protocol.patch)}",
                found=list(protocol.patch),
                fix="--protocol, or -o patch= and -o inference.stride=",
            )
    if missing := method.needs - backbone.provides:
        raise UsageError(
            f"method '{method.name}' needs a backbone with {', '.join(sorted(missing))}; "
            f"'{backbone.name}' has none",
            fix="another --backbone; segbench list backbones",
        )
    backbone.check_patch(backbone.Params.model_validate(params), protocol.patch)


def _labeled(
    d: _Data,
    asked: str | int | None,
    protocol: Protocol,
    sizes: TrainSizes | None,
    labels: Callable[[str], int] | None,
    sources: dict[str, str],
) -> int:
    """Number of labeled cases: the one asked for, else the data set's, else the protocol's first."""
    spec: str | int
    if asked is not None:
        spec, origin = asked, "--labeled"
    elif d.labeled:
        spec, origin = d.labeled, f"data set {d.name}"
    elif labels is not None and d.cls.source is not None and (spec := labels(d.name)):
        origin = f"data set {d.name}"
    elif protocol.labeled:
        spec, origin = protocol.labeled[0], f"protocol {protocol.name}"
    else:
        raise UsageError(
            f"data set '{d.name}' has no usual number of labeled cases", fix="--labeled 8 or 10%"
        )
    sources[f"labeled.{d.name}"] = origin
    size = _train_size(d, sizes)
    count = labeled_count(spec, size, origin)
    if size is not None and count > size:
        raise UsageError(
            f"labeled: {count} asked for, but '{d.name}' has {size} training cases ({origin})",
            fix=f"--labeled N with N from 1 to {size}",
        )
    return count


def labeled_count(spec: str | int, size: int | None, origin: str = "--labeled") -> int:
    """How many of ``size`` training patients ``8``, ``"8"`` or ``"10%"`` are.

    Raises:
        UsageError: it is none of these, or a share and ``size`` is not known.
    """
    text = str(spec).strip()
    number = text.removesuffix("%").strip()
    wrong = UsageError(
        f"labeled: expected a number ≥ 1 or a percentage such as 10%, got {spec!r} ({origin})"
    )
    if not text.endswith("%"):
        if isinstance(spec, bool) or not text.isdecimal() or int(text) < 1:
            raise wrong
        return int(text)
    if not number.replace(".", "", 1).isdecimal() or not 0 < Fraction(number) <= 100:
        raise wrong
    if size is None:
        raise UsageError(
            f"labeled: the size of the training list is not known yet, got {spec!r} ({origin})",
            fix="prepare the data first, or give a number of cases",
        )
    # Rounded down: 5 % of 70 are the published 3. What a written share lacks of a whole case (33.3333333333%) is forgiven.
    return max(1, int(size * Fraction(number) / 100 + Fraction(1, 10**9)))


def _train_size(d: _Data, sizes: TrainSizes | None) -> int | None:
    if sizes is not None:
        return sizes(d.name) if callable(sizes) else sizes[d.name]
    try:
        adapter = d.cls()
        return len({adapter.group(case) for case in adapter.split().train})
    except NotImplementedError:
        return None
