"""A whole cluster in one thread: production brokers in simulated time, over simulated disks and a simulated network.

Owns machines, which have a disk and a clock and stay, and processes, which come and go. What decides is
`zbroker.broker.Broker` as it is shipped; this is what surrounds it in a node: storage, sockets, time. Never decides
what goes wrong (`faults` does, or a test by script) and never judges (`invariants` does, through `Watch`).

========= ============================== ========= ===================================================================
a process on                             next      effect
========= ============================== ========= ===================================================================
absent    start                          running   a new broker on the machine's disk, in the next incarnation
running   kill                           absent    what it had under way is gone; what it wrote is there
running   power loss                     absent    what was not flushed may be gone, torn or half there
running   freeze                         frozen    everything that happens to it waits
frozen    thaw                           running   everything that waited happens at once, late
running   stop                           running   the broker finishes what pends; the stop counts as orderly
running   the broker has stopped         absent
running   the broker has failed          absent    its error is kept on the machine
========= ============================== ========= ===================================================================
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from zbroker.broker.broker import Broker
from zbroker.broker.ports import BrokerSettings, Conversation
from zbroker.errors import ZBrokerError
from zbroker.log.requests import Restart, Truncate
from zbroker.log.storage import Completion, Request
from zbroker.protocol import frames as wire
from zbroker.protocol.batch import Buffer
from zbroker.protocol.messages import ClusterChange, Push, Reply
from zbroker.testing.copies import Copies, Copy, Stored
from zbroker.testing.disk import PowerLost, SimulatedDisk, SimulatedStorage
from zbroker.testing.network import Network
from zbroker.testing.timeline import MS, SECOND, Timeline, Trace

TICK_US = 100 * MS
RECONNECT_US = 100 * MS
LOOK_US = 5 * MS
"""How often a condition that is waited for is looked at."""
TURNS_MAX = 100
"""Calls that a broker may be due for in one millisecond: beyond that it would keep a real node's loop spinning."""
WALL_START_MS = 1_790_000_000_000
BASE_PORT = 5550
DISK_STARTS = 1_000_000
"""Starts that one disk has at most: so that no two disks share an incarnation."""


class Watch:
    """Who looks at everything that happens; by itself, at nothing."""

    def started(self, process: Process) -> None:
        """A process was made; its broker has not been called yet."""

    def ended(self, process: Process, how: str) -> None:
        """A process is gone."""

    def power_lost(self, machine: Machine) -> None:
        """A machine is off; what it had not flushed may be gone."""

    def looked(self, process: Process) -> None:
        """A broker was called, and has returned."""

    def stored(self, process: Process, copy: Copy, added: list[Stored], cut: int) -> None:
        """A request has run on a disk."""

    def sent(self, process: Process, node: str, lane: str, frames: Sequence[Buffer]) -> None:
        """A broker sends to another node."""

    def asked(self, process: Process, route: bytes, head: bytes) -> None:
        """A client's request has come to a broker."""

    def replied(
        self, process: Process, to: Conversation, message: Reply, body: Buffer | None
    ) -> None:
        """A broker answers a client."""

    def published(self, process: Process, subject: bytes, head: Push, batch: Buffer | None) -> None:
        """A broker pushes a batch, or a beacon, to whoever subscribed."""


class Client(Protocol):
    """Who speaks to the nodes from outside."""

    name: str

    def receive(self, node: str, lane: str, content: Any) -> None:
        """A reply, or a push."""

    def connection_lost(self, node: str) -> None:
        """The node's process is gone, and its machine said so."""

    def connection_made(self, node: str) -> None:
        """A new process is there: subscriptions go out again."""


class Machine:
    """One computer: its disk and its clock stay, its process comes and goes.

    Attributes:
        powered: a machine without power answers nothing, not even with a refusal.
        wall_offset: ms by which its wall clock is wrong. `drift`: by how much it is fast, in parts of one.
        pace: how fast its monotonic clock runs; see `set_pace`.
        slowness: how many times slower than usual its disk is.
        error: why its last process failed, None where it did not.
    """

    def __init__(self, cluster: SimulatedCluster, name: str, number: int) -> None:
        self.cluster = cluster
        self.name = name
        self.number = number
        self.host = f"10.0.0.{number + 1}"
        self.powered = True
        self.wall_offset = 0
        self.drift = 0.0
        self.pace = 1.0
        self._paces = [(0, 1.0)]
        self.slowness = 1.0
        self.process: Process | None = None
        self.error: ZBrokerError | None = None
        self.stopped_well = False
        self.starts = 0
        self.disks = 0
        self.disk: SimulatedDisk
        self.copies: Copies
        self.disk_id = ""
        self.empty_disk()

    def empty_disk(self) -> None:
        """A new, empty disk: the machine was replaced."""
        assert self.process is None, "a disk is not taken out of a running machine"
        cluster = self.cluster
        self.disk = SimulatedDisk(random.Random(f"{cluster.seed} {self.name} disk {self.disks}"))
        self.copies = Copies(self.disk)
        self.disk_id = cluster.fresh_id()
        self.starts = (self.number + self.disks * 100) * DISK_STARTS
        self.disks += 1
        self.stopped_well = False
        self.error = None

    @property
    def up(self) -> bool:
        """Whether there is a process, frozen or not."""
        return self.process is not None

    @property
    def broker(self) -> Broker:
        """The broker of the process that is up."""
        assert self.process is not None, f"{self.name} is down"
        return self.process.broker

    def start(self) -> None:
        """A new process."""
        assert self.process is None
        self.powered = True
        self.disk.off = False
        self.starts += 1
        clean, self.stopped_well = self.stopped_well, False
        self.error = None
        self.process = Process(self, clean=clean)
        self.process.begin()

    def kill(self, why: str = "killed") -> None:
        """The process is gone at once; the machine lives, and refuses whoever connects."""
        if self.process is not None:
            self.process.end(why)
            self.disk.restart()

    def lose_power(self) -> None:
        """The machine is off: nobody refuses a connect, and what was not flushed may be gone."""
        if self.process is not None:
            self.process.end("power lost")
        self.powered = False
        self.cluster.watch.power_lost(self)
        self.disk.lose_power()
        self.copies.lose_power()

    def stop(self) -> None:
        """Asks the process to end in order."""
        if self.process is not None:
            self.process.call("stop", self.process.stop)

    def freeze(self) -> None:
        """The process stands still, and nobody can tell from outside."""
        if self.process is not None and not self.process.frozen:
            self.process.frozen = True
            self.cluster.trace.note(self.name, "frozen")

    def thaw(self) -> None:
        """Everything that waited for the process happens to it now."""
        if self.process is not None and self.process.frozen:
            self.cluster.trace.note(self.name, "thawed")
            self.process.thaw()

    def set_pace(self, pace: float) -> None:
        """Its monotonic clock runs this many times as fast as time from now on."""
        if self.process is not None:
            self.process.keep_time()
        if pace != self.pace:
            self._paces.append((self.cluster.timeline.now, pace))
        self.pace = pace

    def counted(self, since: int) -> float:
        """Microseconds that have passed by its monotonic clock since a moment of the simulation."""
        found, until = 0.0, self.cluster.timeline.now
        for begun, pace in reversed(self._paces):
            found += (until - max(begun, since)) * pace
            if begun <= since:
                break
            until = begun
        return found

    def wall(self) -> int:
        """What its clock shows, ms since the epoch."""
        now = self.cluster.timeline.now // MS
        return WALL_START_MS + self.wall_offset + int(now * (1.0 + self.drift))


