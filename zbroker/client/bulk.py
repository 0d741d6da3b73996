"""`send_many`: a list of values into batches, a slice at a time.

Owns what of the list is still to be put into the accumulator, so that a caller who has to wait for room, in a thread
or in an event loop, goes on where it stopped. Never waits itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from zbroker.client.accumulator import Accumulator, LaneChanged, record_size
from zbroker.client.delivery import DeliveryGroup, OnDelivery
from zbroker.client.filling import Rows
from zbroker.client.partitioner import crc32
from zbroker.client.records import Headers
from zbroker.errors import BufferFull, InvalidRequest

SLICE = 512
"""Most values that are put at once."""
SLICES_A_BATCH = 4
"""A slice is about as small as to have as many of them fill a batch."""
CHUNK = 4096
"""Values that are sorted by partition at once."""


class Bulk:
    """One `send_many` under way."""

    def __init__(
        self,
        accumulator: Accumulator,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
        partition: int | None,
        timestamp: int | None,
        headers: Headers,
        on_delivery: OnDelivery | None,
    ) -> None:
        if keys is not None and len(keys) != len(values):
            raise InvalidRequest(
                f"send_many takes a key for each value; found {len(keys)} keys and {len(values)} values"
            )
        self.group = DeliveryGroup(len(values))
        self._accumulator = accumulator
        self._topic = topic
        self._values = values
        self._keys = keys
        self._partition = partition
        self._timestamp = timestamp
        self._headers = headers
        self._on_delivery = on_delivery
        self._extra = record_size(None, None, headers)
        self._steps: Iterator[None] | None = None
        plain = timestamp is None and on_delivery is None and partition is None
        self._plain = plain and (keys is None or None not in keys)

    def advance(self) -> bool:
        """Puts as much as there is room for; whether that was all."""
        if self._steps is None:
            self._steps = self._run()
        return next(self._steps, True) is True

    def _run(self) -> Iterator[Any]:
        """Yields None whenever there is no room."""
        if not self._plain:
            yield from self._one_by_one(range(len(self._values)))
        elif self._keys is None:
            step = self._step(self._values)
            for first in range(0, len(self._values), step):
                part = self._values[first : first + step]
                yield from self._slice(None, None, part, None, range(first, first + len(part)))
        else:
            for first in range(0, len(self._values), CHUNK):
                yield from self._by_key(first)

    def _step(self, values: Sequence[bytes | None]) -> int:
        """How many values make a slice, going by the first."""
        size = self._extra + (len(values[0] or b"") if values else 0)
        most = self._accumulator.batch_most(self._topic)
        return max(1, min(SLICE, most // SLICES_A_BATCH // size))

    def _by_key(self, first: int) -> Iterator[None]:
        assert self._keys is not None
        keys = self._keys[first : first + CHUNK]
        values = self._values[first : first + CHUNK]
        accumulator = self._accumulator
        with accumulator.lock:
            lane = accumulator.lane(self._topic)
        count = lane.count
        if count == 1:
            groups = [(0, list(range(first, first + len(values))))]
        else:
            indexes: list[list[int]] = [[] for _ in range(count)]
            adders = [one.append for one in indexes]
            for index, key in enumerate(keys, first):
                adders[crc32(key) % count](index)  # type: ignore[arg-type]
            groups = [(place, found) for place, found in enumerate(indexes) if found]
        all_keys, all_values = self._keys, self._values
        for place, found in groups:
            step = self._step(values)
            for at in range(0, len(found), step):
                positions = found[at : at + step]
                part_keys = [all_keys[index] for index in positions]
                part = [all_values[index] for index in positions]
                yield from self._slice(lane, place, part, part_keys, positions)

    def _slice(
        self,
        lane: Any,
        place: int | None,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
        positions: Sequence[int],
    ) -> Iterator[None]:
        accumulator = self._accumulator
        length = _common_length(values) if keys is None else -1
        size = self._extra * len(values) + (
            length * len(values)
            if length >= 0
            else _total(values) + (0 if keys is None else _total(keys))
        )
        if size > accumulator.batch_most(self._topic) // 2:
            if len(values) == 1:
                yield from self._one_by_one(positions)
                return
            middle = len(values) // 2
            for cut in (slice(0, middle), slice(middle, None)):
                yield from self._slice(
                    lane, place, values[cut], None if keys is None else keys[cut], positions[cut]
                )
            return
        rows = Rows(values, keys, self._headers, None, size, length)
        while True:
            try:
                first = accumulator.put_rows(self._topic, lane, place, rows)
            except LaneChanged:
                yield from self._one_by_one(positions)
                return
            if first is not None:
                self.group.add(first._batch, first._index, positions)
                return
            yield None

    def _one_by_one(self, positions: Sequence[int]) -> Iterator[None]:
        for position in positions:
            key = None if self._keys is None else self._keys[position]
            while True:
                try:
                    delivery = self._accumulator.append(
                        self._topic, self._values[position], key, self._partition, self._timestamp,
                        self._headers, self._on_delivery, block=0,
                    )  # fmt: skip
                except BufferFull:
                    yield None
                    continue
                break
            self.group.add(delivery._batch, delivery._index, (position,))


def _common_length(items: Sequence[bytes | None]) -> int:
    """The length of every item, or -1."""
    try:
        lengths = set(map(len, items))  # type: ignore[arg-type]
    except TypeError:
        return -1
    return lengths.pop() if len(lengths) == 1 else -1


def _total(items: Sequence[bytes | None]) -> int:
    try:
        return sum(map(len, items))  # type: ignore[arg-type]
    except TypeError:
        return sum(len(item) for item in items if item is not None)
