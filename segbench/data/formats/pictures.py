"""Pictures: PNG, TIFF, BMP and JPEG, as images and as masks.

Pixels are read as they are stored, never approximately: a picture that Pillow would change (16 bits
per color) is read with tifffile or refused. The rules:

* The first axis runs along a row, the second from row to row, as in all other formats. The pages of
  a TIFF file are slices along the third axis.
* A picture has no spacing: resolution tags (dpi) describe printing. Distances are in pixels.
* A palette image is its colors; a palette mask is its indexes, which are the classes. It is refused
  if black, the usual background, has another index than 0.
* A mask of one bit has the values 0 and 1, and one of two or four bits the numbers that are stored.
  A color mask is refused unless its channels are equal.
* A JPEG mask is refused: its compression changes values.
* An alpha channel is left out if it is opaque everywhere, and refused otherwise.
* An orientation tag (EXIF) that turns the picture is refused: programs differ in following it.
* The pages of a TIFF file that are channels, time points or previews are refused, and so is a file
  that announces more slices than it has pages, samples beside red, green and blue, and a file of
  more than one bit in which 0 is white. See ``tiff_tags``.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.limits import require_size
from segbench.data.formats.opening import reading, require_file
from segbench.data.formats.tiff_tags import (
    BITS_TAG,
    ORIENTATION_TAG,
    SAMPLE_FORMAT_TAG,
    require_plain_page,
    require_slices,
    require_upright,
)
from segbench.data.formats.volume import Volume
from segbench.errors import DataError, PluginError

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: more than 4 GB
Magic = bytes | tuple[bytes, ...]
FORMATS: dict[
    str, tuple[str, Magic]
] = {  # Pillow's name and the first bytes of a file, by its ending
    ".png": ("PNG", PNG),
    ".tif": ("TIFF", TIFF),
    ".tiff": ("TIFF", TIFF),
    ".bmp": ("BMP", b"BM"),
    ".jpg": ("JPEG", b"\xff\xd8\xff"),
    ".jpeg": ("JPEG", b"\xff\xd8\xff"),
}
PICTURE_ENDINGS = tuple(FORMATS)
LOSSY_ENDINGS = (".jpg", ".jpeg")
LOSSY_COMPRESSIONS = ("jpeg", "tiff_jpeg", "webp")  # inside TIFF files
GRAY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
WITH_ALPHA = ("LA", "PA", "RGBA")
UNSIGNED = 1  # a sample format; others are signed integers and floating point
PNG_HEADER = 26  # bytes up to the bit depth and the type of color
PNG_GRAY = 0  # a type of color
BMP_HEADER = 32  # bytes that hold the bits per pixel
OLD_BMP = 12  # bytes of the oldest header
GRAY_BITS = {"1": 1, "L": 8}  # bits per pixel by Pillow's mode
FEW_BITS = (2, 4)  # of gray, which Pillow stretches to 0 to 255
BLACK = (0, 0, 0)
GRAY_AS_COLOR = "a gray picture where colors are expected: all three channels are equal"
DEEP_COLOR = "a color picture of 16 bits per channel"
DAMAGE = (SyntaxError, struct.error, TypeError)  # raised by Pillow beside the usual errors

Pixels = np.ndarray[Any, Any]
PageReader = Callable[[Any, Path], Pixels]


def is_picture(path: Path) -> bool:
    """Return whether a file's name says that it is a picture."""
    return path.name.lower().endswith(PICTURE_ENDINGS)


def result_ending(path: Path) -> str:
    """Return the ending of a label map of a picture: its own, or ``.png`` if that is lossy."""
    ending = path.suffix.lower()
    return ".png" if ending in LOSSY_ENDINGS else ending


def read_picture(path: Path) -> Volume:
    """Read a picture as an image.

    Returns:
        Array (columns, rows) of gray values, (columns, rows, 1, 3) of colors, with the pages of a
        TIFF file as the third axis if there are several. There is no affine.

    Raises:
        DataError: the file is damaged, too large or no picture, or one of the rules refuses it.
        PluginError: the file needs tifffile, which is not installed.
    """
    return _volume(path, _pages(path, _gray_or_color))


