"""From names, numbers and files to fully resolved experiments, one for each training.

Later layers overrule earlier ones: built-in defaults, protocol, data set, method, suite, flags,
``-o``.
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
from segbench.config.protocol import (
    NO_PROTOCOL,
    SPEED_KEYS,
    Protocol,
    protocols_for,
    read_protocol,
)
from segbench.config.schema import Strict, flatten, nest, validate
from segbench.contracts.params import BackboneParams, MethodParams
from segbench.errors import UsageError

__all__ = ["Experiment", "Request", "Resolved", "labeled_count", "resolve"]

TrainSizes = Mapping[str, int] | Callable[[str], int]
ALL = "all"


class Experiment(Strict):
    """One training with all its choices made. Machine settings are no part of it."""

    method: str = Field(description="registered name")
    params: dict[str, Any] = Field(description="of the method, defaults filled in")
    backbone: str = Field(description="registered name, with its variant where the family has some")
    backbone_params: dict[str, Any] = Field(description="of the backbone, defaults filled in")
    datasets: tuple[str, ...] = Field(min_length=1, description="several in joint training")
    labeled: dict[str, int] = Field(
        description="labeled patients of each data set: the first of its training list"
    )
    draw: int = Field(
        0,
        ge=0,
        le=9999,
        description="which patients are labeled: 0 the list's first, others at random",
    )
    fold: int | None = Field(
        None, ge=0, description="of a cross-validation: its patients are tested instead of the list"
    )
    unlabeled: Literal["all", "labeled"] = Field(
        "all",
        description="images the unlabeled stream shows: all others, or the labeled ones again",
    )
    protocol: Protocol = Field(description="effective; the fields here overrule its suggestions")
    modified: tuple[str, ...] = Field(
        (), description="keys that differ from the protocol of that name"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of everything random")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32", description="of the forward pass; tf32 equals fp32 on a CPU"
    )
    without: tuple[str, ...] = Field((), description="loss terms left out (segbench ablate)")
    processes: int = Field(1, ge=1, description="that share every batch (torchrun)")

    @property
    def prediction_precision(self) -> str:
        """The precision of predictions: the protocol's for them, or that of the training."""
        return self.protocol.inference.precision or self.precision


@dataclass(frozen=True)
class Resolved:
    """Experiments, and for each key its value and who set it.

    For example ``protocol la``, ``suite.yaml:14`` or ``-o``.
    """

    experiments: list[Experiment]
    sources: dict[str, str]
    values: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a command line, a suite or a program asks for."""

    method: str
    dataset: str | Sequence[str]  # "la", "la,acdc", a group such as "phantom", or a list of names
    labeled: str | int | None = None  # 8, "8", "10%" or "all" of the training patients
    draw: int = 0
    fold: int | None = None
    unlabeled: str = ALL
    backbone: str | None = None
    protocol: str | Path | None = None
    seed: int = 0
    steps: int | None = None
    precision: str | None = None
    overrides: Iterable[str] | Mapping[str, Any] = ()  # as given with -o
    suite: Mapping[str, Any] | None = None  # a suite's parameters for this method
    suite_where: Mapping[str, str] | None = None  # where the suite sets them
    # Patients in each training list; None: those of the published lists.
    train_sizes: TrainSizes | None = None
    # Labeled patients of a prepared data set, for own folders that are not reachable now.
    labels: Callable[[str], int] | None = None
    # Training patients in each fold of a prepared data set, and how many of them have a label.
    fold_sizes: Callable[[str], Sequence[tuple[int, int]]] | None = None
    # File of the plan of a prepared data set that names no protocol of its own; None: such data
    # sets have the protocol ``default``.
    plan: Callable[[str], Path] | None = None


def resolve(method: str, **choices: Any) -> Resolved:
    """Resolve a request; ``choices`` are the other fields of ``Request``.

    Raises:
        UsageError: an unknown name or key, a wrong value, or choices that do not fit together.
    """
    return Resolution(Request(method, **choices)).resolve()


@dataclass(frozen=True)
class ChosenDataset:
    """A data set and its defaults; a group's defaults replace those of its members."""

    name: str
    cls: Any
    protocol: str
    labeled: int


