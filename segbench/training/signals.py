"""Handle signals: finish the step, save, and exit with a code that says the run can be resumed."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

# 128 + signal if someone stops the run, 75 for a scheduler's warning before preemption.
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 75, "SIGUSR2": 75}


def spared(name: str) -> bool:
    """Whether a signal stays ignored: with nohup a run survives the end of the session."""
    return name == "SIGHUP" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


class StopRequest:
    """Within the block, the first signal only sets ``code``; a second one has its usual effect."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.name = ""
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in CODES:
                number = getattr(signal, name, None)
                if number is not None and not spared(name):
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self.code = CODES[self.name]
        signal.signal(
            number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler
        )

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
