"""Random lives of a node, from seeds: nothing acknowledged is lost, doubled or invented, whatever the disk does.

A failing seed replays: pytest tests/broker/test_histories.py -k "seed12-"
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from broker.world import World, batch, rows

from zbroker.protocol.messages import ErrorReply, Fetch, InitProducer, Produce

pytestmark = pytest.mark.slow  # the same decisions on every Python

SEEDS = 120
STEPS = 250


@dataclass
class Sent:
    """One batch of one producer, and what is known of it."""

    value: bytes
    sequence: int
    producer: int
    number: int = 0
    offset: int | None = None
    refused: bool = False


@dataclass
class History:
    """What clients were told."""

    world: World
    fsync: str
    sent: dict[bytes, Sent] = field(default_factory=dict)
    pushed: dict[int, bytes | None] = field(default_factory=dict)
    served: dict[int, bytes | None] = field(default_factory=dict)
    waiting: list[Sent] = field(default_factory=list)
    producer: int = -1
    sequence: int = 0
    count: int = 0

    # Clients ---

    def open_producer(self) -> None:
        reply = self.world.ask(InitProducer())
        if not isinstance(reply, ErrorReply) and reply is not None:
            self.producer, self.sequence = reply.producer_id, 0

    def send(self) -> None:
        """The next batch; it stays the only one unacknowledged unless it is followed by one more."""
        if self.producer < 0 or len(self.waiting) >= 3:
            return
        self.count += 1
        sent = Sent(
            b"%d" % self.count + b"." * self.world.rng.randrange(400), self.sequence, self.producer
        )
        self.sequence += 1
        self.sent[sent.value] = sent
        self.waiting.append(sent)
        self.transmit(sent)

    def transmit(self, sent: Sent) -> None:
        sent.number = self.world.send(
            Produce(topic="t"), batch([sent.value], (sent.producer, 0, sent.sequence))
        )

    def hear(self) -> None:
        """Looks at what was answered; what was not kept is sent again, in order."""
        for sent in list(self.waiting):
            reply = self.world.answer(sent.number)
            if reply is None:
                continue
            if isinstance(reply, ErrorReply):
                assert reply.code in (
                    "disk_full", "storage_failed", "out_of_order_sequence", "timed_out", "shutting_down", "overloaded",
                    "unknown_producer",
                ), reply  # fmt: skip
                continue
            assert reply.durability == ("flushed" if self.fsync == "always" else reply.durability)
            sent.offset = reply.base_offset
            self.waiting.remove(sent)
        self.take_pushes()

    def take_pushes(self) -> None:
        for subject, head, data in self.world.transport.pushes:
            assert subject == b"t/0/"
            for offset, value in rows(data) if data else ():
                assert offset < head.high_watermark, "pushed at or above the high watermark"
                known = self.pushed.setdefault(offset, value)
                assert known == value, f"offset {offset} was pushed twice, differently"
        self.world.transport.pushes.clear()

    def fetch(self) -> None:
        number = self.world.send(Fetch(topic="t", offset=0, max_bytes=1 << 20))
        self.world.run()
        reply = self.world.answer(number)
        if reply is None or isinstance(reply, ErrorReply):
            return
        for offset, value in rows(self.world.chunk(number)):
            assert offset < reply.high_watermark, "served at or above the high watermark"
            known = self.served.setdefault(offset, value)
            assert known == value, f"offset {offset} was served twice, differently"

    def resend(self) -> None:
        """After a restart, as an idempotent producer does: everything unacknowledged, in order."""
        for sent in self.waiting:
            self.transmit(sent)
            self.world.run()
        self.hear()

    # What must be true ---

    def check(self) -> None:
        kept = self.world.read()
        values = [value for _, value in kept]
        assert [offset for offset, _ in kept] == list(range(len(kept))), "offsets are dense"
        assert len(set(values)) == len(values), "a record stands twice"
        by_offset = dict(kept)
        for sent in self.sent.values():
            if sent.offset is not None:
                assert by_offset.get(sent.offset) == sent.value, f"lost: {sent}"
        assert set(values) <= set(self.sent), "a record was invented"
        order = [self.sent[value or b""] for value in values]
        for producer in {sent.producer for sent in order}:
            own = [sent.sequence for sent in order if sent.producer == producer]
            assert own == sorted(own), "a producer's order changed"
        for seen in (self.pushed, self.served):
            for offset, value in seen.items():
                assert by_offset.get(offset) == value, f"offset {offset} was seen as {value!r}"


def live(seed: int, fsync: str) -> History:
    """One node's life: crashes of the process, and of the machine where the setting survives that."""
    world = World(seed)
    world.start()
    world.create(fsync=fsync, segment_size=4096)
    history = History(world, fsync)
    history.open_producer()
    rng = world.rng
    for _ in range(STEPS):
        draw = rng.random()
        if draw < 0.30:
            history.send()
        elif draw < 0.75:
            for _ in range(rng.randint(1, 6)):
                world.step()
            history.hear()
        elif draw < 0.80:
            history.fetch()
        elif draw < 0.90:
            world.tick(rng.choice((50, 500, 3000)))
        elif draw < 0.93:
            world.disk.budget = (
                None if world.disk.budget is not None else world.disk.used + rng.randrange(3000)
            )
        elif draw < 0.94:
            world.disk.fail_flushes = 1
        elif draw < 0.96:
            history.hear()
            crash(history)
        if world.broker.state == "failed":
            crash(history)
    world.disk.budget = None
    world.disk.fail_flushes = 0
    crash(history)
    history.resend()
    return history


def crash(history: History) -> None:
    """The process or the machine ends; the next one starts, and the producer goes on."""
    world = history.world
    history.take_pushes()
    if history.fsync == "always" and world.rng.random() < 0.6:
        world.lose_power()
    else:
        world.kill()
    world.disk.budget = None
    world.disk.fail_flushes = 0
    if world.rng.random() < 0.3:
        world.disk.crash_at = world.disk.operations + world.rng.randint(1, 30)
        world.start(serve=False)
        while world.step():
            pass
        if world.disk.off:
            world.lose_power() if history.fsync == "always" else world.kill()
        world.disk.crash_at = None
    world.start()
    history.resend()


@pytest.mark.parametrize("fsync", ["always", "never"])
@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed{seed}")
def test_nothing_acknowledged_is_lost(seed: int, fsync: str) -> None:
    history = live(seed, fsync)
    history.check()
    assert not history.waiting
    history.world.check_rest()
