"""A consumer's core against the broker's own core, over a network that drops, doubles and delays what is pushed.

Whatever happens on the way, the application gets each committed record of its partitions once, in order, and gets on.
A failing seed replays: pytest tests/client/test_consuming.py -k "seed12]"
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from broker.world import World, batch

from zbroker.client.buffer import ConsumerSettings
from zbroker.client.consuming import ConsumerCore
from zbroker.client.exchange import Exchange, Reopen, Subscription, Transmit
from zbroker.client.metadata import Cluster
from zbroker.client.records import TopicPartition
from zbroker.errors import TopicChanged, ZBrokerError
from zbroker.protocol import frames as wire
from zbroker.protocol.batch import decode_records
from zbroker.protocol.messages import ClusterChange, DeleteTopic, ErrorReply, Produce, Push
from zbroker.units import Address

PARTITIONS = 2
ADDRESS = Address("127.0.0.1", 5550)


class Client:
    """One consumer beside a broker, in one thread; times of the client are seconds."""

    def __init__(
        self,
        seed: int,
        *,
        until_end: bool = False,
        buffer_bytes: int = 20_000,
        start: Any = "earliest",
        topics: tuple[str, ...] = ("t",),
    ) -> None:
        self.rng = random.Random(seed)
        self.world = World()
        self.world.start()
        self.world.transport.listening = False
        self.world.create(partitions=PARTITIONS, segment_size=4096)
        self.exchange = Exchange()
        self.cluster = Cluster((ADDRESS,), self.exchange, self.rng.random)
        settings = ConsumerSettings(
            topics=topics, partitions=None, start=start, starts={}, on_out_of_range="raise", fetch_bytes=3000,
            buffer_bytes=buffer_bytes, request_timeout=1.0, until_end=until_end,
        )  # fmt: skip
        self.core = ConsumerCore(settings, self.exchange, self.cluster, self.rng.random)
        self.subjects: set[bytes] = set()
        self.pushes: deque[tuple[bytes, Any, bytes | None]] = deque()
        self.late: list[tuple[bytes, Any, bytes | None]] = []
        self.requests: deque[Transmit] = deque()
        self.positions: dict[TopicPartition, int] = {}
        self.got: dict[TopicPartition, list[tuple[int, bytes | None]]] = {}
        self.errors: list[ZBrokerError] = []
        self.sent: dict[int, list[bytes]] = {number: [] for number in range(PARTITIONS)}
        self.drop = 0.0
        self.core.begin(self.now)

    @property
    def now(self) -> float:
        return self.world.now / 1000

    # The network ---

    def turn(self) -> None:
        """One turn of everything."""
        self.exchange.tick(self.now)
        self.core.step(self.now)
        self.cluster.step(self.now)
        for effect in self.exchange.take_effects():
            if isinstance(effect, Transmit):
                self.requests.append(effect)
            elif isinstance(effect, Subscription):
                self.subscribe(effect)
            else:
                assert isinstance(effect, Reopen)
        while self.requests and self.rng.random() < 0.8:
            self.carry(self.requests.popleft())
        self.world.run()
        self.collect()
        while self.pushes and self.rng.random() < 0.8:
            self.deliver(self.pushes.popleft())
        if self.late and self.rng.random() < 0.1:
            self.deliver(self.late.pop(self.rng.randrange(len(self.late))))

    def subscribe(self, effect: Subscription) -> None:
        if effect.action == "add":
            self.subjects.add(effect.subject)
            self.world.transport.listening = True
            self.world.broker.on_subscribe(effect.subject)
        elif effect.action == "drop":
            self.subjects.discard(effect.subject)

    def carry(self, request: Transmit) -> None:
        """A request to the broker, unless it gets lost."""
        if self.rng.random() < self.drop * 0.3:
            return
        self.world.raw(request.head, client=b"consumer")

    def collect(self) -> None:
        """Replies and pushes of the broker's, on their way to the client."""
        transport = self.world.transport
        for (client, _), found in transport.replies.items():
            if client == b"consumer":
                for reply, body in found:
                    if self.rng.random() >= self.drop * 0.3:
                        self.exchange.on_reply(ADDRESS, reply, body, self.now)
        transport.replies.clear()
        for push in transport.pushes:
            if push[0] in self.subjects and self.rng.random() >= self.drop:
                self.pushes.append(push)
                if self.rng.random() < self.drop / 4:
                    self.pushes.insert(self.rng.randint(0, len(self.pushes)), push)
                if self.rng.random() < self.drop / 4:
                    self.late.append(push)
        transport.pushes.clear()
        for change in transport.changes:
            if b"!cluster/" in self.subjects:
                self.pushes.append((b"!cluster/", change, None))
        transport.changes.clear()

    def deliver(self, push: tuple[bytes, Push | ClusterChange, bytes | None]) -> None:
        subject, head, body = push
        if isinstance(head, ClusterChange):
            self.cluster.on_change(wire.decode_change(wire.encode(head)), self.now)
        elif subject in self.subjects:
            self.core.on_push(head, body, self.now)

    # The application ---

    def take(self, most: int = 1000) -> None:
        """Takes what is ready, as `Consumer.poll` does, and checks that nothing is missing and nothing twice."""
        for _ in range(most):
            if not self.core.ready:
                return
            item = self.core.ready.popleft()
            if item.piece is not None:
                self.core.buffer.bytes_out += item.piece.header.size
                self.core.buffer.stalled = (
                    self.core.buffer.stalled
                    and self.core.buffer.bytes_in - self.core.buffer.bytes_out > 5000
                )
            if item.error is not None:
                self.errors.append(item.error)
                if isinstance(item.error, TopicChanged):
                    self.positions.pop(item.place, None)
                    self.got.pop(item.place, None)
                self.core.go_on(self.now)
                continue
            if item.piece is not None:
                self.hand_over(item.place, item.piece, item.position)
            self.positions[item.place] = item.position

    def hand_over(self, place: TopicPartition, piece: Any, end: int) -> None:
        expected = self.positions.get(place)
        assert expected is None or piece.first == expected, (place, piece.first, expected)
        header = piece.header
        for offset, row in enumerate(
            decode_records(piece.data, piece.at, header), header.base_offset
        ):
            if piece.first <= offset < end:
                assert row is not None
                self.got.setdefault(place, []).append((offset, row[2]))

    def produce(self) -> None:
        number = self.rng.randrange(PARTITIONS)
        values = [b"%d.%d." % (number, len(self.sent[number]) + n) + b"x" * self.rng.randrange(200)
                  for n in range(self.rng.randint(1, 5))]  # fmt: skip
        self.world.send(Produce(topic="t", partition=number), batch(values), client=b"producer")
        self.sent[number] += values

    def make_topic_again(self) -> None:
        self.world.send(DeleteTopic(name="t", request_id=f"{self.world.now}"), client=b"admin")
        self.world.run()
        self.world.transport.replies.clear()
        self.world.create(partitions=PARTITIONS, segment_size=4096)
        self.sent = {number: [] for number in range(PARTITIONS)}

    def live(self, steps: int, *, faults: bool) -> None:
        for _ in range(steps):
            draw = self.rng.random()
            if draw < 0.3:
                self.produce()
            if draw < 0.1:
                self.world.tick(self.rng.choice((20, 200, 700)))
            if draw < 0.5:
                self.take(self.rng.randint(0, 3))
            if faults and draw > 0.995:
                self.world.kill()
                self.world.start()
                self.world.transport.listening = True
                self.exchange.on_lost(ADDRESS, "the node died", self.now)
                self.pushes.clear()
            self.turn()

    def settle(self) -> None:
        """No faults any more: everything arrives."""
        self.drop = 0.0
        for _ in range(400):
            self.turn()
            self.take()
            self.world.tick(50)
            if all(
                [value for _, value in self.got.get(TopicPartition("t", number), [])] == values
                for number, values in self.sent.items()
            ):
                return
        raise AssertionError(
            (
                "the consumer does not get on",
                self.positions,
                {n: len(v) for n, v in self.sent.items()},
            )
        )


