"""What a producer decides: which batch goes when, what a reply means, and how each record is delivered once.

Pure: it takes sealed batches, metadata and replies with the time, and leaves requests in the `Exchange` and finished
batches in `finished`. Never reads a clock and never touches a socket.

One `Stream` a partition. A batch gets its sequence when it is first sent, at most `WINDOW` are unacknowledged, and
every attempt to send one is the same bytes:

=========== ================================================================ ==================================
answer      meaning                                                          what follows
=========== ================================================================ ==================================
produce     it is in the log (`duplicate`: it was already)                   finished
retry,      not this time; it may be in the log                              once no answer is outstanding, and after
refresh,                                                                     a pause, the first unacknowledged batch
lost                                                                         goes again, and when it is taken the rest
moved       (no answer: the partition has another leader)                    all unacknowledged batches go to it at
                                                                             once, in order
out of      one before it is missing: if that one is still to be sent        as above
order       again, that was to be expected;
            if all before it were acknowledged, the log lost records         *renewal*
unknown     the log has forgotten this producer, and with it every           *renewal*
producer    unacknowledged batch
too large   it is not in the log                                             divided, in the same sequences
give up     it is not in the log, and never will be                          failed, and *gap*
expired     it may be in the log if it was sent                              failed, and *gap* if it was sent
=========== ================================================================ ==================================

*Renewal*: the partition's producer epoch grows by one, sequences begin at 0, and the unacknowledged batches, which are
certainly not in the log, go again. *Gap*: nothing new is sent until each batch after the gap is resolved, by repeating
it unchanged: it was taken, or is out of order `PROOFS` times in a row, each asked for after the last answer and a pause
(copies that were sent over a former connection may still have been queued at a node that had stalled, and would have
been taken by then), so it is not in the log. Only then comes a renewal. A batch that may be in the log is thus never
sent under another identity, which would be a duplicate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from zbroker.client.accumulator import Accumulator
from zbroker.client.delivery import Batch, copied
from zbroker.client.exchange import Backoff, Body, Call, Exchange, Outcome, Retries, moving
from zbroker.client.inquiry import Inquiry
from zbroker.client.metadata import Cluster, Leader, TopicView
from zbroker.client.partitioner import crc32
from zbroker.errors import (
    ClientClosed,
    DeliveryTimeout,
    MessageTooLarge,
    NotLeader,
    OutOfOrderSequence,
    ProducerFenced,
    UnknownPartition,
    UnknownProducer,
    ZBrokerError,
)
from zbroker.protocol import messages
from zbroker.protocol.batch import (
    NO_PRODUCER,
    decode_records,
    finish_batch,
    read_header,
    set_producer,
)
from zbroker.protocol.columns import encode_columns
from zbroker.units import Address

WINDOW = 5
"""Batches from the oldest unacknowledged one on, acknowledged or not: as many as the broker remembers, so that it
knows that one again however many behind it were taken."""
PROOFS = 3
"""Answers in a row that a batch after a gap is out of order, before it counts as not in the log."""
PROOF_PAUSE = 0.1
"""Seconds between them."""
INIT_TIMEOUT = 5.0
"""Seconds that a server has to hand out a producer id."""
INIT_PATIENCE = 0.2
"""Seconds after which another one is asked too."""
MARGIN = 2.0
"""Seconds that a reply may be late by, beyond the time that the node was given."""


class ProducerSettings(msgspec.Struct, frozen=True):
    """What the core needs to know of the producer's options."""

    acks: Literal["all", "leader", "none"]
    codec: int
    request_timeout: float
    """Seconds that a node has to answer."""

    @property
    def idempotent(self) -> bool:
        """Whether batches carry a producer id."""
        return self.acks == "all"