class Resolution:
    """Resolves one request.

    Every step returns or keeps its part of the answer and records in ``origins`` who chose it.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.origins: dict[str, str] = {}

    def resolve(self) -> Resolved:
        """Take the steps in order of precedence."""
        self.datasets = find_datasets(self.request.dataset)
        if self.request.fold is not None:
            for chosen in self.datasets:
                require_no_published_test(chosen)
        self.method = registry.get("method", self.request.method).cls
        self._read_protocol()
        self._find_backbone()
        self._read_settings()
        params = self._method_params()
        backbone_params, changed_backbone = self._backbone_params()
        protocol = self._effective_protocol()
        self._require_fit(protocol, backbone_params)
        labeled = {chosen.name: self._labeled(chosen, protocol) for chosen in self.datasets}
        common = {
            "method": self.method.name,
            "params": params,
            "backbone": self.backbone_name,
            "backbone_params": backbone_params,
            "protocol": protocol.model_dump(),
            "modified": self._modified_keys(protocol) + changed_backbone,
            "seed": self.request.seed,
            "draw": self.request.draw,
            "fold": self.request.fold,
            "unlabeled": self.request.unlabeled,
            "precision": protocol.precision,
        }
        # A joint method trains once on all data sets, any other once on each.
        groups = [tuple(labeled)] if self.method.joint else [(name,) for name in labeled]
        experiments = []
        for names in groups:
            counts = {name: labeled[name] for name in names}
            content = {**common, "datasets": list(names), "labeled": counts}
            experiments.append(validate(Experiment, content, self._origin))
        return self._resolved(experiments)

    def _origin(self, key: str) -> str:
        return self.origins.get(key, "")

    def _read_protocol(self) -> None:
        asked = self.request.protocol
        planned = self._planned() if asked is None else None
        name = asked or planned or common_protocol(self.datasets)
        self.named, origins = read_protocol(name)
        self.origins.update(origins)
        if asked is not None:
            self.origins["protocol"] = "--protocol"
        else:
            planned_for = "planned for " if planned else ""
            self.origins["protocol"] = planned_for + described(self.datasets)
        for key, value, default in (
            ("seed", self.request.seed, 0),
            ("draw", self.request.draw, 0),
            ("fold", self.request.fold, None),
            ("unlabeled", self.request.unlabeled, ALL),
        ):
            self.origins[key] = "default" if value == default else f"--{key}"

    def _planned(self) -> Path | None:
        """Return the plan of the data set, None if it has a protocol or is one of several."""
        if self.request.plan is None or len(self.datasets) != 1:
            return None
        (chosen,) = self.datasets
        return self.request.plan(chosen.name) if chosen.protocol == NO_PROTOCOL else None

    def _find_backbone(self) -> None:
        asked = self.request.backbone
        self.backbone_name, self.backbone = find_backbone(asked or self.named.backbone.name)
        self.origins["backbone"] = "--backbone" if asked else self.origins["backbone.name"]

    def _read_settings(self) -> None:
        """Collect what suite, flags and ``-o`` set, in this order."""
        self.keys = Keys.of(self.method, self.backbone)
        self.settings = self.keys.suite(self.request.suite, self.request.suite_where or {})
        for key in ("steps", "precision"):
            value = getattr(self.request, key)
            if value is not None:
                self.settings[key] = Value(value, f"--{key}")
        self.settings.update(parse_overrides(self.request.overrides))
        self.keys.check(self.settings)

    def _method_params(self) -> dict[str, Any]:
        fields = self.method.Params.model_fields
        values: dict[str, Any] = {}
        for key in fields:
            self.origins[key] = f"method {self.method.name}"
        for key, value in self.named.methods.get(self.method.name, {}).items():
            if key not in fields:
                raise UsageError(
                    f"protocol '{self.named.name}' sets '{key}', "
                    f"which {self.method.name} does not have",
                    expected="one of " + ", ".join(fields),
                    fix=f"segbench describe method {self.method.name}",
                )
            values[key] = value
            self.origins[key] = f"protocol {self.named.name}"
        for key in fields:
            if key in self.settings:
                values[key] = self.settings[key].value
                self.origins[key] = self.settings[key].origin
        params: MethodParams = validate(self.method.Params, values, self._origin)
        return params.model_dump(mode="json")

    def _backbone_params(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the parameters, and the keys by which the user changed the protocol's network."""
        fields = self.backbone.Params.model_fields
        layers = []
        if self.backbone_name == find_backbone(self.named.backbone.name)[0]:
            layers.append((self.named.backbone.params, self.origins["backbone.params"]))
        prescribed = self.method.backbone_defaults.get(self.backbone_name, {})
        layers.append((prescribed, f"method {self.method.name}"))
        base: dict[str, Any] = {}
        for layer, origin in layers:
            base.update(layer)
            self.origins.update({f"backbone.{key}": origin for key in layer})
        for key in fields:
            self.origins.setdefault(f"backbone.{key}", "default")
        usual = self._validated_backbone(base)

        asked: dict[str, Any] = {}
        for key in usual:
            setting = self.settings.get(f"backbone.{key}")
            if setting is not None:
                asked[key] = setting.value
                self.origins[f"backbone.{key}"] = setting.origin
        final = self._validated_backbone({**usual, **asked})
        changed = [f"backbone.{key}" for key in final if final[key] != usual[key]]
        return final, tuple(changed)

    def _validated_backbone(self, values: dict[str, Any]) -> dict[str, Any]:
        params: BackboneParams = validate(self.backbone.Params, values, self._origin, "backbone.")
        return params.model_dump(mode="json")

    def _effective_protocol(self) -> Protocol:
        """Return the protocol with the values that the user changed."""
        flat = flat_protocol(self.named)
        for key in self.keys.protocol:
            setting = self.settings.get(key)
            if setting is not None:
                flat[key] = setting.value
                self.origins[key] = setting.origin

        def origin(key: str) -> str:
            return self.origins.get(key, f"protocol {self.named.name}")

        return validate(Protocol, nest(flat), origin)

    def _modified_keys(self, effective: Protocol) -> tuple[str, ...]:
        usual = flat_protocol(self.named)
        now = flat_protocol(effective)
        changed = [key for key in self.keys.protocol if now.get(key) != usual.get(key)]
        return tuple(key for key in changed if key not in SPEED_KEYS)

    def _require_fit(self, protocol: Protocol, backbone_params: dict[str, Any]) -> None:
        """Check that patch, data, method and backbone fit together, before anything is loaded."""
        axes = len(protocol.patch)
        for chosen in self.datasets:
            if chosen.cls.dims not in (axes, axes + 1):  # slices of volumes can be trained on
                raise UsageError(
                    f"data set '{chosen.name}' has {chosen.cls.dims} spatial axes, "
                    f"the patch {axes}",
                    found=list(protocol.patch),
                    fix="--protocol, or -o patch= and -o inference.stride=",
                )
        missing = self.method.needs - self.backbone.provides
        if missing:
            raise UsageError(
                f"method '{self.method.name}' needs a backbone with {', '.join(sorted(missing))}; "
                f"'{self.backbone.name}' has none",
                fix="another --backbone; segbench list backbones",
            )
        params = self.backbone.Params.model_validate(backbone_params)
        self.backbone.check_patch(params, protocol.patch)

    def _labeled(self, chosen: ChosenDataset, protocol: Protocol) -> int:
        """Return the number of labeled patients.

        It is the one asked for, else the data set's, else the first of the protocol's.
        """
        number, origin = self._asked_number(chosen, protocol)
        self.origins[f"labeled.{chosen.name}"] = origin
        size = self._train_size(chosen, number)
        count = labeled_count(number, size, origin)
        if size is not None and count > size:
            raise UsageError(
                f"labeled: {count} asked for, but '{chosen.name}' has {size} training cases "
                f"({origin})",
                fix=f"--labeled N with N from 1 to {size}",
            )
        return count

    def _train_size(self, chosen: ChosenDataset, asked: str | int) -> int | None:
        """Return the number of training patients.

        The folds of a cross-validation have the same labeled count: that of the smallest one. Only
        ``all`` is different in each of them.
        """
        fold = self.request.fold
        if fold is None:
            return train_size(chosen, self.request.train_sizes)
        if self.request.fold_sizes is None:
            return None
        sizes = [patients for patients, _ in self.request.fold_sizes(chosen.name)]
        if str(asked).strip() == ALL and fold < len(sizes):
            return sizes[fold]
        return min(sizes)

    def _asked_number(self, chosen: ChosenDataset, protocol: Protocol) -> tuple[str | int, str]:
        origin = f"data set {chosen.name}"
        if self.request.labeled is not None:
            return self.request.labeled, "--labeled"
        own_folds = self.request.fold is not None and chosen.cls.source is not None
        if own_folds and self.request.fold_sizes is not None:
            return min(labeled for _, labeled in self.request.fold_sizes(chosen.name)), origin
        if chosen.labeled:
            return chosen.labeled, origin
        if self.request.labels is not None and chosen.cls.source is not None:
            stored = self.request.labels(chosen.name)
            if stored:
                return stored, origin
        if protocol.labeled:
            return protocol.labeled[0], f"protocol {protocol.name}"
        raise UsageError(
            f"data set '{chosen.name}' has no default number of labeled cases",
            fix="--labeled 8 or 10%",
        )

    def _resolved(self, experiments: list[Experiment]) -> Resolved:
        first = experiments[0]
        values = flat_protocol(first.protocol)
        values.update(first.params)
        for key, value in first.backbone_params.items():
            values[f"backbone.{key}"] = value
        for experiment in experiments:
            for name, count in experiment.labeled.items():
                values[f"labeled.{name}"] = count
        values["protocol"] = first.protocol.name
        for key in ("backbone", "seed", "draw", "fold", "unlabeled"):
            values[key] = getattr(first, key)
        shown = [key for key in self.origins if key in values and key not in NOT_SETTABLE]
        origins = {key: self.origins[key] for key in shown}
        return Resolved(experiments, origins, {key: values[key] for key in shown})


