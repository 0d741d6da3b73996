"""One member's cores in one thread, with time by hand and every answer of the coordinator written down by the test."""

from __future__ import annotations

import itertools
from typing import Any, TypeVar

from zbroker.client.buffer import ConsumerSettings, Start
from zbroker.client.committing import Position
from zbroker.client.consuming import ConsumerCore
from zbroker.client.custody import Custody
from zbroker.client.exchange import Call, Exchange
from zbroker.client.grouping import GroupCore
from zbroker.client.membership import GroupSettings
from zbroker.client.metadata import Cluster
from zbroker.client.records import TopicPartition
from zbroker.errors import ZBrokerError
from zbroker.protocol import messages
from zbroker.units import Address

Kind = TypeVar("Kind", bound=messages.Message)

HERE, THERE = Address("127.0.0.1", 5550), Address("127.0.0.1", 5560)
NODES = {"n1": HERE, "n2": THERE}
TOPIC = "t"
PARTITIONS = 6


def topic_id(name: str = TOPIC) -> str:
    return f"{name:0>32}"


def place(number: int, topic: str = TOPIC) -> TopicPartition:
    return TopicPartition(topic, number)


class Member:
    """A member, of whose requests nothing is answered unless the test does.

    Args:
        hears: whether the application wants to hear of what is assigned and revoked.
    """

    def __init__(
        self, *, hears: bool = False, start: Start = "earliest", until_end: bool = False, **settings: Any
    ) -> None:  # fmt: skip
        self.now = 100.0
        self.exchange = Exchange()
        self.cluster = Cluster((HERE,), self.exchange, lambda: 0.0)
        consuming = ConsumerSettings(
            topics=(TOPIC,), partitions=None, start=start, starts={}, on_out_of_range="earliest",
            fetch_bytes=1000, buffer_bytes=10_000, request_timeout=10.0, until_end=until_end, grouped=True,
        )  # fmt: skip
        self.core = ConsumerCore(consuming, self.exchange, self.cluster, lambda: 0.0)
        self.custody = Custody(hears_assigned=hears, hears_revoked=hears)
        ids = (f"m{number}" for number in itertools.count(1))
        self.group = GroupCore(
            GroupSettings(group="g", topics=(TOPIC,), **settings), self.core, self.custody,
            self.cluster, lambda: 0.0, lambda: next(ids),
        )  # fmt: skip
        self.core.begin(self.now)
        self.answered: set[int] = set()
        self.wanted: float | None = None

    # Time and messages ---

    def step(self, seconds: float = 0.0) -> None:
        """Time passes, and everything that is due is done."""
        self.now += seconds
        self.exchange.tick(self.now)
        wanted = [self.group.step(self.now), self.core.step(self.now), self.cluster.step(self.now)]
        self.wanted = min((due for due in wanted if due is not None), default=None)
        self.exchange.take_effects()

    def pending(self, kind: type[Kind]) -> list[Call]:
        """Requests under way, the oldest first."""
        calls = sorted(self.exchange.calls.values(), key=lambda call: call.id)
        return [call for call in calls if isinstance(call.message, kind)]

    def asked(self, kind: type[Kind]) -> Kind:
        """The only request of its kind that is under way."""
        (call,) = self.pending(kind)
        assert isinstance(call.message, kind)
        return call.message

    def answer(self, kind: type[Kind], reply: Any, *, which: int = 0, body: bytes = b"") -> Kind:
        """Answers a request under way, with a reply or an error, and lets the member go on."""
        call = self.pending(kind)[which]
        self.reply(call, reply, body)
        assert isinstance(call.message, kind)
        return call.message

    def reply(self, call: Call, reply: Any, body: bytes = b"") -> None:
        """An answer to a request, which may be one that nobody waits for any more."""
        if isinstance(reply, ZBrokerError):
            self.exchange._settle(call.id)
            call.done(call, reply, None, self.now)
        else:
            reply.id = call.id
            self.exchange.on_reply(call.address, reply, body, self.now)
        self.step()

    def lose(self, address: Address = HERE) -> None:
        """The connection to a node is lost."""
        self.exchange.on_lost(address, "lost", self.now)
        self.step()

    # What the cluster says ---

    def metadata(self, *, partitions: int = PARTITIONS, dead: str = "", topic: str = TOPIC) -> None:
        """Answers the question for metadata, as soon as it is asked."""
        for _ in range(100):
            if self.pending(messages.Metadata):
                break
            self.step(0.05)
        self.answer(messages.Metadata, messages.MetadataReply(
            cluster="c", version=self.cluster.version + 1, controller="n1",
            nodes=[
                messages.Node(name=name, host=at.host, port=at.port, alive=name != dead)
                for name, at in NODES.items()
            ],
            topics=[messages.Topic(
                name=topic, topic_id=topic_id(topic),
                partitions=[
                    messages.Partition(partition=n, leader="n1", epoch=1) for n in range(partitions)
                ],
            )],
        ))  # fmt: skip

    def found(self, name: str = "n1") -> None:
        """The coordinator is found."""
        at = NODES[name]
        self.answer(
            messages.FindCoordinator,
            messages.FindCoordinatorReply(node=name, host=at.host, port=at.port, epoch=1),
        )

    def beat(
        self, epoch: int, *numbers: int, news: bool = True, which: int = 0
    ) -> messages.GroupHeartbeat:
        """Answers a heartbeat: these partitions may be read."""
        assignment = None
        if news:
            assignment = [
                messages.TopicPartitions(
                    topic_id=topic_id(), topic=TOPIC, partitions=sorted(numbers)
                )
            ]
        reply = messages.GroupHeartbeatReply(
            member_epoch=epoch, group_epoch=epoch, assignment=assignment
        )
        return self.answer(messages.GroupHeartbeat, reply, which=which)

    def offsets(self, found: dict[int, int] | None = None) -> messages.FetchOffsets:
        """Answers the question for committed positions."""
        asked = self.asked(messages.FetchOffsets)
        numbers = [n for one in asked.partitions or [] for n in one.partitions]
        self.answer(messages.FetchOffsets, messages.FetchOffsetsReply(offsets=[
            messages.GroupOffset(
                topic_id=topic_id(), topic=TOPIC, partition=n, offset=(found or {}).get(n, -1), epoch=1
            )
            for n in numbers
        ]))  # fmt: skip
        return asked

    def joined(self, *numbers: int, **committed: int) -> None:
        """A member that reads these partitions, each from offset 5 on."""
        self.group.join(self.now)
        self.step()
        self.metadata()
        self.found()
        self.beat(1, *numbers)
        if numbers:
            self.offsets(dict.fromkeys(numbers, 5))

    # The application ---

    def take(self, number: int) -> bool:
        """The application takes a batch of a partition into its hand."""
        at = place(number)
        generation = self.custody.owned.get(at, 0)
        return self.custody.take(at, generation, self.now, hand=True)

    def call(self, done: dict[int, int] | None = None) -> None:
        """The application calls: what it had in hand is done, up to these offsets; it hears what there is."""
        positions = {place(n): Position(offset, 1) for n, offset in (done or {}).items()}
        self.custody.call(positions, None)
        while (event := self.custody.next_event()) is not None:
            if event.kind == "revoked":
                self.custody.finish(event.places)
                self.group.on_finished(event.places)
        self.step()

    def commit_answered(self, *refused: messages.GroupOffset) -> dict[int, int]:
        """Answers the commit under way; tells what it was of."""
        asked = self.asked(messages.CommitOffsets)
        self.answer(messages.CommitOffsets, messages.CommitOffsetsReply(refused=list(refused)))
        return {one.partition: one.offset for one in asked.offsets}

    @property
    def reads(self) -> set[int]:
        """Partitions that are being read."""
        return {one.partition for one in self.core.readers}

    @property
    def owned(self) -> set[int]:
        """Partitions that may be handed out."""
        return {one.partition for one in self.custody.owned}


def said_owned(beat: messages.GroupHeartbeat) -> set[int] | None:
    """What a heartbeat says is owned."""
    if beat.owned is None:
        return None
    return {n for one in beat.owned for n in one.partitions}
