"""Every way to have segbench works from every folder: wheel, editable install, bare checkout.

The layout needs proof because the plug-in folders lie beside the package and one of them is called
``datasets``. Each variant lives in an empty environment with another ``datasets`` package; probe
plug-ins need nothing but the registry.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("segbench", "methods", "datasets", "backbones", "benchmarks")
PROBES = ("method/probe", "dataset/probe", "backbone/probe")
PROBE = (
    'from segbench.registry import {kind}\n\n\n@{kind}("probe")\nclass Probe:\n    answer = 42\n'
)

# Run with `python -c`, which puts the working directory first on sys.path as `python -m` does.
CHECK = """
import importlib.resources, json, multiprocessing, operator, sys
import segbench, datasets
from segbench import registry

if __name__ == "__main__":
    classes = [registry.get(*choice.split("/")).cls for choice in sys.argv[1:]]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        answers = pool.map(operator.attrgetter("answer"), [cls() for cls in classes])
    print(json.dumps({
        "segbench": segbench.__file__,
        "modules": [cls.__module__ for cls in classes],
        "answers": answers,
        "files": sorted({str(place.file) for place in registry.catalog().values()}),
        "yaml": [
            (importlib.resources.files("segbench.benchmarks") / "protocols/probe.yaml").read_text(),
            (importlib.resources.files("segbench.datasets") / "probe.yaml").read_text(),
        ],
        "other": getattr(datasets, "other", False),
    }))
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SEGBENCH", "PIP"))}
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the tree with a probe plug-in in each folder."""
    root = tmp_path_factory.mktemp("packaging") / "checkout"
    root.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for kind in ("method", "dataset", "backbone"):
        (root / f"{kind}s/probe.py").write_text(PROBE.format(kind=kind))
    (root / "datasets/probe.yaml").write_text("train: [a]\n")
    (root / "benchmarks/protocols").mkdir(exist_ok=True)
    (root / "benchmarks/protocols/probe.yaml").write_text("name: probe\n")
    return root


def build(checkout: Path, what: str) -> Path:
    """Build ``wheel``, ``editable`` or ``sdist`` with the installed setuptools, offline."""
    out = checkout.parent / what
    out.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta; build_meta.build_{what}({str(out)!r})"
    run(sys.executable, "-c", code, cwd=checkout)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(checkout) -> Path:
    return build(checkout, "wheel")


@pytest.fixture(scope="module")
def environments(checkout, wheel) -> dict[str, tuple[Path, dict[str, str]]]:
    """Python and environment variables of each variant."""
    environments = {}
    for variant in ("wheel", "editable", "bare"):
        folder = checkout.parent / f"environment-{variant}"
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=checkout.parent)
        python = folder / "bin/python"
        site = Path(
            run(
                python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
            ).strip()
        )
        (site / "datasets").mkdir()
        (site / "datasets/__init__.py").write_text("other = True\n")
        if variant != "bare":
            built = wheel if variant == "wheel" else build(checkout, "editable")
            pip = (sys.executable, "-m", "pip", "--python", python)
            run(*pip, "install", "--no-index", "--no-deps", built, cwd=folder)
        environments[variant] = python, {} if variant != "bare" else {"PYTHONPATH": str(checkout)}
    return environments


@pytest.mark.parametrize("place", ["root", "elsewhere"])
@pytest.mark.parametrize("variant", ["wheel", "editable", "bare"])
def test_it_works_from_every_folder(environments, checkout, tmp_path, variant, place):
    python, variables = environments[variant]
    cwd = checkout if place == "root" else tmp_path
    found = json.loads(
        run(python, "-c", CHECK, *PROBES, cwd=cwd, **({} if place == "root" else variables))
    )
    installed = variant == "wheel" and place == "elsewhere"
    home = Path(found["segbench"]).parent if installed else checkout
    assert Path(found["segbench"]).is_relative_to(checkout) is not installed
    assert found["modules"] == [
        "segbench.methods.probe",
        "segbench.datasets.probe",
        "segbench.backbones.probe",
    ]
    assert found["answers"] == [42, 42, 42]
    plugins = [
        f
        for folder in ("methods", "datasets", "backbones")
        for f in (checkout / folder).glob("[!_]*.py")
    ]
    assert found["files"] == sorted(str(home / f.relative_to(checkout)) for f in plugins)
    assert found["yaml"] == ["name: probe\n", "train: [a]\n"]
    assert found["other"] is True


def test_the_console_script_is_installed(environments):
    for variant in ("wheel", "editable"):
        assert "segbench.cli.main" in (environments[variant][0].parent / "segbench").read_text()


def contents(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_the_package_and_nothing_else(checkout, wheel):
    source = {
        str(f.relative_to(checkout))
        for folder in FOLDERS
        for f in (checkout / folder).rglob("*.py")
    }
    speed = {name for name in source if name.startswith("benchmarks/")}  # scripts for a checkout
    expected = {
        name if name.startswith("segbench/") else f"segbench/{name}" for name in source - speed
    }
    held = contents(wheel)
    assert {name for name in held if name.endswith(".py")} == expected
    assert "segbench/py.typed" in held and any(name.endswith("licenses/LICENSE") for name in held)
    assert {name.partition("/")[0].partition("-")[0] for name in held} == {"segbench"}
    data = {
        f"segbench/{f.relative_to(checkout)}"
        for folder in ("benchmarks", "datasets")
        for ending in ("yaml", "csv")
        for f in (checkout / folder).rglob(f"*.{ending}")
        if folder != "benchmarks" or ending == "yaml"
    }
    assert data <= held


def test_a_wheel_from_the_sdist_is_the_same(checkout, wheel, tmp_path):
    shutil.unpack_archive(build(checkout, "sdist"), tmp_path)
    (unpacked,) = tmp_path.iterdir()
    assert contents(build(unpacked, "wheel")) == contents(wheel)


def test_a_user_s_folder_reaches_spawned_processes(environments, tmp_path):
    lab = tmp_path / "lab"
    (lab / "methods").mkdir(parents=True)
    (lab / "methods/mine.py").write_text(PROBE.format(kind="method").replace("probe", "mine"))
    for variant in ("wheel", "editable"):
        found = json.loads(
            run(
                environments[variant][0],
                "-c",
                CHECK,
                "method/mine",
                cwd=tmp_path,
                SEGBENCH_PATH=str(lab),
            )
        )
        assert found["modules"] == ["segbench.methods.mine"] and found["answers"] == [42]
        assert str(lab / "methods/mine.py") in found["files"] and len(found["files"]) > 3
