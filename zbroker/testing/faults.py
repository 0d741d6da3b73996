"""What goes wrong in a simulated cluster, when, and for how long: a schedule that follows from a seed.

Owns the atlas of faults: each of `Faults`' methods begins one and sees to its end. Keeps what no settings could bear
from happening: at most one disk is damaged or emptied in a run, and only while others have everything that it had.
`PROFILES` says how likely each fault is; a profile is a row of weights.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import msgspec

from zbroker.cluster.quorum import FOLDER as METADATA
from zbroker.errors import DataFolderError
from zbroker.testing.cluster import Machine, SimulatedCluster
from zbroker.testing.timeline import MS, SECOND
from zbroker.topics import Fsync


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How a cluster is treated.

    Attributes:
        fsyncs: what the topic `b` has, one of them.
        pause: least and most milliseconds between two faults.
        weights: how likely each fault is, by the name of its method.
        churn: topics are deleted and made again, and records deleted, while all this goes on.
        moves: partitions are moved, and nodes drained, on four or five nodes.
    """

    about: str
    weights: dict[str, int]
    pause: tuple[int, int] = (100, 1500)
    churn: bool = False
    moves: bool = False
    fsyncs: tuple[Fsync, ...] = ("always", "always", "interval", "never")


PROCESS = {"kill": 6, "kill_leader": 4, "kill_all": 1, "freeze": 4, "restart": 3}
NETWORK = {
    "isolate": 3, "halves": 2, "bridge": 2, "ring": 1, "one_way": 3, "break_connections": 3, "delay": 2,
    "low_rate": 2, "double": 2, "lose_pushes": 2,
}  # fmt: skip
DISK = {
    "power_loss": 4, "power_loss_all": 1, "crash_in_request": 4, "slow_disk": 3, "full_disk": 2, "failed_flush": 2,
}  # fmt: skip
CLOCK = {"clock_jump": 2, "clock_drift": 1, "clock_strobe": 1, "clock_pace": 2}

DAMAGE = {"flip": 4, "cut_file": 2, "lose_file": 3, "harm_metadata": 3, "replace": 2}

PROFILES: dict[str, Profile] = {
    "calm": Profile(about="nothing goes wrong", weights={}),
    "process": Profile(about="kills, freezes and restarts", weights=PROCESS),
    "network": Profile(about="cuts, delays and broken connections", weights=NETWORK),
    "disk": Profile(about="power failures, slow, full and failing disks", weights=DISK),
    "mixed": Profile(about="all of these", weights={**PROCESS, **NETWORK, **DISK, **CLOCK}),
    "churn": Profile(
        about="the same, while topics are deleted and made again",
        weights={**PROCESS, **NETWORK, **DISK, **CLOCK},
        churn=True,
    ),
    "moves": Profile(
        about="the same, while partitions are moved and nodes drained",
        weights={**PROCESS, **NETWORK, **DISK, **CLOCK},
        moves=True,
    ),
    "damage": Profile(
        about="bits flipped, files cut and lost, a disk replaced; kills and cuts beside it",
        weights={**PROCESS, **NETWORK, **DAMAGE},
    ),
    "dark": Profile(
        about="machines lose their power, one or all, under topics that are not flushed at once",
        weights={
            "power_loss": 4,
            "power_loss_all": 4,
            "crash_in_request": 4,
            "kill_leader": 2,
            "freeze": 2,
            "isolate": 2,
            "one_way": 2,
            "break_connections": 2,
            "slow_disk": 1,
            "restart": 2,
        },
        fsyncs=("interval", "never"),
    ),
    "storm": Profile(
        about="the same without a pause",
        weights={**PROCESS, **NETWORK, **DISK, **CLOCK},
        pause=(10, 250),
    ),
}


