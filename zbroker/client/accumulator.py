"""The producer's buffer: one open batch a partition, filled by the application, sealed for the client's thread.

Owns the open batches, the budget in bytes and the waits for room. What stands between threads is here: a lock that is
taken when a batch opens, is sealed or is finished, never for a record on the fast path (`Producer.send`), which goes
through a batch's pen (`filling`). Never sends and never decides where a batch goes.

Memory: a batch reserves what it may hold when it opens, keeps what it really holds when it is sealed, and gives that
back when it is finished. It may hold `batch_bytes`, and less where many are open: the next of n takes at most an eighth
of the buffer's nth part, so that a thousand partitions share it and none waits for the others' linger. Who finds no
room waits until a quarter of the buffer is free, or is refused.

Signals: a handler may come between wherever something is called, and send a record itself, or end what it interrupts by
raising. The lock is re-entrant for its sake, a batch that opens has its first records before anybody sees it, and what
belongs together changes where nothing is called. What a handler cannot do is to wait for the client's thread, which may
wait for the lock meanwhile: that is refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from time import monotonic, time

from zbroker.client.delivery import Batch, Delivery, OnDelivery, Pen
from zbroker.client.filling import (
    RECORD_OVERHEAD,
    UNLOCKED,
    Rows,
    full,
    open_pen,
)
from zbroker.client.guard import FORKED, wait_event
from zbroker.client.partitioner import crc32
from zbroker.client.records import Headers
from zbroker.errors import (
    BufferFull,
    ClientClosed,
    InvalidRequest,
    MessageTooLarge,
    UnknownPartition,
    ZBrokerError,
)

UNASSIGNED = -1
BATCH_LEAST = 4 << 10
"""Bytes that a batch may hold however many are open."""
OPEN_SHARE = 8
"""Of how many times the open batches' number the buffer's part is that the next one may hold."""
REFRESH = 0.005
"""Seconds after which the pen of a batch that stays open is told to look at the clock, once it does so seldom."""


class LaneChanged(Exception):
    """The topic's partitions are others than a place was reckoned with."""


class Lane:
    """The open batches of one topic. Until its partitions are known there is one, for all of them."""

    __slots__ = ("assigned", "batches", "count", "pens", "record_max", "sticky", "topic", "turn")

    def __init__(
        self, topic: str, count: int, assigned: bool, record_max: int, closed: Batch
    ) -> None:
        self.topic = topic
        self.count = count
        self.assigned = assigned
        self.record_max = record_max
        self.batches = [closed] * count
        self.pens: list[Pen] = [full] * count
        """Those of the batches, for use without the lock."""
        self.sticky = closed
        self.turn = 0


