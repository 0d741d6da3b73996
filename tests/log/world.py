"""A log on a disk of either kind, for tests: what it is told, what it answers, and what happens to its files.

`World` speaks to one log over simulated or real files; what the log says is in `events`. Batches are remembered as
they were appended, so that a test can say "all of it is there" in one line.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zbroker.errors import DataDamaged
from zbroker.log import (
    Closed,
    Completion,
    Event,
    Files,
    Found,
    Log,
    LogSettings,
    Opened,
    ReadDone,
    Request,
    execute,
)
from zbroker.node.files import RealFiles
from zbroker.protocol import batch as batches
from zbroker.protocol.batch import BatchHeader
from zbroker.testing.disk import SimulatedDisk, SimulatedStorage

FOLDER = "topics/t/0"
SMALL = LogSettings(segment_size=2000, index_interval=300, segment_age=None, retention=None)


class Inline:
    """A storage over real files that runs everything when told, in order."""

    def __init__(self, files: Files, deliver: Callable[[Completion], None]) -> None:
        self.files = files
        self.deliver = deliver
        self.waiting: list[Request] = []

    def submit(self, request: Request) -> None:
        self.waiting.append(request)

    def step(self) -> bool:
        if not self.waiting:
            return False
        self.deliver(execute(self.files, self.waiting.pop(0)))
        return True

    def run_all(self) -> None:
        while self.step():
            pass

    def forget(self) -> None:
        self.waiting.clear()


class World:
    """One log, its disk and its past."""

    def __init__(self, root: Path | None, seed: int = 0) -> None:
        self.root = root
        self.rng = random.Random(seed)
        self.disk = SimulatedDisk(self.rng)
        self.files: Files = self.disk if root is None else RealFiles(root)
        self.storage: Any = (
            SimulatedStorage(self.disk, None, self.deliver)
            if root is None
            else Inline(self.files, self.deliver)
        )
        self.settings = SMALL
        self.log = Log(FOLDER, SMALL, self.storage)
        self.events: list[Event] = []
        self.now = 0
        self.appended: list[tuple[BatchHeader, bytes]] = []

    # Life ---

    def deliver(self, completion: Completion) -> None:
        event = self.log.on_event(completion, self.now)
        if event is not None:
            self.events.append(event)

    def run(self) -> list[Event]:
        """Everything that is under way, to its end; what the log said since the last time."""
        self.storage.run_all()
        events, self.events = self.events, []
        return events

    def open(self, settings: LogSettings | None = None) -> Opened:
        """A new process opens the log."""
        self.settings = settings or self.settings
        self.storage.forget()
        self.events.clear()
        self.log = Log(FOLDER, self.settings, self.storage)
        self.log.open()
        (event,) = self.run()
        assert isinstance(event, Opened), event
        return event

    def close(self) -> Closed:
        self.log.close()
        event = self.run()[-1]
        assert isinstance(event, Closed)
        return event

    def checkpoint(self) -> list[Event]:
        """One is saved now, if there is room."""
        self.log.want_checkpoint()
        return self.run()

    def tick(self, ms: int) -> list[Event]:
        self.now += ms
        self.log.on_tick(self.now)
        return self.run()

    # Records ---

    def make(
        self,
        records: int = 1,
        *,
        epoch: int | None = None,
        time: int | None = None,
        size: int = 100,
        producer: tuple[int, int, int] = (-1, -1, -1),
        append_time: bool = False,
        timestamps: list[int] | None = None,
        max_timestamp: int | None = None,
    ) -> tuple[bytearray, BatchHeader]:
        """A stamped batch that continues the log; producer is (id, epoch, base sequence)."""
        log = self.log
        time = log.last_append_time if time is None else time
        time = max(time, 0)
        stamps = timestamps or [time] * records
        value = self.rng.randbytes(size)
        batch = batches.encode_batch(
            [(at - stamps[0], None, value, ()) for at in stamps],
            base_timestamp=stamps[0],
            max_timestamp=max(stamps) if max_timestamp is None else max_timestamp,
            producer_id=producer[0],
            producer_epoch=producer[1],
            base_sequence=producer[2],
        )
        batches.stamp(
            batch,
            base_offset=log.end_offset,
            append_time=time,
            leader_epoch=max(log.last_epoch, 0) if epoch is None else epoch,
            stamp_attributes=batches.APPEND_TIME if append_time else 0,
        )
        return batch, batches.read_header(batch)

    def append(self, records: int = 1, *, lazily: bool = False, **options: Any) -> BatchHeader:
        """Appends a batch without waiting for anything."""
        batch, header = self.make(records, **options)
        self.log.append(batch, header, lazily=lazily)
        self.appended.append((header, bytes(batch)))
        return header

    def fill(self, count: int, **options: Any) -> None:
        """Appends so many batches, each written before the next."""
        for _ in range(count):
            self.append(**options)
            self.run()

    def read(self, offset: int, max_bytes: int = 1 << 20, limit: int | None = None) -> ReadDone:
        self.log.read(
            "token", offset, max_bytes, self.log.written_offset if limit is None else limit
        )
        (event,) = self.run()
        assert isinstance(event, ReadDone), event
        return event

    def read_all(self) -> tuple[list[bytes], list[tuple[int, int]]]:
        """Every batch from the log's start on, and the ranges that were damaged."""
        found, damaged, offset = [], [], self.log.start_offset
        while offset < self.log.written_offset:
            done = self.read(offset, 700)
            if isinstance(done.error, DataDamaged):
                damaged.append((done.error.details["first"], done.error.details["next"]))
                offset = damaged[-1][1]
                continue
            assert done.error is None, done.error
            for at, header in batches.iter_batches(done.chunk):
                assert header.base_offset <= offset < header.next_offset
                found.append(bytes(done.chunk[at : at + header.size]))
                offset = header.next_offset
            assert offset == done.next
        return found, damaged

    def find(self, timestamp: int) -> Found:
        self.log.find_time("token", timestamp, self.log.written_offset)
        (event,) = self.run()
        assert isinstance(event, Found)
        return event

    def kept(self, first: int = 0, behind: int = 1 << 62) -> list[bytes]:
        """What was appended within a range of offsets."""
        return [data for header, data in self.appended if first <= header.base_offset < behind]

    # Files, behind the log's back ---

    def path(self, name: str) -> str:
        return f"{FOLDER}/{name}"

    def names(self, suffix: str = "") -> list[str]:
        return [name for name in self.files.list(FOLDER) if name.endswith(suffix)]

    def segment(self, number: int) -> str:
        """The path of a segment's file, counted from the oldest."""
        return self.path(self.names(".log")[number])

    def content(self, path: str) -> bytes:
        return self.files.read(path, 0, self.files.size(path))

    def flip(self, path: str, position: int) -> None:
        byte = self.files.read(path, position, 1)
        self.files.write(path, position, [bytes([byte[0] ^ 0x40])])

    def cut(self, path: str, length: int) -> None:
        self.files.truncate(path, length)

    def remove(self, path: str) -> None:
        self.files.remove(path)

    def write(self, path: str, data: bytes) -> None:
        self.files.write(path, 0, [data])
        self.files.truncate(path, len(data))

    def crash(self, settings: LogSettings | None = None) -> Opened:
        """The process dies where it stands; the machine lives, and the next process opens the log."""
        self.storage.forget()
        return self.open(settings)
