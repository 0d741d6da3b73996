"""A consumer group through everything: members come, stop, are killed and freeze, and its coordinator is killed twice.

    python -m bench.groups_survive [--rate 20000] [--session 4] [--fsync always] [--part all|survive|rolling]

Three nodes, 12 partitions, a producer, and six members as processes of their own. At the end every record was
processed; twice only what a member had in hand or had not committed when it died. For each event: how long the
partitions that it moved were without a reader, and how long the others paused. Beside it stands the longest that one
thread took meanwhile for a small append and its flush, in turn with naps, on the same disk: what the machine itself
adds to every pause. Then six static members are restarted one after the other, as when a new version is rolled out:
no partition moves.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from zbroker import Admin, GroupDescription, Producer, ZBrokerError
from zbroker.testing.journals import Journal, duplicates, missing, pauses, taken_over
from zbroker.testing.members import MemberProcess
from zbroker.testing.nodes import ClusterProcesses, wait_for

TOPIC, GROUP = "bench", "survivors"
PARTITIONS, MEMBERS = 12, 6
BATCH_S = 0.01
LOOK_S = 0.1
NAP_S = 0.01
PAUSE_S = 0.1
"""How long a partition may pause that an event does not concern, beside what the machine itself took."""
SETTLE_S = 1.5
"""Seconds before and after an event over which the others' pauses are looked at."""


class Watcher:
    """Looks at the group again and again: what it has committed, and when."""

    def __init__(self, servers: str) -> None:
        self.looks: list[tuple[float, GroupDescription]] = []
        self._go_on = True
        self._admin = Admin(servers, timeout=2.0, client_id="watcher")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._go_on:
            began = time.monotonic()
            with contextlib.suppress(ZBrokerError):
                self.looks.append((began, self._admin.describe_group(GROUP)))
            time.sleep(LOOK_S)

    def committed(self, before: float) -> dict[int, int]:
        """What was committed for certain at a moment."""
        found: dict[int, int] = {}
        for at, look in self.looks:
            if at < before:
                found = {one.partition: one.offset or 0 for one in look.offsets}
        return found

    def new_coordinator(self, since: float, until: float) -> float | None:
        """When another node was seen to coordinate, the last time in between; sessions begin anew then."""
        found = None
        for (_, before), (at, after) in itertools.pairwise(self.looks):
            if since < at < until and before.coordinator != after.coordinator:
                found = at
        return found

    def close(self) -> None:
        self._go_on = False
        self._thread.join()
        self._admin.close()


class Yardstick:
    """One thread that naps, appends a little to a file and flushes it, again and again: how long that takes here."""

    def __init__(self, folder: Path) -> None:
        self._took: list[tuple[float, float]] = []
        self._go_on = True
        self._path = folder / "yardstick"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._path.open("wb", buffering=0) as out:
            while self._go_on:
                began = time.monotonic()
                time.sleep(NAP_S)
                out.write(b"x" * 100)
                os.fdatasync(out.fileno())
                self._took.append((began, time.monotonic() - began - NAP_S))

    def longest(self, since: float, until: float) -> float:
        """The longest in between, in seconds."""
        return max((took for at, took in self._took if since < at < until), default=0.0)

    def close(self) -> None:
        self._go_on = False
        self._thread.join()


class Scene:
    """The cluster, its members, and what is done to them."""

    def __init__(self, cluster: ClusterProcesses, folder: Path, session: float) -> None:
        self.cluster = cluster
        self.folder = folder
        self.session = session
        self.members: dict[str, MemberProcess] = {}
        self.all: list[MemberProcess] = []
        self.events: list[tuple[float, str, str]] = []
        """When, what, and to whom."""
        self._numbers = itertools.count(1)

    def add(self, instance: str | None = None) -> str:
        """Another member."""
        name = f"m{next(self._numbers)}"
        options = {"session_timeout": self.session} | ({"instance": instance} if instance else {})
        member = MemberProcess(name, self.cluster.servers, TOPIC, GROUP, self.folder, **options)
        self.members[name] = member
        self.all.append(member)
        return name

    def event(self, what: str, whom: str) -> None:
        """Notes what is done."""
        self.events.append((time.monotonic(), what, whom))
        print(f"  {what:8} {whom}", flush=True)

    def stop(self, name: str) -> None:
        self.event("stop", name)
        status = self.members.pop(name).stop()
        assert status == 0, f"{name} ended with {status}"

    def kill(self, name: str) -> None:
        self.event("kill", name)
        self.members.pop(name).kill()

    def journals(self) -> list[Journal]:
        return [member.journal() for member in self.all]

    def stable(self, count: int) -> Callable[[], bool]:
        """Whether so many members share everything."""

        def found() -> bool:
            try:
                group = self.cluster.admin.describe_group(GROUP)
            except ZBrokerError:
                return False
            held = sum(len(member.assignment) for member in group.members)
            return group.state == "stable" and len(group.members) == count and held == PARTITIONS

        return found

    def close(self) -> None:
        for member in self.all:
            member.kill()


