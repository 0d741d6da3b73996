"""Random lives of one log, and what must be true of it after each of them.

A history is a seed. It appends, flushes, rolls, reads, truncates, retains, deletes, fills the disk, closes, is killed
and loses power at any operation, in any order, on a disk that drops, reorders and tears what was not flushed. After
every opening:

- nothing below the flushed offset is lost or changed, and what is there is what was appended;
- nothing that failed, or was truncated, is back; a batch lost in the crash does not return under its epoch;
- epochs that were begun are known, and each record's epoch is the one it was appended under;
- the producers' state is what the whole past says, so that every duplicate is still known, as after a truncation;
- nothing but coded errors has come out.
"""

from __future__ import annotations

import copy
import errno
import random

from zbroker.errors import DataDamaged
from zbroker.log import (
    AppendFailed,
    Broken,
    Closed,
    Completion,
    Duplicate,
    EpochBegun,
    Found,
    Log,
    LogSettings,
    Opened,
    ProducerTable,
    ReadDone,
    StartMoved,
    Truncated,
)
from zbroker.protocol import batch as batches
from zbroker.protocol.batch import BatchHeader
from zbroker.testing.disk import PowerLost, SimulatedDisk, SimulatedStorage

FOLDER = "t/0"
Appended = tuple[BatchHeader, bytes]


