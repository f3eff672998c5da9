"""README and docs: generated parts are current, links resolve, and commands exist."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import stage

from segbench.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "ARCHITECTURE.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHOWN = "commands.md"  # help texts, whose examples are not complete


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page, *languages):
    """Return the code blocks of a page in these languages."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def commands(page):
    """Return the segbench commands of a page's shell blocks, without their comments."""
    lines = "".join(blocks(page, "sh", "text", "")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("segbench ")]


def headings(page):
    """Return the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = []
    for title in titles:
        plain = re.sub(r"[^\w\- ]", "", title.lower())
        anchors.append(plain.strip().replace(" ", "-"))
    return anchors


def test_generated_parts_are_current():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for file, text in generate.pages().items():
        stored = file.read_text(encoding="utf-8")
        assert stored == text.rstrip() + "\n", f"python docs/generate.py writes {name(file)} again"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page):
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in menu


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != SHOWN], ids=name)
def test_commands_exist_with_these_options(page):
    for words in commands(page):
        with click.Context(cli, info_name="segbench") as context:
            parse(cli, context, words[1:])


def parse(command, context, words):
    """Let Click parse the words of a command without running it. Its files need not exist."""
    if "--plugin" in words:
        place = words.index("--plugin")
        words = words[:place] + words[place + 2 :]
    while isinstance(command, click.Group):
        _, command, words = command.resolve_command(context, words)
    try:
        command.make_context(command.name, words, parent=context)
    except click.BadParameter as error:
        if "does not exist" not in error.message:
            raise


def test_commands_of_the_workflows_exist():
    """The steps of the example for continuous integration call the program by its path."""
    page = ROOT / "docs" / "how-to" / "hand-in.md"
    text = "".join(blocks(page, "yaml"))
    found = re.findall(r"\.venv/bin/segbench (.*)$", text, re.MULTILINE)
    assert len(found) == 3
    for words in map(shlex.split, found):
        with click.Context(cli, info_name="segbench") as context:
            parse(cli, context, words)


def test_every_suite_is_in_the_table_of_suites():
    page = ROOT / "docs" / "how-to" / "run-a-suite.md"
    table = page.read_text(encoding="utf-8").partition("## Your own suite")[0]
    for suite in (ROOT / "benchmarks").glob("*.yaml"):
        assert f"`{suite.stem}`" in table, suite.name


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"<!--.*?-->|\]\([^)]*\)|^[|:\s-]+$", " ", text, flags=re.MULTILINE)
    words = re.findall(r"[^\W\d_]{2,}", text)
    assert len(words) <= 900


def test_a_wrong_option_would_be_found():
    with click.Context(cli, info_name="segbench") as context, pytest.raises(click.UsageError):
        parse(cli, context, ["run", "bcp", "--datset", "la"])


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A user's folder with what the pages take for granted; later pages reuse finished runs."""
    home = tmp_path_factory.mktemp("home")
    stage.fill(home)
    program = home / "bin" / "segbench"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m segbench.cli.main "$@"\n')
    program.chmod(0o755)
    desk = Desk(home)
    own = f"folder:{home / 'Dataset007_Mine'}"
    first = desk.sh(f"segbench run supervised --dataset {own} --steps 5 --json")
    desk.run_id = json.loads(first.stdout)["run_id"]
    desk.sh("segbench bench run mine.yaml")
    for others in ("ours", "theirs"):
        shutil.copytree(home / "segbench-out", home / others)
    return desk


class Desk:
    """Runs shell commands with this interpreter's segbench."""

    def __init__(self, home):
        self.home = home
        self.run_id = ""

    def sh(self, block):
        path = f"{self.home / 'bin'}{os.pathsep}{os.environ['PATH']}"
        python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        own = {"HOME": str(self.home), "PATH": path, "PYTHONPATH": python_path}
        done = subprocess.run(
            ["sh", "-e", "-c", block],
            cwd=self.home,
            env={**os.environ, **own, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block}\n{done.stderr[-2000:]}"
        return done

    def page(self, block):
        """Run a block of a page, with real names in place of those that stand for any."""
        lines = [line for line in block.splitlines() if not line.startswith(("make ", "source "))]
        text = re.sub(r"\bRUN\b", self.run_id, "\n".join(lines)).replace("SUITE.yaml", "mine.yaml")
        return self.sh(text.replace("bundles/3f9c2a7b.zip", "$(ls bundles/*.zip | head -n 1)"))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a page at a time
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=name)
def test_shell_blocks_run(page, desk):
    """In the order of the page, on phantoms and on a small folder of a user."""
    if page.name == "plug-ins.md":
        (desk.home / "confident.py").write_text(blocks(page, "python")[0], encoding="utf-8")
    for block in blocks(page, "sh"):
        desk.page(block)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "shown"), [("python", "mean_teacher"), ("metrics", "volume error")]
)
def test_pages_on_python_run(stem, shown, tmp_path):
    page = ROOT / "docs" / "how-to" / f"{stem}.md"
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert shown in done.stdout