@pytest.mark.parametrize("seed", range(60), ids=lambda seed: f"seed{seed}")
def test_each_record_once_in_order(seed: int) -> None:
    client = Client(seed, buffer_bytes=random.Random(seed).choice((3000, 20_000, 1 << 20)))
    client.drop = random.Random(seed).choice((0.0, 0.1, 0.5, 1.0))
    client.live(250, faults=seed % 2 == 0)
    client.settle()
    for number, values in client.sent.items():
        assert client.got.get(TopicPartition("t", number), []) == list(enumerate(values))
    assert not client.errors


@pytest.mark.parametrize("seed", range(20), ids=lambda seed: f"seed{seed}")
def test_a_topic_made_again_is_never_spliced_into_the_old_one(seed: int) -> None:
    client = Client(seed)
    client.drop = 0.2
    client.live(100, faults=False)
    if seed % 2:
        client.settle()
    client.make_topic_again()
    client.live(100, faults=False)
    client.settle()
    for number, values in client.sent.items():
        assert client.got.get(TopicPartition("t", number), []) == list(enumerate(values))
    assert {type(error) for error in client.errors} <= {TopicChanged}
    assert client.errors or not seed % 2


@pytest.mark.parametrize("seed", range(10), ids=lambda seed: f"seed{seed}")
def test_what_is_pushed_to_a_live_reader_is_not_fetched(seed: int) -> None:
    client = Client(seed, buffer_bytes=1 << 20)
    client.live(60, faults=False)
    client.settle()
    fetched = count_fetches(client)
    for _ in range(50):
        client.produce()
        client.turn()
        client.take()
    client.settle()
    assert count_fetches(client) - fetched <= 5


