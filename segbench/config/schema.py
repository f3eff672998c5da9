"""Typed coercion against pydantic models, with messages that name key, expectation, value and origin."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from segbench.errors import UsageError

__all__ = ["Strict", "describe", "flatten", "leaves", "nest", "suggest", "validate"]

M = TypeVar("M", bound=BaseModel)
_WORDS = {bool: "true or false", str: "text", Path: "path", type(None): "null"}
_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


class Strict(BaseModel):
    """Base of the configuration's models: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def validate(
    model: type[M], data: Mapping[str, Any], origin: Callable[[str], str], prefix: str = ""
) -> M:
    """``data`` as ``model``, every value of the declared type, defaults included (a default 1 of a float is 1.0).

    No guessing: text is never read as a number, nor 1 as true. ``origin`` tells where a dotted key (``prefix``
    included) was set.

    Raises:
        UsageError: ``lr: expected float > 0, got 'abc' (suite.yaml:12)``, one line for each fault.
    """
    try:
        first = model.model_validate_json(_json(data), strict=True)
        return model.model_validate_json(_json(first.model_dump()), strict=True)
    except ValidationError as error:
        lines = dict.fromkeys(_message(model, fault, origin, prefix) for fault in error.errors())
        raise UsageError("\n".join(lines)) from error


def _json(data: Mapping[str, Any]) -> str:
    # NaN passes here and is refused by the models, which know the key. numpy's scalars and arrays have tolist.
    return json.dumps(
        data, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value)
    )


def _message(model: type[BaseModel], fault: Any, origin: Callable[[str], str], prefix: str) -> str:
    owner, field, path = _field(model, [part for part in fault["loc"] if isinstance(part, str)])
    key = prefix + ".".join(path)
    text = fault["msg"].removeprefix("Value error, ")
    if not path and (named := text.partition(":")[0]) in leaves(
        model
    ):  # a model's own check that begins with a key
        key, text = prefix + named, text.partition(":")[2].strip()
    place = f" ({where})" if (where := origin(key)) else ""
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'.{suggest(path[-1], owner.model_fields)}{place}"
    if fault["type"] == "missing":
        return f"{key}: missing{place}"
    if fault["type"] == "value_error" or field is None:
        return f"{key}: {text}{place}" if key else f"{text}{place}"
    value = fault["input"]
    zero = isinstance(value, str) and value[1:].isdigit() and value.lstrip("+-").startswith("0")
    hint = "; a number has no leading zero" if zero else ""
    return f"{key}: expected {describe(field)}, got {value!r}{hint}{place}"


def _field(
    model: type[BaseModel], path: list[str]
) -> tuple[type[BaseModel], FieldInfo | None, list[str]]:
    """The field ``path`` leads to, the model that owns it, and the path as far as declared (unions add to it)."""
    owner, field = model, None
    for i, part in enumerate(path, 1):
        field = owner.model_fields.get(part)
        if field is None or not _is_model(field.annotation) or i == len(path):
            return owner, field, path[:i]
        owner = field.annotation  # type: ignore[assignment]
    return owner, field, path


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def describe(field: FieldInfo) -> str:
    """A field's type and range in words: ``float > 0``, ``int in [0, 4)``, ``one of random, center``."""
    if any(getattr(meta, "pattern", None) for meta in field.metadata):
        return field.description or "text"
    return _bounded(_type(field.annotation), field.metadata)


def _bounded(text: str, metadata: Iterable[Any]) -> str:
    bounds = {
        sign: getattr(meta, sign) for meta in metadata for sign in _SIGNS if hasattr(meta, sign)
    }
    low, high = (
        next((s for s in ("gt", "ge") if s in bounds), ""),
        next((s for s in ("lt", "le") if s in bounds), ""),
    )
    if low and high:
        return f"{text} in {'(' if low == 'gt' else '['}{bounds[low]}, {bounds[high]}{')' if high == 'lt' else ']'}"
    return text + "".join(f" {_SIGNS[sign]} {bounds[sign]}" for sign in (low, high) if sign)


def _type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(
            _type(args[0]), [meta for arg in args[1:] for meta in getattr(arg, "metadata", [arg])]
        )
    if origin is Literal:
        return repr(args[0]) if len(args) == 1 else "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_type(arg) for arg in args)
    if origin in (tuple, list):
        any_length = origin is list or Ellipsis in args
        return f"list of {_type(args[0])}" if any_length else f"list of {len(args)} numbers"
    if _is_model(annotation) or origin is dict:
        return "mapping"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def suggest(key: str, known: Mapping[str, FieldInfo] | Iterable[str]) -> str:
    """``" Did you mean 'decay' (float in [0, 1), default 0.99)?"`` for the nearest known key, or nothing."""
    names = list(known)
    # 'lr' should find 'optim.lr': the last part of a dotted name counts as well.
    short = {name.rpartition(".")[2]: name for name in names}
    last = difflib.get_close_matches(key.lower().rpartition(".")[2], list(short), n=1, cutoff=0.6)
    close = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.6) or [
        short[name] for name in last
    ]
    if not close:
        return ""
    field = known[close[0]] if isinstance(known, Mapping) else None
    if field is None:
        return f" Did you mean '{close[0]}'?"
    default = (
        ""
        if field.is_required()
        else f", default {_shown(field.get_default(call_default_factory=True))}"
    )
    return f" Did you mean '{close[0]}' ({describe(field)}{default})?"


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) and value else str(value)


def leaves(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """All keys of a model and its nested models, dotted."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        if _is_model(field.annotation):
            found |= leaves(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            found[prefix + name] = field
    return found


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``flatten``."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested
