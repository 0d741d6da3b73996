"""A batch on its way from `send()` to its place in the log, and the `Delivery` that an application holds of a record.

Owns a batch's life and how its outcome is waited for. A batch is filled by the application's threads without a lock,
sealed once, encoded and sent by the client's thread, and finished once:

=========== ============================================ ==================================
state       who may touch it                             what marks it
=========== ============================================ ==================================
open        any thread appends to `records`              `closed` is False
sealed      the client's thread                          `closed`; `count` and `taken` fixed
divided     nobody: its records went into other batches  `where`
finished    everybody reads                              `done`; `error` or `base_offset`
=========== ============================================ ==================================

Why filling needs no lock: `list.append` is atomic; whoever seals sets `closed` first and copies the list after. Who
appends and then finds `closed` False appended before the copy, so the record is in; who finds it True asks, under the
lock, whether its index is below `count`. An index is certain once `records[index]` is the record itself.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

import msgspec

from zbroker.client.guard import check_timeout, ran_out, wait_event
from zbroker.client.records import Headers, RecordMetadata
from zbroker.errors import ZBrokerError

OnDelivery = Callable[[RecordMetadata | None, ZBrokerError | None], Any]


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One record in a batch, as it is encoded: the timestamp counts from the batch's `base_ms`.

    A tuple would do, but the garbage collector tracks tuples, and half a million that wait cost more than the rest.
    """

    delta: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Home(Protocol):
    """What a batch needs of the accumulator that it belongs to."""

    lock: threading.Lock

    def hurry(self, batch: Batch) -> None:
        """Somebody waits for the batch: it lingers no more."""


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
        "count",
        "data",
        "deadline",
        "delta",
        "done",
        "durability",
        "epoch",
        "error",
        "event",
        "explicit",
        "home",
        "limit",
        "opened_at",
        "ordinal",
        "partition",
        "records",
        "sends",
        "sequence",
        "size",
        "taken",
        "targets",
        "tick",
        "topic",
        "urgent",
        "waiters",
        "where",
    )

    def __init__(
        self, home: Home, topic: str, partition: int, *, limit: int, opened_at: float, wall: float
    ) -> None:
        self.home = home
        self.topic = topic
        self.partition = partition
        """Where it goes; -1 while the topic's partitions are not known."""
        self.records: Any = []
        self.limit = limit
        self.size = 0
        self.base_ms = int(wall * 1000)
        self.delta = 0
        self.tick = (self.base_ms + 1) / 1000
        """Wall clock in seconds from which on `delta` is out of date."""
        self.opened_at = opened_at
        self.deadline = 0.0
        self.charge = 0
        """Bytes of the buffer that it takes."""
        self.closed = False
        self.urgent = False
        self.explicit = False
        """Whether a record brought its own timestamp, so that deltas are in no order."""
        self.targets: dict[int, int] | None = None
        """Partitions that were asked for while the topic's were unknown, by index."""
        self.callbacks: list[tuple[int, int, OnDelivery]] | None = None
        """(index, timestamp delta, function)."""

        self.count = 0
        self.taken: Sequence[Entry] | None = None
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

    def advance(self, wall: float) -> None:
        """Moves `delta` up to the wall clock; a clock that was set back changes nothing."""
        milliseconds = int(wall * 1000)
        self.delta = milliseconds - self.base_ms
        self.tick = (milliseconds + 1) / 1000

    def metadata(self, index: int, delta: int) -> RecordMetadata:
        """Where the record at an index is, once the batch is done."""
        timestamp = self.base_ms + delta if self.append_time is None else self.append_time
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


class Delivery(msgspec.Struct, gc=False, eq=False):
    """What became of one record: still on its way, in the log, or failed."""

    _batch: Batch
    _index: int
    _delta: int

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._place()[0].done

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Waits for the outcome, for at most `timeout` seconds.

        Raises:
            WaitTimedOut: it is not known yet; the record is still on its way.
            ZBrokerError: why the record was not delivered; `.outcome_unknown` says whether it may be in the log.
        """
        batch, index = self._wait(timeout)
        if batch.error is not None:
            raise copied(batch.error)
        return batch.metadata(index, self._delta)

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
        return f"<Delivery {batch.metadata(index, self._delta)!r}>"

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
        self._parts: list[tuple[Batch, int, Sequence[int], int]] = []

    def add(self, batch: Batch, first: int, positions: Sequence[int], delta: int) -> None:
        """Records at indexes from `first` on in a batch are the values at `positions`."""
        self._parts.append((batch, first, positions, delta))

    def __len__(self) -> int:
        return self._total

    def accepted(self) -> int:
        """How many records are on their way or further."""
        return sum(len(positions) for _, _, positions, _ in self._parts)

    def done(self) -> bool:
        """Whether every outcome is known."""
        return all(
            Delivery(batch, first + n, delta).done()
            for batch, first, positions, delta in self._parts
            for n in ((0,) if batch.where is None else range(len(positions)))
        )

    def result(self, timeout: float | None = None) -> list[RecordMetadata]:
        """Waits for all of them, for at most `timeout` seconds. Raises as `Delivery.result` does."""
        check_timeout(timeout)
        deadline = None if timeout is None else monotonic() + timeout
        found: list[Any] = [None] * self._total
        failed: tuple[int, ZBrokerError] | None = None
        for batch, first, positions, delta in self._parts:
            for n, position in enumerate(positions):
                place, index = Delivery(batch, first + n, delta)._place()
                while not place.done:
                    if not place.wait(None if deadline is None else deadline - monotonic()):
                        raise ran_out("the acknowledgement of every record", timeout)
                    place, index = Delivery(batch, first + n, delta)._place()
                if place.error is None:
                    found[position] = place.metadata(index, delta)
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
        for batch, first, positions, delta in self._parts:
            if batch.where is None:
                if batch.done and batch.error is None:
                    delivered += len(positions)
                elif batch.done and batch.error is not None:
                    failed += [(position, batch.error) for position in positions]
                continue
            for n, position in enumerate(positions):
                place, _ = Delivery(batch, first + n, delta)._place()
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
