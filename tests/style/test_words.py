"""Words that make prose hard to read, with alternatives. codespell checks the US spelling."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".txt", ".html", ".toml"}

INSTEAD = {
    r"mend(s|ed|ing)?": "fix, repair",
    r"anew": "again, from the start",
    r"told": "reported, shown",
    r"foreign": "other, unrelated",
    r"endless": "infinite",
    r"nobody": "no one, or the passive",
    r"whatever else": "any other",
    r"for want of": "without",
    r"of which the same": "with the same",
    r"doubts": "warnings",
    r"in spite of": "although",
    r"goes on where": "continues where",
    r"handed? on": "export, pass",
    r"take(s|n)? apart": "extract",
    r"for the time being": "for now",
    r"hitherto|thereof|therein|wherein|whereof|hence|thus": "a plain word",
}
PATTERNS = {re.compile(rf"\b({words})", re.IGNORECASE): better for words, better in INSTEAD.items()}


def text_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split()
    if not names:  # not a git checkout
        names = [
            str(file.relative_to(ROOT)) for file in ROOT.rglob("*") if ".venv" not in file.parts
        ]
    found = []
    for name in names:
        file = ROOT / name
        if file.suffix in SUFFIXES and file != Path(__file__).resolve() and file.is_file():
            found.append(file)
    return found


def test_no_word_of_the_list_is_used():
    found = []
    for file in text_files():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for pattern, better in PATTERNS.items():
                match = pattern.search(line)
                if match:
                    place = f"{file.relative_to(ROOT)}:{number}"
                    found.append(f"{place}: '{match.group()}', write: {better}")
    assert len(text_files()) > 100
    assert not found, "\n".join(found)
