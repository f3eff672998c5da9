"""The user's own data sets by name.

``<data_root>/<name>/link.json`` says which folder a name stands for and how to prepare it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from segbench import registry
from segbench.errors import IntegrityError, SegbenchError, UsageError
from segbench.storage import atomic_write, json_bytes, storage_error

SCHEMA = "segbench.link/1"


def load_links(data_root: Path) -> list[SegbenchError]:
    """Register all linked data sets of a data root; return the errors of unusable links."""
    problems: list[SegbenchError] = []
    for file in sorted(data_root.glob("*/link.json")):
        try:
            content = json.loads(file.read_bytes())
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema {content['schema']!r}")
            registry.add_link(
                file.parent.name,
                registry.Link(content["family"], content["text"], content["settings"]),
            )
        except SegbenchError as error:  # a plug-in has that name now
            problems.append(error)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(IntegrityError(f"a link is damaged: {error!r}", where=file))
    return problems


def keep_setting(name: str, key: str, value: object) -> None:
    """Add a setting to the link of a data set, if it has one; ``write_link`` stores it."""
    link = registry.links().get(name)
    if link is not None:
        registry.add_link(name, replace(link, settings={**link.settings, key: value}))


def write_link(data_root: Path, name: str) -> None:
    """Store the link of a data set; nothing happens for data sets without a link.

    Raises:
        UsageError: the data root has another folder under that name.
        StorageError: the data root is not writable.
    """
    link = registry.links().get(name)
    file = data_root / name / "link.json"
    if link is None:
        return
    with suppress(OSError, ValueError, KeyError, TypeError):
        old = json.loads(file.read_bytes())["text"]
        if old != link.text:
            raise UsageError(
                f"data set '{name}' exists already",
                where=file,
                found=old,
                expected=link.text,
                fix="choose a name: segbench data link PATH --as NAME",
            )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, file) from error
    content = {
        "schema": SCHEMA,
        "family": link.family,
        "text": link.text,
        "settings": link.settings,
    }
    atomic_write(file, json_bytes(content))