class Storage(SimulatedStorage):
    """A simulated storage whose steps take simulated time."""

    def __init__(self, process: Process, rng: random.Random) -> None:
        self._process = process
        self._latency = rng
        super().__init__(process.machine.disk, rng, process.completed, process.observed)

    def submit(self, request: Request) -> None:
        """Takes a request; it runs, and is told of, at two moments to come."""
        super().submit(request)
        self._plan(2)

    def hasten(self) -> None:
        """The disk is slow no more: what waits for it need not wait as long as it was to."""
        self._plan(self.steps_left)

    def _plan(self, steps: int) -> None:
        for _ in range(steps):
            slow = 20 * self._latency.random() ** 8  # now and then a disk takes long
            delay = int(
                (30 + 300 * self._latency.random() + MS * slow) * self._process.machine.slowness
            )
            self._process.later(delay, "disk", self._step)

    def _step(self) -> None:
        process = self._process
        try:
            self.step()
        except PowerLost:
            process.interrupted(self.running)


class Process:
    """One life of a node: a broker and what surrounds it. The broker's `Transport` and `PeerLinks` are here."""

    def __init__(self, machine: Machine, *, clean: bool) -> None:
        cluster = machine.cluster
        self.machine = machine
        self.cluster = cluster
        self.name = machine.name
        self.incarnation = machine.starts
        self.alive = True
        self.frozen = False
        self.power_at_crash = True
        self.subscribers: dict[str, dict[bytes, None]] = {}
        self.connected: dict[str, Process | Literal["gone"] | None] = {}
        self._backlog: deque[tuple[str, Callable[[], None]]] = deque()
        self._began = cluster.timeline.now
        self._clock = cluster.rng.randrange(1_000_000_000) + cluster.timeline.now
        self._clock_at = cluster.timeline.now
        self._due = -1
        self._turns = (0, 0)
        self.storage = Storage(
            self, random.Random(f"{cluster.seed} {self.name} {self.incarnation}")
        )
        chance = random.Random(f"{cluster.seed} {self.name} {self.incarnation} broker")
        settings = BrokerSettings(
            node=self.name, cluster_name="simulated", disk_id=machine.disk_id,
            incarnation=self.incarnation, clean=clean, host=machine.host, port=BASE_PORT,
            peers=tuple(name for name in cluster.names if name != self.name),
            voters=cluster.voters, **cluster.settings,
        )  # fmt: skip
        self.broker = Broker(
            settings, storage=self.storage, transport=self, peers=self, random=chance.random,
            fresh_id=cluster.fresh_id, report=self.report,
        )  # fmt: skip

    # Life ---

    @property
    def now(self) -> int:
        """The process's monotonic clock, ms."""
        passed = self.cluster.timeline.now - self._clock_at
        if self.machine.pace != 1.0:
            passed = int(passed * self.machine.pace)
        return (self._clock + passed) // MS

    def keep_time(self) -> None:
        """The clock's pace is about to change: what it shows is kept."""
        self._clock += int((self.cluster.timeline.now - self._clock_at) * self.machine.pace)
        self._clock_at = self.cluster.timeline.now

    def begin(self) -> None:
        """The broker's first call."""
        self.cluster.trace.note(self.name, f"starts, incarnation {self.incarnation}")
        self.cluster.watch.started(self)
        self.cluster.network.join(self.name)
        for client in self.cluster.clients.values():
            client.connection_made(self.name)
        self.call("start", lambda: self.broker.start(self.now, self.machine.wall()))
        self.later(self.cluster.rng.randrange(TICK_US), "tick", self._tick)
        self.later(self.cluster.rng.randrange(5 * MS), "connect", self._connect)

    def end(self, how: str) -> None:
        """The process is gone."""
        self.alive = False
        self.machine.process = None
        self.storage.forget()
        self._backlog.clear()
        self.cluster.trace.note(self.name, f"ends: {how}")
        self.cluster.network.leave(self.name)
        self.cluster.watch.ended(self, how)
        self.cluster.process_ended(self, refuses=how != "power lost")

    def interrupted(self, request: Request | None) -> None:
        """The disk stopped in the middle of a request: the machine lost its power, or the process was killed."""
        copies, machine = self.machine.copies, self.machine
        if isinstance(request, Truncate | Restart):
            copies.of(request.owner).torn = True  # it may have cut the log all the same
        if self.power_at_crash:
            machine.lose_power()
        else:
            machine.kill("killed in the middle of a request")
            for copy in copies.by_folder.values():
                copy.whole = False

    def thaw(self) -> None:
        """Goes on with everything that waited."""
        self.frozen = False
        while self._backlog and self.alive and not self.frozen:
            what, action = self._backlog.popleft()
            self.call(what, action)

    def stop(self) -> None:
        """SIGTERM."""
        self.broker.stop()

    # What happens to it ---

    def later(self, delay: int, what: str, action: Callable[[], None]) -> None:
        """Something happens to the process after so many microseconds, if it lives by then."""
        self.cluster.timeline.after(delay, lambda: self.call(what, action))

    def call(self, what: str, action: Callable[[], None]) -> None:
        """Something happens to the process now, or once it is thawed."""
        if not self.alive:
            return
        if self.frozen:
            self._backlog.append((what, action))
            return
        action()
        if self.alive:
            self._after()

    def _after(self) -> None:
        broker, machine = self.broker, self.machine
        self.cluster.watch.looked(self)
        if broker.state == "failed":
            machine.error = broker.error
            self.end(f"failed: {broker.error}")
        elif broker.state == "stopped":
            machine.stopped_well = broker.stopped_well
            self.end("stopped in order")
        else:
            due = broker.due
            if due is not None and due != self._due:
                self._due = due
                delay = max(0, due - self.now) * MS
                if delay < TICK_US:
                    self.later(delay, "due", self._on_due)

    def _on_due(self) -> None:
        due = self.broker.due
        if due is not None and due <= self.now:
            self._due = -1
            self._turns = (self.now, self._turns[1] + 1 if self._turns[0] == self.now else 0)
            assert self._turns[1] < TURNS_MAX, f"{self.name} wants to be called again and again"
            self.broker.on_tick(self.now, self.machine.wall())

    def _tick(self) -> None:
        self.later(TICK_US + self.cluster.rng.randrange(2 * MS), "tick", self._tick)
        self.broker.on_tick(self.now, self.machine.wall())

    def receive(self, sender: str, lane: str, content: Any) -> None:
        """A message off the network."""
        if lane == "request":
            route, frames = content
            self.cluster.watch.asked(self, route, frames[0])
            self.broker.on_message(
                route, [bytes(frame) for frame in frames], self.now, self.machine.wall()
            )
        elif lane == "subscribe":
            subject, wanted = content
            subjects = self.subscribers.setdefault(sender, {})
            if wanted:
                subjects[subject] = None
                self.broker.on_subscribe(subject)
            else:
                subjects.pop(subject, None)
        else:
            self.broker.on_peer([bytes(frame) for frame in content], self.now, self.machine.wall())

    def completed(self, completion: Completion) -> None:
        """A storage request is done."""
        self.broker.on_event(completion, self.now)

    def observed(self, completion: Completion) -> None:
        """A storage request has run; the broker does not know it yet."""
        copy, added, cut = self.machine.copies.observe(completion)
        self.cluster.watch.stored(self, copy, added, cut)

    # Links to other nodes ---

    def _connect(self) -> None:
        """Looks at every link, as sockets that reconnect do."""
        self.later(RECONNECT_US, "connect", self._connect)
        for name in self.cluster.names:
            if name != self.name:
                self.look_at(name)

    def look_at(self, name: str) -> None:
        """A connect to another node: taken, refused, or without an answer."""
        network, other = self.cluster.network, self.cluster.machines[name]
        if not (network.is_open(self.name, name) and network.is_open(name, self.name)):
            return
        if not other.powered:
            return
        known = self.connected.get(name)
        if other.process is None:
            if known != "gone":
                self.connected[name] = "gone"
                self.broker.on_link(name, "gone", self.now)
        elif known is not other.process:
            self.connected[name] = other.process
            self.broker.on_link(name, "up", self.now)

    def send(self, node: str, lane: Literal["control", "data"], frames: Sequence[Buffer]) -> None:
        """`PeerLinks.send`."""
        self.cluster.watch.sent(self, node, lane, frames)
        self.cluster.network.send(self.name, node, lane, frames, sum(map(len, frames)))

    def connect(self, node: str, host: str, port: int) -> None:
        """`PeerLinks.connect`: every node of the simulation can be reached by its name already."""

    # Clients ---

    def reply(self, to: Conversation, message: Reply, body: Buffer | None = None) -> None:
        """`Transport.reply`."""
        self.cluster.watch.replied(self, to, message, body)
        client = to.client.decode().partition("#")[0]
        content = (to.client, wire.encode(message), None if body is None else bytes(body))
        self.cluster.network.send(self.name, client, "reply", content, len(body or b"") + 100)

    def publish(
        self, subject: bytes, head: Push | ClusterChange, batch: Buffer | None = None
    ) -> None:
        """`Transport.publish`: to whoever subscribed, and now and then not."""
        if isinstance(head, Push):
            self.cluster.watch.published(self, subject, head, batch)
        encoded = wire.encode(head)
        content = (subject, encoded, None if batch is None else bytes(batch))
        for client, subjects in self.subscribers.items():
            if any(subject.startswith(wanted) for wanted in subjects):
                if self.cluster.rng.random() < self.cluster.push_loss:
                    continue
                self.cluster.network.send(
                    self.name, client, "push", content, len(batch or b"") + 100
                )

    def wanted(self, subject: bytes) -> bool:
        """`Transport.wanted`."""
        return any(
            subject.startswith(wanted)
            for subjects in self.subscribers.values()
            for wanted in subjects
        )

    def unread(self, client: bytes | None) -> int:  # noqa: ARG002
        """`Transport.unread`: clients take everything at once."""
        return 0

    def client_count(self) -> int:
        """`Transport.client_count`."""
        return len(self.cluster.clients)

    def report(self, event: str, /, **facts: Any) -> None:
        """`Report`: into the trace."""
        told = " ".join(f"{name}={value}" for name, value in facts.items())
        self.cluster.trace.note(self.name, f"reports {event} {told}")


