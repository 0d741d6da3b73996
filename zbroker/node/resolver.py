"""Host names into numeric addresses, away from every thread that must not wait.

Owns the look-ups under way, each on a thread of its own that ends with it: libzmq would look names up in the thread
that carries every heartbeat, and one slow name would hold up the others. Never decides when to ask again.
"""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Iterator

CLOSE_S = 0.2
"""How long `close` waits for look-ups; one that hangs longer ends when the system's resolver gives up."""


def is_numeric(host: str) -> bool:
    """Whether a host is an address already.

    >>> is_numeric("192.168.1.11"), is_numeric("fe80::1%eth0"), is_numeric("node1.local")
    (True, True, False)
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Resolver:
    """Looks names up. A poller registers `fileno()`, and takes `answers()` when it is readable."""

    def __init__(self) -> None:
        self._answers: queue.SimpleQueue[tuple[str, tuple[str, ...]]] = queue.SimpleQueue()
        self._asked: dict[str, threading.Thread] = {}
        self._writing = threading.Lock()
        self._closed = False
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """What is readable when there are answers."""
        return self._reader.fileno()

    def ask(self, host: str) -> None:
        """Looks a name up, unless that is under way."""
        if host not in self._asked:
            thread = threading.Thread(
                target=self._look_up, args=(host,), name=f"zbroker-name-{host}", daemon=True
            )
            self._asked[host] = thread
            thread.start()

    def answers(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Names with their numeric addresses, IPv4 first; none where a name is not known."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        while not self._answers.empty():
            host, addresses = self._answers.get()
            self._asked.pop(host).join()
            yield host, addresses

    def close(self) -> None:
        """Forgets what was asked."""
        deadline = time.monotonic() + CLOSE_S
        for thread in self._asked.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._writing:
            self._closed = True
            self._reader.close()
            self._writer.close()

    def _look_up(self, host: str) -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            found = []
        found.sort(key=lambda info: info[0] != socket.AF_INET)
        self._answers.put((host, tuple(dict.fromkeys(str(info[4][0]) for info in found))))
        # Under a lock, for the descriptor's number may be somebody else's once it is closed.
        with self._writing:
            if not self._closed:
                # Full: it is readable anyway.
                with contextlib.suppress(BlockingIOError):
                    self._writer.send(b"\0")
