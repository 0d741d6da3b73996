"""Logs of keyed records: a model that says what each key's newest value is, and readers that compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from log.world import World

from zbroker.errors import DataDamaged
from zbroker.log import CompactionDone, Event, LogSettings
from zbroker.protocol import batch as batches
from zbroker.protocol.batch import BatchHeader

COMPACT = LogSettings(
    segment_size=2000,
    index_interval=300,
    segment_age=10**9,
    retention=None,
    compact=True,
    min_dirty=1,
    tombstone_grace=1000,
)

Pair = tuple[bytes | None, bytes | None]


def keyed_batch(
    pairs: Sequence[Pair],
    *,
    offset: int,
    time: int = 0,
    epoch: int = 0,
    producer: tuple[int, int, int] = (-1, -1, -1),
    codec: int = 0,
    attributes: int = 0,
    stamp_attributes: int = 0,
) -> tuple[bytearray, BatchHeader]:
    """A stamped batch of (key, value) records; producer is (id, epoch, base sequence)."""
    batch = batches.encode_batch(
        [(at, key, value, (("n", b"%d" % at),)) for at, (key, value) in enumerate(pairs)],
        base_timestamp=time,
        max_timestamp=time + len(pairs) - 1,
        codec=codec,
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=producer[2],
        attributes=attributes,
    )
    batches.stamp(
        batch, base_offset=offset, append_time=time, leader_epoch=epoch, stamp_attributes=stamp_attributes
    )  # fmt: skip
    return batch, batches.read_header(batch)


class Keyed:
    """A world's log, written by key; `records` has all that was ever appended, by offset."""

    def __init__(self, world: World, settings: LogSettings = COMPACT) -> None:
        self.world = world
        self.settings = settings
        self.records: dict[int, Pair] = {}
        self.wall = 0
        world.open(settings)

    @property
    def log(self) -> Any:
        return self.world.log

    def put(self, *pairs: Pair, **options: Any) -> BatchHeader:
        """Appends one batch and has it written."""
        log = self.log
        options.setdefault("time", max(log.last_append_time, 0))
        options.setdefault("epoch", max(log.last_epoch, 0))
        batch, header = keyed_batch(pairs, offset=log.end_offset, **options)
        for offset, pair in enumerate(pairs, header.base_offset):
            self.records[offset] = pair
        log.append(batch, header)
        self.world.run()
        return header

    def fill(self, count: int, keys: int = 7, records: int = 3, **options: Any) -> None:
        """Appends so many batches of so many records over so many keys."""
        for _ in range(count):
            numbers = range(self.log.end_offset, self.log.end_offset + records)
            pairs = [(b"k%d" % (each % keys), b"v%d" % each + bytes(40)) for each in numbers]
            self.put(*pairs, **options)

    def roll(self) -> None:
        """Seals the active segment."""
        self.log.roll(1 << 60)
        self.world.run()

    def compact(
        self, *, wall: int | None = None, committed: int | None = None, below: int = 1 << 62
    ) -> list[Event]:
        """Compacts, from the beginning to the end; what the log said."""
        log = self.log
        self.wall = self.wall if wall is None else wall
        committed = log.written_offset if committed is None else committed
        said: list[Event] = []
        for _ in range(3):  # it may have to wait for a checkpoint first
            log.compact(committed, self.wall, below)
            said += self.world.run()
            if any(isinstance(event, CompactionDone) for event in said):
                break
        return said

    # What is to be seen ---

    def newest(self, limit: int = 1 << 62) -> dict[bytes, tuple[int, bytes | None]]:
        """Each key's newest record, by the model."""
        found: dict[bytes, tuple[int, bytes | None]] = {}
        for offset in sorted(self.records):
            key, value = self.records[offset]
            if offset < limit and key is not None:
                found[key] = (offset, value)
        return found

    def read(self) -> dict[int, Pair]:
        """Every record that a reader gets, by offset, damage stepped over."""
        found: dict[int, Pair] = {}
        log, offset = self.log, self.log.start_offset
        while offset < log.written_offset:
            done = self.world.read(offset, 700)
            if isinstance(done.error, DataDamaged):
                offset = done.error.details["next"]
                continue
            assert done.error is None, done.error
            assert done.base <= offset < done.next
            found.update(records_in(done.chunk, offset))
            offset = done.next
        return found

    def check(self) -> dict[int, Pair]:
        """A reader sees what was appended, and the newest of each key that was not deleted."""
        found = self.read()
        start = self.log.start_offset
        for offset, pair in found.items():
            assert self.records[offset] == pair
        for key, (offset, value) in self.newest().items():
            if value is not None and offset >= start:
                assert offset in found, (key, offset)
        for offset, (key, _) in self.records.items():
            if key is None and offset >= start:
                assert offset in found, offset
        return found


def records_in(chunk: bytes, first: int = 0) -> Iterator[tuple[int, Pair]]:
    """The records of a chunk from an offset on, by offset."""
    for at, header in batches.iter_batches(chunk):
        if header.is_control:
            continue
        for offset, row in enumerate(batches.decode_records(chunk, at, header), header.base_offset):
            if row is not None and offset >= first:
                yield offset, (row[1], row[2])
