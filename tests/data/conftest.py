"""A small data set whose files, lists and accidents a test controls."""

import json
from pathlib import Path

import numpy as np
import pytest

from segbench import registry
from segbench.data.open import open_store, prepare
from segbench.data.store.store import Store

PLUGIN = """
import json, os, signal
from pathlib import Path
import numpy as np
from segbench import Case, Dataset, RawCase, Split, dataset

HERE = Path(__file__).parent

@dataset("toy")
class Toy(Dataset):
    title, classes, files, embedded, version = "Toy", ("a", "b"), ("<case>.npz",), EMBEDDED, 1
    license, citation, homepage = "none", "no one", "https://example.org"
    protocol = "phantom"

    def split(self):
        return Split(*(tuple(x) for x in json.loads((HERE / "split.json").read_text())), "me")

    def find(self, source):
        source = HERE / "source" if source is None else source
        return [RawCase(p.stem, p, p.stem.split("_")[0] if "_" in p.stem else None)
                for p in sorted(source.glob("*.npz"))]

    def load(self, raw):
        with open(HERE / "loads.txt", "a") as log:
            print(raw.id, file=log)
        if (HERE / "kill").exists() and (HERE / "kill").read_text() == raw.id:
            os.kill(os.getpid(), signal.SIGKILL)
        with np.load(raw.where) as arrays:
            label = arrays["label"] if "label" in arrays else None
            affine = np.diag([1.0, 1.0, 2.0, 1.0])
            return Case(raw.id, arrays["image"], label, (1.0, 1.0, 2.0), affine)
"""


class Toy:
    """The data set's folder and shortcuts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source, self.data_root = folder, folder / "source", folder / "prepared"
        self.source.mkdir()
        self.plugin = folder / "toy.py"
        self.code()

    def code(self, embedded: bool = False, **changes: str) -> None:
        """Write the adapter and make the registry forget the old one."""
        text = PLUGIN.replace("EMBEDDED", str(embedded))
        for old, new in changes.items():
            text = text.replace(old, new)
        self.plugin.write_text(text)
        registry.reset()
        registry.add_file(self.plugin)

    def case(self, name: str, seed: int, **arrays: np.ndarray | None) -> None:
        rng = np.random.default_rng(seed)
        content = {
            "image": rng.standard_normal((1, 5, 6, 4)).astype(np.float32),
            "label": rng.integers(0, 3, (5, 6, 4)).astype(np.uint8),
            **arrays,
        }
        np.savez(self.source / f"{name}.npz", **{k: v for k, v in content.items() if v is not None})

    def split(self, train: list[str], test: list[str]) -> None:
        (self.folder / "split.json").write_text(json.dumps([train, test]))

    def lists(self, train: list[str], test: list[str]) -> None:
        (self.source / "train.list").write_text("\n".join(train) + "\n")
        (self.source / "test.list").write_text("\n".join(test) + "\n")

    def fill(self, train: int = 3, test: int = 2) -> None:
        names = [f"c{i}" for i in range(train + test)]
        for i, name in enumerate(names):
            self.case(name, i)
        self.split(names[:train], names[train:])

    def prepare(self, jobs: int = 1, progress=None) -> Store:
        return prepare("toy", self.source, self.data_root, jobs, progress)

    def open(self) -> Store:
        return open_store("toy", self.data_root)

    def loads(self) -> list[str]:
        """Ids loaded since the last call."""
        log = self.folder / "loads.txt"
        ids = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return ids


@pytest.fixture
def toy(tmp_path) -> Toy:
    return Toy(tmp_path)


def _write_dicom(  # noqa: PLR0913 - one argument per DICOM field that a test sets
    folder: Path, array: np.ndarray, spacing, origin, *, slope=1.0, intercept=0.0, uid=None, first=1
) -> Path:
    """A series ``folder/study/series/1-NNN.dcm`` of (columns, rows, slices) int16, slices numbered
    from ``first``.

    ``spacing`` in mm along columns, rows and slices (a negative step runs downwards), ``origin`` in
    patient space.
    """
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    series, place = uid or generate_uid(), folder / "study" / "series"
    place.mkdir(parents=True, exist_ok=True)
    for z in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            generate_uid(),
        )
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = (
            CTImageStorage,
            generate_uid(),
            series,
        )
        data.Modality, data.PatientID, data.InstanceNumber = "CT", "P1", z + first
        data.Columns, data.Rows = array.shape[:2]
        data.PixelSpacing = [float(spacing[1]), float(spacing[0])]  # between rows, between columns
        data.SliceThickness = abs(float(spacing[2]))
        data.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        data.ImagePositionPatient = [
            float(origin[0]),
            float(origin[1]),
            float(origin[2] + z * spacing[2]),
        ]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = (
            1,
            "MONOCHROME2",
            1,
        )
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.RescaleSlope, data.RescaleIntercept = 15, float(slope), float(intercept)
        data.PixelData = np.ascontiguousarray(array[:, :, z].T.astype("<i2")).tobytes()
        pydicom.dcmwrite(place / f"1-{z + first:03d}.dcm", data, enforce_file_format=True)
    return folder


@pytest.fixture
def write_dicom():
    """Function that writes one series."""
    return _write_dicom
