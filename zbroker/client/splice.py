"""One partition's batches out of two streams: what was fetched from the log, and what was pushed as it committed.

Pure. Whatever of the pushed batches is dropped, doubled or late, every offset comes out once, in order:

============================ =====================================================================
a batch that ends            is dropped: it was there already
at or before the position
a batch that begins          is accepted, from the position on; the position moves behind it
at or before the position
a fetched batch beyond it    is accepted: the offsets between are not in the log any more
a pushed batch beyond it     is kept, within a bound, until a fetch has closed the gap; `behind` says
                             that there is one
a pushed batch of an older   is dropped: its sender is no longer the leader
epoch
============================ =====================================================================

The *head* is the highest high watermark heard of. Beacons carry it without a batch, so that a dropped tail shows.
"""

from __future__ import annotations

import msgspec

from zbroker.protocol.batch import BatchHeader, Buffer, iter_batches
from zbroker.protocol.messages import FetchReply, Push

HELD_BYTES = 4 << 20
"""Most bytes of pushed batches that wait behind a gap."""


class Piece(msgspec.Struct, gc=False):
    """A batch for the application: where it lies in a chunk, and the first offset of it that counts."""

    data: Buffer
    at: int
    header: BatchHeader
    first: int


class Splice:
    """The position in one partition."""

    __slots__ = ("_held", "_held_bytes", "epoch", "head", "log_start", "position")

    def __init__(self, position: int, epoch: int = -1) -> None:
        self.position = position
        """All before it has come out."""
        self.epoch = epoch
        """Leader epoch of the offset before `position`, -1 where it is not known."""
        self.head = 0
        self.log_start = 0
        self._held: dict[int, Piece] = {}
        self._held_bytes = 0

    @property
    def behind(self) -> bool:
        """Whether there is something to fetch that will not be pushed again."""
        return self.head > self.position

    def on_fetch(self, reply: FetchReply, chunk: Buffer) -> list[Piece]:
        """What of a fetched chunk counts, and what it lets through of the batches that waited.

        Raises:
            CorruptBatch: the chunk was damaged; what came before the damage is lost to this call.
        """
        batches = list(iter_batches(chunk))
        self.head = max(self.head, reply.high_watermark)
        self.log_start = max(self.log_start, reply.log_start)
        out: list[Piece] = []
        for at, header in batches:
            if header.next_offset > self.position:
                self._accept(Piece(chunk, at, header, max(self.position, header.base_offset)), out)
        if reply.next > self.position:
            self.position = reply.next
            if reply.next_epoch >= 0:
                self.epoch = reply.next_epoch
        self._release(out)
        return out

    def on_push(self, push: Push, data: Buffer) -> list[Piece]:
        """What comes out by a pushed batch.

        Raises:
            CorruptBatch, InvalidBatch, UnsupportedAttribute: it is no whole batch; it will be fetched.
        """
        self.on_beacon(push)
        out: list[Piece] = []
        for at, header in iter_batches(data):
            if header.next_offset <= self.position or header.leader_epoch < self.epoch:
                continue
            piece = Piece(data, at, header, max(self.position, header.base_offset))
            if header.base_offset <= self.position:
                self._accept(piece, out)
            elif (
                header.base_offset not in self._held
                and self._held_bytes + header.size <= HELD_BYTES
            ):
                self._held[header.base_offset] = piece
                self._held_bytes += header.size
        self._release(out)
        return out

    def on_beacon(self, push: Push) -> None:
        """The partition's ends, as its leader says them."""
        self.head = max(self.head, push.high_watermark)
        self.log_start = max(self.log_start, push.log_start)

    def drop_held(self) -> None:
        """Forgets the batches that wait behind a gap."""
        self._held.clear()
        self._held_bytes = 0

    def _accept(self, piece: Piece, out: list[Piece]) -> None:
        self.position = piece.header.next_offset
        self.epoch = piece.header.leader_epoch
        out.append(piece)

    def _release(self, out: list[Piece]) -> None:
        """Lets go what the position has reached."""
        held = self._held
        if not held:
            return
        for base in sorted(held):
            if base > self.position:
                return
            piece = held.pop(base)
            self._held_bytes -= piece.header.size
            if piece.header.next_offset > self.position and piece.header.leader_epoch >= self.epoch:
                piece.first = self.position
                self._accept(piece, out)
