"""The frame of every measurement: cases, who takes part in them, and the order in which they run.

A case is one piece of work; each client of each system that can do it does it. Cases that need the same servers (an
`Arena`) share them, and systems take turns: one run is every system once, arena by arena, so that what a noisy machine
does to one it does to its neighbours in the table. Owns no number: `results` keeps them.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers import known
from bench.peers.base import Arena, Client, Running, System, Unsupported
from bench.results import Results
from bench.targets import compares
from bench.worker import BenchError, Worker, ring_file

Figures = Mapping[str, float]
RING = 4096
RING_BYTES_MAX = 32 << 20


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        quick: few cases, each short.
        aimed: of peers, only what a target names: five minutes for all systems, with `quick`.
        runs: how often every case is measured.
        seconds: how long a producer sends.
        size: bytes in the log of the node that is restarted.
    """

    quick: bool = False
    aimed: bool = False
    runs: int = 3
    seconds: float = 2.0
    size: int = 10 << 30


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        scenario: the name of its file.
        name: what tells it from others of the scenario.
        arena: the servers that it needs; None where it starts its own.
        action: clients that know this take part.
        measure: does it once, and gives figures by metric.
        quick: whether it is part of a quick run.
        spoils: its servers are of no use to others afterwards.
        unless: systems that do not take part, with the sentence that says why.
    """

    scenario: str
    name: str
    arena: Arena | None
    action: str
    measure: Callable[[Ground, Client], Figures]
    quick: bool = False
    spoils: bool = False
    unless: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)


@dataclass
class Ground:
    """What a case stands on while it is measured."""

    system: System
    plan: Plan
    folder: Path
    running: Running | None = None
    memo: dict[object, Any] = field(default_factory=dict)
    """What cases on the same servers share."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def servers(self) -> Running:
        """The servers of the case's arena."""
        assert self.running is not None, "this case starts its own servers"
        return self.running

    def worker(self, client: Client, action: str, **told: Any) -> Worker:
        """A load generator of this system."""
        if "servers" not in told:
            told["servers"] = self.servers.servers
        servers_say = getattr(self.running, "told", {})
        told = {**client.told, **servers_say, **told}
        if self.plan.quick and "warm_ms" in told:
            told["warm_ms"] //= 2
        return Worker(client.command, action, client.env, **told)

    def new_name(self) -> str:
        """A topic's name that was not used on these servers."""
        return f"t{next(self._numbers)}"

    @contextlib.contextmanager
    def topic(self, *, partitions: int = 1, topics: int = 1) -> Iterator[str]:
        """A topic of its own, gone afterwards."""
        name = self.new_name()
        self.servers.create(name, partitions=partitions, topics=topics)
        try:
            yield name
        finally:
            self.servers.delete(name, topics=topics)

    def ring(self, size: int, lanes: int = 1) -> Path:
        """The values that producers send; the more partitions, the longer, so that order can be told."""
        length = RING if lanes == 1 else RING * 64
        return ring_file(self.folder, size, max(256, min(length, RING_BYTES_MAX // size)))

    def client(self, name: str) -> Client:
        """A client of this system by its name."""
        return next(client for client in self.system.clients if client.name == name)

    @property
    def filler(self) -> Client:
        """The client that produces what others only read: the quickest whose records are numbered."""
        order = ("send_many", "send", "java", "go, fast batches", "redis-py")
        names = {client.name: client for client in self.system.clients}
        return next(names[name] for name in order if name in names)

    @property
    def reader(self) -> Client:
        """The client that reads everything back."""
        found = known()[self.system.name].clients
        return next(client for client in found if "consume" in client.does)


def _nodes(arena: Arena | None) -> int:
    return 0 if arena is None else arena.nodes


def _does(ground: Ground, arena: Arena) -> bool:
    """Whether the servers that run can be this arena's, too; then they are."""
    running = ground.running
    if running is None or running.arena.nodes != arena.nodes:
        return False
    if not {running.arena.fsync, arena.fsync} <= ground.system.by_topic:
        return False
    running.arena = arena
    return True


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def warm_up(ground: Ground) -> None:
    """Some records through servers that are slow until they have compiled themselves; nobody measures them."""
    for name in ground.system.warm_with:
        with (
            ground.topic() as topic,
            ground.worker(
                ground.client(name), "produce", topic=topic, size=100, ring=ground.ring(100),
                seconds_ms=int(ground.plan.seconds * 1000),
            ) as worker,
        ):  # fmt: skip
            worker.ready().go().result()


@dataclass
class Session:
    """Cases, systems, and what has been found so far."""

    plan: Plan
    systems: Sequence[System]
    cases: Sequence[Case]
    results: Results
    say: Callable[[str], None] = print
    keep: Callable[[], None] = lambda: None
    """Called after every system's turn: what was found until then is not lost."""

    def run(self) -> None:
        """Measures everything."""
        arenas = list(dict.fromkeys(case.arena for case in self.cases))
        places = list(dict.fromkeys(_nodes(arena) for arena in arenas))
        for run in range(self.plan.runs):
            for nodes in places:
                for system in self.systems:
                    self._turn(run, system, [one for one in arenas if _nodes(one) == nodes])
                    self.keep()

    def _turn(self, run: int, system: System, arenas: Sequence[Arena | None]) -> None:
        """One system's part of a run, on so many nodes: on the same servers as far as those can do it."""
        todo = [(arena, list(self._parts(system, arena))) for arena in arenas]
        todo = [(arena, parts) for arena, parts in todo if parts]
        if not todo:
            return
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            contextlib.ExitStack() as stack,
        ):
            values = Path(folder) / "values"
            values.mkdir()
            ground = Ground(system, self.plan, values)
            began, warming, numbers = time.monotonic(), 0.0, itertools.count()
            for arena, parts in todo:
                for case, client in parts:
                    start = time.monotonic()
                    try:
                        if arena is not None and not _does(ground, arena):
                            stack.close()
                            ground.running = None  # also where no others start in their place
                            servers = _made(Path(folder) / f"servers{next(numbers)}")
                            ground.running = stack.enter_context(system.start(servers, arena))
                            ground.memo.clear()
                            warm_up(ground)
                    except Unsupported as reason:
                        self.results.skip(system.name, case.scenario, case.name, str(reason))
                        continue
                    except BenchError as error:
                        self.results.fail(system.name, case.scenario, case.name, str(error))
                        self.say(f"FAILED {system.title}, {arena}: {error}")
                        ground.running = None
                        break
                    warming += time.monotonic() - start
                    self._measure(run, ground, case, client)
                    if case.spoils:
                        ground.running = None
        where = " and ".join(str(arena or "servers of its own") for arena, _ in todo)
        self.say(
            f"run {run + 1}: {system.title}, {where}: {time.monotonic() - began:.1f} s, "
            f"{warming:.1f} of them until its servers were warm"
        )

    def _parts(self, system: System, arena: Arena | None) -> Iterator[tuple[Case, Client]]:
        for case in sorted(self.cases, key=lambda case: case.spoils):
            if case.arena != arena:
                continue
            if system.name in case.unless:
                self.results.skip(system.name, case.scenario, case.name, case.unless[system.name])
                continue
            for client in system.clients:
                if case.action not in client.does:
                    continue
                if self.plan.aimed and not compares(system, client, case.scenario, case.name):
                    continue
                yield case, client

    def _measure(self, run: int, ground: Ground, case: Case, client: Client) -> None:
        start = time.monotonic()
        where = f"{case.scenario}: {case.name}, {ground.system.title} {client.name}"
        try:
            figures = case.measure(ground, client)
        except Unsupported as reason:
            self.results.skip(ground.system.name, case.scenario, case.name, str(reason))
            return
        except (BenchError, OSError, ValueError, KeyError) as error:
            self.results.fail(ground.system.name, case.scenario, case.name, repr(error))
            self.say(f"FAILED {where}: {error}")
            return
        for metric, value in figures.items():
            self.results.add(case.scenario, case.name, ground.system.name, client, metric, value)
        said = ", ".join(f"{value:,.4g} {metric}" for metric, value in figures.items())
        self.say(f"run {run + 1}: {where}: {said} [{time.monotonic() - start:.1f} s]")