def count_fetches(client: Client) -> int:
    """Requests so far: correlation numbers are given in turn."""
    return client.exchange._last


def run_to_the_end(client: Client) -> None:
    for _ in range(200):
        client.turn()
        client.take()
        client.world.tick(20)
        if client.core.ended and not client.core.ready:
            return
    raise AssertionError("the end is not reached")


def test_until_end_stops_at_what_was_there_at_the_start() -> None:
    client = Client(1, until_end=True)
    for _ in range(10):
        client.produce()
    client.world.run()
    before = {number: list(values) for number, values in client.sent.items()}
    for _ in range(20):
        client.turn()
    client.produce()
    run_to_the_end(client)
    got = {n: [value for _, value in client.got.get(TopicPartition("t", n), [])] for n in before}
    for number, values in before.items():
        assert got[number][: len(values)] == values


def half_read(**options: Any) -> Client:
    """A consumer that knows the ends of its partitions, and has not read up to them."""
    client = Client(2, until_end=True, buffer_bytes=3000, **options)
    for _ in range(60):
        client.produce()
    for _ in range(30):
        client.turn()
    assert client.core.readers
    for reader in client.core.readers.values():
        assert reader.end is not None
        assert reader.splice.position < reader.end
    return client


def test_the_end_of_a_topic_made_again_is_where_the_new_one_ends() -> None:
    client = half_read()
    client.make_topic_again()
    for _ in range(5):
        client.produce()
    client.world.run()
    run_to_the_end(client)
    for number, values in client.sent.items():
        assert client.got.get(TopicPartition("t", number), []) == list(enumerate(values))
    assert {type(error) for error in client.errors} == {TopicChanged}


def test_the_end_does_not_wait_for_a_topic_of_a_pattern_that_is_deleted() -> None:
    client = half_read(topics=("t*",))
    client.world.send(DeleteTopic(name="t", request_id="d"), client=b"admin")
    client.world.run()
    run_to_the_end(client)


def test_a_damaged_push_is_fetched_instead() -> None:
    client = Client(3)
    client.live(30, faults=False)
    client.settle()
    client.produce()
    client.world.run()
    client.collect()
    assert client.pushes
    client.pushes = deque(
        (subject, head, body and body[:-1] + b"\xff") for subject, head, body in client.pushes
    )
    client.settle()
    assert not client.errors


def test_an_error_of_the_brokers_reaches_the_application() -> None:
    client = Client(4, start=99)
    for _ in range(20):
        client.turn()
        client.take()
        client.world.tick(20)
    assert {error.code for error in client.errors} == {"offset_out_of_range"}
    assert all(error.details["end"] == 0 for error in client.errors)
    assert not isinstance(client.errors[0], ErrorReply)
