"""Complete, damaged and malicious archives."""

import io
import os
import random
import stat
import tarfile
import zipfile

import pytest

from segbench.data.preparation import archives
from segbench.data.preparation.archives import extract, is_archive
from segbench.errors import DataError

FILES = {"top/a.txt": b"alpha" * 1000, "top/sub/b.bin": bytes(range(256)) * 40, "c.txt": b""}


def make_tar(path, mode="w", extra=()):
    with tarfile.open(path, mode) as tar:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_600_000_000
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def make_zip(path, extra=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in FILES.items():
            packed.writestr(zipfile.ZipInfo(name, (2020, 9, 13, 12, 26, 40)), content)
        for info, content in extra:
            packed.writestr(info, content)
    return path


def member(name, kind=tarfile.REGTYPE, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


@pytest.mark.parametrize(
    "make",
    [
        lambda p: make_tar(p / "a.tar"),
        lambda p: make_tar(p / "a.tar.gz", "w:gz"),
        lambda p: make_tar(p / "a.tgz", "w:gz"),
        lambda p: make_tar(p / "a.tar.xz", "w:xz"),
        lambda p: make_tar(p / "a.tar.bz2", "w:bz2"),
        lambda p: make_zip(p / "a.zip"),
    ],
)
def test_complete(tmp_path, make):
    path, seen = make(tmp_path), []
    target = extract(path, tmp_path / "out", lambda *step: seen.append(step))
    assert {
        str(f.relative_to(target)): f.read_bytes() for f in target.rglob("*") if f.is_file()
    } == FILES
    assert len(seen) == 3 and all(
        0 <= done <= total == path.stat().st_size for done, total, _ in seen
    )
    first = (target / "top" / "a.txt").stat().st_mtime
    again = extract(path, tmp_path / "again")
    assert (
        (again / "top" / "a.txt").stat().st_mtime == first < 1_700_000_000
    )  # so that a repeat finds nothing changed
    assert is_archive(path) and not is_archive(tmp_path) and not is_archive(target / "c.txt")


@pytest.mark.parametrize("time", ["1e30", "nan"])
def test_a_time_that_no_clock_can_show(tmp_path, time):
    odd = member("odd")
    odd.pax_headers = {"mtime": time}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(odd)
    assert (extract(tmp_path / "a.tar", tmp_path / "out") / "odd").is_file()


LINK = zipfile.ZipInfo("link")
LINK.external_attr = (stat.S_IFLNK | 0o777) << 16


@pytest.mark.parametrize(
    "make, found",
    [
        (lambda p: make_tar(p, extra=[member("../evil")]), "leads elsewhere"),
        (lambda p: make_tar(p, extra=[member("/etc/evil")]), "leads elsewhere"),
        (lambda p: make_tar(p, extra=[member("top/../../evil")]), "leads elsewhere"),
        (lambda p: make_tar(p, extra=[member("top\\..\\..\\evil")]), "leads elsewhere"),
        (lambda p: make_tar(p, extra=[member("C:evil")]), "leads elsewhere"),
        (lambda p: make_tar(p, extra=[member("a\x1b[31m")]), "leads elsewhere"),
        (
            lambda p: make_tar(p, extra=[member("link", tarfile.SYMTYPE, link="/etc/passwd")]),
            "a link",
        ),
        (lambda p: make_tar(p, extra=[member("hard", tarfile.LNKTYPE, link="c.txt")]), "a link"),
        (lambda p: make_tar(p, extra=[member("pipe", tarfile.FIFOTYPE)]), "a device or pipe"),
        (lambda p: make_tar(p, extra=[member("null", tarfile.CHRTYPE)]), "a device or pipe"),
        (lambda p: make_tar(p, extra=[member("c.txt")]), "occurs twice"),
        (lambda p: make_tar(p, extra=[member("c.txt/d")]), "a file and a folder"),
        (lambda p: make_tar(p, extra=[member("c.txt/d/e")]), "a file and a folder"),
        (lambda p: make_tar(p, extra=[member("c.txt", tarfile.DIRTYPE)]), "a file and a folder"),
        (lambda p: make_tar(p, extra=[member("top")]), "occurs twice"),
    ],
)
def test_a_tar_that_means_harm_leaves_nothing(tmp_path, make, found):
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    make(path)
    with pytest.raises(DataError, match="refused") as caught:
        extract(path, tmp_path / "in" / "out")
    assert found in str(caught.value) and "\x1b" not in repr(
        str(caught.value.details["where"])
    ).replace("\\x1b", "")
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["a.tar"] and [
        p.name for p in tmp_path.iterdir()
    ] == ["in"]


@pytest.mark.parametrize(
    "extra, found",
    [
        ((zipfile.ZipInfo("../evil"), b"x"), "leads elsewhere"),
        ((zipfile.ZipInfo("/evil"), b"x"), "leads elsewhere"),
        ((LINK, b"/etc/passwd"), "a link"),
    ],
)
def test_a_zip_that_means_harm_leaves_nothing(tmp_path, extra, found):
    path = make_zip(tmp_path / "a.zip", [extra])
    with pytest.raises(DataError, match="refused") as caught:
        extract(path, tmp_path / "out")
    assert found in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_bombs(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros", bytes(10**7))
    monkeypatch.setattr(archives, "MAX_RATIO", 5)
    with pytest.raises(DataError, match="refused") as caught:
        extract(path, tmp_path / "out")
    assert "10,000,000 bytes" in str(caught.value) and not (tmp_path / "out").exists()
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    with pytest.raises(DataError, match="3 members"):
        extract(make_tar(tmp_path / "many.tar"), tmp_path / "out")


def test_a_zip_that_lies_about_a_size(tmp_path):
    path = make_zip(tmp_path / "a.zip")
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"top/sub"))  # the central entry of b.bin
    path.write_bytes(content[: at + 24] + (5).to_bytes(4, "little") + content[at + 28 :])
    with pytest.raises(DataError, match="the archive is"):
        extract(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    "name, make",
    [
        ("a.tar", make_tar),
        ("a.tar.gz", lambda p: make_tar(p, "w:gz")),
        ("a.zip", make_zip),
        ("a.tar.xz", lambda p: make_tar(p, "w:xz")),
        ("a.tbz2", lambda p: make_tar(p, "w:bz2")),
    ],
)
@pytest.mark.parametrize("keep", [0, 10, 0.6, 0.95])
def test_cut_short(tmp_path, name, make, keep):
    path = make(tmp_path / name)
    content = path.read_bytes()
    if name == "a.tar" and keep == 0.95:  # only the padding is gone: nothing is missing
        keep = 0.5
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match="damaged or cut short"):
        extract(path, tmp_path / "out")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
def test_a_flipped_byte_is_damage_whatever_packed_it(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, f"w:{kind}") as tar:
        tar.addfile(
            member("noise", size=3 * 10**6), io.BytesIO(random.Random(0).randbytes(3 * 10**6))
        )
    content = bytearray(path.read_bytes())
    content[int(0.9 * len(content))] ^= (
        0xFF  # far behind the first block, which a reader looks at when it opens the file
    )
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or cut short"):
        extract(path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.tar"]
