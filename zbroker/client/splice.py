"""One partition's batches out of two streams: what was fetched from the log, and what was pushed as it committed.

Pure. Whatever of the pushed batches is dropped, doubled or late, and whoever leads, every offset comes out once, in
order:

============================ =====================================================================
a batch that ends            is dropped: it was there already
at or before the position
a batch that begins          is accepted, from the position on; the position moves behind it
at or before the position
a fetched batch beyond it    is accepted: the offsets between are not in the log any more
a pushed batch beyond it     is kept, within a bound, until a fetch has closed the gap; `behind` says
                             that there is one
a batch pushed by a leader   is kept as well, until a fetch: only a fetch compares the position's
whose log was not compared   epoch with the log, and the log may be another one than was read
anything of a leader older   is dropped: it may tell of a log that is no more
than one heard of
============================ =====================================================================

The *head* is the highest high watermark that the present leader told of. Beacons carry it without a batch, so that a
dropped tail shows.
"""

from __future__ import annotations

import msgspec

from zbroker.protocol.batch import BatchHeader, Buffer, iter_batches
from zbroker.protocol.messages import FetchReply, Push

HELD_BYTES = 4 << 20
"""Most bytes of pushed batches that wait behind a gap."""
EPOCHS = 64
"""Most leader epochs whose beginnings are remembered: they tell where another history parts from the one read."""


class Piece(msgspec.Struct, gc=False):
    """A batch for the application: where it lies in a chunk, and the first offset of it that counts."""

    data: Buffer
    at: int
    header: BatchHeader
    first: int


class Splice:
    """The position in one partition."""

    __slots__ = (
        "_began", "_held", "_held_bytes", "compared", "epoch", "head", "leader_epoch", "log_start", "position",
    )  # fmt: skip

    def __init__(self, position: int, epoch: int = -1) -> None:
        self.position = position
        """All before it has come out."""
        self.epoch = epoch
        """Leader epoch of the offset before `position`, -1 where it is not known."""
        self.leader_epoch = -1
        """The newest leader epoch heard of."""
        self.compared = -1
        """Leader epoch of the log that the position was last compared with."""
        self.head = 0
        self.log_start = 0
        self._began: list[tuple[int, int]] = [(epoch, position)]
        """Where each epoch began, of what came out: (epoch, first offset), rising; the first is as at the start."""
        self._held: dict[int, Piece] = {}
        self._held_bytes = 0

    @property
    def behind(self) -> bool:
        """Whether there is something to fetch that will not be pushed again."""
        return self.head > self.position

    @property
    def trusted(self) -> bool:
        """Whether the position was compared with the present leader's log: what it pushes continues what was read."""
        return self.compared >= self.leader_epoch

    def is_stale(self, leader_epoch: int) -> bool:
        """Whether a reply or a push is of a leader older than one heard of."""
        return 0 <= leader_epoch < self.leader_epoch

    def on_fetch(self, reply: FetchReply, chunk: Buffer) -> list[Piece]:
        """What of a fetched chunk counts, and what it lets through of the batches that waited.

        Raises:
            CorruptBatch: the chunk was damaged; what came before the damage is lost to this call.
        """
        batches = list(iter_batches(chunk))
        self.on_ends(reply.epoch, reply.high_watermark, reply.log_start)
        self.compared = max(self.compared, reply.epoch if reply.epoch >= 0 else self.leader_epoch)
        out: list[Piece] = []
        for at, header in batches:
            if header.next_offset > self.position:
                self._accept(Piece(chunk, at, header, max(self.position, header.base_offset)), out)
        if reply.next > self.position:
            self.position = reply.next
            if reply.next_epoch >= 0:
                self._set_epoch(reply.next_epoch, reply.next)
        elif reply.next == self.position and self.epoch < 0:
            self.epoch = reply.next_epoch
            self._began = [(self.epoch, self.position)]
        self._release(out)
        return out

    def on_push(self, push: Push, data: Buffer) -> list[Piece]:
        """What comes out by a pushed batch.

        Raises:
            CorruptBatch, InvalidBatch, UnsupportedAttribute: it is no whole batch; it will be fetched.
        """
        out: list[Piece] = []
        if not self.on_beacon(push):
            return out
        for at, header in iter_batches(data):
            if header.next_offset <= self.position or header.leader_epoch < self.epoch:
                continue
            piece = Piece(data, at, header, max(self.position, header.base_offset))
            if header.base_offset <= self.position and push.epoch <= self.compared:
                self._accept(piece, out)
            elif (
                header.base_offset not in self._held
                and self._held_bytes + header.size <= HELD_BYTES
            ):
                self._held[header.base_offset] = piece
                self._held_bytes += header.size
        self._release(out)
        return out

    def on_beacon(self, push: Push) -> bool:
        """The partition's ends, as its leader says them; False where that is no longer the leader."""
        if self.is_stale(push.epoch):
            return False
        self.on_ends(push.epoch, push.high_watermark, push.log_start)
        return True

    def on_ends(self, leader_epoch: int, high_watermark: int, log_start: int) -> None:
        """A leader says where its log begins and what is committed."""
        if leader_epoch > self.leader_epoch:
            self.leader_epoch = leader_epoch
            self.head = 0
            self.drop_held()
        self.head = max(self.head, high_watermark)
        self.log_start = max(self.log_start, log_start)

    def rewind(self, epoch: int, end: int) -> None:
        """The log agrees with what came out at most up to before `end`, and up to there with `epoch` at most.

        The position goes back to where both histories part as far as this side can tell; the next fetch compares again.
        """
        began, unchanged = self._began, (self.position, self.epoch)
        while len(began) > 1 and began[-1][0] > epoch:
            end = min(end, began.pop()[1])
        before, first = began[0]
        if len(began) == 1 and before > epoch:  # what was read before this began is no more, too
            end = min(end, max(first - 1, 0))
        self.position = min(end, self.position)
        while len(began) > 1 and began[-1][1] >= self.position:
            began.pop()
        if self.position < first or (self.position, began[-1][0]) == unchanged:
            began[:] = [(-1, self.position)]  # nothing is known that could be compared
        self.epoch = began[-1][0]
        self.head = 0
        self.compared = -1
        self.drop_held()

    def drop_held(self) -> None:
        """Forgets the batches that wait behind a gap."""
        self._held.clear()
        self._held_bytes = 0

    def _accept(self, piece: Piece, out: list[Piece]) -> None:
        header = piece.header
        if header.leader_epoch != self.epoch:
            self._set_epoch(header.leader_epoch, piece.first)
        self.position = header.next_offset
        out.append(piece)

    def _set_epoch(self, epoch: int, first: int) -> None:
        self.epoch = epoch
        began = self._began
        if epoch > began[-1][0]:
            began.append((epoch, first))
            del began[1 : len(began) - EPOCHS]

    def _release(self, out: list[Piece]) -> None:
        """Lets go what the position has reached."""
        held = self._held
        if not held or not self.trusted:
            return
        for base in sorted(held):
            if base > self.position:
                return
            piece = held.pop(base)
            self._held_bytes -= piece.header.size
            if piece.header.next_offset > self.position and piece.header.leader_epoch >= self.epoch:
                piece.first = self.position
                self._accept(piece, out)