def read_picture_mask(path: Path) -> Volume:
    """Read a picture as a label map (columns, rows), or (columns, rows, pages).

    Raises:
        DataError: see ``read_picture``; also a lossy or a color mask.
        PluginError: the file needs tifffile, which is not installed.
    """
    if path.name.lower().endswith(LOSSY_ENDINGS):
        raise _lossy_mask(path, "JPEG")
    return _volume(path, _pages(path, _class_numbers))


def with_channels(volume: Volume, channels: int, path: Path) -> Volume:
    """Return a picture with as many channels as the data set has.

    A color picture with equal channels is gray, and a gray one of one page counts as a color
    picture where three channels are expected, with a warning.

    Args:
        volume: what ``read_picture`` returned.
        channels: number of channels.
        path: the file, for messages.

    Raises:
        DataError: the picture has other channels.
    """
    array = volume.array
    found = array.shape[3] if array.ndim == 4 else 1
    if found == channels:
        return volume
    if channels == 1 and _are_equal(array):
        gray = array[..., 0]
        return replace(volume, array=gray[:, :, 0] if gray.shape[2] == 1 else gray)
    if channels == 3 and array.ndim == 2:
        colors = np.stack([array[:, :, None]] * 3, axis=-1)
        return replace(volume, array=colors, warnings=(*volume.warnings, GRAY_AS_COLOR))
    raise DataError(
        "the picture has other channels than the data set",
        where=path,
        found="colors that differ" if found == 3 else _described_gray(array),
        expected=f"{channels} channel" + ("s" if channels > 1 else ""),
        fix="name three channels, such as R, G and B, or save the pictures in gray"
        if channels == 1
        else "one file per channel, or a color picture of three channels",
    )


def _described_gray(array: Pixels) -> str:
    return "1 channel" if array.ndim == 2 else f"1 channel, {array.shape[2]} pages"


def write_label_picture(path: Path, label: Pixels) -> None:
    """Write a label map (columns, rows) or (columns, rows, slices) as a gray picture.

    Gray values are class numbers. Several slices become the pages of a TIFF file.

    Raises:
        StorageError: the disk is full or not writable.
        DataError: the format holds only one slice.
    """
    from PIL import Image

    from segbench.storage import atomic_write

    kind, _ = FORMATS[path.suffix.lower()]
    slices = label[:, :, None] if label.ndim == 2 else label
    pages = []
    for index in range(slices.shape[2]):
        pages.append(Image.fromarray(np.ascontiguousarray(slices[:, :, index].T)))
    if len(pages) > 1 and kind != "TIFF":
        raise DataError(
            f"a {kind} file holds one slice",
            where=path,
            found=f"{len(pages)} slices",
            expected="a TIFF or NIfTI file",
        )
    options: dict[str, Any] = {}
    if kind == "TIFF":
        options = {"compression": "tiff_adobe_deflate"}
    if len(pages) > 1:
        options |= {"save_all": True, "append_images": pages[1:]}
    content = io.BytesIO()
    pages[0].save(content, kind, **options)
    atomic_write(path, content.getvalue())


def _volume(path: Path, pages: list[Pixels]) -> Volume:
    """Return pages (rows, columns) or (rows, columns, channels) as a volume.

    Raises:
        DataError: the pages differ in size or type.
    """
    first = pages[0]
    for number, page in enumerate(pages, 1):
        if page.shape != first.shape or page.dtype != first.dtype:
            raise DataError(
                "the pages of the file differ",
                where=path,
                found=f"page {number}: {page.dtype} {page.shape}",
                expected=f"as page 1: {first.dtype} {first.shape}",
                fix="save each page as a file of its own",
            )
    stack = np.stack([np.swapaxes(page, 0, 1) for page in pages], axis=2)
    is_plane = stack.ndim == 3 and len(pages) == 1
    return Volume(stack[:, :, 0] if is_plane else stack, None, oriented=False)


