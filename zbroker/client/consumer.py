"""`Consumer`: records out of topics, for one thread.

The face: it decodes batches in the caller's thread, keeps the positions of what was handed over, and waits. What to
fetch is decided in `consuming`; the sockets belong to `connection`.
"""

from __future__ import annotations

import datetime
import logging
import random
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from time import monotonic
from types import TracebackType
from typing import Any, Literal

from zbroker.client.connection import Connection
from zbroker.client.consuming import ConsumerCore, ConsumerSettings, OutOfRange, Ready, Start
from zbroker.client.delivery import copied
from zbroker.client.exchange import Body, Exchange
from zbroker.client.guard import Guarded, check_timeout, option, wait_event
from zbroker.client.metadata import Cluster
from zbroker.client.producer import servers_of
from zbroker.client.records import Record, TopicPartition
from zbroker.client.serializers import Deserializer, FromBytes, deserializer
from zbroker.errors import ClientClosed, Diverged, InvalidRequest, SerializationError, ZBrokerError
from zbroker.protocol import messages
from zbroker.protocol.batch import APPEND_TIME, decode_rows
from zbroker.units import Address

logger = logging.getLogger("zbroker.client")

BUFFER_BYTES = 32 << 20
FETCH_BYTES = 1 << 20
MAX_RECORDS = 1000

StartOption = (
    Literal["earliest", "latest"] | int | datetime.datetime | datetime.timedelta | tuple[str, int]
)


class ConsumerMachine:
    """The consumer's core as its thread drives it."""

    def __init__(self, core: ConsumerCore, cluster: Cluster, exchange: Exchange) -> None:
        self.core = core
        self.cluster = cluster
        self.exchange = exchange
        self.signal: Callable[[], None] = lambda: None
        """Tells the application's thread that something is ready."""
        self.failure: ZBrokerError | None = None

    def step(self, now: float) -> float | None:
        """Decides what is due."""
        wanted = self.core.step(now)
        asks = self.cluster.step(now)
        return wanted if asks is None else asks if wanted is None else min(asks, wanted)

    def on_push(self, address: Address, push: messages.Push, body: Body, now: float) -> None:
        """A batch or a beacon."""
        self.core.on_push(push, body, now, address)

    def on_change(self, change: messages.ClusterChange, now: float) -> None:
        """A node announced new metadata."""
        self.cluster.on_change(change, now)

    def after_step(self) -> None:
        """Wakes the application where there is something for it."""
        if self.core.ready or self.core.ended:
            self.signal()

    def on_failure(self, error: ZBrokerError) -> None:
        """The thread ends."""
        self.failure = error
        self.signal()


