"""Settings and fixtures for all tests: one torch thread per process."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # a width that the test runner sets would wrap texts

import contextlib
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = Path(__file__).resolve().parent / "plugins"


@pytest.fixture(autouse=True)
def isolated_registry():
    """Forget after each test the plug-in files and links that it added."""
    from segbench import registry

    with registry.isolated():
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real volumes (``la/``, ``acdc/``); tests that need it are skipped without it."""
    for place in (os.environ.get("SEGBENCH_DATA"), ROOT.parent / "shared" / "data"):
        if place and Path(place).is_dir():
            return Path(place)
    pytest.skip("no real volumes: SEGBENCH_DATA is not set")


@dataclass
class Lab:
    """A place to run tiny experiments in."""

    folder: Path

    def machine(self, **settings):
        from segbench.config.machine import Cadence, Machine

        settings.setdefault("save_every", Cadence(steps=2, seconds=None))
        root = self.folder / "out"
        return Machine(root=root, data_root=self.folder / "data", device="cpu", **settings)

    def reporter(self, **hooks):
        """Return a reporter that calls the given functions: ``lab.reporter(train=stop)``."""
        from segbench.training.reporter import Reporter

        reporter = Reporter()
        for name, function in hooks.items():
            assert hasattr(reporter, name)
            setattr(reporter, name, function)
        return reporter

    def prepared(self, method, dataset="tiny", machine=None, **choices):
        from segbench.config import resolve
        from segbench.training.setup import prepare

        choices.setdefault(
            "protocol", PLUGINS / ("tiny_flat.yaml" if dataset == "tiny_flat" else "tiny.yaml")
        )
        (experiment,) = resolve(method, dataset=dataset, **choices).experiments
        return prepare(experiment, machine or self.machine())

    def call(self, *args):
        """Run the program in this process, to save the import of torch; returns what ``cli``
        returns.
        """
        from segbench.cli.main import run

        out, err, here = io.StringIO(), io.StringIO(), os.getcwd()
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run([str(a) for a in args])
        finally:
            os.chdir(here)
        return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())

    def cli(self, *args, **env):
        """Run the program as a process of its own in this folder."""
        command = [
            sys.executable,
            "-m",
            "segbench.cli.main",
            "--plugin",
            str(PLUGINS / "tiny.py"),
            *map(str, args),
        ]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": path, "HOME": str(self.folder), **env},
        )


@pytest.fixture
def lab(tmp_path) -> Lab:
    """Tiny data sets are registered and everything is written to a temporary folder."""
    from segbench import registry

    registry.add_file(PLUGINS / "tiny.py")
    return Lab(tmp_path)
