"""The card of shared weights: what they are, what they were trained on, and what they are not for.

The text is Markdown. Its first lines are the fields by which hubs of models list a card.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segbench import __version__, registry
from segbench.config import dump_yaml
from segbench.data.geometry import in_mm
from segbench.data.store.store import Store
from segbench.errors import SegbenchError
from segbench.results.cite import bibtex
from segbench.results.export import number
from segbench.results.rundir import RunDir
from segbench.text import safe

DISCLAIMER = "for research only: not a medical device, not for diagnosis or treatment"
NOT_RECORDED = "not recorded"


def model_card(run: RunDir, result: Mapping[str, Any], stores: Sequence[Store]) -> str:
    """Return the card of a finished run.

    Args:
        stores: its data sets, of which only facts are read.
    """
    parts = [
        _front_matter(result),
        f"# {_title(result)}",
        _summary(run, result),
        "## Use",
        *_use(stores),
        "## Not for",
        *_limits(stores),
        "## Training data",
        *_training_data(result, stores),
        "## Scores",
        *_scores(result),
        "## How it was made",
        *_making(run, result),
        "## To cite",
        f"```bibtex\n{bibtex([run]).rstrip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(result: Mapping[str, Any]) -> str:
    tags = ["segbench", "medical-image-segmentation", "semi-supervised-learning", result["method"]]
    fields = {
        "library_name": "segbench",
        "pipeline_tag": "image-segmentation",
        "tags": tags,
        "license": "other",
        "license_name": "terms-of-the-training-data",
    }
    return f"---\n{dump_yaml(fields)}---"


def _title(result: Mapping[str, Any]) -> str:
    return _text(f"{result['method']} on {', '.join(result['datasets'])}")


def _summary(run: RunDir, result: Mapping[str, Any]) -> str:
    counts = []
    for name in result["datasets"]:
        labeled = f"{result['labeled'][name]} of {result['train'][name]}"
        counts.append(f"{labeled} training cases of {name} labeled")
    steps = f"{result['steps']:,} steps, seed {result['seed']}, {result['precision']}"
    return _text(
        f"Weights of the method {result['method']} with the network {result['backbone']}, trained "
        f"by segbench {run.manifest().get('segbench', __version__)}: {'; '.join(counts)}; {steps}."
    )


def _use(stores: Sequence[Store]) -> list[str]:
    parts = ["```sh\nsegbench predict model.zip scan.nii.gz -o out/\n```"]
    lines = []
    for store in stores:
        values = [f"{value} {name}" for value, name in enumerate(store.classes, 1)]
        axes = "a volume" if store.dims == 3 else "an image"
        channels = "1 channel" if store.channels == 1 else f"{store.channels} channels"
        line = f"{store.name}: {axes} of {channels} in, labels out: 0 background, "
        lines.append(f"- {_text(line + ', '.join(values))}")
    parts.append("\n".join(lines))
    parts.append(
        "A scan is brought into the form of the training cases first, and the labels are written "
        "on the scan's own grid."
    )
    return parts


def _limits(stores: Sequence[Store]) -> list[str]:
    lines = [
        f"- Patients: {DISCLAIMER}.",
        "- Any use that the terms of the training data below do not allow.",
        "- Scans unlike the training data: other modalities, organs, scanners, protocols, ages or "
        "diseases were not tested. Gray values far from the training's are warned about.",
    ]
    for store in stores:
        spacings = {tuple(info.spacing) for info in store.cases.values() if info.spacing}
        if len(spacings) == 1:
            (spacing,) = spacings
            lines.append(f"- {_text(store.name)} was trained at {in_mm(spacing)}.")
    return ["\n".join(lines)]


def _training_data(result: Mapping[str, Any], stores: Sequence[Store]) -> list[str]:
    rows = []
    for store in stores:
        facts = _dataset_facts(store.name)
        partial = "a partial copy" if store.name in result["partial"] else "all cases"
        rows.append([store.name, *facts, partial])
    header = ["data set", "what", "modality", "license", "citation", "source", "copy"]
    return [_table(header, rows)]


def _dataset_facts(name: str) -> list[str]:
    """Return title, modality, license, citation and address of a data set, as its plug-in says."""
    try:
        cls = registry.get("dataset", name).cls
    except SegbenchError:
        return [NOT_RECORDED] * 5
    found = [cls.title, cls.modality, cls.license, cls.citation, cls.homepage]
    return [str(value) or NOT_RECORDED for value in found]


def _scores(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for entry in result["metrics"]:
        means = {name: column["mean"] for name, column in entry["columns"].items()}
        unit = "mm" if "hd95_mm" in means else "vox"
        cells = [entry["dataset"], entry["class"], str(entry["counts"]["n"])]
        for name in ("dice", "jaccard"):
            cells.append(number(None if means[name] is None else 100 * means[name], 1))
        for name in ("hd95", "asd"):
            cells.append(f"{number(means[f'{name}_{unit}'], 2)} {unit}")
        rows.append(cells)
    header = ["data set", "class", "test cases", "Dice %", "Jaccard %", "HD95", "ASD"]
    rule = (
        f"Means over the test cases of the {result['selection']} checkpoint, one training. "
        "They are of these cases and say nothing about other patients."
    )
    return [_table(header, rows), rule]


def _making(run: RunDir, result: Mapping[str, Any]) -> list[str]:
    protocol = result["protocol"]
    modified = ", ".join(protocol["modified"]) or "nothing"
    sources = result["science"].get("sources", {})
    files = plugin_files(run)
    lines = [
        f"run {result['run_id']}, weights sha256 {result['weights_sha256']}",
        f"protocol {protocol['name']} {protocol['version']}, modified: {modified}",
        *[f"source of the {kind}: digest {digest}" for kind, digest in sources.items()],
        "plug-in files that it needs: " + (", ".join(files) or "none"),
        "config.yaml holds every setting, data.json what is known of the training images",
    ]
    return ["\n".join(f"- {_text(line)}" for line in lines)]


def plugin_files(run: RunDir) -> list[str]:
    """Return the names of the plug-in files that a run was started with, without their folders."""
    return [Path(file).name for file in run.config()["plugins"]]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(header), _row(["---"] * len(header))]
    for cells in rows:
        lines.append(_row([_text(cell) for cell in cells]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: object) -> str:
    """Return text that Markdown shows as it is."""
    return re.sub(r"([\\|*_<>\[\]`])", r"\\\1", safe(text))
