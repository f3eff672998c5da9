"""Pictures that programs read in different ways: recognized by their tags, or refused."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segbench.data.formats.pictures import (
    palette_warnings,
    read_picture,
    read_picture_mask,
    with_channels,
)
from segbench.data.formats.tiff_tags import require_plain_page
from segbench.errors import DataError

CLASSES = (np.arange(32).reshape(4, 8) % 3).astype(np.uint8)
RED = (255, 0, 0)
GREEN = (0, 255, 0)
BLACK = (0, 0, 0)
WHITE = (255, 255, 255)


def png(path, bits, rows):
    """Write a gray picture of 8 pixels a row, whose samples have few bits."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">II5B", 8, len(rows), bits, 0, 0, 0, 0)
    lines = b"".join(b"\0" + bytes(row) for row in rows)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def tiff(path, array, tags):
    """Write one page of gray samples with exactly these tags beside the necessary ones."""
    rows, columns = array.shape[:2]
    samples = array.shape[2] if array.ndim == 3 else 1
    content = array.tobytes()
    fields = {256: columns, 257: rows, 258: 8 * array.itemsize, 259: 1, 262: 1, 273: 0}
    fields |= {277: samples, 278: rows, 279: len(content), **tags}
    start = 14 + 12 * len(fields)
    entries = b""
    for tag, value in sorted(fields.items()):
        entries += struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value)
    header = b"II*\0" + struct.pack("<IH", 8, len(fields))
    path.write_bytes(header + entries + bytes(4) + content)
    return path


def pages(path, text, count=3, **tags):
    """Write a file of several gray pages with a description."""
    images = [Image.fromarray(CLASSES) for _ in range(count)]
    info = {270: text, **tags}
    images[0].save(path, save_all=True, append_images=images[1:], tiffinfo=info)
    return path


def palette(path, indexes, colors):
    image = Image.frombytes("P", indexes.shape[::-1], indexes.astype(np.uint8).tobytes())
    image.putpalette([value for color in colors for value in color])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.mark.parametrize(
    "bits, row", [(2, [0b00011011, 0b00011011]), (4, [0x01, 0x23, 0x01, 0x23])]
)
def test_masks_of_few_bits_hold_what_is_stored(tmp_path, bits, row):
    """Pillow would stretch 1, 2 and 3 to 85, 170 and 255, or to 17, 34 and 51."""
    mask = read_picture_mask(png(tmp_path / "a.png", bits, [row, row])).array
    np.testing.assert_array_equal(mask[:, 0], [0, 1, 2, 3, 0, 1, 2, 3])
    image = read_picture(tmp_path / "a.png").array
    assert image.max() == (255 if bits == 2 else 51)