class SimulatedCluster:
    """Machines, the network between them, and time.

    Attributes:
        seed: everything that is left to chance follows from it.
        push_loss: how likely a subscriber misses what is pushed.
        trace: what happened.
        watch: who looks at every step.
    """

    def __init__(
        self,
        seed: int = 0,
        nodes: int = 3,
        *,
        voters: Sequence[str] | None = None,
        watch: Watch | None = None,
        keep: int | None = 400,
        **settings: Any,
    ) -> None:
        """
        Args:
            nodes: how many machines; they are named `n1`, `n2`, …
            voters: names of the voters; the first three where there are more than three nodes, else all.
            watch: who looks at everything.
            keep: lines of the trace that are kept, None for all.
            settings: fields of `BrokerSettings`, for every node.
        """
        self.seed = seed
        self.rng = random.Random(f"{seed} cluster")
        self.timeline = Timeline()
        self.trace = Trace(self.timeline, keep)
        self.network = Network(self.timeline, random.Random(f"{seed} network"), self._deliver)
        self.watch = watch if watch is not None else Watch()
        self.push_loss = 0.0
        self.names = [f"n{number + 1}" for number in range(nodes)]
        self.voters = tuple(voters if voters is not None else self.names[:3])
        self.settings: Mapping[str, Any] = settings
        self.clients: dict[str, Client] = {}
        self._ids = random.Random(f"{seed} ids")
        self.machines = {
            name: Machine(self, name, number) for number, name in enumerate(self.names)
        }
        self.network.absent.update(self.names)

    # Time ---

    @property
    def now(self) -> float:
        """Seconds since the simulation began."""
        return self.timeline.now / SECOND

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        self.timeline.run(self.timeline.now + int(seconds * SECOND))

    def run_until(self, condition: Callable[[], object], seconds: float, what: str = "") -> None:
        """Lets time pass until something is true.

        Raises:
            AssertionError: it was not within so many seconds.
        """
        until = self.timeline.now + int(seconds * SECOND)
        look_at = 0
        while True:
            if self.timeline.now >= look_at:
                look_at = self.timeline.now + LOOK_US
                if condition():
                    return
            if not self.timeline.step(until):
                assert condition(), f"not within {seconds} simulated seconds: {what or condition}"
                return

    # Nodes ---

    @property
    def up(self) -> list[Machine]:
        """Machines with a process, frozen or not."""
        return [machine for machine in self.machines.values() if machine.up]

    @property
    def serving(self) -> list[Machine]:
        """Machines whose brokers serve."""
        return [machine for machine in self.up if machine.broker.state == "serving"]

    def start(self, *names: str) -> None:
        """Starts nodes; all that are down where none is named."""
        for name in names or self.names:
            if not self.machines[name].up:
                self.machines[name].start()

    def form(self, seconds: float = 30.0) -> None:
        """Starts every node, and waits until all of them serve."""
        self.start()
        self.run_until(lambda: len(self.serving) == len(self.names), seconds, "every node serves")

    def fresh_id(self) -> str:
        """An identifier, never the same twice."""
        return f"{self._ids.getrandbits(128):032x}"

    def process_ended(self, process: Process, *, refuses: bool) -> None:
        """Whoever was connected notices soon, unless the machine is off or the way is cut."""
        if not refuses:
            return
        for machine in self.up:
            other = machine.process
            if other is not None:
                delay = self.rng.randrange(MS, 20 * MS)
                other.later(delay, "connect", lambda other=other: other.look_at(process.name))  # type: ignore[misc]
        for name, client in self.clients.items():
            if self.network.is_open(process.name, name):
                delay = self.rng.randrange(MS, 20 * MS)
                self.timeline.after(
                    delay,
                    lambda client=client: client.connection_lost(process.name),  # type: ignore[misc]
                )

    # Faults that concern several ---

    def isolate(self, *names: str) -> None:
        """Cuts nodes off from all others, and from clients that are not named."""
        ends = [*self.names, *self.clients]
        for inside in names:
            for outside in ends:
                if outside not in names:
                    self.network.cut(inside, outside)
                    self.network.cut(outside, inside)

    def heal(self) -> None:
        """Network and clocks are as they should be, frozen processes go on, and all nodes are up."""
        self.network.clear_conditions()
        self.push_loss = 0.0
        for machine in self.machines.values():
            machine.slowness = 1.0
            machine.set_pace(1.0)
            machine.disk.budget = None
            machine.disk.fail_flushes = 0
            machine.disk.crash_at = None
            if machine.process is not None:
                machine.process.storage.hasten()
            machine.thaw()
            if not machine.up:
                machine.start()

    # The network's other end ---

    def _deliver(self, sender: str, receiver: str, lane: str, content: object) -> bool:
        client = self.clients.get(receiver)
        if client is not None:
            client.receive(sender, lane, content)
            return True
        process = self.machines[receiver].process
        if process is None:
            return False
        self.trace.note(receiver, f"{lane} from {sender}{_size(content)}")
        process.call(lane, lambda: process.receive(sender, lane, content))
        return True


def _size(content: object) -> str:
    frames = content[1] if isinstance(content, tuple) and isinstance(content[1], list) else content
    return f" {'+'.join([str(len(frame)) for frame in frames])}" if isinstance(frames, list) else ""