def _pages(path: Path, read_page: PageReader) -> list[Pixels]:
    """Return the pages of a file, each (rows, columns) or (rows, columns, channels).

    Args:
        path: the file.
        read_page: makes pixels of an image of Pillow.

    Raises:
        DataError: the file is damaged, too large or no picture, or a rule refuses it.
        PluginError: the file needs tifffile, which is not installed.
    """
    kind, magic = FORMATS[path.suffix.lower()]
    require_file(path, magic, kind)
    with _limits_of_segbench(), reading(path, *DAMAGE):
        image = _opened(path, kind)
        if image is not None:
            with image:
                _require_one_upright(image, kind, path)
                pages = _exact_pages(image, kind, path, read_page)
                if pages is not None:
                    return pages
        if kind != "TIFF":
            raise ValueError(f"no {kind} file that can be read")
    return _tiff_pages(path, for_mask=read_page is _class_numbers)


@contextmanager
def _limits_of_segbench() -> Iterator[None]:
    """Switch off Pillow's limit of pixels, because --max-voxels counts, and remarks about tags."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _opened(path: Path, kind: str) -> Any:
    """Return Pillow's image of a file whose pixels are not read yet, None if it cannot read it."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path, formats=[kind])
    except UnidentifiedImageError:
        return None


def _require_one_upright(image: Any, kind: str, path: Path) -> None:
    """Refuse too many pixels, an animation, and a picture that is stored turned."""
    pages = int(getattr(image, "n_frames", 1))
    require_size(path, (*image.size, pages))
    if pages > 1 and kind != "TIFF":
        raise DataError(
            "an animation is no picture",
            where=path,
            found=f"{pages} frames",
            expected="one picture",
            fix="save each frame as a file of its own",
        )
    require_upright(image.getexif().get(ORIENTATION_TAG), path)
    if kind == "TIFF":
        require_slices(image.tag_v2, pages, path)


def _is_exact(image: Any, kind: str, path: Path) -> bool:
    """Return whether Pillow reads the values of a file as they are stored.

    Raises:
        DataError: a PNG file of 16 bits per color, which Pillow would cut to 8, a BMP file that
            it would misread, or a page of a TIFF file that is no slice of gray or color.
    """
    if kind == "TIFF":
        require_plain_page(image.tag_v2, path)
        bits = tuple(image.tag_v2.get(BITS_TAG, (1,)))
        sample_formats = set(image.tag_v2.get(SAMPLE_FORMAT_TAG, (UNSIGNED,)))
        if set(bits) in ({1}, {8}):
            return sample_formats == {UNSIGNED}
        return bits == (16,) or (bits == (32,) and sample_formats != {UNSIGNED})
    if kind == "BMP":
        _require_read_by_bits(image, path)
    if kind == "PNG":
        depth, color = _png_type(path)
        if depth == 16 and color != PNG_GRAY:
            raise _deep_color(path)
    return True


def _require_read_by_bits(image: Any, path: Path) -> None:
    """Refuse a BMP file whose pixels Pillow takes for smaller or larger ones.

    It takes a palette of grays for samples, whatever the number of bits per pixel.
    """
    with open(path, "rb") as file:
        header = file.read(BMP_HEADER)
    is_old = header[14] == OLD_BMP
    bits = header[24] if is_old else header[28]
    if image.mode in GRAY_BITS and bits != GRAY_BITS[image.mode]:
        raise DataError(
            "a BMP file of this type cannot be read exactly",
            where=path,
            found=f"{bits} bits per pixel and a palette of grays",
            expected="1 bit for black and white, 8 bits for gray",
            fix="save it as PNG",
        )


def _png_type(path: Path) -> tuple[int, int]:
    """Return the bits per sample and the type of color of a PNG file."""
    with open(path, "rb") as file:
        depth, color = file.read(PNG_HEADER)[24:26]
    return depth, color


