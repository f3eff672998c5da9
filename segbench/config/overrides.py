"""``-o key=value``, suite parameters and flags: which keys exist, and where they were set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from segbench.config.protocol import Protocol
from segbench.config.schema import flatten, leaves, suggest
from segbench.config.yaml import parse_scalar
from segbench.errors import PluginError, UsageError

__all__ = ["Keys", "Value", "parse_overrides"]

# Set with --NAME, never with -o.
FLAGS = (
    "method",
    "dataset",
    "labeled",
    "backbone",
    "protocol",
    "seed",
    "draw",
    "fold",
    "unlabeled",
)
NOT_SETTABLE = (
    "name",
    "version",
    "title",
    "labeled",
    "methods",
    "datasets",
    "backbone.name",
    "backbone.params",
    "published",
    "planned",
    "expected.oracle",
    "expected.supervised",
    "expected.seconds",
)


def protocol_keys() -> dict[str, FieldInfo]:
    """Return the keys of a protocol that ``-o`` may change."""
    return {key: field for key, field in leaves(Protocol).items() if key not in NOT_SETTABLE}


@dataclass(frozen=True)
class Value:
    """A value that the user set, and where."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Keys:
    """All keys of one experiment.

    Keys of the method are plain names, those of the backbone ``backbone.NAME``, and those of the
    protocol dotted as in its file.
    """

    method_name: str
    method: Mapping[str, FieldInfo]
    backbone: Mapping[str, FieldInfo]
    protocol: Mapping[str, FieldInfo]

    @classmethod
    def of(cls, method: Any, backbone: Any) -> Keys:
        """Return the keys of a method and a backbone class.

        Raises:
            PluginError: a parameter of the method has the name of a protocol key or of a flag.
        """
        fields = method.Params.model_fields
        for name in sorted(fields.keys() & {*Protocol.model_fields, *FLAGS}):
            raise PluginError(
                f"parameter '{name}' of method '{method.name}' "
                "has the name of a protocol key or a flag",
                fix="rename the parameter",
            )
        own = {f"backbone.{name}": field for name, field in backbone.Params.model_fields.items()}
        return cls(method.name, fields, own, protocol_keys())

    def check(self, values: Mapping[str, Value]) -> None:
        """Check that every key exists.

        Raises:
            UsageError: an unknown key; names the nearest one with its type and default.
        """
        known = {**self.method, **self.backbone, **self.protocol}
        for key, value in values.items():
            if key in known:
                continue
            if key in FLAGS:
                raise UsageError(f"'{key}' is no parameter ({value.origin})", fix=f"--{key} VALUE")
            close = suggest(key, known)
            raise UsageError(
                f"unknown parameter '{key}' of method '{self.method_name}'.{close} "
                f"({value.origin})",
                expected=None if close else "one of " + ", ".join(known),
                fix=f"segbench describe method {self.method_name}",
            )

    def suite(self, params: Mapping[str, Any] | None, where: Mapping[str, str]) -> dict[str, Value]:
        """Return a suite's parameters for this method; nested mappings count as dotted keys."""
        values: dict[str, Value] = {}
        for key, value in (params or {}).items():
            origin = where.get(key) or "suite"
            entry = {key: value}
            if key not in self.method:
                entry = flatten(entry)
            for dotted, single in entry.items():
                values[dotted] = Value(single, origin)
        return values


def parse_overrides(
    overrides: Iterable[str] | Mapping[str, Any], origin: str = "-o"
) -> dict[str, Value]:
    """Return ``["decay=0.9", "optim.lr=1e-3"]``, or a mapping from Python, as typed values.

    Raises:
        UsageError: no ``=``, an empty key, or one key twice.
    """
    if isinstance(overrides, Mapping):
        return {key: Value(value, origin) for key, value in overrides.items()}
    found: dict[str, Value] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UsageError(f"expected key=value, got '{text}' ({origin})")
        if key in found:
            raise UsageError(f"'{key}' is given twice ({origin})", found=text)
        found[key] = Value(parse_scalar(value, f"{origin} {key}"), origin)
    return found
