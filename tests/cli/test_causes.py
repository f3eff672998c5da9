"""Messages name the cause: equal names, missing imports, paths given as names, lost data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from segbench import registry
from segbench.cli import namesake
from segbench.errors import PluginError, UsageError

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "plugins" / "tiny.yaml"


def shell(command, folder):
    """Run a bash command in which $segbench stands for the program."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "segbench": f"{sys.executable} -m segbench.cli.main",
    }
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["$segbench describe protocol la", "$segbench --help", "$segbench runs ls --json"]
)
def test_a_full_stdout_is_a_full_disk(tmp_path, command):
    result = shell(f"{command} > /dev/full", tmp_path)
    assert result.returncode == 9
    assert "No space left" in result.stderr and "standard output" in result.stderr
    assert "bug" not in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(tmp_path, closed):
    result = shell(f"$segbench describe protocol la {closed}", tmp_path)
    assert result.returncode == 0 and result.stderr == ""


def test_a_file_never_becomes_the_closed_stdout(tmp_path):
    code = (
        "from segbench.cli import streams; streams.open_missing();"
        "file = open('data', 'w'); print('to nowhere', flush=True); file.write('kept')"
    )
    shell(f'{sys.executable} -c "{code}" >&-', tmp_path)
    assert (tmp_path / "data").read_text() == "kept"


def test_a_full_stderr_changes_no_exit_code(tmp_path):
    assert shell("$segbench describe protocol nope 2> /dev/full", tmp_path).returncode == 2


def test_a_reader_that_has_enough_is_no_failure(tmp_path):
    result = shell("$segbench list protocols | head -1; exit ${PIPESTATUS[0]}", tmp_path)
    assert result.returncode in (0, 141) and result.stderr == ""  # 0: it wrote before head closed


# -- another package of this name ------------------------------------------------------------------


@pytest.mark.parametrize("file", ["segbench/__init__.py", "segbench.py"])
def test_another_package_of_this_name_is_named(lab, monkeypatch, file):
    other = lab.folder / "elsewhere" / file
    other.parent.mkdir(parents=True)
    other.write_text("")
    assert "warning" not in lab.call("runs", "ls").stderr
    monkeypatch.syspath_prepend(str(lab.folder / "elsewhere"))
    result = lab.call("runs", "ls")
    assert result.returncode == 0
    found = other if file == "segbench.py" else other.parent
    assert f"in {found}" in result.stderr and f"rename {found}" in result.stderr


def test_a_clone_of_another_package_in_the_working_folder_is_named(lab):
    (lab.folder / "segbench").mkdir()
    (lab.folder / "segbench" / "__init__.py").write_text("")
    assert "another package" in lab.call("runs", "ls").stderr


def test_the_distribution_of_another_package_is_named(lab, monkeypatch):
    (lab.folder / "segbench").mkdir()
    (lab.folder / "segbench" / "__init__.py").write_text("")
    info = lab.folder / "seg_bench_other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: seg-bench-other\nVersion: 1.0\n")
    (info / "RECORD").write_text("segbench/__init__.py,,\n")
    result = lab.call("runs", "ls")
    assert "distribution 'seg-bench-other'" in result.stderr
    assert "pip uninstall seg-bench-other" in result.stderr


def test_overwritten_files_are_refused(lab, monkeypatch):
    theirs = SimpleNamespace(__file__=namesake.segbench.__file__)
    monkeypatch.setattr(namesake, "segbench", theirs)
    result = lab.call("runs", "ls")
    assert result.returncode == 7 and "another package is installed" in result.stderr
    assert "pip uninstall" in result.stderr and result.stdout == ""


def test_a_package_that_hides_this_one_is_refused(monkeypatch, tmp_path):
    theirs = SimpleNamespace(__file__=str(tmp_path / "segbench" / "__init__.py"))
    monkeypatch.setattr(namesake, "segbench", theirs)
    with pytest.raises(PluginError, match="another package"):
        namesake.require_own_package()


# -- imports of plug-ins ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import notthere\n", ["imports 'notthere'", "install 'notthere'"]),
        ("from notthere.parts import x\n", ["imports 'notthere.parts'", "install 'notthere'"]),
        ("import os, notthere as nt\n", ["imports 'notthere'"]),
        ("from segbench.ops import mix\n", ["import segbench.nn.ops instead"]),
        ("import segbench.nowhere\n", ["no such module"]),
    ],
)
def test_a_missing_import_of_a_file_that_registers_nothing(lab, text, says):
    (lab.folder / "imp.py").write_text(text)
    result = lab.call("run", "imp", "--plugin", lab.folder / "imp.py")
    assert result.returncode == 7, result.stderr
    for part in says:
        assert part in result.stderr


@pytest.mark.parametrize(
    "text", ["import torch\nimport os.path\n", "import segbench.methods\n", "from . import x\n"]
)
def test_a_file_that_registers_nothing_and_imports_what_is_there(lab, text):
    (lab.folder / "imp.py").write_text(text)
    result = lab.call("run", "imp", "--plugin", lab.folder / "imp.py")
    assert result.returncode == 2 and "registers nothing" in result.stderr


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("import notthere", "install 'notthere'"),
        ("from segbench.ops import mix", "import segbench.nn.ops instead"),
        ("from segbench.nn.losses import nothing", "ImportError"),
        ("raise SystemExit(0)", "SystemExit"),
    ],
)
def test_a_missing_import_of_a_plugin(lab, line, says):
    text = f"from segbench import Method, method\n{line}\n@method('imp')\nclass A(Method): pass\n"
    (lab.folder / "imp.py").write_text(text)
    result = lab.call("run", "imp", "--plugin", lab.folder / "imp.py")
    assert result.returncode == 7 and says in result.stderr, result.stderr