def _exact_pages(image: Any, kind: str, path: Path, read_page: PageReader) -> list[Pixels] | None:
    """Return the pixels of all pages, None if Pillow does not read them as they are stored."""
    pages = []
    for number in range(int(getattr(image, "n_frames", 1))):
        image.seek(number)
        require_size(path, image.size)
        if not _is_exact(image, kind, path):
            return None
        image.load()
        pages.append(read_page(image, path))
    return pages


def _gray_or_color(image: Any, path: Path) -> Pixels:
    """Return the pixels of an image: gray (rows, columns) or colors (rows, columns, 3)."""
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        pixels = _without_alpha(image, path)
        return pixels[..., 0] if _are_equal(pixels) else pixels
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    return _without_alpha(image, path)


def _class_numbers(image: Any, path: Path) -> Pixels:
    """Return the label values (rows, columns) of a mask.

    Raises:
        DataError: it is a color picture or compressed with loss.
    """
    compression = str(image.info.get("compression", ""))
    if compression in LOSSY_COMPRESSIONS:
        raise _lossy_mask(path, f"{image.format} with the compression {compression}")
    if image.mode == "P":
        _require_black_first(image, path)
        return np.array(image)
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    pixels = _gray_mask(_without_alpha(image, path), path)
    if image.format == "PNG":
        depth, color = _png_type(path)
        if color == PNG_GRAY and depth in FEW_BITS:
            return pixels // np.uint8(255 // (2**depth - 1))
    return pixels


def _require_black_first(image: Any, path: Path) -> None:
    """Refuse a palette in which black, the usual background, is another index than 0.

    Programs that reduce colors number them in any order.
    """
    highest = max(1, int(np.array(image).max(initial=0)))
    colors = _palette(image)[: highest + 1]
    if BLACK in colors[1:] and colors[0] != BLACK:
        raise DataError(
            "the background of a palette mask is not clear",
            where=path,
            found=f"index 0 has the color {colors[0]}, index {colors.index(BLACK)} is black",
            expected="index 0 for the background, black where black is used",
            fix="save the mask in gray, with the class numbers as values",
        )


def _palette(image: Any) -> list[tuple[int, int, int]]:
    """Return the colors of a palette image by their index."""
    values = image.getpalette() or []
    return list(zip(values[::3], values[1::3], values[2::3], strict=False))


def palette_warnings(paths: Iterable[Path], values: Iterable[int]) -> list[str]:
    """Return a warning if a value of palette masks has other colors in some files.

    The masks of one data set then were made with several palettes, and the same index may mean
    different classes.

    Args:
        paths: files of masks; those that are no palette pictures have no say.
        values: label values that are compared.
    """
    wanted = sorted(set(values))
    first: dict[int, tuple[tuple[int, int, int], Path]] = {}
    for path in paths:
        colors = _palette_of(path) if is_picture(path) else []
        for value in wanted:
            if not 0 <= value < len(colors):
                continue
            color, file = first.setdefault(value, (colors[value], path))
            if color != colors[value]:
                return [
                    f"palettes differ: index {value} has the color {color} in {file}, and "
                    f"{colors[value]} in {path}. The index is the class, whatever its color. If "
                    "colors are the classes: save the masks in gray, with the class "
                    "numbers as values"
                ]
    return []


def _palette_of(path: Path) -> list[tuple[int, int, int]]:
    """Return the colors of a palette picture by their index; empty for all other files."""
    kind, _ = FORMATS[path.suffix.lower()]
    with suppress(DataError), _limits_of_segbench(), reading(path, *DAMAGE):
        image = _opened(path, kind)
        if image is not None:
            with image:
                return _palette(image) if image.mode == "P" else []
    return []


def _gray_mask(pixels: Pixels, path: Path) -> Pixels:
    """Return the values (rows, columns) of a mask whose channels, if any, are equal."""
    if pixels.ndim == 2:
        return pixels
    if _are_equal(pixels):
        return pixels[..., 0]
    raise DataError(
        "a mask of colors has no class numbers",
        where=path,
        found="three channels that differ",
        expected="a gray or a palette picture whose values are the classes",
        fix="replace each color by the number of its class and save the mask in gray",
    )


