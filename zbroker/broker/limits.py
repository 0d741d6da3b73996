"""What clients may make a node hold: records that wait for the disk, and chunks that wait for their readers.

Owns the counting. What is over the limit for appends is refused, so that the producer slows down; what is over the
limit for reads waits its turn, so that a reader of many partitions is served bit by bit, and one that does not read
its replies waits for itself alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Budget:
    """Bytes that all partitions together hold before they are committed, against a limit."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class ReadLedger:
    """Chunks promised to readers: being read, or read and not yet taken by the client.

    A client with nothing outstanding always gets its chunk, however large it is.
    """

    def __init__(
        self, *, unread: Callable[[bytes | None], int], per_client: int, total: int
    ) -> None:
        """
        Args:
            unread: bytes of chunks sent and not yet taken, by one client or (None) by all together.
            per_client: bytes that one client may have outstanding.
            total: bytes that all together may have outstanding.
        """
        self._unread = unread
        self._per_client = per_client
        self._total = total
        self._reading: dict[bytes, int] = {}
        self._reading_total = 0
        self._waiting: dict[bytes, deque[tuple[int, Callable[[], None]]]] = {}
        self._admitting: set[bytes] = set()
        """Clients whose waiting requests are being begun: one that is refused at once is not to begin the next."""

    @property
    def idle(self) -> bool:
        """Whether nothing is being read and nobody waits."""
        return not (self._reading or self._reading_total or self._waiting)

    def ask(self, client: bytes, size: int, start: Callable[[], None]) -> None:
        """Calls `start` now, or once there is room for `size` more bytes; in turn for one client."""
        if client not in self._waiting and self._has_room(client, size):
            self._begin(client, size, start)
        else:
            self._waiting.setdefault(client, deque()).append((size, start))
            self._admit(client)  # who asks again has taken a chunk, as a rule

    def done(self, client: bytes, size: int) -> None:
        """A chunk that was asked for has been read and handed to the transport."""
        left = self._reading[client] - size
        if left:
            self._reading[client] = left
        else:
            del self._reading[client]
        self._reading_total -= size
        self._admit(client)

    def on_tick(self) -> None:
        """Clients take their chunks without a word: looks who has room now."""
        for client in list(self._waiting):
            self._admit(client)

    def _admit(self, client: bytes) -> None:
        waiting = self._waiting.get(client)
        if waiting is None or client in self._admitting:
            return
        self._admitting.add(client)
        while waiting and self._has_room(client, waiting[0][0]):
            size, start = waiting.popleft()
            self._begin(client, size, start)
        self._admitting.remove(client)
        if not waiting:
            del self._waiting[client]

    def _begin(self, client: bytes, size: int, start: Callable[[], None]) -> None:
        self._reading[client] = self._reading.get(client, 0) + size
        self._reading_total += size
        start()

    def _has_room(self, client: bytes, size: int) -> bool:
        own = self._reading.get(client, 0) + self._unread(client)
        if own == 0:
            return True
        everyone = self._reading_total + self._unread(None)
        return own + size <= self._per_client and everyone + size <= self._total