def flat_protocol(protocol: Protocol) -> dict[str, Any]:
    """Return a protocol with dotted keys; mappings whose keys are names stay one value."""
    plain = protocol.model_dump(mode="json")
    backbone = plain.pop("backbone")
    whole = {key: plain.pop(key) for key in ("downsample", "methods", "published")}
    return {
        **flatten(plain),
        **whole,
        "backbone.name": backbone["name"],
        "backbone.params": backbone["params"],
    }


def find_datasets(names: str | Sequence[str]) -> list[ChosenDataset]:
    """Return the data sets that names stand for; groups are replaced by their members.

    Raises:
        UsageError: no name, an unknown one, or one data set twice.
    """
    wanted = []
    for name in [names] if isinstance(names, str) else names:
        wanted += [part.strip() for part in name.split(",") if part.strip()]
    found: dict[str, ChosenDataset] = {}
    for name in wanted:
        cls = registry.get("dataset", name).cls
        group = vars(cls) if cls.members else {}
        for member in cls.members or (name,):
            entry = registry.get("dataset", member)
            if entry.name in found:
                raise UsageError(
                    f"data set '{entry.name}' is named twice (--dataset)", found=",".join(wanted)
                )
            protocol = group.get("protocol", entry.cls.protocol)
            labeled = group.get("labeled", entry.cls.labeled)
            found[entry.name] = ChosenDataset(entry.name, entry.cls, protocol, labeled)
    if not found:
        raise UsageError("no data set is named", fix="--dataset NAME; segbench list datasets")
    return list(found.values())