class Stream:
    """The batches of one partition, in the order in which they go into the log."""

    __slots__ = (
        "calls", "epoch", "gap", "last_error", "leader", "ordinal", "partition", "probing", "proofs", "queue",
        "retries", "retry_at", "said", "sequence", "topic", "topic_id", "unacked",
    )  # fmt: skip

    def __init__(self, topic: str, partition: int, topic_id: str, retries: Retries) -> None:
        self.topic = topic
        self.partition = partition
        self.topic_id = topic_id
        self.queue: deque[Batch] = deque()
        """Sealed and never sent, or certainly not in the log: they have no sequence."""
        self.unacked: deque[Batch] = deque()
        """Sent and not answered for good, in order of their sequences."""
        self.calls: dict[Batch, Call] = {}
        """The requests under way, each of an unacknowledged batch."""
        self.epoch = 0
        self.sequence = 0
        self.ordinal = 0
        self.gap = False
        self.proofs = 0
        self.leader: Leader | None = None
        """Whom the requests under way went to."""
        self.probing = False
        """Whether the last answer was to try again: until one is taken, one batch goes at a time."""
        self.retry_at = 0.0
        self.retries = retries
        self.said = -1
        """What the leader had announced when it last said to try again."""
        self.last_error: ZBrokerError | None = None


