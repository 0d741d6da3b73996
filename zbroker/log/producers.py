"""Idempotence: what each producer last appended to one partition.

Owns the decision whether a batch is new, a duplicate or out of order. State is a function of the log alone: of
the headers in it and of snapshots of the same function, never of a clock; a producer expires by append time along
the log. Rolls back with the log. Pure.

A producer is remembered by its last five batches that are written, and by all that are not written yet: when an
append fails, exactly what was known before is known again. What the newest batches made it forget is kept aside for a
while, so that the same is true of written batches that are cut off, as far back as `exact_from`.
"""

from __future__ import annotations

from collections import deque

import msgspec

from zbroker.errors import OutOfOrderSequence, ProducerFenced, UnknownProducer
from zbroker.log import envelope
from zbroker.protocol.batch import BatchHeader

MAGIC = b"ZBPR"


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One batch of a producer, as its header says; `fresh`: the producer had been unknown, or had expired."""

    epoch: int
    base_sequence: int
    last_sequence: int
    base_offset: int
    append_time: int
    leader_epoch: int
    fresh: bool = False


class Duplicate(msgspec.Struct, frozen=True, gc=False):
    """The batch is in the log already: answer with this, once *that* batch commits."""

    base_offset: int
    append_time: int
    leader_epoch: int


class Snapshot(msgspec.Struct, array_like=True):
    """The table below an offset; `time` is the append time of the last batch before it."""

    offset: int
    time: int
    producers: dict[int, list[Entry]]

    def encode(self) -> bytes:
        """The snapshot file's bytes."""
        return envelope.seal(MAGIC, msgspec.msgpack.encode(self))


_decode = msgspec.msgpack.Decoder(Snapshot).decode


def decode(body: bytes) -> Snapshot | None:
    """The snapshot in an envelope's body, None where it makes no sense."""
    try:
        return _decode(body)
    except msgspec.MsgspecError:
        return None


class ProducerTable:
    """Each producer's remembered batches.

    Attributes:
        expiry: ms of append time after which an idle producer is unknown.
        settled: all batches below this offset are written, and are trimmed to the window.
        time: append time of the newest batch in the log.
        changes: rises with each batch of a producer: a snapshot is stale when it has moved.
        exact_from: to this offset, or a later one, `rollback` leads to exactly what was known there.
    """

    WINDOW = 5
    UNDO = 64
    """Batches that were forgotten and are kept aside: more than a few producers have in flight."""

    __slots__ = ("_forgotten", "_producers", "changes", "exact_from", "expiry", "settled", "time")

    def __init__(self, expiry: int) -> None:
        self.expiry = expiry
        self.settled = 0
        self.time = -1
        self.changes = 0
        self.exact_from = 0
        self._producers: dict[int, list[Entry]] = {}
        self._forgotten: deque[tuple[int, int, Entry]] = deque()
        """What was forgotten, oldest first: the offset of the batch that was the reason, the producer, its entry."""

    def __len__(self) -> int:
        return len(self._producers)

    def check(self, header: BatchHeader) -> Duplicate | None:
        """Whether a batch may be appended; None says take it.

        Raises:
            UnknownProducer: nothing is known of the producer, and the batch does not begin at sequence 0.
            OutOfOrderSequence: it does not continue the producer's sequence, and is no batch of the window.
            ProducerFenced: a newer epoch of the producer has written.
        """
        if header.producer_id < 0:
            return None
        entries = self._producers.get(header.producer_id)
        if entries is None or self.time - entries[-1].append_time > self.expiry:
            self._check_unknown(header)
            return None
        last = entries[-1]
        sequence, epoch = header.base_sequence, header.producer_epoch
        if epoch == last.epoch:
            if sequence == last.last_sequence + 1:
                return None
            return self._find_duplicate(header, entries)
        if epoch < last.epoch:
            raise ProducerFenced(
                f"producer {header.producer_id} has written with epoch {last.epoch}, newer than {epoch}",
                epoch=last.epoch,
            )  # fmt: skip
        if sequence:
            raise OutOfOrderSequence(
                f"epoch {epoch} of producer {header.producer_id} is new here and begins at sequence 0, "
                f"not at {sequence}",
                expected=0,
            )  # fmt: skip
        return None

    def _check_unknown(self, header: BatchHeader) -> None:
        if header.base_sequence:
            raise UnknownProducer(
                f"producer {header.producer_id} is not known to this partition, and its batch begins at "
                f"sequence {header.base_sequence}"
            )

    def _find_duplicate(self, header: BatchHeader, entries: list[Entry]) -> Duplicate:
        wanted = (header.producer_epoch, header.base_sequence, header.last_sequence)
        for entry in reversed(entries):
            if (entry.epoch, entry.base_sequence, entry.last_sequence) == wanted:
                return Duplicate(entry.base_offset, entry.append_time, entry.leader_epoch)
            if entry.fresh:
                break
        expected = entries[-1].last_sequence + 1
        raise OutOfOrderSequence(
            f"producer {header.producer_id} continues at sequence {expected}, and the batch has "
            f"{header.base_sequence} to {header.last_sequence}",
            expected=expected,
        )  # fmt: skip

    def append(self, header: BatchHeader) -> None:
        """A batch has joined the log's end."""
        if header.producer_id >= 0:
            self._remember(header)
        self.time = header.append_time

    def _remember(self, header: BatchHeader) -> None:
        entries = self._producers.setdefault(header.producer_id, [])
        fresh = not entries or self.time - entries[-1].append_time > self.expiry
        entry = Entry(
            header.producer_epoch,
            header.base_sequence,
            header.base_sequence + header.span - 1,
            header.base_offset,
            header.append_time,
            header.leader_epoch,
            fresh,
        )
        self.changes += 1
        entries.append(entry)
        while len(entries) > self.WINDOW and entries[self.WINDOW].base_offset < self.settled:
            self._forgotten.append((header.base_offset, header.producer_id, entries.pop(0)))
            if len(self._forgotten) > self.UNDO:
                self.exact_from = max(self.exact_from, self._forgotten.popleft()[0] + 1)

    def rollback(self, offset: int, time: int) -> None:
        """Forgets all batches from an offset on; `time` is the append time of the last one before it."""
        self.time = time
        self.settled = min(self.settled, offset)
        self.changes += 1
        while self._forgotten and self._forgotten[-1][0] >= offset:
            _, producer, entry = self._forgotten.pop()
            self._producers.setdefault(producer, []).insert(0, entry)
        for producer in list(self._producers):
            entries = self._producers[producer]
            while entries and entries[-1].base_offset >= offset:
                entries.pop()
            if not entries:
                del self._producers[producer]

    def snapshot(self, offset: int, time: int) -> Snapshot:
        """The state below a settled offset, in the one form that every way of building it leads to."""
        state = {}
        for producer, entries in list(self._producers.items()):
            known = [entry for entry in entries if entry.base_offset < offset]
            if known and time - known[-1].append_time <= self.expiry:
                state[producer] = _since_fresh(known)[-self.WINDOW :]
            elif len(known) == len(entries):
                del self._producers[producer]  # expired, and nothing in flight
                self.exact_from = max(self.exact_from, offset)
        return Snapshot(offset, time, state)

    def restore(self, snapshot: Snapshot) -> None:
        """Becomes what a snapshot says."""
        self._producers = {
            producer: list(entries) for producer, entries in snapshot.producers.items()
        }
        self.time = snapshot.time
        self.settled = self.exact_from = snapshot.offset
        self._forgotten.clear()
        self.changes += 1


def _since_fresh(entries: list[Entry]) -> list[Entry]:
    """The entries from the last one on at which the producer began anew."""
    for at in range(len(entries) - 1, 0, -1):
        if entries[at].fresh:
            return entries[at:]
    return entries
