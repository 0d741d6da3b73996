"""What the node's sockets know of clients: how much each, and all together, have yet to take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from zbroker.broker.ports import Conversation
from zbroker.node.sockets import Sockets
from zbroker.protocol.messages import FetchReply
from zbroker.testing.nodes import free_ports, wait_for

CHUNK = bytes(1 << 20)


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets("127.0.0.1", free_ports(), frame_max=1 << 21, clients_max=10)
    yield made
    made.close(0)


class Reader:
    """A client that takes a reply only when it is told to."""

    def __init__(self, sockets: Sockets, name: bytes) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RCVHWM, 1)
        self.socket.set(zmq.ROUTING_ID, name)
        self.socket.connect(sockets.router.get(zmq.LAST_ENDPOINT).decode().rstrip("\0"))
        self.socket.send(b"x")
        wait_for(lambda: list(sockets.requests(1, 0)), 10)
        self._sockets, self._to = sockets, Conversation(name, False, 1)

    def is_sent(self, chunks: int) -> None:
        for _ in range(chunks):
            head = FetchReply(id=1, topic_id="t", partition=0, epoch=0, base=0, next=1)
            self._sockets.reply(self._to, head, CHUNK)

    def take(self) -> None:
        assert self.socket.poll(10_000)
        assert self.socket.recv_multipart()[-1] == CHUNK


def test_a_chunk_counts_until_its_client_has_taken_it(sockets: Sockets) -> None:
    reader, other = Reader(sockets, b"reader"), Reader(sockets, b"other")
    reader.is_sent(40)
    assert sockets.unread(b"reader") > 0
    assert sockets.unread(None) >= sockets.unread(b"reader")
    assert sockets.unread(b"other") == 0
    for _ in range(40):
        reader.take()
    wait_for(lambda: sockets.unread(b"reader") == 0, 10)
    reader.socket.close()
    other.socket.close()


@pytest.mark.parametrize("takes", [0, 3])
def test_a_client_that_is_gone_does_not_count_for_ever(sockets: Sockets, takes: int) -> None:
    """Nobody asks how much it has yet to take, since it asks for nothing more."""
    for name in (b"a", b"b", b"c"):
        reader = Reader(sockets, name)
        reader.is_sent(3)
        for _ in range(takes):
            reader.take()
        reader.socket.close()

    def counts() -> int:
        list(sockets.requests(1, 0))  # libzmq drops what waits for it when the socket is looked at
        return sockets.unread(None)

    wait_for(lambda: counts() == 0, 20)
    assert not sockets._unread, "nor is it remembered"