class Faults:
    """The faults of one run.

    Attributes:
        done: how often each fault began.
        active: whether new ones begin.
        harmed: the one node whose disk may be damaged or replaced.
        replaced: the voter whose disk is another now; somebody has to say so by command.
    """

    def __init__(self, cluster: SimulatedCluster, profile: Profile) -> None:
        self.cluster = cluster
        self.profile = profile
        self.rng = random.Random(f"{cluster.seed} faults")
        self.active = False
        self.done: Counter[str] = Counter()
        self.harmed: str | None = None
        self.replaced: str | None = None
        self._metadata_harmed: str | None = None
        self._down: set[str] = set()

    def begin(self) -> None:
        """Things go wrong from now on."""
        self.active = True
        self._next()
        self._revive()

    def end(self) -> None:
        """Nothing new goes wrong; what is wrong is for `SimulatedCluster.heal` to mend."""
        self.active = False
        self._down.clear()

    def _next(self) -> None:
        if not self.active or not self.profile.weights:
            return
        names = sorted(self.profile.weights)
        (name,) = self.rng.choices(names, [self.profile.weights[name] for name in names])
        self.cluster.trace.note("fault", name)
        self.done[name] += 1
        getattr(self, name)()
        self.cluster.timeline.after(self.rng.randint(*self.profile.pause) * MS, self._next)

    def _revive(self) -> None:
        """Processes that failed are started again, as by a supervisor."""
        if not self.active:
            return
        for machine in self.cluster.machines.values():
            if not machine.up and machine.name not in self._down:
                self.attend(machine)
                self._start_later(machine)
        self.cluster.timeline.after(200 * MS, self._revive)

    def _start_later(self, machine: Machine, most: float = 4.0) -> None:
        self._down.add(machine.name)
        delay = int(self.rng.choice((0.05, 0.3, 1.0, most)) * SECOND * (0.5 + self.rng.random()))

        def start() -> None:
            if self.active:
                self._down.discard(machine.name)
                if not machine.up:
                    machine.start()

        self.cluster.timeline.after(delay, start)

    def _for_a_while(self, undo: Callable[[], None], most: float = 5.0) -> None:
        seconds = self.rng.choice((0.2, 0.8, 1.5, most)) * (0.5 + self.rng.random())
        self.cluster.timeline.after(int(seconds * SECOND), lambda: undo() if self.active else None)

    def _any(self) -> Machine | None:
        up = self.cluster.up
        return self.rng.choice(up) if up else None

    # Processes ---

    def kill(self) -> None:
        """SIGKILL to one."""
        machine = self._any()
        if machine is not None:
            machine.kill()
            self._start_later(machine)

    def kill_leader(self) -> None:
        """SIGKILL to who leads most, or to the controller, and to the one after it a moment later."""
        up = self.cluster.up
        if not up:
            return
        if self.rng.random() < 0.5:
            leading = [machine for machine in up if machine.broker.quorum.ready]
        else:
            most = max(sum(each.leads for each in machine.broker.keeper) for machine in up)
            leading = [
                machine
                for machine in up
                if sum(each.leads for each in machine.broker.keeper) == most
            ]
        machine = self.rng.choice(leading or up)
        machine.kill()
        self._start_later(machine)
        if self.rng.random() < 0.3:
            self.cluster.timeline.after(
                self.rng.randint(5, 300) * MS, lambda: self.kill_leader() if self.active else None
            )

    def kill_all(self) -> None:
        """SIGKILL to all, at once or within a moment."""
        for machine in self.cluster.up:
            delay = self.rng.choice((0, 0, 20 * MS)) * self.rng.random()
            self.cluster.timeline.after(int(delay), machine.kill)
            self._start_later(machine, most=1.0)

    def freeze(self) -> None:
        """SIGSTOP, for less or more than the session."""
        machine = self._any()
        if machine is not None:
            machine.freeze()
            self._for_a_while(machine.thaw)

    def restart(self) -> None:
        """SIGTERM, and a new process."""
        machine = self._any()
        if machine is not None and machine.process is not None and not machine.process.frozen:
            machine.stop()  # `_revive` starts it again once it is gone

    # The network ---

    def _cut(self, pairs: list[tuple[str, str]]) -> None:
        network = self.cluster.network
        fresh = [pair for pair in pairs if network.is_open(*pair)]
        for pair in fresh:
            network.cut(*pair)

        def undo() -> None:
            for pair in fresh:
                network.mend(*pair)

        self._for_a_while(undo)

    def _both(self, a: str, b: str) -> list[tuple[str, str]]:
        return [(a, b), (b, a)]

    def isolate(self) -> None:
        """One node hears no other and is heard by none; clients may reach it or not."""
        name = self.rng.choice(self.cluster.names)
        others = [other for other in self.cluster.names if other != name]
        if self.rng.random() < 0.5:
            others += self.cluster.clients
        self._cut([pair for other in others for pair in self._both(name, other)])

    def halves(self) -> None:
        """Two groups, each client with one of them."""
        names = [*self.cluster.names, *self.cluster.clients]
        side = {name: self.rng.random() < 0.5 for name in names}
        self._cut([(a, b) for a in names for b in names if side[a] != side[b]])

    def bridge(self) -> None:
        """Two nodes that see all others, and not one another."""
        if len(self.cluster.names) > 1:
            a, b = self.rng.sample(self.cluster.names, 2)
            self._cut(self._both(a, b))

    def ring(self) -> None:
        """Everyone sees a majority, and no two see the same."""
        names = self.rng.sample(self.cluster.names, len(self.cluster.names))
        reach = len(names) // 2
        pairs = []
        for at, name in enumerate(names):
            near = {
                names[(at + step) % len(names)] for step in range(-(reach // 2), reach // 2 + 1)
            }
            pairs += [(name, other) for other in names if other not in near]
        self._cut(pairs if len(names) > 3 else pairs[:2])

    def one_way(self) -> None:
        """One direction between two nodes, or from one to all others."""
        a = self.rng.choice(self.cluster.names)
        others = [name for name in self.cluster.names if name != a]
        if self.rng.random() < 0.5 and others:
            others = [self.rng.choice(others)]
        inward = self.rng.random() < 0.5
        self._cut([(other, a) if inward else (a, other) for other in others])

    def break_connections(self) -> None:
        """Some connections break and are made again."""
        ends = [*self.cluster.names, *self.cluster.clients]
        for _ in range(self.rng.randint(1, 5)):
            a = self.rng.choice(self.cluster.names)
            b = self.rng.choice(ends)
            if a != b:
                self.cluster.network.break_connection(a, b)

    def delay(self) -> None:
        """One direction takes long."""
        network = self.cluster.network
        pair = (self.rng.choice(self.cluster.names), self.rng.choice(self.cluster.names))
        network.delays[pair] = self.rng.randint(5, 800) * MS
        self._for_a_while(lambda: self._forget(network.delays, pair))

    def _forget(self, conditions: dict[tuple[str, str], int], pair: tuple[str, str]) -> None:
        conditions.pop(pair, None)

    def low_rate(self) -> None:
        """One direction lets little through."""
        network = self.cluster.network
        pair = (self.rng.choice(self.cluster.names), self.rng.choice(self.cluster.names))
        network.rates[pair] = self.rng.choice((5_000, 30_000, 200_000))
        self._for_a_while(lambda: self._forget(network.rates, pair))

    def double(self) -> None:
        """Messages between nodes come again later."""
        network = self.cluster.network
        network.duplicates = 0.1
        self._for_a_while(lambda: setattr(network, "duplicates", 0.0))

    def lose_pushes(self) -> None:
        """Subscribers miss pushes."""
        self.cluster.push_loss = self.rng.choice((0.05, 0.5, 1.0))
        self._for_a_while(lambda: setattr(self.cluster, "push_loss", 0.0))

    # Disks ---

    def power_loss(self) -> None:
        """One machine is off, and comes back later with what was flushed."""
        machine = self._any()
        if machine is not None:
            machine.lose_power()
            self._start_later(machine)

    def power_loss_all(self) -> None:
        """The whole room is dark."""
        for machine in self.cluster.machines.values():
            machine.lose_power()
            self._start_later(machine, most=1.0)

    def crash_in_request(self) -> None:
        """The process is killed, or the power goes, in the middle of one of the next requests to the disk."""
        machine = self._any()
        if machine is not None and machine.process is not None:
            machine.process.power_at_crash = self.rng.random() < 0.6
            machine.disk.crash_at = machine.disk.operations + self.rng.randint(1, 60)

    def slow_disk(self) -> None:
        """One disk takes long."""
        machine = self._any()
        if machine is not None:
            machine.slowness = self.rng.choice((10.0, 100.0, 1000.0))
            self._for_a_while(lambda: setattr(machine, "slowness", 1.0), most=3.0)

    def full_disk(self) -> None:
        """One disk has hardly any room."""
        machine = self._any()
        if machine is not None:
            disk = machine.disk
            disk.budget = disk.used + self.rng.choice((0, 500, 5_000))
            self._for_a_while(lambda: setattr(disk, "budget", None), most=3.0)

    def failed_flush(self) -> None:
        """An fsync fails: the node stops."""
        machine = self._any()
        if machine is not None:
            machine.disk.fail_flushes = 1

    # Damage ---

    def _victim(self) -> Machine | None:
        """The one machine whose disk may be harmed in this run, where the others have everything that it has.

        All must be up and in sync, and the metadata equally far: what is lost here is there twice.
        """
        cluster = self.cluster
        if len(cluster.names) < 3 or len(cluster.serving) < len(cluster.names):
            return None
        if self.harmed is None:
            self.harmed = self.rng.choice(cluster.voters)
        machine = cluster.machines[self.harmed]
        for other in cluster.machines.values():
            metadata = other.broker.metadata
            states = [state for topic in metadata.topics.values() for state in topic.partitions]
            if not all(metadata.is_up(name) for name in cluster.names) or any(
                sorted(state.isr) != sorted(state.replicas) for state in states
            ):
                return None
        return machine

    def _harm(self, act: Callable[[Machine, str], None]) -> None:
        """Harms one partition's copy, while its node is down: what is found at the start is not what was left."""
        machine = self._victim()
        if machine is None:
            return
        folders = [partition.log.folder for partition in machine.broker.keeper]
        if not folders:
            return
        folder = self.rng.choice(folders)
        machine.kill()
        copy = machine.copies.of(folder)
        copy.torn = copy.harmed = True
        act(machine, folder)
        self._start_later(machine, most=1.0)

    def _some_file(self, machine: Machine, folder: str, suffix: str = ".log") -> str | None:
        names = [name for name in machine.disk.list(folder) if name.endswith(suffix)]
        return f"{folder}/{self.rng.choice(names)}" if names else None

    def flip(self) -> None:
        """Bits of one byte are flipped, anywhere in a log."""

        def act(machine: Machine, folder: str) -> None:
            path = self._some_file(machine, folder)
            if path is not None and machine.disk.size(path) > 0:
                position = self.rng.randrange(machine.disk.size(path))
                machine.disk.flip(path, position, self.rng.randint(1, 255))

        self._harm(act)

    def cut_file(self) -> None:
        """A segment's end is gone."""

        def act(machine: Machine, folder: str) -> None:
            path = self._some_file(machine, folder)
            if path is not None and machine.disk.size(path) > 0:
                machine.disk.cut(path, self.rng.randrange(machine.disk.size(path)))

        self._harm(act)

    def lose_file(self) -> None:
        """A file of a partition is gone: a segment, an index, a snapshot, the epochs, the checkpoint."""

        def act(machine: Machine, folder: str) -> None:
            path = self._some_file(machine, folder, "")
            if path is not None:
                machine.disk.lose(path)

        self._harm(act)

    def harm_metadata(self) -> None:
        """Something is wrong with a voter's metadata: it goes on without what is wrong, or is replaced.

        What it has promised to keep is lost; so it must not vote, or count, as the voter that it was.
        """
        machine = self._victim()
        if machine is None or self.replaced is not None:
            return
        names = [name for name in machine.disk.list(METADATA) if not name.endswith(".partial")]
        if not names:
            return
        path = f"{METADATA}/{self.rng.choice(names)}"
        machine.kill("killed, and its metadata harmed")
        copy = machine.copies.of(METADATA)
        copy.torn = copy.harmed = True
        size = machine.disk.size(path)
        if size > 0 and self.rng.random() < 0.7:
            machine.disk.flip(path, self.rng.randrange(size), self.rng.randint(1, 255))
        else:
            machine.disk.lose(path)
        self._metadata_harmed = machine.name
        self._start_later(machine, most=1.0)

    def attend(self, machine: Machine) -> None:
        """Somebody looks after a node that is down: one whose metadata are of no use gets another disk."""
        harmed = machine.name == self._metadata_harmed and self.replaced is None
        if harmed and not machine.up and isinstance(machine.error, DataFolderError):
            self.replaced = machine.name
            machine.empty_disk()

    def replace(self) -> None:
        """A voter's machine is lost for good, and another with an empty disk takes its name."""
        machine = self._victim()
        if machine is None or self.replaced is not None:
            return
        self.replaced = machine.name
        machine.kill("lost for good")
        machine.empty_disk()
        self._start_later(machine, most=1.0)

    # Clocks ---

    def clock_jump(self) -> None:
        """A wall clock is set, forwards or back."""
        machine = self.rng.choice(list(self.cluster.machines.values()))
        machine.wall_offset += self.rng.choice((-1, 1)) * self.rng.choice((50, 5_000, 86_400_000))

    def clock_drift(self) -> None:
        """A wall clock is fast or slow."""
        machine = self.rng.choice(list(self.cluster.machines.values()))
        machine.drift = self.rng.uniform(-0.05, 0.05)

    def clock_pace(self) -> None:
        """A monotonic clock is fast or slow for a while."""
        machine = self.rng.choice(list(self.cluster.machines.values()))
        machine.set_pace(self.rng.choice((0.8, 0.95, 1.05, 1.25)))
        self._for_a_while(lambda: machine.set_pace(1.0))

    def clock_strobe(self) -> None:
        """A wall clock goes to and fro."""
        machine = self.rng.choice(list(self.cluster.machines.values()))
        for turn in range(10):
            step = 300 if turn % 2 == 0 else -300
            self.cluster.timeline.after(
                turn * 50 * MS,
                lambda step=step: setattr(machine, "wall_offset", machine.wall_offset + step),  # type: ignore[misc]
            )
