"""launch --wait over a pilots that comes to nothing: it backs off, and gives up only after launches that really were."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from kt_study.errors import DatabaseError, EnvironmentUnusable, SlurmError
from kt_study.store import JobStore, Workload
from orchestrator.cluster.launch import follow
from orchestrator.cluster.launch.follow import BackingOff, Follower
from orchestrator.terminal import outage


@dataclass
class Clock:
    now: float = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(follow, "time", SimpleNamespace(sleep=made.sleep, monotonic=lambda: made.now))
    return made


@dataclass
class Pilots:
    """Its pilots end at once; after two launches it wants 30 s of rest, then a minute, two, ..., as on Slurm."""

    clock: Clock
    sent: list[float] = field(default_factory=list)
    ready: int = 5
    refuses: str = ""
    notes: list[str] = field(default_factory=list)

    def expire(self) -> None: ...

    def workload(self, _study: str) -> Workload:
        return Workload(
            ready_now=self.ready, ready_later=0, next_s=None, blocked=0, running=0, failed=0, done=0, cancelled=0, paused=0
        )  # fmt: skip

    def all_gone(self) -> bool:
        return True

    def maintain(self) -> None: ...

    def start_missing(self) -> int:
        if self.refuses and self.clock.now < 3600:
            raise SlurmError(self.refuses)
        rest = 30.0 * 2.0 ** (len(self.sent) - 2) if len(self.sent) >= 2 else 0.0
        if self.sent and (left := self.sent[-1] + rest - self.clock.now) > 0:
            raise BackingOff(f"the next may start in {left:.0f} s", left)
        self.sent.append(self.clock.now)
        return 4

    def wait_for_first(self) -> None: ...


def follow_until_it_gives_up(pilots: Pilots) -> str:
    with pytest.raises(EnvironmentUnusable) as given_up:
        Follower(cast(JobStore, pilots), "s", pilots).until_done()
    return str(given_up.value)


def test_the_pauses_between_launches_that_come_to_nothing_are_waited_for(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    pilots = Pilots(clock)
    assert "workers ended 6 times without finishing a job" in follow_until_it_gives_up(pilots)
    assert len(pilots.sent) == 6
    pauses = [after - before for before, after in zip(pilots.sent, pilots.sent[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses[1:], (30, 60, 120, 240), strict=True)), pauses
    assert all(pause < least + 130 for pause, least in zip(pauses[1:], (30, 60, 120, 240), strict=True)), pauses
    said = capsys.readouterr().err
    assert said.count("the next may start in") <= 4, "once for each pause"


def test_a_slurm_that_refuses_for_an_hour_does_not_count_as_workers_that_ended(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    pilots = Pilots(clock, refuses="sbatch: slurmctld is away")
    assert "workers ended 6 times" in follow_until_it_gives_up(pilots)
    assert pilots.sent[0] >= 3600
    assert capsys.readouterr().err.count("slurmctld is away") == 1


@dataclass
class PilotsOfAStoreThatIsAway(Pilots):
    """One of the calls finds the database away, once; whoever is started then does the jobs."""

    away_in: str = ""

    def expire(self) -> None:
        self._reach("expire")

    def workload(self, study: str) -> Workload:
        self._reach("workload")
        return Workload(done=5) if self.sent else super().workload(study)

    def all_gone(self) -> bool:
        self._reach("all_gone")
        return True

    def maintain(self) -> None:
        self._reach("maintain")

    def start_missing(self) -> int:
        self._reach("start_missing")
        return super().start_missing()

    def wait_for_first(self) -> None:
        self._reach("wait_for_first")

    def _reach(self, call: str) -> None:
        if self.away_in == call:
            self.away_in = ""
            raise DatabaseError("no answer")


@pytest.mark.parametrize("call", ["expire", "workload", "all_gone", "maintain", "start_missing", "wait_for_first"])
def test_an_outage_in_any_call_is_waited_for(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(outage, "RETRY_EVERY_S", 0.0)
    pilots = PilotsOfAStoreThatIsAway(clock, away_in=call)
    assert Follower(cast(JobStore, pilots), "s", pilots).until_done() == Workload(done=5)
    said = capsys.readouterr().err
    assert "no answer; waiting for it" in said and "the database is back after " in said


@dataclass
class PausedCrew(Pilots):
    """Its five jobs are paused for an hour; whoever is started then does them."""

    def workload(self, _study: str) -> Workload:
        if self.clock.now < 3600:
            return Workload(paused=5)
        return Workload(done=5) if self.sent else Workload(ready_now=5)

    def start_missing(self) -> int:
        return super().start_missing() if self.workload("s").ready_now else 0


def test_a_pause_is_waited_for_and_whoever_resumes_need_not_launch_again(clock: Clock) -> None:
    pilots = PausedCrew(clock)
    assert Follower(cast(JobStore, pilots), "s", pilots).until_done() == Workload(done=5)
    assert pilots.sent == [3600.0]
