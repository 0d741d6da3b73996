"""Disk work: what goes to threads, what the reactor does itself, and when it keeps its hands off the disk."""

from __future__ import annotations

import errno
import select
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zbroker.log.names import LOG, path
from zbroker.log.requests import QUICK_MAX, Write
from zbroker.log.storage import Completion, Files, Lane, Request
from zbroker.node.files import RealFiles
from zbroker.node.storage import LONG_S, REST_MAX_S, REST_S, ThreadedStorage
from zbroker.testing.nodes import wait_for


class Work(Request):
    """Says where it ran; waits there if it is told to."""

    small: bool = True
    until: Any = None
    takes: Any = None
    fails: bool = False
    """Only as `quick`."""

    @property
    def quick(self) -> bool:
        return self.small

    def attempt(self, files: Files) -> None:
        if self.fails:
            raise OSError(errno.ENOSPC, "full")
        self.run(files)

    def run(self, files: Files) -> int:
        if self.takes is not None:
            self.takes()
        if self.until is not None:
            assert self.until.wait(10)
        return threading.get_ident()


class Disk:
    """A storage with a clock that stands still unless work takes time."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.storage = ThreadedStorage(RealFiles(folder), clock=lambda: self.now)

    def work(self, lane: Lane = "write", seconds: float = 0.0, **fields: Any) -> Work:
        def passes() -> None:
            self.now += seconds

        work = Work(owner="a", lane=lane, takes=passes, **fields)
        self.storage.submit(work)
        return work

    def here(self) -> list[Request]:
        """What the reactor has done itself."""
        return [completion.request for completion in self.storage.run_quick()]

    def elsewhere(self, count: int = 1) -> list[Completion]:
        """What threads have done."""
        done: list[Completion] = []
        wait_for(lambda: done.extend(self.storage.completions()) or len(done) >= count, 10)
        assert all(completion.result != threading.get_ident() for completion in done)
        return done


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.storage.close()


def test_what_is_quick_is_done_by_the_reactor_in_order_and_not_before_it_asks(disk: Disk) -> None:
    first, second = disk.work(), disk.work()
    assert not disk.storage.completions()
    assert disk.here() == [first, second]
    assert disk.here() == []


def test_what_is_not_quick_goes_to_a_thread(disk: Disk) -> None:
    work = disk.work(small=False)
    assert disk.here() == []
    assert [completion.request for completion in disk.elsewhere()] == [work]


@pytest.mark.parametrize("lane", ["write", "flush", "compaction", "metadata"])
def test_while_a_thread_is_at_the_disk_the_reactor_keeps_away_from_it(
    disk: Disk, lane: Lane
) -> None:
    gate = threading.Event()
    disk.work(lane, small=False, until=gate)
    disk.work()
    assert disk.here() == []
    gate.set()
    disk.elsewhere(2)
    again = disk.work()
    assert disk.here() == [again]


def test_what_was_queued_goes_to_a_thread_where_one_came_to_the_disk_meanwhile(disk: Disk) -> None:
    """An interval's flush is asked for in the same turn, of the same file perhaps."""
    gate = threading.Event()
    work = disk.work()
    disk.work("flush", small=False, until=gate)
    assert disk.here() == []
    gate.set()
    assert work in [completion.request for completion in disk.elsewhere(2)]


def test_what_fails_is_done_by_a_thread(disk: Disk) -> None:
    work = disk.work(fails=True)
    assert disk.here() == []
    assert [completion.request for completion in disk.elsewhere()] == [work]


def test_once_a_turn_took_long_the_rest_of_it_goes_to_threads(disk: Disk) -> None:
    first, second, third = (
        disk.work(seconds=0.6 * LONG_S),
        disk.work(seconds=0.6 * LONG_S),
        disk.work(),
    )
    assert disk.here() == [first, second]
    assert [completion.request for completion in disk.elsewhere()] == [third]
    disk.now += REST_S * 1.01
    again = disk.work()
    assert disk.here() == [again], "it was one incident"


def test_the_reactor_is_not_woken_again_for_what_it_knows(disk: Disk) -> None:
    disk.work(small=False)
    disk.elsewhere()
    assert not disk.storage.completions()
    assert select.select([disk.storage], [], [], 0)[0] == []


def test_reads_do_not_keep_the_reactor_away(disk: Disk) -> None:
    gate = threading.Event()
    disk.work("read", small=False, until=gate)
    work = disk.work()
    assert disk.here() == [work]
    gate.set()
    disk.elsewhere()


def test_after_one_that_took_long_the_threads_do_them_for_longer_each_time(disk: Disk) -> None:
    rest = REST_S
    for _ in range(9):
        disk.work(seconds=2 * LONG_S)
        assert len(disk.here()) == 1
        disk.now += rest * 0.99
        disk.work()
        assert disk.here() == []
        disk.elsewhere()
        disk.now += rest * 0.02
        rest = min(2 * rest, REST_MAX_S)
    disk.now += 11 * REST_MAX_S
    disk.work(seconds=2 * LONG_S)
    assert len(disk.here()) == 1
    disk.now += REST_S * 1.01
    disk.work()
    assert len(disk.here()) == 1, "after a long calm it begins anew"


def test_what_is_quick_is_done_before_the_threads_end(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    ran = threading.Event()
    disk.storage.submit(Work(owner="a", lane="write", takes=ran.set))
    disk.storage.close()
    assert ran.is_set()


WRITE = {
    "base": 0, "position": 0, "buffers": [b"x" * QUICK_MAX], "create": False, "epochs": None, "flush": [],
    "flush_folder": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "quick"),
    [
        ({}, True),
        ({"buffers": [b"x" * QUICK_MAX, b"x"]}, False),
        ({"create": True}, False),
        ({"epochs": b"e"}, False),
        ({"flush": [0]}, False),
    ],
)
def test_a_write_is_quick_that_is_small_and_waits_for_no_disk(
    disk: Disk, tmp_path: Path, fields: dict[str, Any], quick: bool
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / path("a", 0, LOG)).touch()
    write = Write(owner="a", lane="write", **{**WRITE, **fields})
    assert write.quick is quick
    disk.storage.submit(write)
    done = [*disk.storage.run_quick()]
    assert bool(done) is quick
    if not quick:
        wait_for(lambda: done.extend(disk.storage.completions()) or done, 10)
    assert done[0].error is None
    assert (tmp_path / path("a", 0, LOG)).read_bytes() == b"".join(write.buffers)
