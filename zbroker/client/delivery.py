"""A batch on its way from `send()` to its place in the log, and the `Delivery` that an application holds of a record.

Owns a batch's life and how its outcome is waited for. A batch is filled by the application's threads without a lock
(`filling`), sealed once, encoded and sent by the client's thread, and finished once:

=========== ============================================ ========================================================
state       who may touch it                             what marks it
=========== ============================================ ========================================================
open        its pen, one thread at a time                `closed` is False
sealed      the client's thread                          `closed`; `count`, `values` and `runs` fixed
divided     nobody: its records went into other batches  `where`
finished    everybody reads                              `done`; `error` or `base_offset`
=========== ============================================ ========================================================

Whoever seals waits for nobody: it sets `closed`, then copies the values. Who has put a record in and then finds
`closed` False did so before the copy, so the record is in; who finds it True asks, under the lock, whether its index
is below `count`.
"""

from __future__ import annotations

import copy
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import itemgetter
from time import monotonic
from typing import Any, Protocol

import msgspec

from zbroker.client.guard import check_timeout, ran_out, wait_event
from zbroker.client.records import Headers, RecordMetadata
from zbroker.errors import ZBrokerError

OnDelivery = Callable[[RecordMetadata | None, ZBrokerError | None], Any]
Pen = Callable[[Any], "Delivery | None"]
"""Puts records into one batch; see `filling`."""


class Home(Protocol):
    """What a batch needs of the accumulator that it belongs to."""

    lock: threading.RLock

    def check_wait(self, timeout: float | None) -> None:
        """Refuses a wait that would hold up what it waits for, or for a thread that is not there."""

    def hurry(self, batch: Batch) -> None:
        """Somebody waits for the batch: it lingers no more."""

    def is_coarse(self, batch: Batch) -> None:
        """The batch's pen looks at the clock seldom from now on."""


