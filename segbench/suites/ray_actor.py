"""The actor of Ray that trains a run. It imports little: each actor is a process of its own."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from segbench.suites.member import Member


class Runner:
    """The actor of one run.

    Args:
        folder: of the run.
        tries: attempts in a row that may be killed.
        options: of ``segbench resume``.
    """

    def __init__(self, folder: str, tries: int, options: list[str]) -> None:
        self._member = Member(Path(folder), tries, options, Path(folder) / "console.log")
        # Ray calls this method again after a loss, but no other: it must not wait for the run.
        threading.Thread(target=self._work, daemon=True).start()

    def stop(self) -> None:
        """Have the run save and end."""
        self._member.handle(signal.SIGTERM)

    def _work(self) -> None:
        import ray

        try:
            work(self._member)
        finally:
            ray.kill(ray.get_runtime_context().current_actor)


def work(member: Member) -> None:
    """Attempt a run until it has ended, was stopped or was killed too often."""
    again = not member.gives_up()
    while again and not member.received:
        again = member.wants_again(member.attempt())
