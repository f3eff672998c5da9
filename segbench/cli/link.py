"""``segbench data link``: a name for a folder of the user's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.options import LABEL_VALUES, Command, bundled, joined, label_values
from segbench.cli.settings import Settings
from segbench.cli.terminal import mark, plural
from segbench.errors import UsageError
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.registry import Link


@dataclass(frozen=True)
class LinkOptions:
    """How the cases of a folder are prepared."""

    spacing: str | None
    window: str | None
    crop: str | None
    patient: str | None
    changes: str | None
    ignore: tuple[int, ...]
    new_lists: bool

    def settings(self) -> dict[str, Any]:
        """Return the settings that are stored with the name.

        Raises:
            UsageError: an option cannot be read.
        """
        choices: dict[str, Any] = {}
        if self.spacing:
            choices["spacing"] = _numbers("--spacing", self.spacing, "x", 3)
        if self.window:
            choices["window"] = _numbers("--window", self.window, ":", 2)
        if self.crop:
            choices["crop"] = self.crop
        if self.patient:
            choices["patient"] = self.patient
        if self.changes:
            choices["map"] = _changes(self.changes)
        if self.ignore:
            choices["ignore"] = sorted(set(self.ignore))
        return choices


LINK_OPTIONS = (
    click.option(
        "--spacing",
        metavar="1x1x1",
        help="Spacing in mm to resample to [median of the training images].",
    ),
    click.option(
        "--window",
        metavar="LOW:HIGH",
        help="Gray values that CT channels are clipped to and scaled from [percentiles].",
    ),
    click.option(
        "--crop",
        type=click.Choice(["none", "nonzero", "body", "label"]),
        help=(
            "What to crop to; label adds a margin of 25 voxels and keeps at least 96 per axis "
            "[body for CT, nonzero otherwise]."
        ),
    ),
    click.option(
        "--patient",
        metavar="REGEX",
        help="Part of a case's name that is its patient; splits, --labeled and the check for leaks "
        "go by patients [each case is one].",
    ),
    click.option(
        "--map",
        "changes",
        metavar="OLD=NEW,...",
        multiple=True,
        callback=joined,
        help="Classes that have other numbers in the label files, such as 255=1; may be repeated.",
    ),
    click.option(
        "--ignore",
        metavar="VALUE",
        type=LABEL_VALUES,
        multiple=True,
        callback=label_values,
        help="Label value of voxels to leave out of losses and metrics, such as 255 or -1; may be "
        "repeated.",
    ),
    click.option(
        "--new-lists",
        is_flag=True,
        help="Draw the test cases again, instead of keeping the lists of the last preparation.",
    ),
)


def link_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about preparation; the command gets them as ``options``."""
    return bundled(command, "options", LinkOptions, LINK_OPTIONS)


@click.command(cls=Command)
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--as", "name", required=True, metavar="NAME", help="Name of the data set.")
@link_options
@click.pass_obj
def link(settings: Settings, path: Path, name: str, options: LinkOptions) -> None:
    """Give a folder of your own a name. Nothing is copied; the settings are stored with the name.

    \b
    segbench data link ~/Dataset007_Mine --as mine
    segbench data link ~/ct --as ct --spacing 1x1x1 --window -125:275
    segbench data link ~/visits --as visits --patient '(patient\\d+)'
    segbench data link ~/png --as png --map 255=1 --ignore 128
    segbench data prepare mine
    """
    from segbench import registry
    from segbench.data.links import write_link
    from segbench.data.preparation.folder_lists import settings_to_keep

    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name):
        raise UsageError(
            f"--as: '{name}'", expected="a letter, then letters, digits and underscores"
        )
    choices = options.settings()
    old = registry.links().get(name)
    if old is not None and not options.new_lists:
        choices |= settings_to_keep(old.settings, choices)
    family = next(
        name for name in registry.names("dataset") if registry.get("dataset", name).cls.family
    )
    new = registry.Link(family, str(path.expanduser().resolve()), choices)
    registry.get("dataset", family).cls.variant(new.text, new.settings)  # raises if it is unusable
    if old is not None and old.text != new.text:
        raise UsageError(
            f"'{name}' is the name of another folder",
            found=old.text,
            expected=new.text,
            fix="choose another name: --as NAME",
        )
    registry.add_link(name, new)
    write_link(settings.data_root, name)

    settings.show(*_linked(settings, name, new))


def _linked(settings: Settings, name: str, link: Link) -> tuple[dict[str, Any], list[str]]:
    """Return the document and lines about a new link; warn about names that look like visits."""
    from segbench import registry
    from segbench.cli.documents import datasets_document
    from segbench.data.preparation.folder_lists import DRAWN
    from segbench.data.store.checks import check_names

    dataset = registry.get("dataset", name).cls
    split = dataset().split()
    problems = check_names(name, split.train, split.test)
    for problem in problems:
        settings.say(safe(f"{mark(problem.level)} {problem}"))
    document = {
        "name": name,
        "folder": link.text,
        "settings": {key: value for key, value in link.settings.items() if key != DRAWN},
        "lists": split.source,
        "train": len(split.train),
        "labeled": dataset.labeled,
        "test": len(split.test),
        "patients_known": dataset.patients_known,
        "problems": [vars(problem) for problem in problems],
    }
    labeled = f"{dataset.labeled} of them labeled"
    if dataset.patients_known:
        labeled = f"{plural(dataset.labeled, 'patient')} labeled"
    counts = f"{len(split.train)} train cases, {labeled}, {len(split.test)} test"
    line = f"{mark('ok')} {name}: {counts}; next: segbench data prepare {name}"
    lines = [safe(line), safe(f"  lists: {split.source}")]
    return datasets_document("segbench.data.link/1", [document]), lines


def _numbers(option: str, text: str, separator: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(separator)]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise UsageError(
            f"{option}: '{text}'", expected=f"{count} numbers separated by {separator}"
        )
    return numbers


def _changes(text: str) -> dict[str, int]:
    """Return the new label values of ``255=1,128=2`` by the old ones, as JSON stores them."""
    changes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,3})=(\d{1,3})\s*", part)
        if match is None or match[1] in changes:
            raise UsageError(
                f"--map: '{part}'", expected="each old value once, such as 255=1 or 128=1,255=2"
            )
        changes[match[1]] = int(match[2])
    return changes
