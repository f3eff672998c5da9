"""Pictures as images and masks: reading, own folders, predict and evaluate."""

import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from small_folders import OwnFolder, scan

from segbench.data.formats.pictures import (
    read_picture,
    read_picture_mask,
    with_channels,
    write_label_picture,
)
from segbench.data.formats.read import read_mask, read_volume, without_previews
from segbench.data.open import open_store
from segbench.errors import DataError, PluginError
from segbench.training.run import execute

GRAY = np.arange(15, dtype=np.uint8).reshape(3, 5)  # 3 rows of 5 pixels
DEEP = GRAY.astype(np.uint16) * 4000
COLOR = np.stack([GRAY, GRAY + 50, GRAY + 100], axis=-1)
CLASSES = GRAY % 3
PALETTE = [0, 0, 0, 255, 0, 0, 0, 255, 0]


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def palette_picture(path, indexes):
    image = Image.frombytes("P", indexes.shape[::-1], indexes.astype(np.uint8).tobytes())
    image.putpalette(PALETTE)
    image.save(path)
    return path


@pytest.mark.parametrize("ending", [".png", ".tif", ".tiff", ".bmp", ".PNG"])
def test_gray_and_color_images_have_their_first_axis_along_rows(tmp_path, ending):
    gray = read_volume(save(tmp_path / f"gray{ending}", GRAY))
    np.testing.assert_array_equal(gray.array, GRAY.T)
    assert gray.affine is None and gray.warnings == ()
    color = read_volume(save(tmp_path / f"color{ending}", COLOR))
    assert color.array.shape == (5, 3, 1, 3)
    np.testing.assert_array_equal(color.array[:, :, 0], COLOR.swapaxes(0, 1))


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bits_of_gray_are_kept(tmp_path, ending):
    array = read_picture(save(tmp_path / f"a{ending}", DEEP)).array
    np.testing.assert_array_equal(array, DEEP.T)
    assert array.dtype == np.uint16 and array.dtype.isnative


def test_other_types_of_tiff(tmp_path):
    for values in (GRAY.astype(np.float32) / 7, GRAY.astype(np.int32) - 9):
        array = read_picture(save(tmp_path / "a.tif", values)).array
        np.testing.assert_array_equal(array, values.T)
    big_endian = DEEP.astype(">u2")
    header = b"MM\0*" + (8).to_bytes(4, "big") + (8).to_bytes(2, "big")
    tags = [(256, 5), (257, 3), (258, 16), (259, 1), (262, 1), (273, 110), (278, 3), (279, 30)]
    for tag, value in tags:
        header += tag.to_bytes(2, "big") + (4).to_bytes(2, "big")
        header += (1).to_bytes(4, "big") + value.to_bytes(4, "big")
    (tmp_path / "b.tif").write_bytes(header + bytes(4) + big_endian.tobytes())
    array = read_picture(tmp_path / "b.tif").array
    np.testing.assert_array_equal(array, DEEP.T)
    assert array.dtype.isnative


def test_pages_of_a_tiff_file_are_slices(tmp_path):
    pages = [Image.fromarray(GRAY + 20 * number) for number in range(4)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    volume = read_picture(tmp_path / "a.tif")
    assert volume.array.shape == (5, 3, 4)
    np.testing.assert_array_equal(volume.array[:, :, 2], GRAY.T + 40)
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[Image.fromarray(GRAY[:2])])
    with pytest.raises(DataError, match="pages of the file differ"):
        read_picture(tmp_path / "b.tif")
    pages[0].save(tmp_path / "a.png", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="animation"):
        read_picture(tmp_path / "a.png")


def test_the_index_of_a_palette_is_the_class(tmp_path):
    for name in ("a.png", "a.bmp", "a.tif"):
        file = palette_picture(tmp_path / name, CLASSES)
        np.testing.assert_array_equal(read_picture_mask(file).array, CLASSES.T)
        colors = read_picture(file).array
        assert colors.shape == (5, 3, 1, 3)
        np.testing.assert_array_equal(colors[1, 0, 0], (255, 0, 0))


def test_masks_of_one_bit_and_of_equal_channels(tmp_path):
    for ending in (".png", ".bmp", ".tif"):
        mask = read_picture_mask(save(tmp_path / f"bit{ending}", GRAY > 6)).array
        np.testing.assert_array_equal(mask, GRAY.T > 6)
        assert mask.dtype == np.uint8 and mask.max() == 1
    equal = np.stack([CLASSES] * 3, axis=-1)
    np.testing.assert_array_equal(
        read_picture_mask(save(tmp_path / "equal.png", equal)).array, CLASSES.T
    )
    with pytest.raises(DataError, match="no class numbers"):
        read_picture_mask(save(tmp_path / "color.png", COLOR))