class ConsumerBase(Guarded):
    """What the sync and the asyncio consumer share: everything but waiting."""

    def __init__(
        self,
        servers: str | Iterable[str] = "localhost:5550",
        *topics: str,
        group: str | None = None,
        start: StartOption | Mapping[tuple[str, int], StartOption] = "latest",
        partitions: Iterable[int | tuple[str, int]] | None = None,
        on_out_of_range: OutOfRange | None = None,
        until_end: bool = False,
        buffer_bytes: int = BUFFER_BYTES,
        fetch_bytes: int = FETCH_BYTES,
        request_timeout: float = 10.0,
        deserializer: Deserializer = None,
        key_deserializer: Deserializer = None,
        sub_rcvhwm: int = 1000,
        client_id: str = "zbroker-consumer",
    ) -> None:
        if group is not None:
            raise InvalidRequest(
                "consumer groups are not there yet: leave `group` out, and keep positions yourself "
                "with position() and seek()"
            )
        addresses = servers_of(servers)
        option(bool(topics), "a consumer reads at least one topic: Consumer(servers, topic, …)")
        for topic in topics:
            option(
                isinstance(topic, str) and 0 < len(topic) <= 249,
                f"a topic is a name, not {topic!r}",
            )
        option(
            on_out_of_range in (None, "raise", "earliest", "latest"),
            f"on_out_of_range is raise, earliest or latest, not {on_out_of_range!r}",
        )
        for name, size in (("buffer_bytes", buffer_bytes), ("fetch_bytes", fetch_bytes)):
            option(isinstance(size, int) and size > 0, f"{name} is 1 or more, not {size!r}")
        option(
            request_timeout > 0, f"request_timeout is more than 0 seconds, not {request_timeout!r}"
        )
        option(
            isinstance(sub_rcvhwm, int) and sub_rcvhwm >= 0, "sub_rcvhwm is a number of messages"
        )
        super().__init__()
        everywhere, starts = _starts(start)
        if on_out_of_range is None:
            on_out_of_range = everywhere if everywhere in ("earliest", "latest") else "raise"
        assert on_out_of_range is not None
        settings = ConsumerSettings(
            topics=tuple(dict.fromkeys(topics)),
            partitions=_chosen(partitions, topics),
            start=everywhere,
            starts=starts,
            on_out_of_range=on_out_of_range,
            fetch_bytes=fetch_bytes,
            buffer_bytes=buffer_bytes,
            request_timeout=request_timeout,
            until_end=until_end,
        )
        chance = random.Random().random
        exchange = Exchange()
        self._cluster = Cluster(addresses, exchange, chance)
        self._core = ConsumerCore(settings, exchange, self._cluster, chance)
        self._machine = ConsumerMachine(self._core, self._cluster, exchange)
        self._connection = connection = Connection(self._machine, client_id, sub_rcvhwm=sub_rcvhwm)
        self._finalizer = weakref.finalize(self, connection.stop_soon)
        self._finalizer.atexit = False
        self._until_end = until_end
        self._buffer_bytes = buffer_bytes
        self._value_of = _deserializer(deserializer)
        self._key_of = _deserializer(key_deserializer)

        self._records: list[Record] = []
        self._cursor: Iterator[Record] = iter(self._records)
        self._current: Ready | None = None
        """The batch that `_records` are of."""
        self._positions: dict[TopicPartition, int] = {}
        self._epochs: dict[TopicPartition, int] = {}
        self._generations: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._bad: ZBrokerError | None = None
        self._woken = False
        self._told = False
        """Whether an error was raised, so that the next call has the core try again."""
        self._prepare()

    def _prepare(self) -> None:
        """What a face needs for its waiting."""

    # Handing over ---

    def _begin(self) -> None:
        """At the start of every call that hands records over."""
        self._check_open()
        self._connection.start()
        if not self._core.begun:
            self._connection.post(self._core.begin)
        if self._told:
            self._told = False
            self._connection.post(self._core.go_on)

    def _take(self, most: int) -> list[Record]:
        """Up to `most` records of what is there, without waiting."""
        found = list(islice(self._cursor, most))
        while len(found) < most:
            try:
                if not self._load():
                    break
            except ZBrokerError:
                if found:
                    self._told = False
                    break  # raised again by the next call: what caused it is still in front
                raise
            found += islice(self._cursor, most - len(found))
        return found

    def _load(self) -> bool:
        """Makes the next batch the current one; False when nothing is ready. Raises what stands in front."""
        self._finish_current()
        ready = self._core.ready
        while ready:
            item = ready[0]
            place = item.place
            if item.generation != self._generations.get(place, 0):
                self._drop(ready.popleft())
                continue
            if item.error is not None:
                ready.popleft()
                self._positions[place] = item.position
                self._tell(item.error)
            if item.piece is None:
                ready.popleft()
                self._positions[place] = item.position
                continue
            records = self._decode(item, place)
            ready.popleft()
            self._drop(item)
            self._epochs[place] = item.piece.header.leader_epoch
            if records:
                self._records = records
                self._cursor = iter(records)
                self._current = item
                return True
            self._positions[place] = item.position
        return False

    def _tell(self, error: ZBrokerError) -> None:
        self._bad = None if isinstance(error, Diverged) else error  # its offsets can be read
        self._told = True
        raise copied(error)

    def _finish_current(self) -> None:
        if self._current is not None:
            self._positions[self._current.place] = self._current.position
            self._current = None

    def _drop(self, item: Ready) -> None:
        """Gives the room of a batch back."""
        if item.piece is not None:
            core = self._core
            core.bytes_out += item.piece.header.size
            if core.stalled and core.bytes_in - core.bytes_out <= self._buffer_bytes // 2:
                core.stalled = False
                self._connection.wake()

    def _decode(self, item: Ready, place: TopicPartition) -> list[Record]:
        piece = item.piece
        assert piece is not None
        header = piece.header
        topic, partition = place
        base = header.base_offset
        try:
            rows: list[Any] = decode_rows(piece.data, piece.at, header)
        except ZBrokerError as error:
            error.details.update(topic=topic, partition=partition)
            error.details.setdefault("first", base)
            error.details.setdefault("next", header.next_offset)
            self._positions[place] = piece.first
            self._bad = error
            raise
        end = item.position
        if piece.first > base or end < header.next_offset:
            rows = rows[piece.first - base : end - base]
            base = piece.first
        stamp = header.append_time if header.stamp_attributes & APPEND_TIME else None
        start = header.base_timestamp
        try:
            if stamp is None:
                records = [
                    Record(
                        topic, partition, offset, start + row.delta, row.key, row.value, row.headers
                    )
                    for offset, row in enumerate(rows, base)
                ]
            else:
                records = [
                    Record(topic, partition, offset, stamp, row.key, row.value, row.headers)
                    for offset, row in enumerate(rows, base)
                ]
        except AttributeError:  # records that compaction removed
            records = [
                Record(
                    topic, partition, offset, start + row.delta if stamp is None else stamp,
                    row.key, row.value, row.headers,
                )
                for offset, row in enumerate(rows, base)
                if row is not None
            ]  # fmt: skip
        if self._value_of is not None or self._key_of is not None:
            return self._deserialized(records, item)
        return records

    def _deserialized(self, records: list[Record], item: Ready) -> list[Record]:
        value_of, key_of = self._value_of or _same, self._key_of or _same
        out: list[Record] = []
        for record in records:
            try:
                value = None if record.value is None else value_of(record.value)
                key = None if record.key is None else key_of(record.key)
            except Exception as problem:
                error = SerializationError(
                    f"the record at offset {record.offset} of {record.topic}/{record.partition} cannot be "
                    f"deserialized: {type(problem).__name__}: {problem}",
                    topic=record.topic, partition=record.partition, first=record.offset, next=record.offset + 1,
                )  # fmt: skip
                error.__cause__ = problem
                assert item.piece is not None
                if not out:
                    self._positions[item.place] = record.offset
                    self._bad = error
                    raise error from problem
                # What came before it is handed over first; the rest stays in front.
                rest = Ready(item.place, item.generation, item.position, item.piece)
                item.position = record.offset
                header = item.piece.header
                rest.piece = type(item.piece)(item.piece.data, item.piece.at, header, record.offset)
                self._core.bytes_out -= header.size
                self._core.ready.insert(1, rest)
                return out
            out.append(
                Record(
                    record.topic, record.partition, record.offset, record.timestamp, key, value, record.headers
                )
            )  # fmt: skip
        return out

    # Positions ---

    def seek(self, topic: str, partition: int, offset: StartOption) -> None:
        """Sets where a partition is read next: an offset, `"earliest"`, `"latest"` or a time (see `start`)."""
        self._check_open()
        place = self._chosen_place(topic, partition)
        start = _start(offset)
        self._move(place)
        if isinstance(start, int):
            self._positions[place] = start
        else:
            self._positions.pop(place, None)
        self._epochs.pop(place, None)
        self._bad = None
        if place not in self._paused:
            self._send_seek(place, start)

    def skip_damaged(self) -> None:
        """After an error that named offsets which cannot be read: goes on behind them.

        Raises:
            InvalidRequest: the last error named none.
        """
        bad = self._bad
        details = bad.details if bad is not None else {}
        topic, partition, after = (details.get(name) for name in ("topic", "partition", "next"))
        if (
            not isinstance(topic, str)
            or not isinstance(partition, int)
            or not isinstance(after, int)
        ):
            raise InvalidRequest(
                "there is nothing to skip: the last error named no damaged records"
            )
        self.seek(topic, partition, after)

    def position(self, topic: str | None = None, partition: int | None = None) -> Any:
        """The offset that is handed over next: of one partition, or of all as `{(topic, partition): offset}`.

        A record counts as handed over at the next call. None (or absent) where it is not known yet.
        """
        ready = self._core.ready
        while self._current is None and ready and ready[0].piece is None and not ready[0].error:
            item = ready.popleft()
            if item.generation == self._generations.get(item.place, 0):
                self._positions[item.place] = item.position
        positions = {
            place: offset for place, offset in self._positions.items() if place.partition >= 0
        }
        current = self._current
        if current is not None:
            left = self._cursor.__length_hint__()  # type: ignore[attr-defined]
            positions[current.place] = self._records[-left].offset if left else current.position
        if topic is None:
            return positions
        return positions.get(TopicPartition(topic, 0 if partition is None else partition))

    def assignment(self) -> list[TopicPartition]:
        """The partitions that are read, as far as they are known yet."""
        return sorted(self._core.readers.copy())

    def high_watermarks(self) -> dict[TopicPartition, int]:
        """The first offset that is not committed yet, as last heard, of each partition."""
        return {place: reader.splice.head for place, reader in self._core.readers.copy().items()}

    def lag(self) -> dict[TopicPartition, int]:
        """How many offsets of each partition are committed and not handed over yet, as last heard."""
        positions = self.position()
        return {
            place: max(0, head - positions[place])
            for place, head in self.high_watermarks().items()
            if place in positions
        }

    @property
    def ended(self) -> bool:
        """With `until_end`: whether everything has been handed over."""
        if not self._core.ended or self._core.ready:
            return False
        current = self._current
        return current is None or not self._cursor.__length_hint__()  # type: ignore[attr-defined]

    def pause(self, topic: str | None = None, partition: int | None = None) -> None:
        """Hands over nothing of a partition, a topic or everything until `resume`."""
        self._check_open()
        for place in self._places(topic, partition):
            if place not in self._paused:
                self._keep_position(place)
                self._paused.add(place)
                self._move(place)
                generation = self._generations[place]
                self._connection.start()
                self._connection.post(
                    lambda _now, place=place, generation=generation: self._core.pause(
                        place, generation
                    )  # type: ignore[misc]
                )

    def resume(self, topic: str | None = None, partition: int | None = None) -> None:
        """Ends `pause`: goes on where it was."""
        self._check_open()
        for place in self._places(topic, partition):
            if place in self._paused:
                self._paused.discard(place)
                self._generations[place] = self._generations.get(place, 0) + 1
                position = self._positions.get(place)
                start: Start = self._core.settings.start if position is None else position
                self._send_seek(place, start)

    def paused(self) -> list[TopicPartition]:
        """The partitions that are paused."""
        return sorted(self._paused)

    def commit(self, offsets: Any = None) -> None:
        """Commits positions of a group; there are no groups yet."""
        del offsets
        raise InvalidRequest(
            "consumer groups are not there yet, so there is nothing to commit to; keep positions yourself "
            "with position() and seek()"
        )

    def _keep_position(self, place: TopicPartition) -> None:
        position = self.position(*place)
        if position is not None:
            self._positions[place] = position

    def _move(self, place: TopicPartition) -> None:
        """What is on its way of a partition no longer counts."""
        self._generations[place] = self._generations.get(place, 0) + 1
        if self._current is not None and self._current.place == place:
            self._records.clear()
            self._current = None

    def _send_seek(self, place: TopicPartition, start: Start) -> None:
        generation = self._generations.get(place, 0)
        epoch = self._epochs.get(place, -1)
        self._connection.start()
        self._connection.post(lambda _now: self._core.seek(place, start, epoch, generation))

    def _chosen_place(self, topic: str, partition: int) -> TopicPartition:
        place = TopicPartition(topic, partition)
        chosen = self._core.settings.partitions
        if topic not in self._core.settings.topics or (chosen is not None and place not in chosen):
            raise InvalidRequest(f"this consumer does not read {topic}/{partition}")
        return place

    def _places(self, topic: str | None, partition: int | None) -> list[TopicPartition]:
        if topic is not None and partition is not None:
            return [self._chosen_place(topic, partition)]
        return [place for place in self.assignment() if topic is None or place.topic == topic]

    def wakeup(self) -> None:
        """From any thread: a `poll` that waits returns with what it has, an iteration that waits ends."""
        self._woken = True
        self._machine.signal()

    def _check_running(self) -> None:
        failure = self._machine.failure
        if failure is not None:
            self._check_open()
            raise copied(failure)

    def _stop(self) -> None:
        if self._refusal is not None:
            return
        self._refusal = "the consumer was closed"
        self._forget()
        self._finalizer.detach()
        self._connection.stop()
        self._machine.signal()

    def _at_exit(self) -> None:
        self._connection.stop_soon()

    def __repr__(self) -> str:
        topics = ", ".join(self._core.settings.topics)
        return f"<{type(self).__name__} of {topics}{' closed' if self._refusal else ''}>"