class History:
    """One log's life. `past` has all that is in the log now, retained or not; `flushed` what must survive."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.disk = SimulatedDisk(rng)
        self.storage = SimulatedStorage(self.disk, rng, self.deliver)
        self.settings = LogSettings(
            fsync=rng.choice(["always", "always", "interval", "never"]),
            segment_size=rng.choice([400, 1000, 3000]),
            segment_age=rng.choice([None, None, 50]),
            index_interval=rng.choice([1, 150, 500]),
            retention=rng.choice([None, 100]),
            retention_size=rng.choice([None, 3000]),
            producer_expiry=rng.choice([60, 10_000]),
        )
        self.now = self.wall = 0
        self.past: list[Appended] = []
        self.flushed = self.written = 0
        self.start = self.start_asked = 0
        self.begun = -1
        self.truncating: int | None = None
        self.damage: list[tuple[int, int]] = []
        self.epoch = 0
        self.log = Log(FOLDER, self.settings, self.storage)
        self.reopen()

    def run(self, steps: int) -> None:
        """Lives for so many operations, and dies at last to be looked at once more."""
        operations = [
            *[self.append] * 8, *[self.let_work] * 6, self.drain, self.tick, *[self.read] * 2, self.find,
            self.begin_epoch, *[self.truncate] * 3, self.delete, self.retain, self.close, self.kill,
            self.power_loss, self.power_loss_soon, self.fill_disk, self.free_disk, self.alter, self.repeat,
            *[self.checkpoint] * 2,
        ]  # fmt: skip
        for _ in range(steps):
            self.guarded(self.rng.choice(operations))
        self.guarded(self.drain)
        self.guarded(self.kill)

    def guarded(self, operation: object) -> None:
        """An operation during which the power may go."""
        try:
            operation()  # type: ignore[operator]
        except PowerLost:
            self.power_loss()
        log = self.log
        if log.state == "open":
            assert log.start_offset <= log.written_offset <= log.end_offset
            assert log.flushed_offset <= log.written_offset
            if self.truncating is None:
                assert log.flushed_offset >= self.flushed
                self.flushed = log.flushed_offset
                self.written = log.written_offset

    def deliver(self, completion: Completion) -> None:
        event = self.log.on_event(completion, self.now)
        if isinstance(event, ReadDone):
            self.check_read(event)
        elif isinstance(event, Found):
            assert event.error is None or event.error.retriable, event
        elif isinstance(event, AppendFailed):
            assert event.from_offset >= self.flushed
            assert event.from_offset == self.log.end_offset == self.log.written_offset
            self.past = [kept for kept in self.past if kept[0].base_offset < event.from_offset]
        elif isinstance(event, EpochBegun):
            self.begun = max(self.begun, event.epoch)
        elif isinstance(event, StartMoved):
            if event.error is None:
                self.start = event.start_offset
        elif isinstance(event, Truncated):
            self.truncating = None
            if event.error is None:
                self.past = [kept for kept in self.past if kept[0].base_offset < event.end_offset]
                self.flushed = self.written = event.end_offset
            if not self.damage and not self.log.damaged:
                self.check_producers()
        else:
            assert event is None or isinstance(event, Opened | Closed), event
            assert not isinstance(event, Broken)

    # What it lives through ---

    def let_work(self) -> None:
        for _ in range(self.rng.randint(1, 6)):
            self.storage.step()

    def drain(self) -> None:
        self.storage.run_all()

    def tick(self) -> None:
        self.now += self.rng.choice([1, 100, 2000, 100_000])
        self.log.on_tick(self.now)

    def append(self) -> None:
        for _ in range(self.rng.choice([1, 1, 3])):
            log = self.log
            if log.state != "open" or log.full or self.truncating is not None:
                return
            self.wall += self.rng.choice([0, 1, 1, 5, 30])
            self.epoch += self.rng.random() < 0.03
            self.append_one()

    def append_one(self) -> None:
        log, rng = self.log, self.rng
        producer, epoch, sequence = -1, -1, -1
        if rng.random() < 0.7:
            producer = rng.randrange(3)
            epoch, sequence = self.next_of(producer)
        count = rng.choice([1, 1, 2, 5])
        batch = batches.encode_batch(
            [(0, None, rng.randbytes(rng.choice([0, 20, 300])), ())] * count,
            base_timestamp=self.wall,
            max_timestamp=self.wall + rng.randrange(3),
            producer_id=producer,
            producer_epoch=epoch,
            base_sequence=sequence,
        )
        batches.stamp(
            batch,
            base_offset=log.end_offset,
            append_time=max(self.wall, log.last_append_time),
            leader_epoch=max(self.epoch, log.last_epoch),
        )
        header = batches.read_header(batch)
        assert log.producers.check(header) is None
        log.append(batch, header, lazily=header.base_offset // 8 % 2 == 1)
        self.past.append((header, bytes(batch)))
        self.epoch = header.leader_epoch

    def next_of(self, producer: int) -> tuple[int, int]:
        """A producer's epoch and next sequence, by the reference."""
        table = self.reference()
        for header, _ in reversed(self.past):
            if header.producer_id == producer:
                if table.time - header.append_time > self.settings.producer_expiry:
                    return header.producer_epoch, 0
                if self.rng.random() < 0.1:
                    return header.producer_epoch + 1, 0
                return header.producer_epoch, header.last_sequence + 1
        return 0, 0

    def repeat(self) -> None:
        """A producer sends again what it sent: one of its last five batches."""
        if self.log.state != "open" or not self.past or self.damage:
            return  # what damage took may have shown that a producer had expired
        producer = self.rng.randrange(3)
        own = [header for header, _ in self.past if header.producer_id == producer]
        table = self.log.producers
        if not own or table.time - own[-1].append_time > self.settings.producer_expiry:
            return
        for header in own[-ProducerTable.WINDOW :]:
            if header.producer_epoch == own[-1].producer_epoch and self.continues(header, own):
                answer = table.check(header)
                assert isinstance(answer, Duplicate), (answer, header)
                assert answer.base_offset == header.base_offset, (answer, header)

    def continues(self, header: BatchHeader, own: list[BatchHeader]) -> bool:
        """Whether the producer had not expired between this batch and its last."""
        at = own.index(header)
        times = [self.time_before(later) - earlier.append_time
                 for earlier, later in zip(own[at:], own[at + 1 :], strict=False)]  # fmt: skip
        return all(time <= self.settings.producer_expiry for time in times)

    def time_before(self, header: BatchHeader) -> int:
        at = [h.base_offset for h, _ in self.past].index(header.base_offset)
        return self.past[at - 1][0].append_time if at else -1

    def checkpoint(self) -> None:
        """One that is due; now and then there is room for all that goes with it, and not for itself."""
        if self.log.state != "open":
            return
        self.log.want_checkpoint()
        if self.rng.random() < 0.3:

            def hook(kind: str, path: str) -> None:
                if kind == "write" and path.endswith("checkpoint.tmp"):
                    raise OSError(errno.ENOSPC, "as told", path)

            self.disk.hook = hook
            try:
                self.drain()
            finally:
                self.disk.hook = None

    def begin_epoch(self) -> None:
        if self.log.state == "open" and self.truncating is None:
            self.epoch = max(self.epoch, self.log.last_epoch) + 1
            self.log.begin_epoch(self.epoch)

    def truncate(self) -> None:
        log = self.log
        if log.state == "open" and self.truncating is None and self.rng.random() < 0.5:
            low = max(log.start_offset, self.start_asked)
            if low > log.end_offset:
                return
            offset = self.rng.randint(low, log.end_offset)
            self.drain()
            if log.full or log.state != "open" or offset > log.end_offset:
                return
            if self.floor_of(offset) < max(log.start_offset, self.start_asked):
                return
            self.truncating = offset
            self.begun = -1
            self.flushed = min(self.flushed, self.floor_of(offset))
            self.epoch += 1  # whoever appends next does so under a newer epoch
            log.truncate("token", offset)

    def floor_of(self, offset: int) -> int:
        """Where a truncation at an offset may end: a batch across it goes whole."""
        for first, behind in self.damage:
            if first <= offset and behind >= offset:
                return self.floor_of(first - 1) if first else 0
        for header, _ in self.past:
            if header.base_offset <= offset < header.next_offset:
                return header.base_offset
        return offset

    def delete(self) -> None:
        log = self.log
        if (
            log.state == "open"
            and log.start_offset <= log.flushed_offset
            and self.truncating is None
        ):
            offset = self.rng.randint(log.start_offset, log.flushed_offset)
            self.start_asked = max(self.start_asked, offset)
            log.delete_before("token", offset)

    def retain(self) -> None:
        if self.log.state == "open" and self.truncating is None:
            self.start_asked = max(self.start_asked, self.log.flushed_offset)
            self.log.retain(self.log.flushed_offset, self.wall + self.rng.choice([0, 60, 200]))

    def read(self) -> None:
        log = self.log
        if log.state == "open" and log.start_offset < log.written_offset:
            offset = self.rng.randrange(log.start_offset, log.written_offset)
            limit = self.log.written_offset
            self.log.read((offset, limit), offset, self.rng.choice([1, 500, 5000]), limit)

    def check_read(self, event: ReadDone) -> None:
        if event.error is not None:
            assert event.error.code in ("offset_out_of_range", "not_ready", "damaged"), event
            return
        known = {header.base_offset: data for header, data in self.past}
        for at, header in batches.iter_batches(event.chunk):
            data = known.get(header.base_offset)
            assert event.chunk[at : at + header.size] == data, f"wrong data at {header.base_offset}"

    def find(self) -> None:
        if self.log.state == "open":
            self.log.find_time("token", self.wall - self.rng.randrange(50), self.log.written_offset)

    def fill_disk(self) -> None:
        self.disk.budget = self.disk.used + self.rng.choice([0, 50, 400, 2000])

    def free_disk(self) -> None:
        self.disk.budget = None
        self.tick()

    def alter(self) -> None:
        if self.log.state == "open":
            import msgspec

            mode = self.rng.choice(["always", "interval", "never"])
            self.settings = msgspec.structs.replace(self.settings, fsync=mode)
            self.log.alter(self.settings)

    # Its deaths ---

    def close(self) -> None:
        if self.log.state == "open":
            self.log.close()
            self.drain()
            assert self.log.state == "closed"
            self.flushed = self.written = self.log.end_offset
            if self.rng.random() < 0.5:
                self.disk.lose_power()
                self.flushed = self.log.flushed_offset
            self.reopen()

    def kill(self) -> None:
        """The process is killed; the machine lives."""
        self.disk.restart()
        self.storage.forget()
        flushed = self.flushed
        if self.truncating is None:
            self.flushed = max(self.flushed, self.written)
        self.reopen(flushed)

    def power_loss(self) -> None:
        self.disk.lose_power()
        self.reopen()

    def power_loss_soon(self) -> None:
        self.disk.crash_at = self.disk.operations + self.rng.randint(1, 12)

    def reopen(self, flushed: int | None = None) -> None:
        """The next process opens the log; the power may go while it does, and then only `flushed` counts."""
        for _ in range(3):
            self.storage.forget()
            self.disk.budget = None
            if self.rng.random() < 0.2:
                self.power_loss_soon()
            self.log = Log(FOLDER, self.settings, self.storage)
            self.log.open()
            try:
                self.storage.run_all()
                break
            except PowerLost:
                self.disk.lose_power()
                self.flushed = self.flushed if flushed is None else flushed
        else:
            self.log = Log(FOLDER, self.settings, self.storage)
            self.log.open()
            self.storage.run_all()
        self.disk.crash_at = None
        assert self.log.state == "open", self.log.state
        self.check_opened()

    def check_opened(self) -> None:
        log = self.log
        most = max(self.start, self.start_asked)
        assert self.start <= log.start_offset <= most, (log.start_offset, self.start, most)
        assert log.end_offset >= self.flushed, (log.end_offset, self.flushed)
        assert log.end_offset == log.written_offset == log.flushed_offset
        assert log.last_epoch >= self.begun
        found = self.survivors()
        bases = {header.base_offset for header, _ in found}
        for kept in self.past:
            header = kept[0]
            if header.base_offset < log.start_offset and header.next_offset <= log.start_offset:
                continue
            if header.base_offset < self.flushed:
                assert header.base_offset in bases, (
                    f"lost {header.base_offset}, flushed {self.flushed}"
                )
        old = [kept for kept in self.past if kept[0].next_offset <= log.start_offset]
        self.past = old + found
        for header, _ in found:
            assert log.epoch_at(header.base_offset) == header.leader_epoch
        self.check_producers()
        self.epoch = max(self.epoch, log.last_epoch) + 1
        self.truncating = None
        self.start = self.start_asked = log.start_offset
        self.flushed = self.written = log.end_offset
        self.begun = log.last_epoch
        self.damage = list(log.damaged)

    def survivors(self) -> list[Appended]:
        """All that can be read; every batch of it must be one that was appended there."""
        log, found, offset = self.log, [], self.log.start_offset
        appended = {header.base_offset: (header, data) for header, data in self.past}
        while offset < log.end_offset:
            done: list[ReadDone] = []
            log.read("survivors", offset, 1000, log.end_offset)
            self.storage.deliver = lambda c: done.append(log.on_event(c, self.now))  # type: ignore[arg-type]  # noqa: B023
            self.storage.run_all()
            self.storage.deliver = self.deliver
            event = next(e for e in done if isinstance(e, ReadDone))
            if isinstance(event.error, DataDamaged):
                first, offset = event.error.details["first"], event.error.details["next"]
                known_before = any(a <= first and offset <= b for a, b in self.damage)
                assert first >= self.flushed or known_before, (event.error, self.flushed)
                continue
            assert event.error is None, event.error
            for at, header in batches.iter_batches(event.chunk):
                kept = appended.get(header.base_offset)
                assert kept is not None, f"{header.base_offset} came from nowhere"
                assert kept[1] == event.chunk[at : at + header.size], header
                found.append(kept)
            assert event.next > offset
            offset = event.next
        return found

    def check_producers(self) -> None:
        log = self.log
        # A copy: a snapshot lets go of whom it does not name.
        mine = copy.deepcopy(log.producers).snapshot(log.end_offset, log.last_append_time)
        reference = self.reference().snapshot(log.end_offset, log.last_append_time)
        assert mine.producers == reference.producers, f"{mine} instead of {reference}"

    def reference(self) -> ProducerTable:
        """The producers' state by the whole past."""
        table = ProducerTable(self.settings.producer_expiry)
        for header, _ in self.past:
            table.settled = header.base_offset
            table.append(header)
        return table