def test_lossy_masks_are_refused(tmp_path):
    with pytest.raises(DataError, match="compressed with loss"):
        read_mask(save(tmp_path / "a.jpg", CLASSES))
    with pytest.raises(DataError, match="compressed with loss"):
        read_mask(save(tmp_path / "a.tif", CLASSES, compression="jpeg"))


def test_alpha_is_left_out_if_opaque_and_refused_otherwise(tmp_path):
    opaque = np.concatenate([COLOR, np.full((3, 5, 1), 255, np.uint8)], axis=-1)
    array = read_picture(save(tmp_path / "a.png", opaque)).array
    np.testing.assert_array_equal(array[:, :, 0], COLOR.swapaxes(0, 1))
    gray = read_picture_mask(save(tmp_path / "g.png", np.stack([CLASSES, opaque[..., 3]], -1)))
    np.testing.assert_array_equal(gray.array, CLASSES.T)
    opaque[0, 0, 3] = 254
    with pytest.raises(DataError, match="transparent pixels"):
        read_picture(save(tmp_path / "b.png", opaque))


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif"])
def test_an_orientation_tag_is_refused_unless_upright(tmp_path, ending):
    exif = Image.Exif()
    exif[274] = 1
    assert read_picture(save(tmp_path / f"a{ending}", GRAY, exif=exif)).array.shape == (5, 3)
    exif[274] = 6
    with pytest.raises(DataError, match="EXIF orientation 6"):
        read_picture(save(tmp_path / f"b{ending}", GRAY, exif=exif))


def test_resolution_is_no_spacing(tmp_path):
    for ending in (".png", ".tif", ".bmp", ".jpg"):
        file = save(tmp_path / f"a{ending}", GRAY, dpi=(300, 300))
        assert read_picture(file).spacing is None


