"""A member of a cluster's job decides what follows an attempt at its run."""

import json
import signal

import pytest

from segbench.results.attempts import history, record_end, record_start
from segbench.suites import member as module
from segbench.suites.member import Member
from segbench.suites.ray_actor import work


class Scripted(Member):
    """A member whose attempts end with given exit codes."""

    def __init__(self, folder, codes, tries=3):
        super().__init__(folder, tries, [])
        self.codes = codes

    def _attempt(self):
        record_start(self.run.path)
        code = self.codes.pop(0)
        if code >= 0:
            record_end(self.run.path, code)
        return code


@pytest.mark.parametrize("codes", [[75, 0], [-9, -9, 0], [4], [-9, 75, -9, -9, 5], [-10, 0]])
def test_a_run_is_attempted_until_it_ends_by_itself(tmp_path, codes):
    member = Scripted(tmp_path, codes)
    work(member)
    assert codes == []
    assert not (tmp_path / "failed.json").exists()


def test_a_run_that_is_killed_too_often_has_failed(tmp_path):
    member = Scripted(tmp_path, [-9, -9, 0], tries=2)
    work(member)
    assert member.codes == [0]
    failure = json.loads((tmp_path / "failed.json").read_bytes())
    assert failure["what"] == "killed by SIGKILL 2 times in a row (out of memory?)"
    work(Scripted(tmp_path, [0], tries=2))  # also when the job starts on another node
    assert history(tmp_path).starts == 2


def test_a_stopped_run_is_not_attempted_again(tmp_path):
    member = Scripted(tmp_path, [143, 0])
    member.handle(signal.SIGTERM)
    work(member)
    assert member.codes == [143, 0]


def test_a_run_of_another_process_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BUSY_WAIT", 0.0)
    member = Scripted(tmp_path, [6, 6, 0])
    work(member)
    assert member.codes == []


def test_the_output_of_a_run_is_added_to_its_log(tmp_path):
    log = tmp_path / "console.log"
    log.write_text("before\n")
    member = Member(tmp_path, 3, [], log)
    member.command = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    assert member.attempt() == 3
    assert log.read_text() == "before\nout\nerr\n"


def test_a_signal_that_reaches_a_run_after_its_end_changes_nothing(tmp_path, monkeypatch):
    member = Scripted(tmp_path, [75])
    monkeypatch.setattr(module.RunDir, "state", "done")
    assert not member.wants_again(75) and not member.wants_again(-9)
    assert history(tmp_path).kills == 0
    slurm = module.SlurmMember(tmp_path, 3, [])
    monkeypatch.setattr(slurm, "_attempt", lambda: 75)
    slurm.handle(signal.SIGTERM)
    assert slurm.execute() == 0
