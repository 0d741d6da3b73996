"""Members as processes on a real cluster: what is killed, stopped or frozen costs no record, and doubles few.

`python -m bench.groups_survive` is the same for a minute, at speed, and with what it takes.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zbroker import GroupDescription, Producer, ZBrokerError
from zbroker.testing.journals import (
    Duplicate,
    Journal,
    Run,
    duplicates,
    missing,
    pauses,
    read_journal,
    taken_over,
)
from zbroker.testing.members import MemberProcess
from zbroker.testing.nodes import ClusterProcesses, wait_for

PARTITIONS = 6
SESSION_S = 2.0


# What journals come to ---


def journal(name: str, *runs: tuple[float, int, int, int]) -> Journal:
    return Journal(name, [Run(*run) for run in runs], [])


def test_what_nobody_was_handed_and_what_two_were() -> None:
    found = [
        journal("a", (1.0, 0, 0, 10), (2.0, 0, 10, 20), (1.5, 1, 0, 5)),
        journal("b", (3.0, 0, 15, 30), (3.0, 1, 7, 9)),
    ]
    assert missing(found, {0: 30, 1: 10, 2: 1}) == [(1, 5, 7), (1, 9, 10), (2, 0, 1)]
    assert duplicates(found) == [Duplicate(0, 15, 20, "b", "a")]
    assert taken_over(found, [0, 1, 2], "a", 2.0) == {0: 3.0, 1: 3.0, 2: float("inf")}


def test_a_pause_is_of_a_partition_that_a_member_had_all_through() -> None:
    found = [
        journal("a", *((at, 0, 0, 0) for at in (1.0, 2.0, 2.5, 4.0, 5.0)), (2.2, 1, 0, 0)),
        journal("b", *((at, 2, 0, 0) for at in (1.0, 5.0)), (1.0, 3, 0, 0), (5.0, 3, 0, 0)),
        journal("c", (3.0, 3, 0, 0)),
    ]
    assert pauses(found, 1.5, 4.5) == {0: 1.5, 2: 4.0}  # 3 was another's in between


def test_a_journal_is_read_but_for_a_line_that_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    path.write_text("started 1.0\ngot 2.0 3 0 7\nfenced 3.5 session\ngot 4.0 3 7")
    found = read_journal("a", path)
    assert found.runs == [Run(2.0, 3, 0, 7)]
    assert found.when("fenced") == 3.5
    assert found.when("fenced", 3.5) is None


# On a cluster ---


class Scene:
    """A cluster with a topic that is written all the time, and a group's members."""

    def __init__(self, folder: Path, cluster: ClusterProcesses) -> None:
        self.cluster = cluster
        self.folder = folder
        self.members: list[MemberProcess] = []
        self.committed: list[tuple[float, dict[int, int]]] = []
        self._numbers = itertools.count(1)
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._produce, self._watch)]

    def start(self) -> None:
        self.cluster.wait_until_healed()
        self.cluster.admin.create_topic("t", partitions=PARTITIONS)
        for thread in self._threads:
            thread.start()

    def _produce(self) -> None:
        with Producer(self.cluster.servers) as producer:
            while not self._ended.wait(0.005):
                for partition in range(PARTITIONS):
                    producer.send("t", b"x" * 50, partition=partition)

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            began = time.monotonic()
            try:
                found = self.cluster.admin.describe_group("g")
            except ZBrokerError:
                continue
            self.committed.append(
                (began, {one.partition: one.offset or 0 for one in found.offsets})
            )

    def add(self, **options: Any) -> MemberProcess:
        member = MemberProcess(
            f"m{next(self._numbers)}", self.cluster.servers, "t", "g", self.folder,
            **({"session_timeout": SESSION_S} | options),
        )  # fmt: skip
        self.members.append(member)
        return member

    def group(self) -> GroupDescription:
        return self.cluster.admin.describe_group("g")

    def wait_for_members(self, count: int) -> None:
        """Waits until so many members share everything and have been handed something."""

        def shared() -> bool:
            try:
                found = self.group()
            except ZBrokerError:
                return False
            held = sum(len(member.assignment) for member in found.members)
            there = [member for member in found.members if member.state != "away"]
            return found.state == "stable" and len(there) == count and held == PARTITIONS

        wait_for(shared, 40, f"{count} members to share everything")

    def end(self) -> dict[int, int]:
        """Sends no more and waits until all is read and committed; answers the partitions' ends."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

        def drained() -> dict[int, int] | None:
            found = self.group().offsets
            if len(found) < PARTITIONS or any(one.lag != 0 for one in found):
                return None
            return {one.partition: one.offset or 0 for one in found}

        ends: dict[int, int] = wait_for(drained, 40, "everything to be committed")
        return ends

    def committed_before(self, moment: float) -> dict[int, int]:
        """What was committed for certain by then."""
        return next(
            (found for at, found in reversed(self.committed) if at < moment), dict[int, int]()
        )

    def close(self) -> None:
        self._ended.set()
        for member in self.members:
            member.kill()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with ClusterProcesses(tmp_path / "nodes") as cluster:
        scene = Scene(tmp_path, cluster)
        try:
            scene.start()
            yield scene
        finally:
            scene.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_group_survives_what_its_members_and_its_coordinator_do_not(scene: Scene) -> None:
    stays, stopped, killed, frozen = (scene.add() for _ in range(4))
    scene.wait_for_members(4)
    assert stopped.stop() == 0
    scene.wait_for_members(3)
    killed.kill()
    scene.wait_for_members(2)
    scene.add()
    scene.wait_for_members(3)

    coordinator = scene.group().coordinator
    scene.cluster.kill(coordinator)
    scene.wait_for_members(3)
    scene.cluster.restart(coordinator)

    frozen.freeze()
    scene.wait_for_members(2)
    frozen.thaw()
    woke = frozen.frozen[-1][1]
    told = wait_for(lambda: frozen.journal().when("fenced", woke), 20, "the frozen member's news")
    assert frozen.journal().runs_between(woke, told) == []
    scene.wait_for_members(3)

    ends = scene.end()
    journals = [member.journal() for member in scene.members]
    assert missing(journals, ends) == []
    for found in duplicates(journals):
        (before,) = [member for member in scene.members if member.name == found.before]
        assert before in (killed, frozen), found
        died = before.died_at if before is killed else frozen.frozen[0][0]
        assert died is not None
        assert found.first >= scene.committed_before(died).get(found.partition, 0), found
    assert not any(kind == "fenced" for kind, *_ in stays.journal().entries)
    assert "Traceback" not in "".join(member.said() for member in scene.members)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_static_members_that_are_restarted_one_by_one_keep_their_partitions(scene: Scene) -> None:
    running = [scene.add(instance=f"i{number}", session_timeout=10) for number in range(3)]
    scene.wait_for_members(3)
    before = scene.group()
    for number, member in enumerate(running):
        assert member.stop() == 0
        scene.add(instance=f"i{number}", session_timeout=10)
        scene.wait_for_members(3)
    after = scene.group()
    assert (after.epoch, after.rebalances) == (before.epoch, before.rebalances)
    shares = [{one.instance: one.assignment for one in look.members} for look in (before, after)]
    assert shares[0] == shares[1]
    ends = scene.end()
    journals = [member.journal() for member in scene.members]
    assert missing(journals, ends) == []
    assert duplicates(journals) == []