def test_deep_color_is_never_cut_to_eight_bits(tmp_path, monkeypatch):
    import sys
    import zlib

    def chunk(kind, content):
        crc = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + crc

    size = (1).to_bytes(4, "big") * 2
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + bytes([16, 2, 0, 0, 0]))
    png += chunk(b"IDAT", zlib.compress(bytes(7))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    with pytest.raises(DataError, match="16 bits per channel"):
        read_picture(tmp_path / "a.png")

    monkeypatch.setitem(sys.modules, "tifffile", None)
    info = {"bits": (tmp_path / "b.tif")}
    save(info["bits"], COLOR)
    content = bytearray(info["bits"].read_bytes())
    at = content.index((8).to_bytes(2, "little") * 3)
    content[at : at + 6] = (16).to_bytes(2, "little") * 3
    info["bits"].write_bytes(content)
    with pytest.raises(PluginError, match="tifffile") as caught:
        read_picture(info["bits"])
    assert "pip install" in caught.value.details["fix"]


def test_deep_color_and_rare_types_are_read_with_tifffile(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is optional: segbench[tiff]")
    color = COLOR.astype(np.uint16) * 100
    tifffile.imwrite(tmp_path / "a.tif", color, photometric="rgb")
    array = read_picture(tmp_path / "a.tif").array
    np.testing.assert_array_equal(array[:, :, 0], color.swapaxes(0, 1))
    planes = np.moveaxis(color, -1, 0)
    tifffile.imwrite(tmp_path / "b.tif", planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_picture(tmp_path / "b.tif").array, array)
    for values in (CLASSES.astype(np.uint32), CLASSES.astype(np.int8), CLASSES.astype(float)):
        tifffile.imwrite(tmp_path / "c.tif", values)
        np.testing.assert_array_equal(read_picture_mask(tmp_path / "c.tif").array, CLASSES.T)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.jpg"])
def test_damaged_pictures(tmp_path, name):
    file = save(tmp_path / name, np.tile(GRAY, (20, 20)))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged or cut short"):
        read_picture(file)
    file.write_bytes(b"<html>no picture</html>")
    with pytest.raises(DataError, match="HTML page"):
        read_picture(file)


def test_a_picture_larger_than_allowed(tmp_path):
    from segbench.data.formats.limits import Limits, limited

    file = save(tmp_path / "a.png", GRAY)
    with limited(Limits(voxels=14)), pytest.raises(DataError, match="too large"):
        read_picture(file)


def test_hidden_texts_of_png_do_not_matter(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "anything")
    assert read_picture(save(tmp_path / "a.png", GRAY, pnginfo=texts)).array.shape == (5, 3)


def test_channels_of_the_data_set(tmp_path):
    gray = read_picture(save(tmp_path / "g.png", GRAY))
    color = read_picture(save(tmp_path / "c.png", COLOR))
    equal = read_picture(save(tmp_path / "e.png", np.stack([GRAY] * 3, -1)))
    np.testing.assert_array_equal(with_channels(equal, 1, tmp_path).array, gray.array)
    assert with_channels(gray, 3, tmp_path).array.shape == (5, 3, 1, 3)
    assert with_channels(color, 3, tmp_path) is color
    for volume, channels in ((color, 1), (gray, 2), (color, 2)):
        with pytest.raises(DataError, match="other channels"):
            with_channels(volume, channels, tmp_path)


@pytest.mark.parametrize("ending", [".png", ".tif", ".tiff", ".bmp"])
def test_label_maps_are_written_and_read_back(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    write_label_picture(file, CLASSES)
    np.testing.assert_array_equal(read_picture_mask(file).array, CLASSES)
    stack = np.stack([CLASSES, CLASSES[::-1]], axis=-1)
    if ending in (".tif", ".tiff"):
        write_label_picture(file, stack)
        np.testing.assert_array_equal(read_picture_mask(file).array, stack)
    else:
        with pytest.raises(DataError, match="one slice"):
            write_label_picture(file, stack)


def test_pictures_beside_volumes_are_previews(tmp_path):
    volume = tmp_path / "a.nii.gz"
    preview = tmp_path / "a.png"
    assert without_previews([preview, volume]) == [volume]
    assert without_previews([preview]) == [preview]


# Own folders.


class Photos:
    """A folder of pictures in the layout of nnU-Net v2."""

    def __init__(self, root, ending=".png", colors=False, white=255, labels=None):
        self.root = root
        self.ending = ending
        self.colors = colors
        self.white = white
        self.labels = ".png" if ending == ".jpg" else ending
        names = ("R", "G", "B") if colors else ("photo",)
        content = {
            "channel_names": {str(number): name for number, name in enumerate(names)},
            "labels": labels or {"background": 0, "organ": 1},
            "file_ending": ending,
        }
        root.mkdir(parents=True)
        (root / "dataset.json").write_text(json.dumps(content))
        for number in range(6):
            self.case(f"c{number}", number, labeled=number < 5)

    def pixels(self, seed):
        image, label = scan(seed)
        plane = np.clip(image[..., 8] + 20, 0, 255).astype(np.uint8).T
        if self.colors:
            plane = np.stack([plane, plane // 2, 255 - plane], axis=-1)
        return plane, label[..., 8].T * np.uint8(self.white)

    def case(self, name, seed, labeled=True, place="imagesTr"):
        image, label = self.pixels(seed)
        save(self.root / place / f"{name}_0000{self.ending}", image)
        if labeled:
            save(self.root / "labelsTr" / f"{name}{self.labels}", label)

    @property
    def name(self):
        return f"folder:{self.root}"


@pytest.mark.parametrize(
    "ending, colors", [(".png", True), (".tif", False), (".bmp", False), (".jpg", False)]
)
def test_a_folder_of_pictures_from_check_to_evaluate(lab, ending, colors):
    photos = Photos(lab.folder / "photos", ending, colors)
    checked = lab.call("data", "check", photos.name)
    assert checked.returncode == 0, checked.stderr
    assert "255 is class 1 (organ)" in checked.stdout
    assert "11 of 11 volume files on disk are read" in checked.stdout
    data = lab.folder / "data"
    prepared = lab.call("data", "prepare", photos.name, "--data-root", data)
    assert prepared.returncode == 0, prepared.stderr
    store = open_store("photos", data)
    assert store.channels == (3 if colors else 1)
    for case, info in store.cases.items():
        assert info.shape == (30, 28, 1) and info.spacing is None
        image = store.image(case)
        assert image.mean() == pytest.approx(0, abs=1e-4)
    image, label = photos.pixels(0)
    np.testing.assert_array_equal(store.label("c0")[:, :, 0], label.T // 255)
    if ending != ".jpg":
        first = image[..., 0] if colors else image
        expected = (first - first.mean()) / first.std()
        np.testing.assert_allclose(store.image("c0")[0, :, :, 0], expected.T, atol=1e-5)

    run = lab.prepared("supervised", photos.name, steps=1)
    result = execute(run, lab.machine())
    assert "hd95_mm" not in result["metrics"][0]["columns"]
    done = lab.call(
        "predict", run.folder.path, photos.root / "imagesTr", "-o", "out", "--data-root", data
    )
    assert done.returncode == 0, done.stderr
    assert "no orientation" not in done.stderr
    label_ending = ".png" if ending == ".jpg" else ending
    predicted = read_picture_mask(lab.folder / "out" / f"c0_seg{label_ending}").array
    assert predicted.shape == (30, 28) and predicted.max() <= 1
    (lab.folder / "out" / f"c5_seg{label_ending}").unlink()
    found = lab.call("evaluate", "--pred", "out", "--ref", photos.root / "labelsTr", "--json")
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert len(document["cases"]) == 5
    assert any("255 counts as 1" in text for text in document["warnings"])


def test_white_has_one_meaning_only_with_one_class(lab):
    photos = Photos(lab.folder / "two", labels={"background": 0, "a": 1, "b": 2})
    refused = lab.call("data", "check", photos.name)
    assert refused.returncode == 3
    assert "255" in refused.stdout
    linked = lab.call("data", "link", photos.root, "--as", "two", "--map", "255=2")
    assert linked.returncode == 0, linked.stderr


def test_color_pictures_where_gray_ones_are_expected(lab):
    photos = Photos(lab.folder / "mixed")
    image, _ = photos.pixels(0)
    save(photos.root / "imagesTr" / "c0_0000.png", np.stack([image] * 3, axis=-1))
    assert lab.call("data", "check", photos.name).returncode == 0
    save(photos.root / "imagesTr" / "c0_0000.png", np.stack([image, image, image // 2], axis=-1))
    refused = lab.call("data", "check", photos.name)
    assert refused.returncode == 3
    assert "c0: the picture has other channels" in refused.stdout


def test_one_picture_per_channel(lab):
    photos = Photos(lab.folder / "split")
    content = json.loads((photos.root / "dataset.json").read_text())
    content["channel_names"] = {"0": "red", "1": "infrared"}
    (photos.root / "dataset.json").write_text(json.dumps(content))
    for number in range(6):
        image, _ = photos.pixels(number)
        save(photos.root / "imagesTr" / f"c{number}_0001.png", 255 - image)
    prepared = lab.call("data", "prepare", photos.name)
    assert prepared.returncode == 0, prepared.stderr
    store = open_store("split", lab.folder / "segbench-data")
    red, infrared = store.image("c0")
    np.testing.assert_allclose(red, -infrared, atol=1e-5)


def test_a_run_takes_arrays_of_two_axes(lab):
    from segbench.api.runs import Run

    photos = Photos(lab.folder / "photos")
    assert lab.call("data", "prepare", photos.name, "--data-root", lab.folder / "data") is not None
    run = lab.prepared("supervised", photos.name, steps=1)
    result = execute(run, lab.machine())
    image, _ = photos.pixels(0)
    prediction = Run(run.folder, result, lab.machine()).predict(image.T)
    assert prediction.label.shape == (30, 28)
    assert prediction.save(lab.folder / "a.png").is_file()


@pytest.mark.parametrize(
    "pred, ref, options, dice",
    [
        (1, 255, (), 1.0),
        (255, 255, (), 1.0),
        (255, 1, (), 1.0),
        (1, 255, ("--labels", "255=organ"), 0.0),
        (1, 255, ("--map", "ref:255=1"), 1.0),
    ],
)
def test_values_of_masks_in_evaluate(lab, pred, ref, options, dice):
    _, label = scan(0)
    plane = label[..., 8]
    save(lab.folder / "pred" / "a.png", plane * np.uint8(pred))
    save(lab.folder / "ref" / "a.png", plane * np.uint8(ref))
    found = lab.call("evaluate", "--pred", "pred", "--ref", "ref", "--json", *options)
    assert found.returncode == 0, found.stderr
    (row,) = json.loads(found.stdout)["cases"]
    assert row["dice"] == dice


def test_previews_in_the_folders_of_evaluate_and_predict(lab):
    folder = OwnFolder(lab.folder / "own")
    folder.case("a", 0)
    label = folder.root / "labelsTr"
    save(label / "a.png", GRAY)
    found = lab.call("evaluate", "--pred", label, "--ref", label, "--json")
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert document["cases"][0]["dice"] == 1
    assert any("a.png" in text for text in document["warnings"])