class Batch:
    """Records of one partition that travel together. Application threads use it through `Delivery` only."""

    __slots__ = (
        "__weakref__",
        "append_time",
        "base_ms",
        "base_offset",
        "callbacks",
        "charge",
        "closed",
        "coarse",
        "count",
        "data",
        "deadline",
        "delta",
        "done",
        "durability",
        "epoch",
        "error",
        "event",
        "headers",
        "home",
        "keys",
        "limit",
        "marks",
        "mixed",
        "opened_at",
        "ordinal",
        "partition",
        "pen",
        "runs",
        "sends",
        "sequence",
        "signal",
        "size",
        "targets",
        "tick",
        "topic",
        "urgent",
        "values",
        "waiters",
        "wall",
        "where",
    )

    def __init__(
        self,
        home: Home,
        topic: str,
        partition: int,
        *,
        limit: int,
        opened_at: float,
        wall: Callable[[], float],
    ) -> None:
        self.home = home
        self.topic = topic
        self.partition = partition
        """Where it goes; -1 while the topic's partitions are not known."""
        self.values: list[bytes | None] = []
        self.keys: list[bytes | None] | None = None
        """One a value or more, once a record has a key."""
        self.headers: list[Headers] | None = None
        """The same, once a record has headers."""
        self.mixed = False
        """Whether the values are of several lengths, or some are None."""
        self.marks: list[tuple[int, int]] = []
        """(index, timestamp delta from `base_ms`): from that record on. The last of several at one index counts."""
        self.runs: tuple[tuple[int, int], ...] = ()
        """The same, once it is sealed."""
        self.pen: Pen | None = None
        """What puts records in, while it is open."""
        self.limit = limit
        self.size = 0
        """What its records take of the buffer, at most."""
        self.wall = wall
        self.base_ms = int(wall() * 1000)
        self.delta = 0
        self.tick = 0.0
        """Wall clock in seconds from which on `delta` is out of date."""
        self.opened_at = opened_at
        self.deadline = 0.0
        self.charge = 0
        """Bytes of the buffer that it takes."""
        self.closed = False
        self.signal = False
        """Whether the pen is to look at the clock, and at `closed`."""
        self.coarse = False
        """Whether the pen looks at the clock seldom."""
        self.urgent = False
        self.targets: dict[int, int] | None = None
        """Partitions that were asked for while the topic's were unknown, by index."""
        self.callbacks: list[tuple[int, OnDelivery]] | None = None
        """(index, function)."""

        self.count = 0
        self.data: bytearray | None = None
        self.sequence = -1
        self.epoch = -1
        self.ordinal = 0
        """How many batches of the partition were sent before it."""
        self.sends = 0

        self.done = False
        self.error: ZBrokerError | None = None
        self.base_offset = -1
        self.append_time: int | None = None
        """The records' timestamp where the topic stamps them as it appends, or None."""
        self.durability = "none"
        self.where: list[tuple[Batch, int]] | None = None
        """After division: for each index the batch and the index where the record is now."""
        self.event: threading.Event | None = None
        self.waiters: list[Callable[[], None]] | None = None

    def mark(self, index: int) -> None:
        """Has the records from an index on bear the wall clock's time; a clock that was set back changes nothing."""
        wall = self.wall()
        if wall >= self.tick:
            milliseconds = int(wall * 1000)
            self.tick = (milliseconds + 1) / 1000
            self.delta = max(self.delta, milliseconds - self.base_ms)
            self.marks.append((index, self.delta))

    def mark_explicit(self, index: int, timestamp: int) -> None:
        """Has the records from an index on bear a timestamp of their own, until the clock is looked at."""
        self.tick = 0.0
        self.marks.append((index, timestamp - self.base_ms))

    def use_pen(self, records: Any) -> Delivery:
        """Puts records in that were checked; the lock is held, and it is open. Raises as pens do."""
        assert self.pen is not None
        delivery = self.pen(records)
        assert delivery is not None
        return delivery

    def seal(self) -> None:
        """Fixes what it holds; the lock is held. A pen that is at work finds out by itself."""
        self.closed = True
        self.signal = True
        self.values = self.values[:]
        self.count = len(self.values)
        self.runs = tuple(self.marks)  # after the values: a value's mark is put in before it
        self.pen = None

    def forget(self) -> None:
        """The records themselves are needed no more."""
        self.values = []
        self.keys = self.headers = None

    def delta_of(self, index: int) -> int:
        """The timestamp of the record at an index, counted from `base_ms`."""
        return self.runs[bisect_right(self.runs, index, key=_first) - 1][1]

    def deltas(self) -> list[int]:
        """The same of every record."""
        ends = [*(first for first, _ in self.runs[1:]), self.count]
        found: list[int] = []
        for (first, delta), end in zip(self.runs, ends, strict=True):
            found += [delta] * (min(end, self.count) - first)
        return found

    def metadata(self, index: int) -> RecordMetadata:
        """Where the record at an index is, once the batch is done."""
        if self.append_time is None:
            timestamp = self.base_ms + self.delta_of(index)
        else:
            timestamp = self.append_time
        offset = self.base_offset + index if self.base_offset >= 0 else -1
        return RecordMetadata(self.topic, self.partition, offset, timestamp, self.durability)

    def settled(self) -> bool:
        """Whether it is finished, or its records are elsewhere."""
        return self.done or self.where is not None

    def wait(self, timeout: float | None) -> bool:
        """Waits until it is finished or divided."""
        if self.done or self.where is not None:
            return True
        home = self.home
        home.check_wait(timeout)
        if not self.urgent:
            home.hurry(self)
        with home.lock:
            event = self.event
            if event is None:
                event = self.event = threading.Event()
            settled = self.settled()
        return settled or wait_event(event, timeout)

    def when_settled(self, callback: Callable[[], None]) -> bool:
        """Has `callback` called on the client's thread once finished or divided; False when that is so already."""
        with self.home.lock:
            if self.settled():
                return False
            if self.waiters is None:
                self.waiters = []
            self.waiters.append(callback)
        if not self.urgent:
            self.home.hurry(self)
        return True


_first = itemgetter(0)