class Consumer(ConsumerBase):
    """Reads topics, whole, without a group. For one thread, but for `wakeup()` and `close()`.

    Args:
        servers: `"host:port"`, several with commas or as a list: any of the cluster's nodes.
        topics: one or more names.
        group: consumer groups come later; a name is refused.
        start: where each partition begins: `"earliest"`, `"latest"` (what is committed after the first `poll`), an
            offset, a `datetime` (naive: local time), a `timedelta` (so long ago), `("time", milliseconds)`, or a dict
            of these by (topic, partition). A partition that is added later begins at its start.
        partitions: numbers (of a single topic) or (topic, number) pairs; all if left out.
        on_out_of_range: when the position is not in the log any more (retention has passed it): `"raise"`
            `OffsetOutOfRange` with the range, or go on at `"earliest"` or `"latest"` with a warning in the log. Left
            out: as `start` says where that is `"earliest"` or `"latest"`, else raise. What `seek` sets always raises.
        until_end: end the iteration at the offsets that were committed at the first `poll`.
        buffer_bytes: how much may wait to be handed over; then nothing is fetched.
        fetch_bytes: about how much one fetch brings.
        request_timeout: seconds that a node has to answer.
        deserializer: for values: `"msgpack"`, `"json"` or a function; None passes through.
        key_deserializer: the same for keys.
        sub_rcvhwm: messages that ZeroMQ keeps for this consumer; what it drops beyond is fetched.
        client_id: a name for this client's thread and log lines.

    Errors that name offsets (`DataDamaged`, `InvalidRecord`, `SerializationError`) are raised in place of the records:
    `skip_damaged()` or `seek()` goes on behind them, calling again tries again. After `Diverged` and `TopicChanged`
    the next call goes on by itself. Servers that cannot be reached are tried for ever.

    `Diverged` comes after an unclean election: a partition's log lost records that had been handed over. It is raised
    once, with `details["topic"]`, `["partition"]`, and the range `["first"]` to before `["next"]`: what was handed over
    at these offsets is no longer what is there. The next call goes on at `first`, with the records that are there now.
    A new leader that has everything, as it does after any other election, is not noticed.
    """

    def _prepare(self) -> None:
        self._data = threading.Event()
        self._machine.signal = self._data.set
        self._busy: int | None = None

    def poll(self, timeout: float | None = 1.0, max_records: int = MAX_RECORDS) -> list[Record]:
        """Up to `max_records` records; waits up to `timeout` seconds (None: for ever) while there are none.

        Returns:
            What is there, as soon as there is something; an empty list when there was nothing in time, after
            `wakeup()`, and at the end with `until_end`.
        """
        check_timeout(timeout)
        option(max_records >= 1, f"max_records is 1 or more, not {max_records!r}")
        self._enter()
        try:
            self._begin()
            found = self._take(max_records)
            if found or timeout == 0:
                self._check_running()
                return found
            deadline = None if timeout is None else monotonic() + timeout
            while not found and self._wait(deadline):
                found = self._take(max_records)
            return found
        finally:
            self._busy = None

    def __iter__(self) -> Iterator[Record]:
        """Records, for ever; ends at the end with `until_end`, after `wakeup()` and after `close()`."""
        while True:
            self._enter()
            try:
                if self._refusal is not None and self._records:
                    return
                self._begin()
                while not self._cursor.__length_hint__():  # type: ignore[attr-defined]
                    if not self._load() and not self._wait(None):
                        return
            except ClientClosed:
                if self._records or self._core.begun:
                    return
                raise
            finally:
                self._busy = None
            yield from self._cursor

    def _enter(self) -> None:
        me = threading.get_ident()
        if self._busy is not None and self._busy != me:
            raise InvalidRequest("a Consumer belongs to one thread; another one is in poll() now")
        self._busy = me

    def _wait(self, deadline: float | None) -> bool:
        """Waits until something is ready; False when time is up, at the end, or after `wakeup()`."""
        data = self._data
        while True:
            data.clear()
            self._check_running()
            if self._core.ready:
                return True
            if self._woken:
                self._woken = False
                return False
            if self._until_end and self._core.ended:
                return False
            if not wait_event(data, None if deadline is None else deadline - monotonic()):
                return False

    def close(self) -> None:
        """Closes at once, from any thread. Again: does nothing."""
        self._stop()

    def __enter__(self) -> Consumer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()