class Accumulator:
    """Batches between the application's threads and the client's."""

    def __init__(
        self,
        *,
        batch_bytes: int,
        buffer_bytes: int,
        linger: float,
        delivery_timeout: float,
        record_max: int,
        first_partition: int = 0,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time,
    ) -> None:
        self.lock = threading.RLock()
        self.lanes: dict[str, Lane] = {}
        self.fast: dict[str, Lane] = {}
        """The same, for those who put records in without the lock; empty once nothing is taken any more."""
        self.pens: dict[str, Pen] = {}
        """By topic, the pen for records without a key, for the same."""
        self.closed: list[Batch] = []
        """Sealed batches, in order, for the client's thread."""
        self.unfinished: dict[Batch, None] = {}
        self.refusal: str | None = None
        self.calling_back = 0
        """Which thread runs callbacks now, by its ident; 0 where none does."""
        self.room = buffer_bytes
        self.wake: Callable[[float], None] = lambda _by: None
        """Makes the client's thread look, unless it wakes by itself before the monotonic time given."""
        self.batch_bytes = batch_bytes
        self.buffer_bytes = buffer_bytes
        self.linger = linger
        self._clock = clock
        self._wall = wall
        self._delivery_timeout = delivery_timeout
        self._record_max = record_max
        self._turn = first_partition
        self._opened: dict[Batch, None] = {}
        self._hurried = False
        self._coarse = False
        """Whether there may be a batch whose pen looks at the clock seldom."""
        self._refresh_at = 0.0
        self._waiting_for_room: list[threading.Event | Callable[[], None]] = []
        self._pid = os.getpid()
        self._never = Batch(self, "", UNASSIGNED, limit=0, opened_at=0.0, wall=float)
        self._never.closed = True

    # Application threads ---

    def append(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int | None,
        timestamp: int | None,
        headers: Headers,
        on_delivery: OnDelivery | None,
        *,
        block: float | None,
    ) -> Delivery:
        """Puts a record into its batch: the way that knows every case.

        Args:
            block: seconds to wait for room, None for as long as it takes, 0 not to wait.

        Raises:
            BufferFull: there was no room in time.
            MessageTooLarge, UnknownPartition, ClientClosed: as far as it can be known now.
        """
        size = record_size(value, key, headers)
        rows = Rows(
            (value,), None if key is None else (key,), headers, timestamp, size,
            -1 if value is None else len(value),
        )  # fmt: skip
        give_up = None if block is None else monotonic() + block
        while True:
            with self.lock:
                lane = self.lane(topic)
                if size > lane.record_max:
                    raise too_large(size, lane.record_max, topic)
                delivery = self._put(lane, key, partition, rows)
                if delivery is not None:
                    batch, index = delivery._batch, delivery._index
                    if partition is not None and batch.partition == UNASSIGNED:
                        batch.targets = batch.targets or {}
                        batch.targets[index] = partition
                    if on_delivery is not None:
                        batch.callbacks = batch.callbacks or []
                        batch.callbacks.append((index, on_delivery))
                    return delivery
            self.wait_for_room(give_up)

    def put_rows(
        self, topic: str, lane: Lane | None, place: int | None, rows: Rows
    ) -> Delivery | None:
        """Puts records of one partition that fit into one batch, whole, without waiting.

        Args:
            lane: the lane for which `place` was reckoned; `place` None is any partition.

        Returns:
            The delivery of the first; None when there is no room.

        Raises:
            LaneChanged: the topic's partitions have become known, or more.
        """
        with self.lock:
            present = self.lane(topic)
            if lane is not None and lane is not present:
                raise LaneChanged
            return self._put(present, None, place, rows)

    def _put(
        self, lane: Lane, key: bytes | None, partition: int | None, rows: Rows
    ) -> Delivery | None:
        """Puts records into a batch, another one where the open one takes no more; None when there is no room."""
        while True:
            place = self._place(lane, key, partition)
            batch = lane.batches[place]
            pen = batch.pen
            if batch.closed or pen is None:
                delivery = self._open(lane, place, rows)
                if delivery is None and not lane.batches[place].closed:
                    continue  # a signal's handler has opened one meanwhile
                return delivery
            try:
                return pen(rows)
            except StopIteration as end:
                if end.value is not None and self.holds(end.value):
                    return end.value  # type: ignore[no-any-return]
            except ValueError:
                pass
            # It is full, its pen was interrupted, or a thread that does not run now is at work with it.
            self._seal(batch)
            self.wake(0.0)

    def holds(self, delivery: Delivery) -> bool:
        """Whether a record that was put in while its batch was being sealed is in it."""
        with self.lock:
            return delivery._index < delivery._batch.count

    def hurry(self, batch: Batch) -> None:
        """Somebody waits for the batch: it lingers no more."""
        batch.urgent = True
        self._hurried = True
        self.wake(0.0)

    def hurry_all(self) -> list[Batch]:
        """Every batch that is not finished lingers no more."""
        with self.lock:
            for batch in list(self._opened):
                batch.urgent = True
            self._hurried = True
            unfinished = list(self.unfinished)
        self.wake(0.0)
        return unfinished

    def when_room(self, callback: Callable[[], None]) -> None:
        """Has `callback` called on the client's thread when there is room again, or here where it is no use to wait."""
        with self.lock:
            waits = self._room_to_come()
            if waits:
                self._waiting_for_room.append(callback)
        if waits:
            self.wake(0.0)
        else:
            callback()

    def check_wait(self, timeout: float | None = None) -> None:
        """Refuses a wait that would hold up what it waits for (`InvalidRequest`), or for a thread that is not there."""
        if os.getpid() != self._pid:
            raise ClientClosed(FORKED)
        futile = self._futile() if timeout is None or timeout > 0 else None
        if futile is not None:
            raise InvalidRequest(futile)

    def _futile(self) -> str | None:
        """Why whoever asks would wait in vain, if so."""
        if self.lock._is_owned():  # type: ignore[attr-defined]
            return "a signal's handler that has interrupted a send cannot wait for it: have it set a flag, or raise"
        if self.unfinished and threading.get_ident() == self.calling_back:
            return "on_delivery runs on the client's thread, which would wait for itself: leave that to another thread"
        return None

    def _room_to_come(self) -> bool:
        """Whether something will be finished that gives its room back, and is worth waiting for. The lock is held."""
        return self.refusal is None and bool(self.unfinished)

    def lane(self, topic: str) -> Lane:
        """The topic's open batches; the lock is held."""
        if self.refusal is not None:
            raise ClientClosed(self.refusal)
        lane = self.lanes.get(topic)
        if lane is None:
            lane = self.lanes.setdefault(
                topic, Lane(topic, 1, False, self._record_max, self._never)
            )
            self.fast[topic] = lane
        return lane

    def batch_most(self, topic: str) -> int:
        """Bytes that a batch of the topic may hold, as far as it is known."""
        lane = self.lanes.get(topic)
        return self.batch_bytes if lane is None else min(self.batch_bytes, lane.record_max)

    def _offer(self, lane: Lane, place: int) -> None:
        """Has those who need no lock use the pen of the batch at a place."""
        pen = lane.batches[place].pen
        if pen is not None and UNLOCKED:
            lane.pens[place] = pen
            if lane.sticky is lane.batches[place]:
                self.pens[lane.topic] = pen

    def _place(self, lane: Lane, key: bytes | None, partition: int | None) -> int:
        if not lane.assigned:
            return 0
        if partition is not None:
            if partition >= lane.count:
                raise UnknownPartition(
                    f"topic {lane.topic!r} has partitions 0 to {lane.count - 1}, and no partition {partition}",
                    topic=lane.topic, partition=partition,
                )  # fmt: skip
            return partition
        if key is not None:
            return crc32(key) % lane.count
        if lane.sticky.closed:
            self._turn += 1
            lane.turn = self._turn % lane.count
            lane.sticky = lane.batches[lane.turn]
            self.pens[lane.topic] = lane.pens[lane.turn]
        return lane.turn

    def _open(self, lane: Lane, place: int, rows: Rows) -> Delivery | None:
        """Opens a batch that begins with some records.

        Returns:
            The delivery of the first; None when there is no room, or a batch was opened there meanwhile.
        """
        share = self.buffer_bytes // (OPEN_SHARE * (len(self._opened) + 1))
        limit = max(min(self.batch_bytes, max(share, BATCH_LEAST)), rows.size + 1)
        if lane.record_max + 1 < limit:
            limit = lane.record_max + 1
        batch = Batch(
            self,
            lane.topic,
            place if lane.assigned else UNASSIGNED,
            limit=limit,
            opened_at=self._clock(),
            wall=self._wall,
        )
        batch.charge = min(limit, self.buffer_bytes)
        batch.deadline = batch.opened_at + self._delivery_timeout
        open_pen(batch)
        delivery = batch.use_pen(rows)
        # Until it is known everywhere nothing is called: nobody comes between.
        if self.room < batch.charge or not lane.batches[place].closed:
            return None
        self.room -= batch.charge
        lane.batches[place] = batch
        if place == lane.turn or not lane.assigned:
            lane.sticky = batch
        self._opened[batch] = None
        self.unfinished[batch] = None
        try:
            self._offer(lane, place)
            self.wake(batch.opened_at + self.linger)
        except BaseException:
            # The client's thread may not have been told when to look at it.
            self._seal(batch)
            self.wake(0.0)
            raise
        return delivery

    def wait_for_room(self, give_up: float | None) -> None:
        """Waits until there is room again, at most until the monotonic time `give_up` (`BufferFull`)."""
        rest = None if give_up is None else max(0.0, give_up - monotonic())
        futile = self._futile()
        event = threading.Event()
        with self.lock:
            if not self._room_to_come():
                return
            if futile is not None:
                raise BufferFull(f"the buffer is full, and {futile}")
            self._waiting_for_room.append(event)
        self.wake(0.0)
        try:
            if wait_event(event, rest):
                return
        finally:
            with self.lock:
                if event in self._waiting_for_room:
                    self._waiting_for_room.remove(event)
        raise BufferFull(
            f"{self.buffer_bytes} bytes wait to be sent and buffer_bytes allows no more; "
            "send again later, or give the producer a larger buffer"
        )

    # The client's thread ---

    def take_closed(self) -> list[Batch]:
        """What was sealed since the last time, in order, once whoever is at work with it has let go of the lock."""
        if not self.closed:
            return []
        with self.lock:
            taken, self.closed = self.closed, []
        return taken

    def seal_all(self) -> list[Batch]:
        """Seals what is open, for nothing is sent any more; answers with every batch that is not finished."""
        with self.lock:
            for batch in list(self._opened):
                self._seal(batch)
            self.closed.clear()
            return list(self.unfinished)

    def due(self, now: float, ready: Callable[[Batch], bool]) -> float | None:
        """Seals what has lingered long enough and can go; answers when the next one will have."""
        if not self._opened:
            return None
        wanted: float | None = None
        with self.lock:
            everything = bool(self._waiting_for_room) or self.refusal is not None
            hurried, self._hurried = self._hurried or everything, False
            for batch in list(self._opened):
                due = batch.opened_at + self.linger
                if batch.urgent or everything or due <= now:
                    if now >= batch.deadline or ready(batch):
                        self._seal(batch)
                    elif batch.urgent:
                        self._hurried = True
                else:
                    wanted = due if wanted is None else min(wanted, due)
                    if not hurried:
                        break
            return self._keep_time(now, wanted)

    def is_coarse(self, batch: Batch) -> None:
        """A pen looks at the clock seldom from now on: it is to be told when time has passed."""
        batch.coarse = True
        self._coarse = True
        self.wake(self._clock() + REFRESH)

    def _keep_time(self, now: float, wanted: float | None) -> float | None:
        """Tells pens to look at the clock; answers when to do so again, or what is wanted earlier. The lock is held."""
        if not self._coarse:
            return wanted
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH
            self._coarse = False
            for batch in self._opened:
                if batch.coarse:
                    batch.signal = self._coarse = True
        return self._refresh_at if wanted is None else min(wanted, self._refresh_at)

    def oldest_deadline(self) -> float | None:
        """When the oldest open batch expires."""
        first = next(iter(list(self._opened)), None)
        return None if first is None else first.deadline

    def assign(self, topic: str, count: int, record_max: int) -> Batch | None:
        """The topic's partitions are known (or have become more): sends go straight to them from now on.

        Returns:
            The batch that was open while they were unknown, sealed, if it holds anything.
        """
        with self.lock:
            old = self.lanes.get(topic)
            if old is None:
                return None
            if old.assigned and old.count == count and old.record_max == record_max:
                return None
            lane = Lane(topic, count, True, record_max, self._never)
            waiting = None
            if old.assigned:
                for place, batch in enumerate(old.batches[:count]):
                    lane.batches[place], lane.pens[place] = batch, old.pens[place]
                lane.turn = old.turn % count
                lane.sticky = lane.batches[lane.turn]
                for batch in old.batches[count:]:
                    if not batch.closed:
                        self._seal(batch)
            else:
                self._turn += 1
                lane.turn = self._turn % count
                waiting = old.batches[0]
                if not waiting.closed:
                    self._seal(waiting)
            self.lanes[topic] = lane
            if self.refusal is None:
                self.fast[topic] = lane
                self.pens[topic] = lane.pens[lane.turn]
            return waiting

    def unassign(self, topic: str) -> None:
        """The topic is not there (any more): its partitions are unknown again."""
        with self.lock:
            old = self.lanes.pop(topic, None)
            self.fast.pop(topic, None)
            self.pens.pop(topic, None)
            if old is not None:
                for batch in old.batches:
                    if not batch.closed:
                        self._seal(batch)

    def adopt(self, parent: Batch, children: list[Batch], where: list[tuple[Batch, int]]) -> None:
        """A sealed batch's records went into other batches."""
        with self.lock:
            for child in children:
                self.unfinished[child] = None
            self.room += parent.charge - sum(child.charge for child in children)
            parent.charge = 0
            parent.where = where
            parent.forget()
            self.unfinished.pop(parent, None)
            event, waiters = parent.event, parent.waiters
            parent.waiters = None
        if event is not None:
            event.set()
        for waiter in waiters or ():
            waiter()

    def recharge(self, batch: Batch, size: int) -> None:
        """What the batch really takes, now that it is encoded."""
        with self.lock:
            self.room += batch.charge - size
            batch.charge = size

    def finish(self, batches: Iterable[Batch]) -> None:
        """Marks batches as finished, gives their room back and wakes who waits. Callbacks run elsewhere."""
        waiters: list[Callable[[], None]] = []
        with self.lock:
            for batch in batches:
                batch.done = True
                batch.forget()
                batch.data = None
                self.unfinished.pop(batch, None)
                self.room += batch.charge
                batch.charge = 0
                if batch.event is not None:
                    batch.event.set()
                if batch.waiters:
                    waiters += batch.waiters
                    batch.waiters = None
            if self._waiting_for_room and (
                self.room >= self.buffer_bytes // 4 or not self.unfinished
            ):
                woken, self._waiting_for_room = self._waiting_for_room, []
            else:
                woken = []
        for waiter in woken:
            if isinstance(waiter, threading.Event):
                waiter.set()
            else:
                waiter()
        for callback in waiters:
            callback()

    def refuse(self, reason: str) -> None:
        """Nothing is taken any more."""
        with self.lock:
            self.refusal = reason
            self.pens.clear()
            self.fast.clear()  # the lanes stay: what is in them still has to find its partitions
            waiting, self._waiting_for_room = self._waiting_for_room, []
        for waiter in waiting:
            if isinstance(waiter, threading.Event):
                waiter.set()
            else:
                waiter()
        self.wake(0.0)

    def _seal(self, batch: Batch) -> None:
        """Fixes what a batch holds. The lock is held. Where it was interrupted it is done again, to the same effect."""
        batch.seal()
        lane = self.lanes.get(batch.topic)
        place = max(batch.partition, 0)
        if lane is not None and place < lane.count and lane.batches[place] is batch:
            lane.pens[place] = full
            if lane.sticky is batch:
                self.pens.pop(batch.topic, None)
        charge = min(batch.charge, batch.size)
        self.room += batch.charge - charge
        batch.charge = charge
        if batch in self._opened:
            del self._opened[batch]
            self.closed.append(batch)


def record_size(value: bytes | None, key: bytes | None, headers: Headers) -> int:
    """Bytes that a record is counted with."""
    size = RECORD_OVERHEAD
    if value is not None:
        size += len(value)
    if key is not None:
        size += len(key)
    for name, content in headers:
        size += len(name) + 8 + (0 if content is None else len(content))
    return size


def too_large(size: int, limit: int, topic: str) -> ZBrokerError:
    """The error of a record that no batch can hold."""
    return MessageTooLarge(
        f"the record needs {size} bytes, more than the {limit} that topic {topic!r} takes (max_batch)",
        size=size,
        limit=limit,
    )
