"""Handle signals: finish the step, save, and exit with a code that says the run can be resumed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from segbench.errors import Interrupted

# 128 + signal if someone stops the run, 75 for a scheduler's warning before preemption.
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 75, "SIGUSR2": 75}
STOP_SIGNALS = {getattr(signal, name) for name in CODES if hasattr(signal, name)}


def spared(name: str) -> bool:
    """Whether a signal stays ignored: with nohup a run survives the end of the session."""
    return name == "SIGHUP" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def _nothing(name: str) -> None:
    """Do nothing when a signal arrives."""


class StopRequest:
    """Within the block, signals only set ``code``, so that the run can save its state first.

    Only a second SIGINT, which a person sends, ends the process at once. Schedulers signal all
    processes of a job and launchers pass the signal on, so that the others often come twice.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self.name = ""
        self.heard: Callable[[str], None] = _nothing  # is called with the name of the signal
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in CODES:
                number = getattr(signal, name, None)
                if number is not None and not spared(name):
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.code is None:
            self.name = signal.Signals(number).name
            self.code = CODES[self.name]
            self.heard(self.name)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def leave(self, doing: str) -> None:
        """End a run that is not training, if a stop was requested.

        Args:
            doing: what the run was doing, for the message.

        Raises:
            Interrupted: a signal requested a stop.
        """
        if self.code is not None:
            raise Interrupted(f"{self.name}: stopped {doing}", self.code)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


_active: list[StopRequest] = []  # the request of the outermost block


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Yield the stop request of the block around this one; a new one if there is none."""
    if _active:
        yield _active[0]
        return
    with StopRequest() as stop:
        _active.append(stop)
        try:
            yield stop
        finally:
            _active.clear()


def exit_at_once() -> None:
    """Let signals end this process with the codes of ``CODES`` as long as nothing is to be saved.

    A scheduler's warning would otherwise count as a crash: its default action is to kill. SIGINT
    keeps its handler.
    """
    owner = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if os.getpid() == owner:  # worker processes, which are ended by signals, say nothing
            os.write(2, f"{name}: stopped\n".encode())
        os._exit(CODES[name])

    for name in CODES:
        number = getattr(signal, name, None)
        if number is not None and name != "SIGINT" and not spared(name):
            signal.signal(number, leave)
