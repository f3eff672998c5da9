"""Validation with pydantic models.

Messages name the key, what was expected, the value and who set it.
"""

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
    """Base of all models of the configuration: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def validate(
    model: type[M], data: Mapping[str, Any], origin: Callable[[str], str], prefix: str = ""
) -> M:
    """Return ``data`` as a ``model`` whose values all have the declared types, also the defaults.

    Nothing is guessed: text is never read as a number, nor 1 as true. ``origin`` returns where a
    dotted key, with ``prefix``, was set.

    Raises:
        UsageError: ``lr: expected float > 0, got 'abc' (suite.yaml:12)``, one line per fault.
    """
    try:
        first = model.model_validate_json(_json(data), strict=True)
        return model.model_validate_json(_json(first.model_dump()), strict=True)
    except ValidationError as error:
        messages = [_message(model, fault, origin, prefix) for fault in error.errors()]
        without_duplicates = dict.fromkeys(messages)
        raise UsageError("\n".join(without_duplicates)) from error


def _json(data: Mapping[str, Any]) -> str:
    # NaN passes here: the models refuse it, and they know its key.
    return json.dumps(data, default=_plain_value)


def _plain_value(value: Any) -> Any:
    """Return values of numpy as Python's, and anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _message(model: type[BaseModel], fault: Any, origin: Callable[[str], str], prefix: str) -> str:
    """Return one line about one of pydantic's faults."""
    names = [part for part in fault["loc"] if isinstance(part, str)]
    owner, field, path = _field(model, names)
    key = prefix + ".".join(path)
    text = fault["msg"].removeprefix("Value error, ")
    # The models' own checks concern several keys; their messages begin with the one to name.
    named, _, rest = text.partition(":")
    if not path and named in leaves(model):
        key = prefix + named
        text = rest.strip()
    set_by = origin(key)
    place = f" ({set_by})" if set_by else ""
    if fault["type"] == "extra_forbidden":
        known = f" Known keys: {', '.join(owner.model_fields)}."
        return f"unknown key '{key}'.{suggest(path[-1], owner.model_fields) or known}{place}"
    if fault["type"] == "missing":
        return f"{key}: missing{place}"
    if fault["type"] == "value_error" or field is None:
        return f"{key}: {text}{place}" if key else f"{text}{place}"
    value = fault["input"]
    hint = "; a number has no leading zero" if _has_leading_zero(value) else ""
    return f"{key}: expected {describe(field)}, got {value!r}{hint}{place}"


def _has_leading_zero(value: object) -> bool:
    if not isinstance(value, str) or not value[1:].isdigit():
        return False
    return value.lstrip("+-").startswith("0")


def _field(
    model: type[BaseModel], path: list[str]
) -> tuple[type[BaseModel], FieldInfo | None, list[str]]:
    """Return the model that owns a field, the field, and the path to it.

    pydantic adds the members of unions to the path; these are left out.
    """
    owner = model
    field = None
    for length, part in enumerate(path, 1):
        field = owner.model_fields.get(part)
        if field is None or not _is_model(field.annotation) or length == len(path):
            return owner, field, path[:length]
        owner = field.annotation  # type: ignore[assignment]
    return owner, field, path


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def describe(field: FieldInfo) -> str:
    """Return a field's type and range in words.

    For example ``float > 0``, ``int in [0, 4)`` or ``one of random, center``.
    """
    if any(getattr(meta, "pattern", None) for meta in field.metadata):
        return field.description or "text"
    return _with_bounds(_type(field.annotation), field.metadata)


def _with_bounds(text: str, metadata: Iterable[Any]) -> str:
    bounds = {}
    for meta in metadata:
        for sign in _SIGNS:
            if hasattr(meta, sign):
                bounds[sign] = getattr(meta, sign)
    low = _first_of(("gt", "ge"), bounds)
    high = _first_of(("lt", "le"), bounds)
    if low and high:
        opening = "(" if low == "gt" else "["
        closing = ")" if high == "lt" else "]"
        return f"{text} in {opening}{bounds[low]}, {bounds[high]}{closing}"
    for sign in (low, high):
        if sign:
            text += f" {_SIGNS[sign]} {bounds[sign]}"
    return text


def _first_of(names: Iterable[str], known: Mapping[str, Any]) -> str:
    """Return the first name that is known, or an empty text."""
    for name in names:
        if name in known:
            return name
    return ""


def _type(annotation: Any) -> str:
    """Return a type annotation in words."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        metadata: list[Any] = []
        for argument in arguments[1:]:
            metadata += getattr(argument, "metadata", [argument])
        return _with_bounds(_type(arguments[0]), metadata)
    if origin is Literal:
        if len(arguments) == 1:
            return repr(arguments[0])
        choices = ", ".join(map(str, arguments))
        return f"one of {choices}"
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin in (tuple, list):
        if origin is list or Ellipsis in arguments:
            return f"list of {_type(arguments[0])}"
        return f"list of {len(arguments)} numbers"
    if _is_model(annotation) or origin is dict:
        return "mapping"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def suggest(key: str, known: Mapping[str, FieldInfo] | Iterable[str]) -> str:
    """Return a question that names the nearest known key, or an empty text.

    For example ``" Did you mean 'decay' (float in [0, 1), default 0.99)?"``.
    """
    close = _closest(key, list(known))
    if close is None:
        return ""
    field = known[close] if isinstance(known, Mapping) else None
    if field is None:
        return f" Did you mean '{close}'?"
    default = ""
    if not field.is_required():
        value = field.get_default(call_default_factory=True)
        default = f", default {_shown(value)}"
    return f" Did you mean '{close}' ({describe(field)}{default})?"


def _closest(key: str, names: list[str]) -> str | None:
    """Return the most similar name.

    The last part of a dotted name counts too, so that 'lr' finds 'optim.lr'.
    """
    wanted = key.lower()
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    if close:
        return close[0]
    by_last_part = {name.rpartition(".")[2]: name for name in names}
    last_part = wanted.rpartition(".")[2]
    close = difflib.get_close_matches(last_part, list(by_last_part), n=1, cutoff=0.6)
    return by_last_part[close[0]] if close else None


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and value:
        return "x".join(map(str, value))
    return str(value)


def leaves(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Return all keys of a model and its nested models, dotted."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        if _is_model(field.annotation):
            found |= leaves(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            found[prefix + name] = field
    return found


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested mapping of which ``flatten`` makes ``flat``."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested
