"""What a consumer decides: what to fetch, when to be pushed, and what the application gets next.

Pure: it takes metadata, replies and pushes with the time, and leaves requests in the `Exchange` and batches in `ready`.
Never decodes a record: that is the application's thread's.

One `Reader` a partition:

========= ================================= ==========================================================
state     means                             goes on to
========= ================================= ==========================================================
starting  where to begin is asked for       fetching
fetching  batches are fetched, the next     live, once it is at the head and its subscription is heard
          when one has come                 of
live      batches are pushed; a gap or a    fetching, when the pushes fall silent, the leader changes
          dropped tail is fetched           or the buffer is full
stopped   paused, at its end, or an error   starting or fetching, by `seek` and `resume`
          waits for the application
========= ================================= ==========================================================

A partition gets another leader: what is under way to the one before is abandoned, and the new one is asked and
subscribed to at once. Its first answer to a fetch says whether its log still has the record before the position. Where
it has not (an unclean election), the position goes back to where both histories part, and the application is told which
offsets changed, once, before anything of the new history.

Back-pressure: while `buffer_bytes` wait for the application nothing is fetched, and what is pushed is dropped and the
subscription ended; it is fetched later. The sockets are always read.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

from zbroker.client.exchange import Body, Call, Exchange, Outcome, Retries, Subscription, moving
from zbroker.client.metadata import Cluster, Leader, TopicView
from zbroker.client.records import TopicPartition
from zbroker.client.splice import Piece, Splice
from zbroker.errors import (
    CorruptBatch,
    DataDamaged,
    Diverged,
    NotLeader,
    OffsetOutOfRange,
    StaleEpoch,
    TopicChanged,
    UnknownPartition,
    ZBrokerError,
)
from zbroker.protocol import messages
from zbroker.protocol.frames import subject
from zbroker.units import Address

logger = logging.getLogger("zbroker.client")

Start = Literal["earliest", "latest"] | int | tuple[Literal["time"], int]
OutOfRange = Literal["raise", "earliest", "latest"]

FETCH_WAIT = 0.5
"""Seconds that a fetch at the head waits for a record: nothing is pushed yet, or a new leader does not serve yet what
the one before had committed."""
PUSH_SILENCE = 2.0
"""Seconds without a push or a beacon after which a live reader fetches again."""
CORRUPT_PATIENCE = 3
"""Times that a corrupt chunk is fetched again before the application is told."""


class ConsumerSettings(msgspec.Struct, frozen=True):
    """What the core needs to know of the consumer's options."""

    topics: tuple[str, ...]
    partitions: frozenset[TopicPartition] | None
    start: Start
    starts: dict[TopicPartition, Start]
    on_out_of_range: OutOfRange
    fetch_bytes: int
    buffer_bytes: int
    request_timeout: float
    until_end: bool


class Ready(msgspec.Struct, gc=False):
    """What the application gets next of a partition: a batch, an error, or only a position that moved on."""

    place: TopicPartition
    generation: int
    position: int
    """The partition's position once this has been handed over."""
    piece: Piece | None = None
    error: ZBrokerError | None = None


class Reader:
    """One partition being read."""

    __slots__ = (
        "call", "corrupt", "emitted", "end", "generation", "heard_at", "last_error", "leader", "moved", "place",
        "resume", "retries", "retry_at", "rewound", "said", "splice", "start", "state", "subscribed", "topic_id",
    )  # fmt: skip

    def __init__(
        self, place: TopicPartition, topic_id: str, start: Start, retries: Retries
    ) -> None:
        self.place = place
        self.topic_id = topic_id
        self.start: Start = start
        self.state: Literal["starting", "fetching", "live", "stopped"] = "starting"
        self.splice = Splice(0)
        self.generation = 0
        """How often the application has set the position: what was on its way before is dropped."""
        self.end: int | None = None
        """Where to stop, with `until_end`."""
        self.call: Call | None = None
        self.leader: Leader | None = None
        """Whom the request under way went to."""
        self.subscribed: Address | None = None
        self.heard_at: float | None = None
        self.retry_at = 0.0
        self.retries = retries
        self.said = -1
        """What the leader had announced when it last said to try again."""
        self.last_error: ZBrokerError | None = None
        """Why the last request is to be repeated."""
        self.corrupt = 0
        self.rewound: int | None = None
        """The position before the log was found to be another one; the application is to be told."""
        self.emitted = -1
        """The position that the application will know of once it has taken what is ready."""
        self.resume: Literal["starting", "fetching"] | None = None
        """How a stopped reader goes on at the application's next call."""
        self.moved = False
        """Whether this start is the application's own (seek), after which out of range is always an error."""


