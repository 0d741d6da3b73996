"""A batch's pen: what puts records into an open batch, as quickly as Python can.

A pen is the `send` of a generator that runs once a record. Two properties of generators make it so: its state is in
local variables, which cost a fraction of attributes; and one that is running cannot be entered, so that records need
no lock. A second thread, or a signal's handler, that comes meanwhile gets a `ValueError`, and has the batch sealed and
another one opened (`Accumulator`), so nobody ever waits for a pen. It never takes a lock.

============ ==================================== ================================================================
is given     puts in                              answers
============ ==================================== ================================================================
bytes        a value without key or headers       its `Delivery`; None where it takes no such thing
`Keyed`      one with a key                       the same
`Rows`       records of any kind, the lock held   the `Delivery` of the first
============ ==================================== ================================================================

A pen ends (`StopIteration`) when the batch has no room, with the value None; when the batch was sealed while it was
at work, with the `Delivery` whose index is in doubt (`Accumulator.holds`); and by whatever is raised in it, such as
`KeyboardInterrupt`: what is in the batch by then goes its way. Keys and headers are put in before the value that they
belong to, and only as many as there are values count.

Timestamps: the clock is read for each of a batch's first records, then every few, and again after `Batch.signal`,
which the client's thread sets whenever it passes by: a timestamp is a few milliseconds old at most.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from typing import Any

import msgspec

from zbroker.client.delivery import Batch, Delivery
from zbroker.client.records import Headers

RECORD_OVERHEAD = 16
"""Bytes that a record is taken to need beside its key, value and headers."""
EXACT = 64
"""Records of a batch for each of which the clock is read."""
COARSE = 8192
"""Bytes of records after which it is read from then on."""

UNLOCKED: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether pens are for use without the lock: without a GIL, entering a generator excludes nobody."""


class Keyed(msgspec.Struct, gc=False):
    """A record with a key; both as the application gave them."""

    key: Any
    value: Any


class Rows(msgspec.Struct, gc=False):
    """Records that have been checked, at least one."""

    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None
    headers: Headers
    """Of each of them."""
    timestamp: int | None
    size: int
    """What they take of the buffer."""
    length: int = -1
    """That of every value, or -1 where they differ or one is None."""


def full(_record: Any) -> None:
    """The pen of a batch that takes nothing."""
    return


def fill(batch: Batch) -> Generator[Delivery | None, Any, Delivery | None]:
    """The generator of a pen; see the module. The first `next` makes it ready."""
    values, limit = batch.values, batch.limit
    keys: list[bytes | None] | None = None
    headers: list[Headers] | None = None  # never without keys
    index = size = stop = 0
    length = -1
    placed: Delivery | None = None
    while True:
        record = yield placed
        if type(record) is bytes:
            added = len(record)
            size += added + RECORD_OVERHEAD
            if size >= stop:
                if size >= limit and index:
                    return None
                batch.mark(index)
                if index >= EXACT:
                    stop = min(size + COARSE, limit)
                    if not batch.coarse:
                        batch.home.is_coarse(batch)
                batch.size = size if size > stop else stop
            if added != length:
                if index:
                    batch.mixed = True
                length = added
            if keys is not None:
                keys.append(None)
                if headers is not None:
                    headers.append(())
            values.append(record)
            if batch.signal:
                batch.signal = False
                if batch.closed:
                    return Delivery(batch, index)
                batch.mark(index)
            placed = Delivery(batch, index)
            index += 1
        elif type(record) is Keyed:
            key, value = record.key, record.value
            if type(key) is not bytes or type(value) is not bytes:
                placed = None
                continue
            size += len(key) + len(value) + RECORD_OVERHEAD
            if size >= stop:
                if size >= limit and index:
                    return None
                batch.mark(index)
                if index >= EXACT:
                    stop = min(size + COARSE, limit)
                    if not batch.coarse:
                        batch.home.is_coarse(batch)
                batch.size = size if size > stop else stop
            if keys is None:
                keys = batch.keys = [None] * index
            keys.append(key)
            if headers is not None:
                headers.append(())
            values.append(value)
            if batch.signal:
                batch.signal = False
                if batch.closed:
                    return Delivery(batch, index)
                batch.mark(index)
            placed = Delivery(batch, index)
            index += 1
        elif type(record) is Rows:
            new = record.values
            size += record.size
            if size >= limit and index:
                return None
            if record.timestamp is None:
                batch.mark(index)
            else:
                batch.mark_explicit(index, record.timestamp)
            stop = 0
            batch.size = size
            if record.length < 0 or (index and record.length != length):
                batch.mixed = True
            length = record.length
            if record.headers and headers is None:
                headers = batch.headers = [()] * index
            if keys is None and (record.keys is not None or headers is not None):
                keys = batch.keys = [None] * index
            if keys is not None:
                keys += [None] * len(new) if record.keys is None else record.keys
            if headers is not None:
                headers += [record.headers] * len(new)
            values += new
            if batch.closed:
                return Delivery(batch, index)
            placed = Delivery(batch, index)
            index += len(new)
        else:
            placed = None


def open_pen(batch: Batch) -> None:
    """Gives a batch its pen."""
    pen = fill(batch)
    next(pen)
    batch.pen = pen.send