def _without_alpha(image: Any, path: Path) -> Pixels:
    """Return the pixels of a gray or color image without its opaque alpha channel.

    Raises:
        DataError: some pixels are transparent, or the image is neither gray nor RGB.
    """
    if image.mode == "PA":
        image = image.convert("RGBA")
    pixels = np.array(image)
    if image.mode in WITH_ALPHA:
        _require_opaque(pixels[..., -1], path)
        pixels = pixels[..., :-1]
        return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    if image.mode != "RGB" and image.mode not in GRAY_MODES:
        raise DataError(
            "the colors of the picture cannot be used",
            where=path,
            found=f"mode {image.mode}",
            expected="gray, a palette, or red, green and blue",
            fix="save it as RGB or in gray",
        )
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _require_opaque(alpha: Pixels, path: Path) -> None:
    opaque = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    transparent = int(np.count_nonzero(alpha != opaque))
    if transparent:
        raise DataError(
            "the picture has transparent pixels",
            where=path,
            found=f"{transparent:,} pixels",
            expected="an opaque picture",
            fix="remove the alpha channel, for example with ImageMagick: magick IN -alpha off OUT",
        )


def _are_equal(pixels: Pixels) -> bool:
    """Return whether all channels, the last axis, are equal."""
    first = pixels[..., :1]
    return bool((pixels == first).all())


def _tiff_pages(path: Path, for_mask: bool) -> list[Pixels]:
    """Return the pages of a TIFF file that Pillow cannot read exactly, read with tifffile.

    Raises:
        DataError: the file is damaged, too large or no picture, or a rule refuses it.
        PluginError: tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise PluginError(
            f"reading {path.name} needs tifffile: it holds {DEEP_COLOR} or another rare type",
            fix="pip install 'segbench[tiff]', or pip install tifffile",
        ) from error
    pages = []
    with reading(path, tifffile.TiffFileError, TypeError), tifffile.TiffFile(path) as file:
        require_size(path, (len(file.pages), *file.pages[0].shape))
        require_slices(_tags(file.pages[0]), len(file.pages), path)
        for page in file.pages:
            require_plain_page(_tags(page), path)
            if for_mask and page.compression.name in ("JPEG", "OJPEG", "WEBP"):
                raise _lossy_mask(path, f"TIFF with the compression {page.compression.name}")
            pixels = _with_channels_last(page.asarray(), page.axes, path)
            pages.append(_gray_mask(pixels, path) if for_mask else pixels)
    return pages


def _tags(page: Any) -> dict[int, Any]:
    """Return the tags of a page of tifffile by their numbers."""
    return {tag.code: tag.value for tag in page.tags}


def _with_channels_last(pixels: Pixels, axes: str, path: Path) -> Pixels:
    """Return a page of tifffile as (rows, columns) or (rows, columns, 3)."""
    if axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    if axes in ("SYX", "YXS") and pixels.shape[-1] == 4:
        _require_opaque(pixels[..., -1], path)
        pixels = pixels[..., :-1]
    is_color = axes in ("SYX", "YXS") and pixels.shape[-1] == 3
    if axes != "YX" and not is_color:
        raise DataError(
            "the pages of the file are no pictures",
            where=path,
            found=f"axes {axes}, shape {pixels.shape}",
            expected="gray pages, or pages of red, green and blue",
            fix="save each channel as a file of its own",
        )
    return pixels


def _deep_color(path: Path) -> DataError:
    return DataError(
        f"{DEEP_COLOR} cannot be read without loss",
        where=path,
        found="16 bits per channel",
        expected="8 bits per channel, or 16 bits in gray",
        fix="save each channel as a gray picture of its own, or save the picture as TIFF",
    )


def _lossy_mask(path: Path, kind: str) -> DataError:
    return DataError(
        "a mask must not be compressed with loss: label values change",
        where=path,
        found=kind,
        expected="PNG, BMP, or TIFF without such a compression",
        fix="export the masks from their source again; a converted JPEG keeps the wrong values",
    )
