"""What each command makes of each fault of a header; as a program, it writes the table of the page.

Every cell is computed: files with the fault are written, the command's code reads them, and its
numbers are compared with those of the true grid.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from grids import FAULTS, FORMATS, brute_force, dicom, folder_of, stored, write

from segbench import registry
from segbench.config import resolve
from segbench.config.machine import Cadence, Machine
from segbench.contracts.method import Setting, Source
from segbench.data.formats.read import read_volume
from segbench.data.geometry import spacing_of
from segbench.data.open import prepare
from segbench.data.preparation.survey import check_source
from segbench.errors import SegbenchError
from segbench.evaluation.label_folders import evaluate_folders
from segbench.evaluation.new_scans import Predictor, write_nifti
from segbench.evaluation.scan_files import Scan
from segbench.evaluation.test_set import score
from segbench.training.setup import prepare as prepare_run

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "geometry.md"
COMMANDS = ("data check", "data prepare", "run", "predict", "evaluate")
NAMES = {
    "two spacings": "two spacings",
    "two orientations": "two orientations",
    "sheared grid": "sheared grid",
    "no orientation:": "no orientation",
    "no orientation or spacing": "no spacing",
    "identity matrix": "identity matrix",
    "implausible spacing": "implausible spacing",
    "unit of length is not known": "unknown unit",
    "without loss": "turned",
}
NONE = "-"  # the format cannot have the fault, or the command does not read the format


class Bright(torch.nn.Module):
    """A network that finds bright voxels."""

    setting = Setting((Source("scans", ("bright", "right")),), 1, (16, 16, 16))

    def predict(self, image, source=0):
        bright = (image[:, :1] > 0.7).float()
        return torch.cat([1 - bright, bright, 0 * bright], 1)


def blob(shape, shift=0):
    """Return gray values from 1 to 1000 that fall from a center."""
    center = [(size - 1) / 2 + (shift if axis == 0 else 0) for axis, size in enumerate(shape)]
    offsets = np.indices(shape) - np.reshape(center, (3, 1, 1, 1))
    scaled = offsets / np.reshape([max(size / 2, 1) for size in shape], (3, 1, 1, 1))
    return (1 + 999 * np.exp(-1.5 * (scaled**2).sum(axis=0))).astype(np.int16)


def cell(texts, right):
    """Return what a command said and whether its numbers were right; None: it gives no mm."""
    named = [name for mark, name in NAMES.items() if any(mark in text for text in texts)]
    numbers = {True: "mm right", False: "MM WRONG", None: "voxels"}[right]
    return ", ".join([numbers, *named])


def refusal(error):
    """Return a refusal as a cell."""
    text = " ".join([str(error), *(str(problem) for problem in getattr(error, "problems", ()))])
    named = [name for mark, name in NAMES.items() if mark in text]
    return f"refused: {', '.join(named) or text}"


class Table:
    """Computes the cells of one format, in a folder of its own."""

    def __init__(self, root, kind):
        self.root = root
        self.kind = kind
        registry.add_file(ROOT / "tests" / "plugins" / "scans.py")
        machine = Machine(
            root=root / "out",
            data_root=root / "data",
            device="cpu",
            save_every=Cadence(steps=2, seconds=None),
        )
        protocol = ROOT / "tests" / "plugins" / "tiny.yaml"
        (experiment,) = resolve("supervised", dataset="scans", protocol=protocol).experiments
        run = prepare_run(experiment, machine)
        self.predictor = Predictor(Bright(), run.experiment, run.stores[0], 0, "cpu")

    def row(self, name):
        """Return the cells of one fault, in the order of ``COMMANDS``."""
        fault = FAULTS[name]
        if self.kind not in fault.header:
            return [NONE] * len(COMMANDS)
        folder = self.root / name.replace(" ", "_")
        if self.kind == "dicom":
            return [NONE, NONE, NONE, self.predict(folder, fault), NONE]
        return [
            *self.own_data(folder / f"own_{folder.name}_{self.kind}", fault),
            self.predict(folder, fault),
            self.evaluate(folder, fault),
        ]

    def write(self, path, array, fault, key="label", turn=None):
        file = fault.file
        if turn is not None:
            array, file = stored(array, file, *turn)
        write(path, array, file, key, **fault.header[self.kind])

    def evaluate(self, folder, fault):
        pred, ref = ((blob(fault.shape, shift) > 700).astype(np.uint8) for shift in (1, 0))
        self.write(folder / "pred" / f"a.{self.kind}", pred, fault, turn=fault.turn)
        self.write(folder / "ref" / f"a.{self.kind}", ref, fault)
        try:
            (row,), warnings = evaluate_folders(folder / "pred", folder / "ref")
        except SegbenchError as error:
            return refusal(error)
        return cell(warnings, self.is_right(row, pred, ref, fault))

    def is_right(self, row, pred, ref, fault):
        """Return whether the distances of a row are right, in the unit that it has."""
        if "hd95_mm" not in row:
            expected = brute_force(pred, ref, np.eye(4))
            assert np.allclose((row["hd95_vox"], row["asd_vox"]), expected)
            return None
        expected = brute_force(pred, ref, fault.matrix)
        return bool(np.allclose((row["hd95_mm"], row["asd_mm"]), expected, rtol=1e-4))

    def own_data(self, root, fault):
        """Return the cells of check, prepare and run for a folder of images and labels."""
        label = (blob(fault.shape) > 700).astype(np.uint8)

        def image_file(path, number):
            gray = blob(fault.shape)
            gray[:, 0] += np.int16(50 * number)  # no two cases are equal
            self.write(path, gray, fault, "image")

        def label_file(path, number):
            self.write(path, label, fault, turn=fault.turn)

        folder_of(root, self.kind, image_file, label_file)
        entry = registry.get("dataset", f"folder:{root}")
        checked, problems = check_source(entry, root)
        errors = [str(problem) for problem in problems if problem.level == "error"]
        if errors:
            cells = [refusal(errors)]
        else:
            texts = [str(problem) for problem in problems]
            cells = [cell(texts, self.has_spacing(checked, fault))]
        try:
            store = prepare(entry.name, None, self.root / "data")
        except SegbenchError as error:
            return [*cells, refusal(error), refusal(error)]
        case = store.test[0]
        is_right = self.has_spacing(store, fault)
        if not np.array_equal(store.label(case), label):
            is_right = False
        cells.append(cell(store.warnings, is_right))
        pred = (blob(fault.shape, 1) > 700).astype(np.uint8)
        (row,) = score(pred, store, case)
        return [*cells, cell((), self.is_right(row, pred, label, fault))]

    def has_spacing(self, store, fault):
        """Return whether the cases of a store have the true spacing; None if they have none."""
        found = [info.spacing for info in store.cases.values()]
        if None in found:
            return None
        axes = [axis for axis, size in enumerate(fault.shape) if size > 1]
        expected = np.array(spacing_of(fault.matrix))[axes]
        return all(np.allclose(np.array(steps)[axes], expected, rtol=1e-4) for steps in found)

    def predict(self, folder, fault):
        """Return the cell of predict: the mask, and the spacing that is written with it."""
        gray = blob(fault.shape)
        file = fault.file
        if fault.turn is not None:
            gray, file = stored(gray, file, *fault.turn)
        path = folder / "scan"
        if self.kind == "dicom":
            dicom(path, gray, file, **fault.header["dicom"])
        else:
            path = path.with_suffix(f".{self.kind}")
            write(path, gray, file, "image", **fault.header[self.kind])
        try:
            found = self.predictor(Scan("a", (path,)))
        except SegbenchError as error:
            return refusal(error)
        write_nifti(folder / "a_seg.nii.gz", found.label, found)
        mask = gray > 700
        dice = 2 * (mask & (found.label == 1)).sum() / (mask.sum() + (found.label == 1).sum())
        true = fault.matrix if fault.turn is None else stored(gray, fault.matrix, *fault.turn)[1]
        axes = [axis for axis, size in enumerate(gray.shape) if size > 1]
        written = np.array(read_volume(folder / "a_seg.nii.gz").spacing)[axes]
        is_right = dice > 0.6 and np.allclose(written, np.array(spacing_of(true))[axes], rtol=1e-4)
        has_no_spacing = any("no orientation or spacing" in text for text in found.warnings)
        return cell(found.warnings, None if has_no_spacing else bool(is_right))


def lines_of(kind):
    """Return the lines of the table for one format."""
    with tempfile.TemporaryDirectory() as folder:
        table = Table(Path(folder), kind)
        lines = []
        for name in FAULTS:
            cells = table.row(name)
            if not FAULTS[name].is_known:
                cells = [cell.replace("mm right", "mm as stated") for cell in cells]
            if set(cells) != {NONE}:
                lines.append("| " + " | ".join([kind, name, *cells]) + " |")
    return lines


def stored_lines():
    """Return the lines of the table on the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if re.match(r"\| (nii|nrrd|mha|h5|dicom)", line)]


def main():
    text = PAGE.read_text(encoding="utf-8")
    start = text.index("| format |")
    end = (text + "\n\n").index("\n\n", start)
    head = "| format | fault | " + " | ".join(COMMANDS) + " |"
    rule = "|---" * (2 + len(COMMANDS)) + "|"
    lines = [line for kind in (*FORMATS, "dicom") for line in lines_of(kind)]
    table = "\n".join([head, rule, *lines])
    PAGE.write_text(text[:start] + table + text[end:].rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
