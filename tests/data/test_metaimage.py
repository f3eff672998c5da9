"""MetaImage files as ITK writes them, and every way in which one can be damaged."""

import zlib

import numpy as np
import pytest

from segbench.data.formats.read import read_volume
from segbench.errors import DataError

GRAY = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype("<i2")
HEAD = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "CompressedData = {packed}\nTransformMatrix = 0 1 0 0 0 1 1 0 0\nOffset = 5 6 7\n"
    "ElementSpacing = 1 2 3\nDimSize = {size}\n"
    "ElementType = {kind}\nElementDataFile = {where}\n"
)
VOXELS = GRAY.tobytes(order="F")


def written(
    path, voxels=VOXELS, packed=False, size="5 6 7", kind="MET_SHORT", where="LOCAL", head=HEAD
):
    path.write_bytes(
        head.format(packed=packed, size=size, kind=kind, where=where).encode() + voxels
    )
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_voxels_and_grid(tmp_path, packed):
    volume = read_volume(
        written(tmp_path / "a.mha", zlib.compress(VOXELS) if packed else VOXELS, packed)
    )
    np.testing.assert_array_equal(volume.array, GRAY)
    # The first axis runs to posterior by 1 mm per voxel, the second to superior by 2 mm, the third
    # to left by 3 mm.
    np.testing.assert_array_equal(
        volume.affine, [[0, 0, -3, -5], [-1, 0, 0, -6], [0, 2, 0, 7], [0, 0, 0, 1]]
    )


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_as_itk_reads_it(tmp_path, kind):
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK comes with the test tools only")
    array = (GRAY % 120).astype(kind)
    image = itk.GetImageFromArray(array)
    image.SetSpacing((0.5, 0.75, 2.5))
    image.SetOrigin((-10.5, 20.25, 3.0))
    image.SetDirection((0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    for packed in (False, True):
        itk.WriteImage(image, str(tmp_path / "a.mha"), useCompression=packed)
        volume = read_volume(tmp_path / "a.mha")
        assert volume.array.dtype == array.dtype
        np.testing.assert_array_equal(volume.array, array.transpose(2, 1, 0))
        for index in ((0, 0, 0), (1, 0, 0), (0, 2, 0), (3, 1, 4)):
            left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
            np.testing.assert_allclose(
                volume.affine @ (*index, 1), (-left, -posterior, superior, 1), atol=1e-9
            )
    vector = itk.GetImageFromArray(np.stack([array, array // 2], -1), isVector=True)
    itk.WriteImage(vector, str(tmp_path / "b.mha"))
    np.testing.assert_array_equal(
        read_volume(tmp_path / "b.mha").array[..., 1], (array // 2).transpose(2, 1, 0)
    )


def flipped(content):
    changed = bytearray(content)
    changed[-40] ^= 255
    return bytes(changed)


PACKED = zlib.compress(VOXELS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"voxels": VOXELS[:-1]}, "damaged or cut short"),
        ({"voxels": VOXELS + b"x"}, "damaged or cut short"),
        ({"voxels": PACKED[:-1], "packed": True}, "damaged or cut short"),
        ({"voxels": PACKED[: len(PACKED) // 2], "packed": True}, "damaged or cut short"),
        ({"voxels": flipped(PACKED), "packed": True}, "damaged or cut short"),
        ({"voxels": zlib.compress(bytes(10**8)), "packed": True}, "damaged or cut short"),
        ({"size": "30000 30000 30000"}, "too large"),
        ({"size": "5 6"}, "no volume of gray values"),
        ({"size": "5 6 0"}, "no volume of gray values"),
        ({"size": "5 6 x"}, "damaged or cut short"),
        ({"kind": "MET_STRING"}, "no volume of gray values"),
        ({"where": "/etc/passwd"}, "points to another file"),
        ({"where": "slice%03d.raw 1 9 1"}, "points to another file"),
        (
            {"head": HEAD.replace("BinaryData = True", "BinaryData = False")},
            "a form that cannot be read",
        ),
        (
            {"head": HEAD.replace("0 1 0 0 0 1 1 0 0", "1 0 0 1 0 0 0 0 1")},
            "orientation cannot be used",
        ),
        ({"head": "ObjectType = Image\nNDims 3\n" + HEAD}, "damaged or cut short"),
        ({"head": "ObjectType = Image\n" + "x = y\n" * 20000 + HEAD}, "damaged or cut short"),
        ({"head": "<html>" + HEAD}, "not a MetaImage file"),
    ],
)
def test_faults(tmp_path, changes, expected):
    with pytest.raises(DataError, match=expected):
        read_volume(written(tmp_path / "a.mha", **changes))
