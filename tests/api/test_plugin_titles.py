"""Titles that are read from source equal those of the imported classes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from segbench import registry
from segbench.api.catalog import title_of
from segbench.api.plugin_titles import title_in_source
from segbench.errors import SegbenchError


@pytest.mark.parametrize("kind", registry.KINDS)
def test_titles_are_those_of_the_classes(kind):
    for name in registry.names(kind):
        try:
            imported = title_of(registry.get(kind, name))
        except SegbenchError:  # a library is not installed
            assert title_in_source(kind, name) is None
            continue
        assert title_in_source(kind, name) == imported, name


def test_the_list_does_not_import_torch():
    code = (
        "import sys\n"
        "from segbench.cli.main import run\n"
        "assert run(['list']) == 0\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_plugin_of_the_user_is_imported(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from segbench import Method, method\n\n\n"
        '@method("mine", paper="a paper")\n'
        "class Mine(Method):\n"
        '    """My method."""\n\n\n'
        'raise RuntimeError("broken")\n'
    )
    with registry.isolated():
        registry.add_file(file)
        assert title_in_source("method", "mine") is None