def produce(servers: str, rate: int) -> None:
    """Sends at a steady rate until standard input ends."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    sent = 0
    began = time.monotonic()
    with Producer(servers, delivery_timeout=60.0) as producer:
        while not ended.wait(BATCH_S):
            due = int((time.monotonic() - began) * rate)
            for number in range(sent, due):
                producer.send(TOPIC, b"%020d" % number + bytes(80), partition=number % PARTITIONS)
            sent = due
    print(sent, flush=True)


def survive(scene: Scene, rate: int, fsync: str) -> bool:
    """A minute of everything, and what came of it."""
    cluster, session = scene.cluster, scene.session
    cluster.admin.create_topic(TOPIC, partitions=PARTITIONS, fsync=fsync)
    producer = subprocess.Popen(
        [sys.executable, "-m", "bench.groups_survive", "--produce", cluster.servers, "--rate", str(rate)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    watcher, yardstick = Watcher(cluster.servers), Yardstick(scene.folder)
    try:
        first = [scene.add() for _ in range(MEMBERS)]
        wait_for(scene.stable(MEMBERS), 60, "the group to be stable")
        time.sleep(3)
        scene.event("nothing", "-")
        time.sleep(4)
        scene.event("add", scene.add())
        time.sleep(4)
        scene.stop(first[1])
        time.sleep(4)
        scene.kill(first[2])
        time.sleep(session + 2)
        scene.event("add", scene.add())
        time.sleep(3)
        kill_coordinator(scene)
        time.sleep(4)
        frozen = scene.members[first[3]]
        scene.event("freeze", frozen.name)
        frozen.freeze()
        time.sleep(session + 3)
        frozen.thaw()
        scene.event("thaw", frozen.name)
        time.sleep(4)
        scene.stop(first[4])
        time.sleep(3)
        scene.event("add", scene.add())
        time.sleep(3)
        kill_coordinator(scene)
        time.sleep(3)
        scene.kill(first[5])
        time.sleep(session + 3)
        sent = int(producer.communicate(timeout=120)[0])
        ends = wait_for(lambda: drained(scene), 60, "everything to be read and committed")
        for name in list(scene.members):
            scene.members.pop(name).stop()
    finally:
        producer.kill()
        watcher.close()
        yardstick.close()
        scene.close()
    return judge(scene, watcher, yardstick, sent, ends)


def kill_coordinator(scene: Scene) -> None:
    """Kills the node that coordinates the group, and starts it again a while later."""
    name = scene.cluster.admin.describe_group(GROUP).coordinator
    scene.event("kill", name)
    scene.cluster.kill(name)
    time.sleep(4)
    scene.event("start", name)
    scene.cluster.nodes[name].spawn()
    scene.cluster.wait_until_healed(60)


def drained(scene: Scene) -> dict[int, int] | None:
    """The partitions' ends, once the group has committed up to there."""
    found = scene.cluster.admin.describe_group(GROUP)
    if len(found.offsets) < PARTITIONS or any(one.lag != 0 for one in found.offsets):
        return None
    return {one.partition: one.offset or 0 for one in found.offsets}


def judge(
    scene: Scene, watcher: Watcher, yardstick: Yardstick, sent: int, ends: dict[int, int]
) -> bool:
    """Prints what came of it; False where something is not as it must be."""
    journals = {journal.name: journal for journal in scene.journals()}
    wrong: list[str] = []
    print(f"\n{sent:,} records sent, {sum(ends.values()):,} in the log, ", end="")
    lost = missing(journals.values(), ends)
    wrong += [f"nobody was handed {gap}" for gap in lost[:5]]
    twice = duplicates(journals.values())
    print(f"{sum(one.after - one.first for one in twice):,} handed out twice")
    wrong += bad_duplicates(scene, watcher, twice)
    (quiet,) = [at for at, what, _ in scene.events if what == "nothing"]
    noise = longest_pause(journals, "", quiet, quiet + SETTLE_S)[0]
    for event in scene.events:
        wrong += moved(scene, watcher, yardstick, journals, event, noise)
    print()
    for line in wrong:
        print(f"WRONG: {line}")
    return not wrong


def bad_duplicates(scene: Scene, watcher: Watcher, twice: list) -> list[str]:  # type: ignore[type-arg]
    """Duplicates without an excuse: of a member that did not die, or of what it had committed."""
    wrong = []
    for member in scene.all:
        mine = [one for one in twice if one.before == member.name]
        moments = [at for at in (member.died_at, *(since for since, _ in member.frozen)) if at]
        if not moments:
            out = [at for kind, at, _ in member.journal().entries if kind == "fenced"]
            wrong += [f"{member.name} was put out of the group" for _ in out]
            wrong += [f"{one} though {member.name} did not die" for one in mine[:3]]
            continue
        committed = watcher.committed(max(moments))
        bad = [one for one in mine if one.first < committed.get(one.partition, 0)]
        wrong += [f"{one} was committed" for one in bad[:3]]
    return wrong


