"""What the reactor waits for: ZeroMQ sockets and plain descriptors, in one selector.

Owns how a socket is waited for. libzmq's own poll asks every socket before it waits and again after, at two system
calls each; this asks the one descriptor that each socket has, all at once. That descriptor is readable when libzmq has
something to tell its socket, and says nothing about messages that the socket knows of already: whoever reads a socket
not to its end, or sends through one that is also read, has to name it as `unsettled` before the next wait.
"""

from __future__ import annotations

import selectors
from collections.abc import Collection

import zmq

EVENTS, POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)

Waited = zmq.Socket[bytes] | int


class Poller:
    """One wait for all of them. A socket is unsettled when it is registered."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._new: list[zmq.Socket[bytes]] = []

    def register(self, what: Waited) -> None:
        """Waits for a socket, or a descriptor, to be readable."""
        if isinstance(what, int):
            self._selector.register(what, selectors.EVENT_READ, what)
        else:
            self._selector.register(int(what.get(zmq.FD)), selectors.EVENT_READ, what)
            self._new.append(what)

    def poll(self, timeout: int, unsettled: Collection[zmq.Socket[bytes]]) -> set[Waited]:
        """What may be readable: of a socket that is not among them, there is nothing to be read.

        Args:
            timeout: ms.
            unsettled: sockets in which messages may wait though no descriptor says so.
        """
        ready: set[Waited] = set()
        if unsettled or self._new:
            ready = {
                socket for socket in (*unsettled, *self._new) if int(socket.get(EVENTS)) & POLLIN
            }
            self._new.clear()
        for key, _ in self._selector.select(0 if ready else timeout / 1000):
            ready.add(key.data)
        return ready

    def close(self) -> None:
        """Waits for nothing any more."""
        self._selector.close()
