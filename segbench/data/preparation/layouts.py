"""The two usual forms of a folder of volumes, Medical Segmentation Decathlon and nnU-Net v2: ``dataset.json`` and files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segbench.data.formats.read import ENDINGS
from segbench.errors import DataError


@dataclass(frozen=True)
class Form:
    """What ``dataset.json`` says, whichever form it has."""

    title: str
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    suffix: bool  # nnU-Net: one file a channel, ``<case>_0000``
    ending: str
    license: str
    citation: str
    announced: object = None  # numTraining


def read_form(root: Path) -> Form:
    """``dataset.json`` of either form.

    Raises:
        DataError: it is missing, damaged, or asks for something that is not supported.
    """
    file = root / "dataset.json"
    if not (root / "imagesTr").is_dir() or not file.is_file():
        raise DataError(
            "no data folder of a known form",
            where=root,
            expected="dataset.json, imagesTr/ and labelsTr/",
            found=", ".join(sorted(p.name for p in root.iterdir())[:10])
            if root.is_dir()
            else "no such folder",
        )
    content = read_json(file)
    if "dataset" in content:
        raise DataError(
            "paths inside dataset.json are not supported",
            where=file,
            found="key 'dataset'",
            expected="files in imagesTr/ and labelsTr/",
        )
    nnunet = "channel_names" in content
    names = content.get("channel_names", content.get("modality"))
    labels = content.get("labels")
    if not isinstance(names, dict) or not names or not isinstance(labels, dict):
        raise DataError(
            "dataset.json lacks its channels or labels",
            where=file,
            found=", ".join(content) or "nothing",
            expected="labels, and channel_names (nnU-Net v2) or modality (Decathlon)",
        )
    try:
        channels = tuple(str(names[str(i)]) for i in range(len(names)))
        by_value = (
            {int(v): k for k, v in labels.items()}
            if nnunet
            else {int(k): v for k, v in labels.items()}
        )
        classes = tuple(str(by_value[i]) for i in range(1, len(by_value)))
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            "channels or labels of dataset.json cannot be used",
            where=file,
            found=f"{names}, {labels}",
            expected="numbers from 0 without a gap; regions of several labels are not supported",
        ) from error
    if (
        not classes
        or len(set(classes)) < len(classes)
        or "ignore" in classes
        or not all(map(str.strip, classes))
    ):
        raise DataError(
            "the labels of dataset.json cannot be used",
            where=file,
            found=", ".join(map(repr, classes)) or "none",
            expected="at least one class, each with a name of its own; the label 'ignore' is not supported",
        )
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in ENDINGS:
        raise DataError(
            "files of this kind cannot be read",
            where=file,
            found=ending,
            expected=" ".join(ENDINGS),
        )
    text = {key: str(content.get(key, "")) for key in ("name", "licence", "license", "reference")}
    return Form(
        text["name"] or root.name,
        classes,
        channels,
        nnunet,
        ending,
        text["licence"] or text["license"] or "not stated",
        text["reference"],
        content.get("numTraining"),
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object that can be written again.

    Raises:
        DataError: it cannot.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("no object")
        json.dumps(
            content, ensure_ascii=False
        ).encode()  # half a surrogate pair can be read and never be written
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file.name} cannot be read", where=file, found=error, expected="a JSON object"
        ) from error
    return content


def case_images(folder: Path, form: Form) -> dict[str, list[Path]]:
    """Files by case; hidden files and side files of other systems are left out."""
    files = {
        p.name[: -len(form.ending)]: p
        for p in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if p.name.endswith(form.ending) and p.name[0] not in "._"
    }
    if not form.suffix:
        return {case: [path] for case, path in files.items()}
    ids = {name[:-5] for name in files if re.search(r"_\d{4}$", name)}
    odd = sorted(name for name in files if not re.search(r"_\d{4}$", name))
    wanted = [f"{case}_{c:04d}" for case in sorted(ids) for c in range(len(form.channels))]
    missing = [name for name in wanted if name not in files]
    if odd or missing or len(files) > len(wanted):
        raise DataError(
            "the files do not fit the channels of dataset.json",
            where=folder,
            found=", ".join(
                (odd and [f"{n} without a channel" for n in odd[:5]])
                or [f"no {n}" for n in missing[:5]]
                or ["more channels"]
            ),
            expected=f"<case>_0000{form.ending} to _{len(form.channels) - 1:04d} for each case",
        )
    return {case: [files[f"{case}_{c:04d}"] for c in range(len(form.channels))] for case in ids}


def help_with_form(root: Path, form: Form) -> str | None:
    """What dataset.json has to say where the files are there and only called otherwise."""
    names = [
        p.name
        for place in ("imagesTr", "labelsTr")
        if (root / place).is_dir()
        for p in sorted((root / place).iterdir())
        if p.name[0] not in "._"
    ]
    if any(name.endswith(form.ending) for name in names):
        suffixed = not form.suffix and any(
            re.search(r"_\d{4}$", name.removesuffix(form.ending)) for name in names
        )
        return (
            (
                'names with _0000 need nnU-Net v2\'s form of dataset.json: "channel_names" for "modality", and '
                '"labels": {"background": 0, "NAME": 1}'
            )
            if suffixed
            else None
        )
    ending = next((e for e in ENDINGS if any(name.endswith(e) for name in names)), None)
    return ending and f'add "file_ending": "{ending}" to dataset.json'


def oddities(root: Path, form: Form, cases: dict[str, dict[str, Any]]) -> list[str]:
    """Files that no case uses and a number of cases other than announced: mostly a misspelled name."""
    used = {path for files in cases.values() for path in (*files["images"], files.get("label"))}
    notes = []
    for place in ("imagesTr", "labelsTr", "imagesUn"):
        files = sorted((root / place).iterdir()) if (root / place).is_dir() else []
        lost = [path.name for path in files if path.name[0] not in "._" and path not in used]
        if lost:
            notes.append(
                f"{len(lost)} files in {place} belong to no case and are not read: {', '.join(lost[:5])}; expected "
                f"are <case>{form.ending} in labelsTr and an image of that case in imagesTr"
            )
    images = [files for files in cases.values() if files["place"] == "imagesTr"]
    known = len(images), sum("label" in files for files in images)
    if form.announced is not None and form.announced not in known:
        notes.append(
            f"dataset.json announces numTraining {form.announced}; imagesTr holds {known[0]} cases, {known[1]} of "
            "them with a label"
        )
    return notes