def require_no_published_test(chosen: ChosenDataset) -> None:
    """Refuse a cross-validation of a data set whose test list is published.

    Data sets of the user and those made by code have no such list.

    Raises:
        UsageError: there is a published list.
    """
    if chosen.cls.embedded or chosen.cls.source is not None:
        return
    published = chosen.cls().split().source
    if published:
        raise UsageError(
            f"data set '{chosen.name}' has a published test list: it is not cross-validated",
            found=f"--fold, and the list of {published}",
            expected="tests on that list, so that results can be compared with publications",
            fix="leave out --fold",
        )


def find_backbone(name: str) -> tuple[str, Any]:
    """Return the name and class of a backbone that can be built.

    Raises:
        UsageError: unknown, or a family without its member.
    """
    entry = registry.get("backbone", name)
    if entry.cls.variants and ":" not in entry.name:
        members = [f"{entry.name}:{variant}" for variant in entry.cls.variants]
        raise UsageError(
            f"'{entry.name}' is a family of backbones",
            expected=f"one of its members, such as {', '.join(members)}",
            fix=f"--backbone {members[0]}",
        )
    return entry.name, entry.cls


def common_protocol(datasets: Sequence[ChosenDataset]) -> str:
    """Return the protocol that all data sets have, else the one that was made for them together.

    Raises:
        UsageError: there is no such protocol, or more than one.
    """
    own = {chosen.protocol for chosen in datasets}
    if len(own) == 1:
        return datasets[0].protocol
    made = protocols_for(chosen.name for chosen in datasets)
    if len(made) != 1:
        raise UsageError(
            "the data sets have different protocols of their own",
            found=", ".join(f"{chosen.name}: {chosen.protocol}" for chosen in datasets),
            expected=f"one of {', '.join(made)}, made for them together" if made else None,
            fix=f"name one: --protocol {made[0] if made else 'NAME'}",
        )
    return made[0]


