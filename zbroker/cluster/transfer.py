"""A snapshot on its way from the metadata's leader to a node whose log ends before the leader's begins.

Owns both ends of a transfer: which part is next, and what has arrived. One part is on its way at a time, each is sent
again after a silence, and a transfer belongs to one leader epoch: a new leader begins a new one. Never reads or writes
a file, and never looks into the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from zbroker.protocol.batch import Buffer
from zbroker.protocol.peers import SnapshotPart, SnapshotTaken
from zbroker.replication.progress import Progress

PART_BYTES = 256 << 10
RESEND_MS = 300
"""How long a part may be unanswered before it is sent again."""
SNAPSHOT_MAX = 1 << 30
"""Bytes that a snapshot may have."""

SendPart = Callable[[str, SnapshotPart, Buffer], None]


class Transfer(msgspec.Struct):
    """One node's: which start it is for, what is sent, how far it is, and when something was last sent."""

    incarnation: int
    session: int
    offset: int
    data: bytes
    position: int = 0
    sent_at: int = 0


class Outgoing:
    """The leader's end, for all nodes."""

    def __init__(self, epoch: int, send: SendPart, make: Callable[[], tuple[int, bytes]]) -> None:
        """
        Args:
            make: the newest snapshot: its offset and its bytes.
        """
        self._epoch = epoch
        self._send = send
        self._make = make
        self._transfers: dict[str, Transfer] = {}
        self._begun_at: dict[str, int] = {}
        self._sessions = 0

    def serve(self, followers: Mapping[str, Progress], now: int) -> None:
        """Begins, repeats or ends transfers: whoever lacks something is sent a snapshot."""
        for node in [node for node in self._transfers if node not in followers]:
            del self._transfers[node]
        for node, follower in followers.items():
            transfer = self._transfers.get(node)
            if transfer is not None and transfer.incarnation != follower.incarnation:
                del self._transfers[node]
                transfer = None
            if follower.state == "streaming":
                self._transfers.pop(node, None)
            if not follower.lacks:
                continue
            if transfer is None:
                if now - self._begun_at.get(node, -RESEND_MS) >= RESEND_MS:
                    self._begin(node, follower.incarnation, now)
            elif now - transfer.sent_at >= RESEND_MS:
                self._send_part(node, transfer, now)

    def _begin(self, node: str, incarnation: int, now: int) -> None:
        self._sessions += 1
        self._begun_at[node] = now
        offset, data = self._make()
        transfer = Transfer(incarnation, self._sessions, offset, data)
        self._transfers[node] = transfer
        self._send_part(node, transfer, now)

    def _send_part(self, node: str, transfer: Transfer, now: int) -> None:
        transfer.sent_at = now
        begin = transfer.position
        part = SnapshotPart(
            epoch=self._epoch, session=transfer.session, offset=transfer.offset, position=begin,
            total=len(transfer.data),
        )  # fmt: skip
        self._send(node, part, memoryview(transfer.data)[begin : begin + PART_BYTES])

    def on_taken(self, node: str, answer: SnapshotTaken, now: int) -> int | None:
        """A node answers; the offset from which its log can go on, once the snapshot is installed there."""
        transfer = self._transfers.get(node)
        if transfer is None or (answer.epoch, answer.session) != (self._epoch, transfer.session):
            return None
        if answer.installed:
            del self._transfers[node]
            return transfer.offset
        before = transfer.position
        transfer.position = min(answer.position, len(transfer.data))
        if before != transfer.position < len(transfer.data):
            self._send_part(node, transfer, now)
        return None


class Incoming:
    """The other end: what has arrived of one transfer.

    Attributes:
        complete: all of it is there.
    """

    def __init__(self) -> None:
        self.complete = False
        self._of: tuple[str, int, int] = ("", -1, -1)
        self._data = bytearray()

    @property
    def position(self) -> int:
        """How many bytes are there."""
        return len(self._data)

    def data(self) -> bytes:
        """What is there."""
        return bytes(self._data)

    def clear(self) -> None:
        """Forgets what is there."""
        self._data = bytearray()
        self.complete = False

    def take(self, sender: str, part: SnapshotPart, frame: Buffer) -> bool:
        """A part arrives; False where it is of a transfer that is over."""
        of = (sender, part.epoch, part.session)
        if of != self._of:
            if self._of[:2] == of[:2] and part.session < self._of[2]:
                return False
            self._of = of
            self.clear()
        if not 0 <= part.total <= SNAPSHOT_MAX:
            return False
        if part.position == len(self._data) and len(self._data) + len(frame) <= part.total:
            self._data += frame
        self.complete = len(self._data) == part.total
        return True
