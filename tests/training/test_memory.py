"""Freed memory stays in the process: large tensors come back without new pages from the system."""

import subprocess
import sys

import pytest

from segbench.training.memory import keep_freed_memory

SCRIPT = """
import resource, sys
import torch
from segbench.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    return torch.ones(16 << 20).sum().item()  # 64 MiB
for _ in range(20):  # aligned blocks are only found again after a while
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
total = sum(step() for _ in range(10))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, total)
"""


def new_pages(mode):
    run = [sys.executable, "-c", SCRIPT, mode]
    faults, total = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    assert float(total) == 10 * (16 << 20)
    return int(faults)


@pytest.mark.skipif(not keep_freed_memory(), reason="only glibc's allocator can be set")
def test_large_tensors_reuse_their_pages():
    assert new_pages("keep") < 0.2 * new_pages("default")


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("segbench.training.memory.ctypes.CDLL", lambda name: object())
    assert keep_freed_memory.__wrapped__() is False
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory.__wrapped__() is False