def described(datasets: Sequence[ChosenDataset]) -> str:
    """Return who chose a protocol that was not asked for, such as ``data sets la, acdc``."""
    if len({chosen.protocol for chosen in datasets}) == 1:
        return f"data set {datasets[0].name}"
    return f"data sets {', '.join(chosen.name for chosen in datasets)}"


def labeled_count(asked: str | int, size: int | None, origin: str = "--labeled") -> int:
    """Return how many of ``size`` training patients ``8``, ``"8"``, ``"10%"`` or ``"all"`` are.

    Raises:
        UsageError: it is none of these, or a share and ``size`` is not known.
    """
    text = str(asked).strip()
    if text == ALL:
        text = "100%"
    if text.endswith("%"):
        return _share_of(text, asked, size, origin)
    if isinstance(asked, bool) or not text.isdecimal() or int(text) < 1:
        raise _wrong_count(asked, origin)
    return int(text)


def _share_of(text: str, asked: str | int, size: int | None, origin: str) -> int:
    number = text.removesuffix("%").strip()
    if not number.replace(".", "", 1).isdecimal() or not 0 < Fraction(number) <= 100:
        raise _wrong_count(asked, origin)
    if size is None:
        raise UsageError(
            f"labeled: the size of the training list is not known yet, got {asked!r} ({origin})",
            fix="prepare the data first, or give a number of cases",
        )
    # Rounded down, because 5 % of 70 are the published 3. A share such as 33.3333333333% misses a
    # whole case by its own rounding only.
    tolerance = Fraction(1, 10**9)
    return max(1, int(size * Fraction(number) / 100 + tolerance))


def _wrong_count(asked: str | int, origin: str) -> UsageError:
    return UsageError(
        "labeled: expected a number ≥ 1, a percentage such as 10%, or all, "
        f"got {asked!r} ({origin})"
    )


def train_size(chosen: ChosenDataset, sizes: TrainSizes | None) -> int | None:
    """Return the number of training patients, None if it is known only after preparation."""
    if sizes is not None:
        return sizes(chosen.name) if callable(sizes) else sizes[chosen.name]
    try:
        adapter = chosen.cls()
        return len({adapter.group(case) for case in adapter.split().train})
    except NotImplementedError:
        return None