class Delivery(msgspec.Struct, gc=False, eq=False):
    """What became of one record: still on its way, in the log, or failed."""

    _batch: Batch
    _index: int

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._place()[0].done

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Waits for the outcome, for at most `timeout` seconds.

        Raises:
            WaitTimedOut: it is not known yet; the record is still on its way.
            InvalidRequest: this is an `on_delivery`, or a signal's handler, for which the client would wait in turn.
            ClientClosed: the process has forked.
            ZBrokerError: why the record was not delivered; `.outcome_unknown` says whether it may be in the log.
        """
        batch, index = self._wait(timeout)
        if batch.error is not None:
            raise copied(batch.error)
        return batch.metadata(index)

    def exception(self, timeout: float | None = None) -> ZBrokerError | None:
        """Waits as `result` does; the error, or None where the record is in the log."""
        batch, _ = self._wait(timeout)
        return None if batch.error is None else copied(batch.error)

    def _place(self) -> tuple[Batch, int]:
        batch, index = self._batch, self._index
        while batch.where is not None:
            batch, index = batch.where[index]
        return batch, index

    def _wait(self, timeout: float | None) -> tuple[Batch, int]:
        check_timeout(timeout)
        deadline: float | None = None
        while True:
            batch, index = self._place()
            if batch.done:
                return batch, index
            if timeout is not None and deadline is None:
                deadline = monotonic() + timeout
            if not batch.wait(None if deadline is None else deadline - monotonic()):
                raise ran_out("the acknowledgement", timeout)

    def __repr__(self) -> str:
        batch, index = self._place()
        if not batch.done:
            return f"<Delivery to {batch.topic!r}: on its way>"
        if batch.error is not None:
            return f"<Delivery to {batch.topic!r}: {batch.error!r}>"
        return f"<Delivery {batch.metadata(index)!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        from zbroker.client.guard import NotPicklable

        raise NotPicklable("a Delivery belongs to its Producer; pickle its result() instead")


class DeliveryGroup:
    """What became of the records of one `send_many`: a `Delivery` of them all.

    `result()` is the list of their `RecordMetadata` in the order of the values, or raises the first error.
    """

    __slots__ = ("_parts", "_total")

    def __init__(self, total: int) -> None:
        self._total = total
        self._parts: list[tuple[Batch, int, Sequence[int]]] = []

    def add(self, batch: Batch, first: int, positions: Sequence[int]) -> None:
        """Records at indexes from `first` on in a batch are the values at `positions`."""
        self._parts.append((batch, first, positions))

    def __len__(self) -> int:
        return self._total

    def accepted(self) -> int:
        """How many records are on their way or further."""
        return sum(len(positions) for _, _, positions in self._parts)

    def done(self) -> bool:
        """Whether every outcome is known."""
        return all(
            Delivery(batch, first + n).done()
            for batch, first, positions in self._parts
            for n in ((0,) if batch.where is None else range(len(positions)))
        )

    def result(self, timeout: float | None = None) -> list[RecordMetadata]:
        """Waits for all of them, for at most `timeout` seconds. Raises as `Delivery.result` does."""
        check_timeout(timeout)
        deadline = None if timeout is None else monotonic() + timeout
        found: list[Any] = [None] * self._total
        failed: tuple[int, ZBrokerError] | None = None
        for batch, first, positions in self._parts:
            for n, position in enumerate(positions):
                place, index = Delivery(batch, first + n)._place()
                while not place.done:
                    if not place.wait(None if deadline is None else deadline - monotonic()):
                        raise ran_out("the acknowledgement of every record", timeout)
                    place, index = Delivery(batch, first + n)._place()
                if place.error is None:
                    found[position] = place.metadata(index)
                elif failed is None or position < failed[0]:
                    failed = (position, place.error)
        if failed is not None:
            raise copied(failed[1])
        return found

    def exception(self, timeout: float | None = None) -> ZBrokerError | None:
        """Waits as `result` does; the first error, or None where every record is in the log."""
        from zbroker.errors import WaitTimedOut

        try:
            self.result(timeout)
        except WaitTimedOut:
            raise
        except ZBrokerError as error:
            return error
        return None

    def outcomes(self) -> tuple[int, list[tuple[int, ZBrokerError]]]:
        """What is known by now, without waiting: how many are in the log, and the failed ones' positions and errors."""
        delivered = 0
        failed: list[tuple[int, ZBrokerError]] = []
        for batch, first, positions in self._parts:
            if batch.where is None:
                if batch.done and batch.error is None:
                    delivered += len(positions)
                elif batch.done and batch.error is not None:
                    failed += [(position, batch.error) for position in positions]
                continue
            for n, position in enumerate(positions):
                place, _ = Delivery(batch, first + n)._place()
                if place.done and place.error is None:
                    delivered += 1
                elif place.done and place.error is not None:
                    failed.append((position, place.error))
        return delivered, sorted(failed, key=lambda failure: failure[0])

    def __repr__(self) -> str:
        return f"<Delivery of {self._total} records: {'done' if self.done() else 'on their way'}>"


def copied(error: ZBrokerError) -> ZBrokerError:
    """An error of one's own to raise: a traceback added by one thread must not show up in another's."""
    again = copy.copy(error)
    again.__cause__ = error.__cause__
    return again
