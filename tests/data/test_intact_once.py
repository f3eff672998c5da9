"""The files of a store are read in full once per node, and again after a change."""

import os
import tempfile

import pytest

from segbench.data.store import intact_once, store
from segbench.data.store.intact_once import require_intact_once
from segbench.errors import DataError


@pytest.fixture
def read(monkeypatch, tmp_path):
    """The cases that are read in full."""
    monkeypatch.setattr(intact_once, "SMALL", 0)
    monkeypatch.setattr(intact_once, "SETTLED", -(10**12))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []
    verify = store.verify

    def noted(opened, case):
        seen.append(case)
        return verify(opened, case)

    monkeypatch.setattr(store, "verify", noted)
    return seen


def test_files_are_read_once_until_they_change(lab, read):
    (opened,) = lab.prepared("supervised").stores
    require_intact_once(opened, opened.train)
    assert read == list(opened.train)
    read.clear()
    require_intact_once(opened, [*opened.train, opened.test[0]])
    assert read == [opened.test[0]]
    read.clear()
    case = opened.train[2]
    name = min(opened.cases[case].files)
    file = opened.root / "cases" / case / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    before = os.stat(file)
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # the change time still tells
    for _ in range(2):
        with pytest.raises(DataError, match="changed"):
            require_intact_once(opened, opened.train)
    assert read == [case, case]


def test_small_stores_are_read_each_time(lab, read, monkeypatch):
    monkeypatch.setattr(intact_once, "SMALL", 50 * 10**6)
    (opened,) = lab.prepared("supervised").stores
    for _ in range(2):
        require_intact_once(opened, opened.test)
    assert read == [*opened.test, *opened.test]


def test_another_start_of_the_machine_makes_files_be_read_again(lab, read, monkeypatch, tmp_path):
    (opened,) = lab.prepared("supervised").stores
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(intact_once, "BOOT_ID", boot)
    for content in ("one", "two", "two"):
        boot.write_text(content)
        require_intact_once(opened, opened.test)
    assert read == [*opened.test, *opened.test]
