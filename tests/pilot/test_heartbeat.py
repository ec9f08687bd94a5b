"""The heartbeat's thread, the last word, and the stop request."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from kt_study.errors import DatabaseError, LeaseLost
from kt_study.records import Claim, Progress
from kt_study.store import HeartbeatReply
from worker.pilot.heartbeat import Heartbeat, ReleaseDeadline
from worker.pilot.signals import StopRequest


def claim(job_id: int, fence: int = 1) -> Claim:
    return Claim(job_id=job_id, attempt_id=job_id, fence=fence, kind="transfer", digest="", spec={}, attempt=1)


class FakeStore:
    """Answers heartbeats with `reply`, or with `error` while that is set."""

    def __init__(self) -> None:
        self.reply = HeartbeatReply()
        self.error: Exception | None = None
        self.beats: list[dict[int, Progress]] = []
        self.released: list[tuple[int, str]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def heartbeat(self, _worker: str, held: Mapping[Claim, Progress], lease_s: float) -> HeartbeatReply:
        assert lease_s > 0
        if self.error:
            raise self.error
        self.beats.append({each.job_id: progress for each, progress in held.items()})
        self.meanwhile()
        return self.reply

    def release(self, given: Claim, *, reason: str) -> None:
        if self.error:
            raise self.error
        self.released.append((given.job_id, reason))


def until(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def heartbeat(store: FakeStore) -> Iterator[Heartbeat]:
    beating = Heartbeat(store, "me", lease_s=0.15, on_tick=lambda: None)  # type: ignore[arg-type]
    beating.start()
    yield beating
    beating.end()


def test_beats_carry_the_latest_progress_of_what_is_held(heartbeat: Heartbeat, store: FakeStore) -> None:
    first, second = claim(1), claim(2)
    heartbeat.hold([first, second])
    heartbeat.report(first, Progress(epoch=3, epochs=5))
    until(lambda: store.beats and store.beats[-1].keys() == {1, 2} and store.beats[-1][1].epoch == 3)
    heartbeat.drop(first)
    until(lambda: store.beats[-1].keys() == {2})


def test_orders_recall_jobs(heartbeat: Heartbeat, store: FakeStore) -> None:
    paused, cancelled, kept = claim(1), claim(2), claim(3)
    heartbeat.hold([paused, cancelled, kept])
    store.reply = HeartbeatReply(paused=frozenset({1}), lost=frozenset({2}), cancelled=frozenset({2}))
    until(lambda: heartbeat.recalled(paused) and heartbeat.recalled(cancelled))
    assert heartbeat.lost(cancelled)
    assert not heartbeat.lost(paused)
    assert not heartbeat.recalled(kept)


@pytest.mark.parametrize("claimed_again", ["during the beat", "after it"])
def test_orders_for_a_job_that_was_put_down_meanwhile_spare_its_next_claim(
    store: FakeStore, claimed_again: str
) -> None:
    """A paused job is released while a beat still counts it as held: to the database the claim of the beat is lost."""
    heartbeat = Heartbeat(store, "me", lease_s=60.0, on_tick=lambda: None)  # type: ignore[arg-type]
    first, second, other = claim(1), claim(1, fence=2), claim(2)

    def put_down() -> None:
        heartbeat.drop(first)
        if claimed_again == "during the beat":
            heartbeat.hold([second])

    heartbeat.hold([first, other])
    store.reply, store.meanwhile = HeartbeatReply(lost=frozenset({1}), paused=frozenset({2})), put_down
    heartbeat._beat()
    heartbeat.hold([second])
    assert (heartbeat.recalled(second), heartbeat.lost(second)) == (False, False)
    assert heartbeat.recalled(other)
    store.meanwhile = lambda: None
    heartbeat._beat()
    assert (heartbeat.recalled(second), heartbeat.lost(second)) == (True, True)


def test_an_unreachable_database_recalls_nothing(heartbeat: Heartbeat, store: FakeStore) -> None:
    held = claim(1)
    heartbeat.hold([held])
    store.error = DatabaseError("away")
    time.sleep(0.3)
    assert not heartbeat.recalled(held)
    store.error = None
    until(lambda: len(store.beats) > 0)


def test_the_thread_looks_up_every_second_however_long_the_lease() -> None:
    ticked = threading.Event()
    beating = Heartbeat(FakeStore(), "me", lease_s=600.0, on_tick=ticked.set)  # type: ignore[arg-type]
    beating.start()
    assert ticked.wait(60.0)
    beating.end()


def test_the_release_waits_for_the_grace_and_comes_even_if_the_store_fails(store: FakeStore) -> None:
    ended: list[bool] = []
    word = ReleaseDeadline(store, grace_s=1.0, end=lambda: ended.append(True))  # type: ignore[arg-type]
    word.release_if_due(0.0, [claim(1)], "")
    word.release_if_due(time.monotonic(), [claim(1)], "SIGTERM")
    assert (store.released, ended) == ([], [])
    word.release_if_due(time.monotonic() - 1.5, [claim(1)], "SIGTERM")
    assert store.released == [(1, "SIGTERM; the job did not stop within 1 s")]
    store.error = LeaseLost("gone")
    word.release_if_due(time.monotonic() - 1.5, [claim(2)], "SIGTERM")
    assert ended == [True, True]


_LISTENER = """
import signal, sys
from worker.pilot.signals import StopRequest
stop = StopRequest()
stop.listen()
print("ready", flush=True)
while not stop.made:
    stop.wait(0.05)
sys.stdin.readline()  # until the signals that follow have come
print(stop.reason, flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_sent_three_times_is_one_request(name: str) -> None:
    """As Slurm does it: SIGCONT and SIGTERM together, and again."""
    child = subprocess.Popen(
        [sys.executable, "-c", _LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    for number in (signal.SIGCONT, getattr(signal, name), signal.SIGCONT, getattr(signal, name), signal.SIGTERM):
        os.kill(child.pid, number)
        time.sleep(0.1)
    assert child.communicate("\n", timeout=60)[0] == f"{name}\n"
    assert child.returncode == 0


_WAITER = """
import signal
from worker.pilot.signals import StopRequest
while True:
    stop = StopRequest()
    stop.listen()
    print("ready", flush=True)
    while not stop.wait(0.0001):
        pass
"""


def test_a_signal_never_meets_a_lock_that_the_waiting_thread_holds() -> None:
    """Many signals, each at another instruction of the wait. With an Event inside, this hangs within a few hundred."""
    child = subprocess.Popen([sys.executable, "-c", _WAITER], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    watchdog = threading.Timer(120, child.kill)
    watchdog.start()
    try:
        heard = 0
        while heard < 2000 and child.stdout.readline() == "ready\n":
            heard += 1
            time.sleep(random.uniform(0.0, 0.0005))
            os.kill(child.pid, signal.SIGTERM)
        assert heard == 2000
    finally:
        watchdog.cancel()
        child.kill()
        child.wait()


def test_the_first_reason_stays() -> None:
    stop = StopRequest()
    stop.make("SIGTERM")
    since = stop.since
    stop.make("the end of the allocation")
    assert (stop.reason, stop.since) == ("SIGTERM", since)
    assert stop.wait(60.0)