@pytest.mark.parametrize("read", [read_picture, read_picture_mask])
@pytest.mark.parametrize(
    "change, said",
    [
        ({262: 0}, "0 is white"),
        ({274: 3}, "EXIF orientation 3"),
        ({254: 1}, "preview"),
        ({32997: 5}, "5 slices in one page"),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_tags_that_programs_follow_differently(tmp_path, kind, change, said, read):
    file = tiff(tmp_path / "a.tif", CLASSES.astype(kind), {})
    np.testing.assert_array_equal(read(file).array, CLASSES.T)
    with pytest.raises(DataError, match=said):
        read(tiff(tmp_path / "a.tif", CLASSES.astype(kind), change))


@pytest.mark.parametrize(
    "samples, tags",
    [(2, {}), (2, {338: (0,)}), (3, {262: 1}), (4, {262: 2, 338: (0,)}), (5, {262: 2})],
)
def test_samples_beside_the_colors_are_not_dropped(tmp_path, samples, tags):
    with pytest.raises(DataError, match=f"{samples} samples per pixel"):
        require_plain_page({277: samples, **tags}, tmp_path)


def test_infrared_beside_colors_is_not_dropped(tmp_path):
    many = np.stack([CLASSES] * 4, axis=-1)
    with pytest.raises(DataError, match="4 samples per pixel"):
        read_picture(tiff(tmp_path / "a.tif", many, {262: 2, 338: 0}))


@pytest.mark.parametrize(
    "tags",
    [{277: 2, 338: (2,)}, {262: 2, 277: 3}, {262: 2, 277: 4}, {262: 2, 277: 4, 338: (1,)}, {}],
)
def test_colors_and_alpha_are_plain(tmp_path, tags):
    require_plain_page(tags, tmp_path)


def test_a_bmp_file_that_pillow_misreads(tmp_path):
    """It takes two grays for one bit per pixel."""
    is_organ = (CLASSES > 0).astype(np.uint8)
    for read in (read_picture, read_picture_mask):
        with pytest.raises(DataError, match="8 bits per pixel and a palette of grays"):
            read(palette(tmp_path / "a.bmp", is_organ, [BLACK, WHITE]))


def test_one_bit_in_which_zero_is_white_is_what_is_seen(tmp_path):
    Image.fromarray(CLASSES > 0).save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    stored = read_picture_mask(tmp_path / "a.tif").array
    at = content.index(struct.pack("<HHI", 262, 3, 1)) + 8
    (tmp_path / "b.tif").write_bytes(content[:at] + b"\0" + content[at + 1 :])
    np.testing.assert_array_equal(read_picture_mask(tmp_path / "b.tif").array, 1 - stored)


OME = '<OME><Image><Pixels SizeC="{}" SizeT="{}" SizeZ="{}"/></Image></OME>'


@pytest.mark.parametrize(
    "text, said",
    [
        ("ImageJ=1.54\nimages=3\nchannels=3\n", "3 channels and 1 time points"),
        ("ImageJ=1.54\nimages=3\nframes=3\n", "1 channels and 3 time points"),
        ("ImageJ=1.54\nimages=40\nslices=40\n", "3 pages"),
        ("ImageJ=1.54\nimages=3\nslices=3\n", None),
        (OME.format(3, 1, 1), "3 channels"),
        (OME.format(1, 3, 1), "3 time points"),
        (OME.format(1, 1, 9), "3 pages"),
        (OME.format(1, 1, 3), None),
        ('{"shape": [5, 4, 8]}', "3 pages"),
        ('{"shape": [3, 4, 8], "axes": "CYX"}', "3 channels"),
        ('{"shape": [3, 4, 8]}', None),
        ('{"something": 1}', None),
        ("a comment", None),
    ],
)
def test_pages_that_are_no_slices(tmp_path, text, said):
    file = pages(tmp_path / "a.tif", text)
    if said is None:
        assert read_picture(file).array.shape == (8, 4, 3)
        return
    for read in (read_picture, read_picture_mask):
        with pytest.raises(DataError, match=said):
            read(file)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_a_palette_whose_background_is_not_clear(tmp_path, name):
    file = tmp_path / name
    is_organ = (CLASSES > 0).astype(np.uint8)
    np.testing.assert_array_equal(
        read_picture_mask(palette(file, is_organ, [WHITE, RED])).array, is_organ.T
    )
    for colors, indexes in (([WHITE, BLACK], is_organ), ([RED, GREEN, BLACK], CLASSES)):
        with pytest.raises(DataError, match="is black"):
            read_picture_mask(palette(file, indexes, colors))


def test_palettes_that_differ_between_files(tmp_path):
    first = palette(tmp_path / "a.png", CLASSES, [BLACK, RED, GREEN])
    second = palette(tmp_path / "b.png", CLASSES, [BLACK, GREEN, RED])
    Image.fromarray(CLASSES).save(tmp_path / "c.png")
    files = [first, tmp_path / "c.png", tmp_path / "d.nii.gz"]
    assert palette_warnings(files, (1, 2, 255, -1)) == []
    (said,) = palette_warnings([*files, second], (1, 2))
    assert "index 1 has the color (255, 0, 0)" in said and "b.png" in said
    assert palette_warnings([first, second], ()) == []


def test_evaluate_names_palettes_that_differ(lab):
    palette(lab.folder / "pred/a.png", CLASSES, [BLACK, RED, GREEN])
    palette(lab.folder / "ref/a.png", CLASSES, [BLACK, GREEN, RED])
    shown = lab.call("evaluate", "--pred", "pred", "--ref", "ref", "--json")
    assert any("palettes differ" in text for text in json.loads(shown.stdout)["warnings"])


def test_a_gray_picture_for_colors_is_named(tmp_path):
    Image.fromarray(CLASSES).save(tmp_path / "a.png")
    gray = read_picture(tmp_path / "a.png")
    assert "gray picture where colors" in with_channels(gray, 3, tmp_path).warnings[0]
    with pytest.raises(DataError, match="1 channel, 3 pages"):
        with_channels(read_picture(pages(tmp_path / "a.tif", "")), 3, tmp_path)