class ConsumerCore:
    """Every decision of one consumer."""

    def __init__(
        self,
        settings: ConsumerSettings,
        exchange: Exchange,
        cluster: Cluster,
        random: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.exchange = exchange
        self.ready: deque[Ready] = deque()
        self.readers: dict[TopicPartition, Reader] = {}
        self.bytes_in = 0
        """Bytes put into `ready`, ever; the application counts those that it took out in `bytes_out`."""
        self.bytes_out = 0
        self.stalled = False
        """Whether something waits for room in the buffer."""
        self.begun = False
        self.ended = False
        """Whether every partition has reached its end, with `until_end`."""
        self._cluster = cluster
        self._random = random
        self._seen_updates = -1
        self._known: set[str] = set()
        self._reported: dict[str, str] = {}
        self._by_id: dict[tuple[str, int], Reader] = {}

    # What the application asks for, on the client's thread ---

    def begin(self, now: float) -> None:
        """The first poll: where `latest` is gets fixed now."""
        if not self.begun:
            self.begun = True
            for topic in self.settings.topics:
                self._cluster.want(topic, now)

    def seek(self, place: TopicPartition, start: Start, epoch: int, generation: int) -> None:
        """The application set a position."""
        reader = self.readers.get(place)
        if reader is None:
            self.settings.starts[place] = start
            return
        self._drop_call(reader)
        reader.generation = generation
        reader.start = start
        reader.moved = True
        reader.resume = None
        reader.retry_at = 0.0
        reader.corrupt = 0
        if isinstance(start, int):
            self._place(reader, start, epoch)
            if self.settings.until_end and reader.end is None:
                reader.state = "starting"
        else:
            reader.state = "starting"
        self.ended = False

    def pause(self, place: TopicPartition, generation: int) -> None:
        """Nothing more of a partition until it is sought."""
        reader = self.readers.get(place)
        if reader is not None:
            self._drop_call(reader)
            self._unsubscribe(reader)
            reader.generation = generation
            reader.state = "stopped"
            reader.resume = None

    def go_on(self, now: float) -> None:
        """The application was told of an error and calls again: try again."""
        for reader in self.readers.values():
            if reader.resume is not None:
                reader.state, reader.resume = reader.resume, None
        for topic in list(self._reported):
            del self._reported[topic]
            self._seen_updates = -1
            if topic not in self._cluster.topics:
                self._cluster.want(topic, now)

    # What the thread calls ---

    def step(self, now: float) -> float | None:
        """Does all that is due; answers when it wants to be called again, though nothing arrives."""
        if not self.begun:
            return None
        if self._seen_updates != self._cluster.updates:
            self._seen_updates = self._cluster.updates
            self._metadata_changed()
        wanted: float | None = None
        for reader in self.readers.values():
            if reader.state != "stopped":
                due = self._advance(reader, now)
                if due is not None and (wanted is None or due < wanted):
                    wanted = due
        return wanted

    def on_push(
        self, push: messages.Push, body: Body, now: float, sender: Address | None = None
    ) -> None:
        """A batch or a beacon of a partition, from whoever published it."""
        reader = self._by_id.get((push.topic_id, push.partition))
        if reader is None or reader.state in ("starting", "stopped"):
            return
        splice = reader.splice
        if splice.is_stale(push.epoch):
            return
        if sender is None or sender == reader.subscribed:
            reader.heard_at = now
        if body is None:
            splice.on_beacon(push)
        elif self._full() or (reader.end is not None and splice.position >= reader.end):
            splice.on_beacon(push)
            self._lag_behind(reader)
        else:
            try:
                self._hand_over(reader, splice.on_push(push, body))
            except ZBrokerError as error:
                logger.warning(
                    "a pushed batch of %s is no good and will be fetched: %s", reader.place, error
                )
        if reader.state == "fetching" and reader.heard_at is not None:
            self._go_live(reader)

    # Topics and partitions ---

    def _metadata_changed(self) -> None:
        for topic in self.settings.topics:
            view = self._cluster.topics.get(topic)
            if view is not None:
                self._topic_is_there(view)
            elif topic in self._cluster.missing:
                self._topic_is_missing(topic, self._cluster.missing[topic])
        self._check_ended()

    def _topic_is_there(self, view: TopicView) -> None:
        chosen = self.settings.partitions
        for number in range(len(view.leaders)):
            place = TopicPartition(view.name, number)
            if chosen is not None and place not in chosen:
                continue
            reader = self.readers.get(place)
            if reader is None:
                # What appears after the first look is new: all of its records are.
                start = "earliest" if view.name in self._known else self.settings.start
                start = self.settings.starts.get(place, start)
                reader = Reader(place, view.topic_id, start, Retries(self._random))
                self.readers[place] = reader
                self._by_id[(view.topic_id, number)] = reader
            elif reader.topic_id != view.topic_id:
                self._topic_made_again(reader, view)
        if chosen is not None and view.name not in self._reported:
            for place in sorted(chosen):
                if place.topic == view.name and place.partition >= len(view.leaders):
                    self._report(view.name, UnknownPartition(
                        f"topic {view.name!r} has {len(view.leaders)} partitions, "
                        f"and no partition {place.partition}",
                        topic=view.name, partition=place.partition,
                    ))  # fmt: skip
                    break
        self._known.add(view.name)

    def _topic_made_again(self, reader: Reader, view: TopicView) -> None:
        self._drop_call(reader)
        self._unsubscribe(reader)
        self._by_id.pop((reader.topic_id, reader.place.partition), None)
        self._by_id[(view.topic_id, reader.place.partition)] = reader
        reader.topic_id = view.topic_id
        reader.splice = Splice(0)
        reader.rewound = None
        reader.start = "earliest"
        reader.state = "starting"
        reader.emitted = -1
        self._stop_with(reader, TopicChanged(
            f"topic {view.name!r} was deleted and made again; the next call reads the new one from its start",
            topic=view.name, partition=reader.place.partition,
        ))  # fmt: skip

    def _topic_is_missing(self, topic: str, error: ZBrokerError) -> None:
        for reader in self.readers.values():
            if reader.place.topic == topic:
                self._drop_call(reader)
                self._unsubscribe(reader)
                if reader.state != "stopped":
                    reader.resume = "starting" if reader.state == "starting" else "fetching"
                reader.state = "stopped"
        self._report(topic, error)

    def _report(self, topic: str, error: ZBrokerError) -> None:
        if topic not in self._reported:
            self._reported[topic] = error.code
            self.ready.append(Ready(TopicPartition(topic, -1), 0, -1, error=error))

    # One partition ---

    def _advance(self, reader: Reader, now: float) -> float | None:
        leader = self._cluster.leader(reader.place.topic, reader.place.partition)
        if leader is None or leader.address is None:
            self._cluster.chase(now)
            self._unsubscribe(reader)
            return None
        if leader is not reader.leader:
            self._leader_changed(reader, leader)
        if reader.call is not None:
            return None
        if now < reader.retry_at and not self._has_learned(reader, leader):
            if reader.last_error is not None and moving(reader.last_error):
                self._cluster.chase(now)
            return reader.retry_at
        if reader.state == "starting":
            self._ask_start(reader, leader.address, now)
            return None
        if reader.state == "live":
            silent_at = (reader.heard_at or now) + PUSH_SILENCE
            if now >= silent_at:
                reader.state = "fetching"
            elif reader.splice.trusted and not reader.splice.behind:
                return silent_at
        if self._full():
            self.stalled = True
            return None
        self._fetch(reader, leader.address, now)
        return None

    def _leader_changed(self, reader: Reader, leader: Leader) -> None:
        """Whoever leads now is asked at once."""
        before, reader.leader = reader.leader, leader
        if before is None or (before.address, before.epoch) == (leader.address, leader.epoch):
            return
        if leader.address != before.address:
            self._drop_call(reader)
            self._unsubscribe(reader)
        reader.retry_at = 0.0
        reader.retries.reset()

    def _has_learned(self, reader: Reader, leader: Leader) -> bool:
        """Whether the leader has announced newer metadata since it refused: it may know now that it leads."""
        said = self._cluster.said.get(leader.address, -1)
        if said <= reader.said or reader.last_error is None:
            return False
        reader.said = said
        reader.retry_at = 0.0
        reader.retries.reset()
        return True

    def _ask_start(self, reader: Reader, address: Address, now: float) -> None:
        start = reader.start
        request = messages.Offsets(
            topic=reader.place.topic, topic_id=reader.topic_id, partition=reader.place.partition, at="latest"
        )  # fmt: skip
        if isinstance(start, int):
            if not self.settings.until_end:
                self._place(reader, start, -1)
                self._fetch(reader, address, now)
                return
        elif isinstance(start, tuple):
            request.at, request.time = "time", start[1]
        else:
            request.at = start
        reader.call = self.exchange.request(
            address, request, lambda call, outcome, _body, at: self._on_start(reader, call, outcome, at),
            now=now, timeout=self.settings.request_timeout,
        )  # fmt: skip

    def _on_start(self, reader: Reader, call: Call, outcome: Outcome, now: float) -> None:
        if reader.call is not call:
            return
        reader.call = None
        if not isinstance(outcome, messages.OffsetsReply):
            self._failed(reader, outcome, now)
            return
        if reader.splice.is_stale(outcome.leader_epoch):
            self._failed(
                reader, StaleEpoch(f"{call.address} has been succeeded as the leader"), now
            )
            return
        self._answered(reader)
        if self.settings.until_end and reader.end is None:
            reader.end = outcome.high_watermark
        if isinstance(reader.start, int):
            self._place(reader, reader.start, -1)
        else:
            self._place(reader, outcome.offset, outcome.epoch)
        reader.splice.on_ends(outcome.leader_epoch, outcome.high_watermark, outcome.log_start)
        self._emit(reader, reader.splice.position)
        if not isinstance(reader.start, int) or reader.start <= outcome.high_watermark:
            self._check_end(reader)  # else a fetch is to say what is wrong with the offset

    def _emit(self, reader: Reader, position: int) -> None:
        """Tells the application of a position that moved without a record."""
        reader.emitted = position
        self.ready.append(Ready(reader.place, reader.generation, position))

    def _place(self, reader: Reader, position: int, epoch: int) -> None:
        before = reader.splice
        reader.splice = Splice(position, epoch)
        reader.splice.on_ends(before.leader_epoch, before.head, before.log_start)
        reader.rewound = None
        reader.start = position
        reader.state = "fetching"
        reader.emitted = position

    def _fetch(self, reader: Reader, address: Address, now: float) -> None:
        splice = reader.splice
        if not splice.behind and reader.subscribed is None:
            self._subscribe(reader, address)
        wait = FETCH_WAIT if splice.trusted else 0.0
        request = messages.Fetch(
            topic=reader.place.topic, topic_id=reader.topic_id, partition=reader.place.partition,
            offset=max(splice.position, 0), epoch=splice.epoch, max_bytes=self.settings.fetch_bytes,
            wait=int(wait * 1000),
        )  # fmt: skip
        reader.call = self.exchange.request(
            address, request, lambda call, outcome, body, at: self._on_fetch(reader, call, outcome, body, at),
            now=now, timeout=self.settings.request_timeout + wait,
        )  # fmt: skip

    def _on_fetch(
        self, reader: Reader, call: Call, outcome: Outcome, body: Body, now: float
    ) -> None:
        if reader.call is not call:
            return
        reader.call = None
        if not isinstance(outcome, messages.FetchReply):
            self._failed(reader, outcome, now)
            return
        splice = reader.splice
        if splice.is_stale(outcome.epoch):
            self._failed(
                reader, StaleEpoch(f"{call.address} has been succeeded as the leader"), now
            )
            return
        if reader.rewound is not None:
            self._tell_rewound(reader)
            return
        try:
            pieces = splice.on_fetch(outcome, body if body is not None else b"")
        except ZBrokerError as error:
            self._corrupt(reader, error, now)
            return
        reader.corrupt = 0
        self._answered(reader)
        self._hand_over(reader, pieces)
        if reader.state == "stopped":
            return
        span = splice.position - outcome.base
        if splice.head - splice.position <= span and reader.subscribed is None and not self._full():
            self._subscribe(reader, call.address)
        if reader.heard_at is not None:
            self._go_live(reader)

    @staticmethod
    def _go_live(reader: Reader) -> None:
        splice = reader.splice
        if reader.subscribed is not None and splice.trusted and not splice.behind:
            reader.state = "live"

    def _hand_over(self, reader: Reader, pieces: list[Piece]) -> None:
        end = reader.end
        for piece in pieces:
            if end is not None and piece.first >= end:
                break
            header = piece.header
            if header.is_control:
                continue
            reader.emitted = header.next_offset if end is None else min(header.next_offset, end)
            self.bytes_in += header.size
            self.ready.append(Ready(reader.place, reader.generation, reader.emitted, piece))
        position = reader.splice.position if end is None else min(reader.splice.position, end)
        if position > reader.emitted:
            self._emit(reader, position)
        if end is not None:
            self._check_end(reader)

    def _check_end(self, reader: Reader) -> None:
        if reader.end is not None and reader.splice.position >= reader.end:
            self._drop_call(reader)
            self._unsubscribe(reader)
            reader.state = "stopped"
            self._check_ended()

    def _check_ended(self) -> None:
        if (
            self.settings.until_end
            and all(topic in self._known for topic in self.settings.topics)
            and all(
                reader.end is not None and reader.splice.position >= reader.end
                for reader in self.readers.values()
            )
        ):
            self.ended = True

    # When something is wrong ---

    def _failed(self, reader: Reader, outcome: Outcome, now: float) -> None:
        error = (
            outcome
            if isinstance(outcome, ZBrokerError)
            else ZBrokerError(f"unexpected answer: {outcome!r}")
        )
        if isinstance(error, OffsetOutOfRange):
            self._out_of_range(reader, error)
        elif isinstance(error, Diverged):
            epoch, end = error.details.get("epoch"), error.details.get("end")
            if isinstance(epoch, int) and isinstance(end, int):
                self._rewind(reader, epoch, end)
            else:  # it does not say: nothing of the last epoch is left, perhaps
                self._rewind(reader, reader.splice.epoch - 1, reader.splice.position - 1)
        elif error.retriable:
            reader.last_error = error
            reader.retry_at = now + reader.retries.after(error)
            reader.heard_at = None
            if reader.state == "live":
                reader.state = "fetching"
            if reader.leader is not None:
                reader.said = self._cluster.said.get(reader.leader.address, -1)
            if isinstance(error, NotLeader):
                self._cluster.on_not_leader(*reader.place, error.details, now)
            if moving(error):
                self._cluster.chase(now)
        else:
            self._stop_with(reader, error)

    @staticmethod
    def _answered(reader: Reader) -> None:
        if reader.last_error is not None:
            reader.last_error = None
            reader.retries.reset()

    def _out_of_range(self, reader: Reader, error: OffsetOutOfRange) -> None:
        policy = self.settings.on_out_of_range
        start, end = error.details.get("start"), error.details.get("end")
        place, position = reader.place, reader.splice.position
        if reader.splice.epoch >= 0 and isinstance(end, int) and end < position:
            # What was read is beyond the log's end: it is another log, not one that retention has shortened.
            self._rewind(reader, reader.splice.epoch, end)
            return
        if policy == "raise" or reader.moved:
            reader.moved = False
            error.details.update(topic=place.topic, partition=place.partition, offset=position)
            self._stop_with(reader, error)
            return
        logger.warning(
            "%s/%d: offset %d is no longer in the log (%s to %s); going on at the %s",
            place.topic, place.partition, position, start, end, policy,
        )  # fmt: skip
        reader.start = policy
        reader.state = "starting"

    def _rewind(self, reader: Reader, epoch: int, end: int) -> None:
        """The log is another one than was read: goes back until both agree, and then tells the application."""
        splice = reader.splice
        if reader.rewound is None:
            reader.rewound = splice.position
        splice.rewind(epoch, max(0, min(end, splice.position)))
        if reader.state == "live":
            reader.state = "fetching"

    def _tell_rewound(self, reader: Reader) -> None:
        place, position, before = reader.place, reader.splice.position, reader.rewound
        reader.rewound = None
        assert before is not None
        if before <= position:
            return
        reader.emitted = position
        if self.settings.until_end:
            reader.end = None  # it may be beyond what there is now
            reader.start, reader.state = position, "starting"
        self._stop_with(reader, Diverged(
            f"the log of {place.topic}/{place.partition} was rewritten: what is at offsets {position} to {before - 1} "
            "is no longer what was read there; the next call goes on with what is there now",
            topic=place.topic, partition=place.partition, first=position, next=before, epoch=reader.splice.epoch,
        ))  # fmt: skip

    def _corrupt(self, reader: Reader, error: ZBrokerError, now: float) -> None:
        reader.corrupt += 1
        if isinstance(error, CorruptBatch) and reader.corrupt < CORRUPT_PATIENCE:
            reader.retry_at = now + reader.retries.after(error)
            return
        reader.corrupt = 0
        first = error.details.get("first", reader.splice.position)
        self._stop_with(reader, DataDamaged(
            str(error), topic=reader.place.topic, partition=reader.place.partition,
            first=first, next=error.details.get("next", first + 1),
        ))  # fmt: skip

    def _stop_with(self, reader: Reader, error: ZBrokerError) -> None:
        """The application is told, after all that came before; its next call goes on."""
        error.details.setdefault("topic", reader.place.topic)
        error.details.setdefault("partition", reader.place.partition)
        self._unsubscribe(reader)
        reader.resume = "starting" if reader.state == "starting" else "fetching"
        reader.state = "stopped"
        self.ready.append(
            Ready(reader.place, reader.generation, reader.splice.position, error=error)
        )

    # Pushes ---

    def _subscribe(self, reader: Reader, address: Address) -> None:
        reader.subscribed = address
        reader.heard_at = None
        self.exchange.effects.append(
            Subscription(address, subject(reader.place.topic, reader.place.partition), "add")
        )

    def _unsubscribe(self, reader: Reader) -> None:
        if reader.subscribed is not None:
            self.exchange.effects.append(
                Subscription(
                    reader.subscribed, subject(reader.place.topic, reader.place.partition), "drop"
                )
            )
        reader.subscribed = None
        reader.heard_at = None
        reader.splice.drop_held()
        if reader.state == "live":
            reader.state = "fetching"

    def _lag_behind(self, reader: Reader) -> None:
        """The application is slower than the pushes: they would only be dropped."""
        self._unsubscribe(reader)
        self.stalled = True

    def _drop_call(self, reader: Reader) -> None:
        if reader.call is not None:
            self.exchange.abandon(reader.call)
            reader.call = None

    def _full(self) -> bool:
        return self.bytes_in - self.bytes_out >= self.settings.buffer_bytes
