"""The Dockerfile, without docker: what it copies exists and suffices, and what it runs installs."""

import json
import re
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def instructions():
    """Return the instructions of the Dockerfile as (name, text)."""
    lines = []
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if not line.startswith("#"):
            lines.append(line)
    joined = "\n".join(lines).replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        if line.strip():
            name, _, text = line.partition(" ")
            found.append((name, text.strip()))
    return found


def texts(name):
    return [text for found, text in instructions() if found == name]


def copied():
    """Return what the image holds of the repository, as (source, target)."""
    pairs = []
    for text in texts("COPY"):
        *sources, target = shlex.split(text)
        for source in sources:
            pairs.append((source, source if target == "./" else target))
    return pairs


def test_base_images_have_short_names():
    default = next(text for text in texts("ARG") if text.startswith("BASE="))
    comment = re.search(r"--build-arg BASE=(\S+)", (ROOT / "Dockerfile").read_text())
    for image in (default.removeprefix("BASE="), comment[1]):
        assert re.fullmatch(r"[a-z]+(/[a-z]+)?:[a-z0-9.-]+", image)
    assert texts("FROM") == ["${BASE}"]


def test_all_that_is_copied_exists_and_all_packages_are_copied():
    sources = [source for source, _ in copied()]
    assert all((ROOT / source).exists() for source in sources)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"]}
    needed.update(project["tool"]["setuptools"]["package-dir"].values())
    assert needed | {"pyproject.toml", "segbench"} == set(sources)
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert sent[0] == "*"
    assert {line[1:] for line in sent if line.startswith("!")} == set(sources)


def test_shell_commands_are_valid_and_install_as_the_readme_says():
    for text in texts("RUN"):
        subprocess.run(["sh", "-n", "-c", text], check=True)
    (install,) = [text for text in texts("RUN") if "pip install" in text]
    words = shlex.split(install)
    assert words[-1] == "."
    assert "pip install -e ." in (ROOT / "README.md").read_text()
    assert texts("ENTRYPOINT") == ['["segbench"]']


def test_its_steps_install_a_segbench_that_runs(tmp_path, monkeypatch):
    """Each COPY and RUN is executed in a folder; the libraries are those of this environment."""
    for source, target in copied():
        place = ROOT / source
        if place.is_dir():
            leave_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(place, tmp_path / target, ignore=leave_out)
        else:
            shutil.copy(place, tmp_path / target)
    monkeypatch.setenv("PYTHONPATH", sysconfig.get_path("purelib"))
    monkeypatch.setenv("PIP_NO_DEPS", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say yes to this option
    for text in texts("RUN"):
        subprocess.run(["sh", "-e", "-c", text], cwd=tmp_path, check=True, timeout=250)
    (libraries,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    for name in ("cli/main.py", "methods/bcp.py", "benchmarks/la.yaml"):
        assert (libraries / "segbench" / name).is_file()
    monkeypatch.setenv("PYTHONPATH", f"{libraries}:{sysconfig.get_path('purelib')}")
    (entry,) = json.loads(texts("ENTRYPOINT")[0])
    words = [str(tmp_path / "venv/bin" / entry), "list", "methods"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "bcp" in done.stdout, done.stderr