def _starts(
    start: StartOption | Mapping[tuple[str, int], StartOption],
) -> tuple[Start, dict[TopicPartition, Start]]:
    if isinstance(start, Mapping):
        return "latest", {TopicPartition(*place): _start(one) for place, one in start.items()}
    return _start(start), {}


def _start(start: Any) -> Start:
    """What people write for a place to begin, as the core takes it."""
    if start in ("earliest", "latest"):
        return start  # type: ignore[no-any-return]
    if isinstance(start, int) and not isinstance(start, bool) and start >= 0:
        return start
    if isinstance(start, datetime.datetime):
        return ("time", max(0, int(start.timestamp() * 1000)))
    if isinstance(start, datetime.timedelta):
        moment = datetime.datetime.now(datetime.UTC) - abs(start)
        return ("time", max(0, int(moment.timestamp() * 1000)))
    if (
        isinstance(start, tuple)
        and len(start) == 2
        and start[0] == "time"
        and isinstance(start[1], int)
    ):
        return ("time", max(0, start[1]))
    raise InvalidRequest(
        'a start is "earliest", "latest", an offset from 0 on, a datetime, a timedelta or ("time", milliseconds), '
        f"not {start!r}"
    )


def _chosen(
    partitions: Iterable[int | tuple[str, int]] | None, topics: tuple[str, ...]
) -> frozenset[TopicPartition] | None:
    if partitions is None:
        return None
    chosen = []
    for given in partitions:
        one: Any = given
        if isinstance(one, int) and not isinstance(one, bool):
            option(len(topics) == 1, "with several topics, partitions are (topic, number) pairs")
            one = (topics[0], one)
        option(
            isinstance(one, tuple) and len(one) == 2 and one[0] in topics
            and isinstance(one[1], int) and one[1] >= 0,
            f"a partition is a number from 0 on, or a (topic, number) pair of a topic that is read, not {one!r}",
        )  # fmt: skip
        chosen.append(TopicPartition(one[0], one[1]))
    option(bool(chosen), "partitions is empty; leave it out to read all")
    return frozenset(chosen)


def _same(value: Any) -> Any:
    return value


def _deserializer(choice: Deserializer) -> FromBytes | None:
    return deserializer(choice)
