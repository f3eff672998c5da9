"""The program in a pseudo-terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A running command, and all that it has written."""

    def __init__(self, folder: Path, columns: int, *words: str, **environment: str) -> None:
        command = [sys.executable, "-m", "segbench.cli.main", *words]
        own = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment}
        for name in ("COLUMNS", "CI", "NO_COLOR", "FORCE_COLOR"):
            if name not in environment:
                own.pop(name, None)
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(sys.executable, command, own)
        size = struct.pack("HHHH", 40, columns, 0, 0)
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, size)
        self.raw = ""

    def read_until(self, text: str, seconds: float = 300) -> None:
        """Read until a text was shown."""
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            if not self._read():
                break
        assert text in self.text, self.text

    def press_control_c(self) -> None:
        """Type Ctrl-C."""
        os.write(self.descriptor, b"\x03")

    def finish(self) -> int:
        """Read to the end and return the exit code."""
        while self._read():
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(status)

    @property
    def text(self) -> str:
        """What was written, without colors and cursor movements; every redrawn line is kept."""
        return ESCAPES.sub("", self.raw).replace("\r", "\n")

    @property
    def lines(self) -> list[str]:
        """The lines that are not empty."""
        return [line.rstrip() for line in self.text.splitlines() if line.strip()]

    def _read(self) -> bool:
        ready, _, _ = select.select([self.descriptor], [], [], 1.0)
        if not ready:
            return True
        try:
            data = os.read(self.descriptor, 1 << 16)
        except OSError:  # the other end is closed
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)
