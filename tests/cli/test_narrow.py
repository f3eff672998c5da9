"""Lists of facts fit a terminal of 80 columns, and no word is broken."""

import pytest


@pytest.mark.parametrize("words", [("data", "list"), ("data", "info", "la"), ("list", "datasets")])
def test_lines_fit_eighty_columns(words, lab, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    narrow = lab.call(*words).stdout
    assert max(map(len, narrow.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "1000")
    wide = lab.call(*words).stdout
    assert set(narrow.split()) - {"─" * 80, "-" * 80} <= set(wide.split()) | {narrow.split("\n")[1]}
