"""What the tags of a TIFF file say about its pages: those that are no slices of gray or color.

Readers differ in what they do with such files, and most drop a part of them without a word.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from segbench.errors import DataError

KIND_TAG = 254  # bits: 1 a smaller version of another page, 4 its transparency
BITS_TAG = 258  # per sample, one number per channel
MEANING_TAG = 262  # of the numbers: 0 gray with 0 as white, 2 red, green and blue, ...
DESCRIPTION_TAG = 270
ORIENTATION_TAG = 274
SAMPLES_TAG = 277  # per pixel
EXTRA_SAMPLES_TAG = 338
SAMPLE_FORMAT_TAG = 339
DEPTH_TAG = 32997  # slices in one page

UPRIGHT = (None, 0, 1)  # values of the orientation
NO_SLICE = 1 | 4  # bits of the kind
WHITE_IS_ZERO = 0  # a meaning
COLORS = (2, 6)  # meanings: red, green and blue, also as brightness and color
ALPHA = ((1,), (2,), ())  # extra samples; programs that name none write an alpha channel
SEPARATE = "save each channel as a gray picture of its own"

IMAGEJ_SIZE = re.compile(r"^(channels|slices|frames|images)=(\d+)\s*$", re.MULTILINE)
OME_SIZE = re.compile(r'\bSize([CZT])="(\d+)"')

Tags = Mapping[int, Any]


class Stated(NamedTuple):
    """What the description of a file says about its pages."""

    channels: int
    times: int
    pages: int


def require_upright(orientation: object, path: Path) -> None:
    """Refuse a picture that is stored turned or mirrored.

    Args:
        orientation: value of the tag, None without it.
        path: the file, for messages.
    """
    if orientation in UPRIGHT:
        return
    raise DataError(
        "the picture is stored turned or mirrored, and a tag says so",
        where=path,
        found=f"EXIF orientation {orientation}",
        expected="an upright picture without such a tag: programs differ in following it",
        fix="turn the pixels, for example with ImageMagick: mogrify -auto-orient FILE; "
        "then check that image and mask still match",
    )


def require_plain_page(tags: Tags, path: Path) -> None:
    """Refuse a page that is no slice of gray or color, with or without an alpha channel.

    Args:
        tags: of the page.
        path: the file, for messages.

    Raises:
        DataError: the page is a preview, turned, negative, or has several slices or samples that
            readers leave out.
    """
    require_upright(tags.get(ORIENTATION_TAG), path)
    if tags.get(KIND_TAG, 0) & NO_SLICE:
        raise DataError(
            "a page of the file is a preview or the transparency of another page",
            where=path,
            found="a page that is no slice",
            expected="slices only",
            fix="save the picture without previews, for example as PNG",
        )
    if tags.get(DEPTH_TAG, 1) != 1:
        raise DataError(
            "a page of the file holds several slices",
            where=path,
            found=f"{tags[DEPTH_TAG]} slices in one page",
            expected="one slice per page",
            fix="save each slice as a page of its own, or convert the file to NIfTI",
        )
    meaning = tags.get(MEANING_TAG)
    if meaning == WHITE_IS_ZERO and _numbers(tags.get(BITS_TAG, 1)) != (1,):
        raise DataError(
            "0 is white in this picture, and programs differ in following that",
            where=path,
            found=f"tag {MEANING_TAG} (PhotometricInterpretation) is 0",
            expected="a gray picture in which 0 is black",
            fix="save it with 0 as black, for example with ImageMagick: "
            "magick IN -define quantum:polarity=min-is-black OUT; then check its values",
        )
    _require_known_samples(tags, 3 if meaning in COLORS else 1, path)


def _require_known_samples(tags: Tags, colors: int, path: Path) -> None:
    """Refuse samples beside the colors and an alpha channel."""
    samples = int(tags.get(SAMPLES_TAG, 1))
    extra = _numbers(tags.get(EXTRA_SAMPLES_TAG, ()))
    is_alpha = samples == colors + 1 and extra in ALPHA and (extra or colors > 1)
    if samples > colors and not is_alpha:
        raise DataError(
            "the picture has more channels than gray or red, green and blue",
            where=path,
            found=f"{samples} samples per pixel",
            expected=f"{colors}, or {colors + 1} with an alpha channel",
            fix=SEPARATE,
        )


def require_slices(tags: Tags, pages: int, path: Path) -> None:
    """Refuse a file whose pages are channels or time points, or fewer than it announces.

    Args:
        tags: of the first page. ImageJ, OME and tifffile describe the whole file there.
        pages: number of pages.
        path: the file, for messages.

    Raises:
        DataError: the pages are not the slices of one volume.
    """
    stated = _stated(tags)
    if stated is None:
        return
    if stated.channels > 1 or stated.times > 1:
        raise DataError(
            "the pages of the file are not slices",
            where=path,
            found=f"{stated.channels} channels and {stated.times} time points",
            expected="one channel and one time point",
            fix=f"{SEPARATE}, and each time point too",
        )
    if stated.pages != pages:
        raise DataError(
            "the file announces other slices than it has pages",
            where=path,
            found=f"{pages} pages",
            expected=f"{stated.pages}",
            fix="save each slice as a page of its own, in one file",
        )


def _stated(tags: Tags) -> Stated | None:
    """Return what the description says about the pages, None if it says nothing."""
    text = str(tags.get(DESCRIPTION_TAG, "")).strip("\0 \n")
    samples = int(tags.get(SAMPLES_TAG, 1))
    if text.startswith("ImageJ="):
        sizes = {name: int(size) for name, size in IMAGEJ_SIZE.findall(text)}
        channels = sizes.get("channels", 1)
        return Stated(channels, sizes.get("frames", 1), sizes.get("images", 1))
    if "<OME" in text:
        sizes = {}
        for axis, size in OME_SIZE.findall(text):
            sizes.setdefault(axis, int(size))
        channels = max(1, sizes.get("C", 1) // samples)
        times = sizes.get("T", 1)
        return Stated(channels, times, channels * times * sizes.get("Z", 1))
    return _stated_shape(text, samples)


def _stated_shape(text: str, samples: int) -> Stated | None:
    """Return what the description of tifffile says: a shape and perhaps the names of its axes."""
    try:
        content = json.loads(text)
        shape = [int(size) for size in content["shape"]]
    except (ValueError, TypeError, KeyError):
        return None
    axes = str(content.get("axes", ""))
    by_axis = dict(zip(axes, shape, strict=False)) if len(axes) == len(shape) else {}
    planes = shape[:-2]
    if samples > 1:
        planes = shape[:-3]
        if shape[-1] != samples:  # one plane per color
            return None
    return Stated(by_axis.get("C", 1), by_axis.get("T", 1), math.prod(planes))


def _numbers(value: Any) -> tuple[int, ...]:
    """Return the numbers of a tag, which is one number or several."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)
