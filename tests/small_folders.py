"""Small folders of files that a user might have, written by the tests that read them."""

import json
from pathlib import Path

import nibabel
import nrrd
import numpy as np

AFFINE = np.diag([0.5, 0.5, 2.0, 1.0])
SHAPE = (24, 24, 16)


def ball(center, radius=5, shape=SHAPE):
    grid = np.indices(shape)
    squares = sum((axis - middle) ** 2 for axis, middle in zip(grid, center, strict=True))
    return (squares <= radius**2).astype(np.uint8)


def shifted_balls():
    """A prediction and a reference one voxel apart: Dice 84.27, HD95 0.5 mm, ASD 0.30 mm."""
    return ball((12, 12, 8)), ball((13, 12, 8))


def scan(seed, shape=(30, 28, 16)):
    """An image of a bright organ in a body, and the organ's label."""
    random = np.random.default_rng(seed)
    center = np.array(shape) / 2 + random.uniform(-2, 2, len(shape))
    label = ball(center, 5, shape)
    body = ball(np.array(shape) / 2, 7.5, shape)
    image = 100 * body + 60 * label + 8 * random.standard_normal(shape) * body
    return image.astype(np.float32), label


def save(path, array, affine=AFFINE):
    """Write a volume by the ending of its name: NIfTI, NRRD, MetaImage or HDF5."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.lower()
    if name.endswith(".nrrd"):
        header = {
            "space": "right-anterior-superior",
            "space directions": np.asarray(affine)[:3, :3].T,
            "space origin": np.asarray(affine)[:3, 3],
        }
        nrrd.write(str(path), array, header)
    elif name.endswith(".mha"):
        path.write_bytes(metaimage(array, np.diag(affine)[:3]))
    elif name.endswith(".h5"):
        import h5py

        with h5py.File(path, "w") as file:
            file["label"] = array
            file["image"] = array
    else:
        content = nibabel.Nifti1Image(array, affine).to_bytes()
        if name.endswith(".gz"):
            import gzip

            content = gzip.compress(content, 1)
        path.write_bytes(content)  # whatever the case of the ending


def metaimage(array, spacing, comment=b""):
    kinds = {"uint8": "MET_UCHAR", "int16": "MET_SHORT", "uint16": "MET_USHORT"}
    lines = [
        "ObjectType = Image",
        f"NDims = {array.ndim}",
        "ElementSpacing = " + " ".join(str(step) for step in spacing),
        "DimSize = " + " ".join(str(size) for size in array.shape),
        f"ElementType = {kinds[str(array.dtype)]}",
        "ElementDataFile = LOCAL",
    ]
    first, *rest = [f"{line}\n".encode() for line in lines]
    return b"".join([first, comment, *rest]) + array.tobytes(order="F")


class OwnFolder:
    """A folder in the layout of nnU-Net v2."""

    def __init__(self, root, channel="MRI", labels=None, ending=".nii.gz"):
        self.root = Path(root)
        self.ending = ending
        for place in ("imagesTr", "labelsTr"):
            (self.root / place).mkdir(parents=True)
        content = {
            "channel_names": {"0": channel},
            "labels": labels or {"background": 0, "organ": 1},
            "file_ending": ending,
            "name": self.root.name,
        }
        (self.root / "dataset.json").write_text(json.dumps(content))

    @property
    def name(self):
        return f"folder:{self.root}"

    def write_channels(self, *names):
        """Give the folder other channels."""
        file = self.root / "dataset.json"
        content = json.loads(file.read_text())
        content["channel_names"] = {str(number): name for number, name in enumerate(names)}
        file.write_text(json.dumps(content))

    def case(self, name, seed, labeled=True, change=None, place="imagesTr"):
        """Add a case; ``change(image, label)`` returns what to write instead."""
        image, label = scan(seed)
        if change is not None:
            image, label = change(image, label)
        save(self.root / place / f"{name}_0000{self.ending}", image, np.diag([1, 1, 1.5, 1]))
        if labeled:
            save(self.root / "labelsTr" / f"{name}{self.ending}", label, np.diag([1, 1, 1.5, 1]))

    def fill(self, labeled=5, unlabeled=1, change=None):
        for number in range(labeled + unlabeled):
            self.case(f"c{number:02d}", number, number < labeled, change)

    def lists(self, **lists):
        (self.root / "splits_ssl.json").write_text(json.dumps(lists))

    def folds(self, *folds):
        """Write nnU-Net's file of folds, each given as (training, validation) cases."""
        content = [{"train": train, "val": val} for train, val in folds]
        (self.root / "splits_final.json").write_text(json.dumps(content))


def drawn_lists(data_root, name):
    """Return the lists that are kept with the link of a data set."""
    link = json.loads((Path(data_root) / name / "link.json").read_text())
    return link["settings"]["drawn"]