# -- paths in place of names -----------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mydata").mkdir()
    Path("my-data dir").mkdir()
    Path("prepared").mkdir()
    Path("prepared/store.json").write_text("{}")
    Path("scans.zip").write_text("")
    Path("lab/methods").mkdir(parents=True)
    Path("mine.py").write_text("from segbench import method\n@method('mine')\nclass A: pass\n")


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("dataset", "mydata", "folder:mydata"),
        ("dataset", "./mydata", "segbench data link ./mydata"),
        ("dataset", "my-data dir", "folder:'my-data dir'"),
        ("dataset", "prepared", "prepared --data-root"),
        ("dataset", "scans.zip", "--from scans.zip"),
        ("dataset", "mine.py", "--plugin mine.py"),
        ("method", "mine.py", "mine with --plugin mine.py"),
        ("method", "mydata", "--plugin mydata/FILE.py"),
        ("method", "lab", "SEGBENCH_PATH=lab"),
        ("backbone", "./mydata/", "--plugin ./mydata/FILE.py"),
        ("method", "versmi", "segbench list methods"),
        ("dataset", "mydatta", "segbench list datasets"),
    ],
)
def test_a_path_in_place_of_a_name(paths, kind, name, says):
    with pytest.raises(UsageError) as error:
        registry.get(kind, name)
    assert says in error.value.details["fix"]


@pytest.mark.parametrize(
    "command",
    [
        ("bench", "run", "mydata"),
        ("bench", "plan", "mydata"),
        ("run", "supervised", "--dataset", "phantom2d", "--protocol", "mydata"),
        ("predict", "mydata", "scan.nii.gz", "-o", "out"),
        ("evaluate", "mydata"),
        ("resume", "mydata"),
        ("describe", "protocol", "mydata"),
        ("test", "mydata"),
        ("data", "check", "mydata"),
        ("data", "prepare", "mydata"),
    ],
)
def test_a_folder_in_place_of_a_name_is_called_a_folder(lab, command):
    (lab.folder / "mydata").mkdir()
    result = lab.call(*command)
    assert result.returncode == 2 and "a folder of this name" in result.stderr, result.stderr


# -- files -----------------------------------------------------------------------------------------


def test_a_table_goes_into_a_folder_that_does_not_exist_yet(lab):
    label = np.zeros((6, 6, 6), np.uint8)
    label[2:4, 2:4, 2:4] = 1
    for side in ("pred", "ref"):
        (lab.folder / side).mkdir()
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), lab.folder / side / "a.nii.gz")
    table = lab.folder / "new" / "folder" / "cases.csv"
    command = ("evaluate", "--pred", lab.folder / "pred", "--ref", lab.folder / "ref")
    assert lab.call(*command, "--csv", table).returncode == 0
    assert table.read_text().count("\n") == 2
    blocked = lab.folder / "pred" / "a.nii.gz" / "cases.csv"
    refused = lab.call(*command, "--csv", blocked)
    assert refused.returncode == 9 and "cannot write" in refused.stderr


def test_a_run_predicts_after_its_data_are_gone(lab):
    source = lab.folder / "own"
    draw = np.random.default_rng(0)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    for number in range(4):
        label = np.zeros((20, 20, 20), np.uint8)
        label[6 + number : 12, 6:12, 6:12] = 1
        image = 100 * label + draw.normal(0, 5, label.shape)
        for folder, array in (("imagesTr", image), ("labelsTr", label)):
            (source / folder).mkdir(parents=True, exist_ok=True)
            suffix = "_0000" if folder == "imagesTr" else ""
            file = source / folder / f"c{number}{suffix}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), affine), file)
    layout = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (source / "dataset.json").write_text(json.dumps(layout))
    scan = lab.folder / "scan.nii.gz"
    shutil.copy(source / "imagesTr" / "c0_0000.nii.gz", scan)

    linked = lab.call("data", "link", source, "--as", "own")
    assert linked.returncode == 0, linked.stderr
    assert lab.call("data", "prepare", "own").returncode == 0
    done = lab.call("run", "supervised", "--dataset", "own", "--protocol", TINY, "--labeled", "2")
    assert done.returncode == 0, done.stderr
    (folder,) = lab.folder.glob("segbench-out/runs/own/*/*")
    before = lab.call("predict", folder, scan, "-o", "before")
    assert before.returncode == 0, before.stderr

    shutil.rmtree(source)
    shutil.rmtree(lab.folder / "segbench-data")
    registry.reset()
    after = lab.call("predict", folder, scan, "-o", "after")
    assert after.returncode == 0, after.stderr
    first = (lab.folder / "before" / "scan_seg.nii.gz").read_bytes()
    assert (lab.folder / "after" / "scan_seg.nii.gz").read_bytes() == first

    # What needs voxels says so, and a copy that was changed is refused.
    assert lab.call("evaluate", folder).returncode in (2, 3)
    (folder / "stores.json").write_text("{}")
    assert lab.call("predict", folder, scan, "-o", "no").returncode == 8