def longest_pause(
    journals: dict[str, Journal], but: str, since: float, until: float
) -> tuple[float, int]:
    """The longest pause in partitions that stayed with a member, in seconds, and how many partitions those are."""
    held = (
        {run.partition for run in journals[but].runs_between(since, until)}
        if but in journals
        else set()
    )
    found = pauses(journals.values(), since, until)
    others = [pause for partition, pause in found.items() if partition not in held]
    return max(others, default=0.0), len(others)


def moved(
    scene: Scene,
    watcher: Watcher,
    yardstick: Yardstick,
    journals: dict[str, Journal],
    event: tuple[float, str, str],
    noise: float,
) -> list[str]:
    """How long an event's partitions were without a reader, and how long the others paused.

    What is too long on a machine that has nothing else to do may be `noise` longer on this one: so long do partitions
    pause while nothing happens.
    """
    at, what, whom = event
    wrong: list[str] = []
    text = ""
    if whom in journals and what in ("stop", "kill", "freeze"):
        last = at
        held = {run.partition for run in journals[whom].runs_between(at - 1.0, at)}
        if what == "stop":
            last = journals[whom].when("closing", at - 1) or at
        limit = 0.1 if what == "stop" else scene.session + 0.2
        if what != "stop":
            limit += (watcher.new_coordinator(at, at + scene.session + 0.2) or at) - at
        came = taken_over(journals.values(), held, whom, last)
        longest = max((moment - last for moment in came.values()), default=0.0)
        text = f"its {len(held)} partitions with others after {longest * 1000:.0f} ms (limit {limit * 1000:.0f})"
        if limit + noise < longest < float("inf"):
            wrong.append(f"{what} {whom}: {text}")
    if what == "thaw":
        told = journals[whom].when("fenced", at) or float("inf")
        handed = journals[whom].runs_between(at, told)
        text = f"told after {(told - at) * 1000:.0f} ms, handed {len(handed)} batches before that"
        if handed or told == float("inf"):
            wrong.append(f"{whom} woke up: {text}")
    after = at + (scene.session + SETTLE_S if what in ("kill", "freeze") else SETTLE_S)
    pause, count = longest_pause(journals, whom, at - 0.2, after)
    if count:
        machine = yardstick.longest(at - 0.2, after)
        others = (
            f"others' {count} partitions paused up to {pause * 1000:.0f} ms "
            f"(yardstick {machine * 1000:.0f} ms)"
        )
        if pause > PAUSE_S + machine:
            wrong.append(f"{what} {whom}: {others}")
        text += f"{'; ' if text else ''}{others}"
    print(f"  {what:8} {whom:6} {text}")
    return wrong


def rolling(scene: Scene) -> bool:
    """Static members are restarted one after the other."""
    scene.cluster.admin.create_topic(TOPIC, partitions=PARTITIONS)
    names = [scene.add(f"i{number}") for number in range(MEMBERS)]
    wait_for(scene.stable(MEMBERS), 60, "the group to be stable")
    before = scene.cluster.admin.describe_group(GROUP)
    for number, name in enumerate(names):
        scene.stop(name)
        scene.event("start", scene.add(f"i{number}"))
        wait_for(lambda: here(scene) == MEMBERS, 30, "the member to be back")
    after = scene.cluster.admin.describe_group(GROUP)
    scene.close()
    same = shares(before) == shares(after)
    print(
        f"\nrolling: epoch {before.epoch} before and {after.epoch} after, "
        f"{after.rebalances - before.rebalances} assignments anew, "
        f"each has {'what it had' if same else 'other partitions'}"
    )
    return same and before.epoch == after.epoch and before.rebalances == after.rebalances


def here(scene: Scene) -> int:
    """How many members are there, and not between two starts."""
    found = scene.cluster.admin.describe_group(GROUP)
    return sum(member.state != "away" for member in found.members)


def shares(found: GroupDescription) -> dict[str | None, tuple[tuple[str, int], ...]]:
    """What each static member has."""
    return {member.instance: member.assignment for member in found.members}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=20_000, help="records a second")
    parser.add_argument(
        "--session", type=float, default=4.0, help="the members' session timeout, seconds"
    )
    parser.add_argument(
        "--fsync", choices=["always", "interval", "never"], default="always", help="of the topic that is read"
    )  # fmt: skip
    parser.add_argument("--part", choices=["all", "survive", "rolling"], default="all")
    parser.add_argument("--keep", type=Path, help="a folder in which journals and logs are left")
    parser.add_argument("--produce", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.produce:
        produce(told.produce, told.rate)
        return
    well = True
    for part in ("survive", "rolling") if told.part == "all" else (told.part,):
        print(part)
        with contextlib.ExitStack() as stack:
            kept = told.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            cluster = stack.enter_context(ClusterProcesses(kept / part))
            scene = Scene(cluster, kept / part, told.session)
            cluster.wait_until_healed()
            well = (
                survive(scene, told.rate, told.fsync) if part == "survive" else rolling(scene)
            ) and well
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