class ProducerCore:
    """Every decision of one producer."""

    def __init__(
        self,
        settings: ProducerSettings,
        accumulator: Accumulator,
        exchange: Exchange,
        cluster: Cluster,
        random: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.finished: list[Batch] = []
        self.producer_id = NO_PRODUCER
        self.producer_epoch = 0
        self.streams: dict[tuple[str, int], Stream] = {}
        self._accumulator = accumulator
        self._exchange = exchange
        self._cluster = cluster
        self._random = random
        self._active: dict[Stream, None] = {}
        self._unassigned: dict[str, deque[Batch]] = {}
        self._inquiry: Inquiry | None = None
        self._init_at = 0.0
        self._init_backoff = Backoff(random)
        self._seen_updates = -1
        self._turn = int(random() * (1 << 16))

    # What the thread calls ---

    def step(self, now: float) -> float | None:
        """Does all that is due; answers when it wants to be called again, though nothing arrives."""
        if self._seen_updates != self._cluster.updates:
            self._seen_updates = self._cluster.updates
            self._metadata_changed()
        wanted = self._want_topics(now)
        wanted = _earlier(wanted, self._accumulator.due(now, self._ready))
        wanted = _earlier(wanted, self._accumulator.oldest_deadline())
        self._take_in()
        if self._active:
            wanted = _earlier(wanted, self._identify(now))
            for stream in list(self._active):
                wanted = _earlier(wanted, self._advance(stream, now))
        return wanted

    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return (
            not self._active
            and not any(self._unassigned.values())
            and not self._accumulator.unfinished
        )

    def fail_all(self, reason: str) -> None:
        """Ends every batch that is not finished, whatever has become of it: the client closes, and steps no more."""
        ended = set(self.finished)
        for batch in self._accumulator.seal_all():
            if batch not in ended:
                self._fail(batch, ClientClosed(reason, outcome_unknown=batch.sends > 0))

    # Batches in ---

    def _ready(self, batch: Batch) -> bool:
        """Whether a batch that is sealed now could go soon; else it had better stay open and fill up."""
        if batch.partition < 0:
            return batch.topic in self._cluster.topics or batch.topic in self._cluster.missing
        stream = self.streams.get((batch.topic, batch.partition))
        return stream is None or len(stream.unacked) + len(stream.queue) < WINDOW

    def _want_topics(self, now: float) -> float | None:
        wanted: float | None = None
        for lane in list(self._accumulator.lanes.values()):
            if not lane.assigned:
                view = self._cluster.topics.get(lane.topic)
                if view is not None:
                    self._assign(view)
                else:
                    self._unassigned.setdefault(lane.topic, deque())
                    if lane.topic not in self._cluster.missing:
                        self._cluster.want(lane.topic, now)
        for topic, batches in list(self._unassigned.items()):
            error = self._cluster.missing.get(topic)
            if error is not None:
                self._accumulator.unassign(topic)
                self._take_in()
                while batches:
                    self._fail(batches.popleft(), error)
                self._cluster.drop(topic)  # who sends to it again has it looked for again
            while batches and now >= batches[0].deadline:
                self._fail(batches[0], self._expired(batches.popleft(), None))
            if batches:
                wanted = _earlier(wanted, batches[0].deadline)
            elif topic not in self._accumulator.lanes:
                del self._unassigned[topic]
        return wanted

    def _metadata_changed(self) -> None:
        for topic, lane in list(self._accumulator.lanes.items()):
            view = self._cluster.topics.get(topic)
            if view is not None:
                self._assign(view)
            elif topic in self._cluster.missing and lane.assigned:
                self._accumulator.unassign(topic)
        for stream in list(self._active):
            error = self._cluster.missing.get(stream.topic)
            if error is not None:
                self._give_up(stream, error)
        self._take_in()
        # Everybody who waited has been told. It may be made again, and then must not be missed by hearsay.
        for topic in list(self._cluster.missing):
            if topic not in self._unassigned:
                self._cluster.drop(topic)

    def _assign(self, view: TopicView) -> None:
        if not view.leaders:
            return
        self._accumulator.assign(view.name, len(view.leaders), view.batch_max)
        for batch in self._unassigned.pop(view.name, ()):
            self._divide(batch, view)

    def _take_in(self) -> None:
        for batch in self._accumulator.take_closed():
            if batch.partition >= 0:
                self._enqueue(batch)
                continue
            view = self._cluster.topics.get(batch.topic)
            error = self._cluster.missing.get(batch.topic)
            if view is not None and view.leaders:
                self._divide(batch, view)
            elif error is not None:
                self._fail(batch, error)
            else:
                self._unassigned.setdefault(batch.topic, deque()).append(batch)

    def _enqueue(self, batch: Batch) -> None:
        view = self._cluster.topics.get(batch.topic)
        if view is None or batch.partition >= len(view.leaders):
            self._fail(batch, self._cluster.missing.get(batch.topic) or _no_partition(batch, view))
            return
        stream = self.streams.get((batch.topic, batch.partition))
        if stream is None:
            stream = Stream(batch.topic, batch.partition, view.topic_id, Retries(self._random))
            stream.epoch = self.producer_epoch
            self.streams[(batch.topic, batch.partition)] = stream
        stream.queue.append(batch)
        self._active[stream] = None
        if len(stream.queue) > WINDOW and batch.data is None:
            self._encode(batch)

    def _divide(self, batch: Batch, view: TopicView) -> None:
        """Gives the records of a batch that was filled before the partitions were known to partitions."""
        count = len(view.leaders)
        targets = batch.targets or {}
        self._turn += 1
        keyless = self._turn % count
        keys = batch.keys or (None,) * batch.count
        places = [
            targets[index] if index in targets else keyless if key is None else crc32(key) % count
            for index, key in enumerate(keys[: batch.count])
        ]  # fmt: skip
        groups: dict[int, list[int]] = {}
        for index, place in enumerate(places):
            groups.setdefault(place, []).append(index)
        self._replace(batch, list(groups.items()), batch.deltas())
        for child in self._children:
            if child.partition >= count:
                self._fail(child, _no_partition(child, view))
            else:
                self._enqueue(child)

    def _replace(
        self, batch: Batch, groups: list[tuple[int, list[int]]], deltas: Sequence[int]
    ) -> None:
        """Puts a batch's records into new batches, one a group of indexes; they end up in `_children`."""
        where: list[tuple[Batch, int]] = [(batch, 0)] * batch.count
        self._children: list[Batch] = []
        for place, indexes in groups:
            child = Batch(
                batch.home,
                batch.topic,
                place,
                limit=batch.limit,
                opened_at=batch.opened_at,
                wall=batch.wall,
            )
            child.base_ms, child.deadline, child.urgent = (
                batch.base_ms,
                batch.deadline,
                batch.urgent,
            )
            child.values = [batch.values[index] for index in indexes]
            child.keys = batch.keys and [batch.keys[index] for index in indexes]
            child.headers = batch.headers and [batch.headers[index] for index in indexes]
            child.mixed, child.size = batch.mixed, batch.size
            child.marks = [(at, deltas[index]) for at, index in enumerate(indexes)]
            child.seal()
            child.charge = batch.charge * child.count // batch.count
            for index, old in enumerate(indexes):
                where[old] = (child, index)
            self._children.append(child)
        for index, function in batch.callbacks or ():
            child, place = where[index]
            child.callbacks = child.callbacks or []
            child.callbacks.append((place, function))
        self._accumulator.adopt(batch, self._children, where)

    # Identity ---

    def _identify(self, now: float) -> float | None:
        """Asks for a producer id, where one is needed."""
        if not self.settings.idempotent or self.producer_id >= 0 or not self._cluster.updates:
            return None
        if self._inquiry is None:
            if now < self._init_at:
                return self._init_at
            self._inquiry = Inquiry(
                self._exchange, messages.InitProducer(), self._cluster.candidates(), timeout=INIT_TIMEOUT,
                patience=INIT_PATIENCE, accepts=_is_identity, done=self._on_init,
            )  # fmt: skip
            self._inquiry.start(now)
        return self._inquiry.step(now)

    def _on_init(self, _address: Address, outcome: Outcome, now: float) -> None:
        self._inquiry = None
        if isinstance(outcome, messages.InitProducerReply) and _is_identity(outcome):
            self.producer_id = outcome.producer_id
            self.producer_epoch = outcome.producer_epoch
            for stream in self.streams.values():
                stream.epoch = outcome.producer_epoch
        else:
            self._init_at = now + self._init_backoff.next()
            self._cluster.chase(now)

    # One partition ---

    def _advance(self, stream: Stream, now: float) -> float | None:
        """Sends what a partition can take; answers when to look again."""
        self._expire(stream, now)
        if not stream.queue and not stream.unacked:
            del self._active[stream]
            return None
        deadline = min(batches[0].deadline for batches in (stream.queue, stream.unacked) if batches)
        view = self._cluster.topics.get(stream.topic)
        if view is not None and view.topic_id != stream.topic_id:
            self._topic_made_again(stream, view)
        leader = self._cluster.leader(stream.topic, stream.partition)
        if leader is None or leader.address is None:
            self._cluster.chase(now)
            return deadline
        if leader is not stream.leader:
            self._leader_changed(stream, leader)
        if now < stream.retry_at and not self._has_learned(stream, leader):
            if stream.last_error is not None and moving(stream.last_error):
                self._cluster.chase(now)
            return min(deadline, stream.retry_at)
        if self.settings.idempotent and self.producer_id < 0:
            return deadline
        if len(stream.calls) < len(stream.unacked):
            if stream.calls:
                return deadline
            last = stream.unacked[0].ordinal + (1 if stream.probing else WINDOW)
            for batch in [batch for batch in stream.unacked if batch.ordinal < last]:
                self._send(stream, batch, leader.address, now)
            return deadline
        if (stream.gap or stream.probing) and stream.unacked:
            return deadline
        if stream.gap:
            self._renew(stream)
        while (
            stream.queue
            and (not stream.unacked or stream.ordinal - stream.unacked[0].ordinal < WINDOW)
            and self._exchange.room(leader.address) > 0
        ):
            batch = stream.queue.popleft()
            batch.ordinal = stream.ordinal
            stream.ordinal += 1
            if self.settings.idempotent:
                batch.sequence, batch.epoch = stream.sequence, stream.epoch
                stream.sequence += batch.count
            self._identify_batch(batch)
            stream.unacked.append(batch)
            self._send(stream, batch, leader.address, now)
        return deadline

    def _leader_changed(self, stream: Stream, leader: Leader) -> None:
        """Whoever leads now is tried at once; what the one before has not answered it may never answer."""
        before, stream.leader = stream.leader, leader
        if before is None or (before.address, before.epoch) == (leader.address, leader.epoch):
            return
        if leader.address != before.address:
            self._abandon_calls(stream)
        stream.probing = False
        stream.proofs = 0
        stream.retry_at = 0.0
        stream.retries.reset()

    def _has_learned(self, stream: Stream, leader: Leader) -> bool:
        """Whether the leader has announced newer metadata since it refused: it may know now that it leads."""
        said = self._cluster.said.get(leader.address, -1)
        if said <= stream.said or not stream.probing:
            return False
        stream.said = said
        stream.retry_at = 0.0
        stream.retries.reset()
        return True

    def _send(self, stream: Stream, batch: Batch, address: Address, now: float) -> None:
        batch.sends += 1
        acks = self.settings.acks
        request = messages.Produce(
            topic=stream.topic, topic_id=stream.topic_id, partition=stream.partition, acks=acks,
            timeout=int(self.settings.request_timeout * 1000),
        )  # fmt: skip

        def answered(call: Call, outcome: Outcome, _body: Body, at: float) -> None:
            if stream.calls.get(batch) is call:
                del stream.calls[batch]
                self._answered(stream, batch, outcome, at)

        stream.calls[batch] = self._exchange.request(
            address, request, answered, now=now, timeout=self.settings.request_timeout + MARGIN,
            body=batch.data, oneway=acks == "none",
        )  # fmt: skip

    def _identify_batch(self, batch: Batch) -> None:
        """Has the batch's bytes carry its sequence, encoding them if that is still to do."""
        if batch.data is None:
            self._encode(batch)
        elif batch.sequence >= 0:
            set_producer(batch.data, self.producer_id, batch.epoch, batch.sequence)

    def _encode(self, batch: Batch) -> None:
        """Turns records into bytes, with an identity where the batch has one already."""
        count, runs = batch.count, batch.runs
        shift = batch.delta_of(0)
        deltas = [delta for first, delta in runs if first < count]
        numbered = batch.sequence >= 0
        payload = encode_columns(
            batch.values, batch.keys and batch.keys[:count], batch.headers and batch.headers[:count],
            [(first, delta - shift) for first, delta in runs] if shift else runs,
            same_length=not batch.mixed, size_hint=batch.size,
        )  # fmt: skip
        batch.data = finish_batch(
            payload, count, base_timestamp=batch.base_ms + shift, max_timestamp=batch.base_ms + max(deltas),
            codec=self.settings.codec, producer_id=self.producer_id if numbered else NO_PRODUCER,
            producer_epoch=batch.epoch, base_sequence=batch.sequence,
            # What is numbered when it is sent gets its CRC then.
            with_crc=numbered or not self.settings.idempotent,
        )  # fmt: skip
        batch.forget()
        self._accumulator.recharge(batch, len(batch.data))

    def _answered(self, stream: Stream, batch: Batch, outcome: Outcome, now: float) -> None:
        if isinstance(outcome, messages.ProduceReply | messages.HelloReply):
            stream.unacked.remove(batch)
            if stream.last_error is not None:
                stream.last_error = None
                stream.probing = False
                stream.retries.reset()
            stream.proofs = 0
            self._succeed(stream, batch, outcome)
            return
        error = outcome if isinstance(outcome, ZBrokerError) else _surprise(outcome)
        stream.last_error = error
        first = stream.unacked[0] is batch
        if isinstance(error, OutOfOrderSequence | UnknownProducer):
            if first and stream.gap:
                stream.proofs += 1
                stream.retry_at = now + PROOF_PAUSE
                if stream.proofs >= PROOFS:
                    self._renew(stream)
            elif first:
                stream.retry_at = now + stream.retries.after(error)
                if batch.sequence > 0:
                    self._renew(stream)
        elif isinstance(error, MessageTooLarge) and batch.count > 1:
            self._split(stream, batch)
        elif error.retriable:
            self._try_again(stream, error, now)
        else:
            stream.unacked.remove(batch)
            self._fail(batch, error)
            if isinstance(error, ProducerFenced):
                stream.epoch = max(stream.epoch, _number(error.details.get("epoch")))
            stream.gap = self.settings.idempotent

    def _try_again(self, stream: Stream, error: ZBrokerError, now: float) -> None:
        if (
            not stream.probing or now >= stream.retry_at
        ):  # else one answer of several has said so already
            stream.probing = True
            stream.retry_at = max(stream.retry_at, now + stream.retries.after(error))
        if stream.leader is not None:
            stream.said = self._cluster.said.get(stream.leader.address, -1)
        if isinstance(error, NotLeader):
            self._cluster.on_not_leader(stream.topic, stream.partition, error.details, now)
        if moving(error):
            self._cluster.chase(now)

    def _expire(self, stream: Stream, now: float) -> None:
        while stream.unacked and now >= stream.unacked[0].deadline:
            batch = stream.unacked.popleft()
            call = stream.calls.pop(batch, None)
            if call is not None:
                self._exchange.abandon(call)
            stream.gap = self.settings.idempotent
            self._fail(batch, self._expired(batch, stream.last_error))
        while stream.queue and now >= stream.queue[0].deadline:
            batch = stream.queue.popleft()
            self._fail(batch, self._expired(batch, stream.last_error))

    def _expired(self, batch: Batch, last: ZBrokerError | None) -> DeliveryTimeout:
        if last is not None:
            why = f"the last answer was: {last}"
        elif not self._cluster.updates:
            why = f"no server answered ({self._cluster.unreachable()})"
        else:
            why = "the partition's leader did not answer"
        sent = "it may be in the log all the same" if batch.sends else "it was never sent"
        error = DeliveryTimeout(
            f"the record was not acknowledged within delivery_timeout, and {sent}; {why}",
            outcome_unknown=batch.sends > 0,
        )
        error.__cause__ = last
        return error

    # A partition's sequences ---

    def _abandon_calls(self, stream: Stream) -> None:
        for call in stream.calls.values():
            self._exchange.abandon(call)
        stream.calls.clear()

    def _requeue(self, stream: Stream) -> None:
        """The unacknowledged batches are certainly not in the log: they are as if never sent."""
        self._abandon_calls(stream)
        while stream.unacked:
            batch = stream.unacked.pop()
            batch.sequence = batch.epoch = -1
            batch.sends = 0
            if batch.data is not None:
                batch.data = bytearray(batch.data)  # a socket may still hold the old one
            stream.queue.appendleft(batch)

    def _renew(self, stream: Stream) -> None:
        self._requeue(stream)
        stream.epoch += 1
        stream.sequence = 0
        stream.gap = False
        stream.proofs = 0

    def _topic_made_again(self, stream: Stream, view: TopicView) -> None:
        """What was sent to the old topic went with it; the new one knows nothing of this producer."""
        self._requeue(stream)
        stream.topic_id = view.topic_id
        stream.sequence = 0
        stream.gap = False
        stream.retry_at = 0.0

    def _split(self, stream: Stream, batch: Batch) -> None:
        """Divides a batch that is too large for the node in two, in the same sequences."""
        assert batch.data is not None
        header = read_header(batch.data)
        shift = header.base_timestamp - batch.base_ms
        rows = [row for row in decode_records(batch.data, 0, header) if row is not None]
        batch.keys, batch.values = [row[1] for row in rows], [row[2] for row in rows]
        batch.headers, batch.mixed = [row[3] for row in rows], True
        middle = batch.count // 2
        halves = [list(range(middle)), list(range(middle, batch.count))]
        place = stream.unacked.index(batch)
        stream.unacked.remove(batch)
        deltas = [row[0] + shift for row in rows]
        self._replace(batch, [(batch.partition, half) for half in halves], deltas)
        sequence = batch.sequence
        for child in self._children:
            if self.settings.idempotent:
                child.sequence, child.epoch = sequence, batch.epoch
                sequence += child.count
            self._encode(child)
            stream.unacked.insert(place, child)
            place += 1
        stream.ordinal = batch.ordinal
        for after in list(stream.unacked)[place - len(self._children) :]:
            after.ordinal = stream.ordinal
            stream.ordinal += 1

    # The end of a batch ---

    def _give_up(self, stream: Stream, error: ZBrokerError) -> None:
        self._abandon_calls(stream)
        for batch in (*stream.unacked, *stream.queue):
            self._fail(batch, _uncertain(error) if batch.sends else error)
        stream.unacked.clear()
        stream.queue.clear()
        stream.gap = self.settings.idempotent
        self._active.pop(stream, None)

    def _succeed(self, stream: Stream, batch: Batch, reply: messages.Reply) -> None:
        if isinstance(reply, messages.ProduceReply):
            batch.base_offset = reply.base_offset
            batch.durability = reply.durability
            view = self._cluster.topics.get(stream.topic)
            if view is not None and view.append_time:
                batch.append_time = reply.append_time
        self.finished.append(batch)

    def _fail(self, batch: Batch, error: ZBrokerError) -> None:
        batch.error = error
        self.finished.append(batch)

    def take_finished(self) -> list[Batch]:
        """Batches that have ended since the last time, in order."""
        finished, self.finished = self.finished, []
        return finished


def _earlier(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def _is_identity(outcome: Outcome) -> bool:
    return isinstance(outcome, messages.InitProducerReply) and outcome.producer_id >= 0


def _number(value: object) -> int:
    return value if isinstance(value, int) else -1


def _no_partition(batch: Batch, view: TopicView | None) -> ZBrokerError:
    count = len(view.leaders) if view is not None else 0
    return UnknownPartition(
        f"topic {batch.topic!r} has {count} partitions, and no partition {batch.partition}",
        topic=batch.topic,
        partition=batch.partition,
    )


def _uncertain(error: ZBrokerError) -> ZBrokerError:
    """The same error for a batch that was sent: it may have been taken before."""
    again = copied(error)
    again.outcome_unknown = True
    return again


def _surprise(outcome: Outcome) -> ZBrokerError:
    return ZBrokerError(f"the server answered a produce request with {type(outcome).__name__}")
