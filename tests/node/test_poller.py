"""Waiting for sockets by their descriptors: what a socket knows of already, its descriptor does not tell."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest
import zmq

from zbroker.broker.ports import Conversation
from zbroker.node.poller import Poller
from zbroker.node.sockets import Sockets
from zbroker.protocol.messages import ErrorReply
from zbroker.testing.nodes import free_ports


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets("127.0.0.1", free_ports(), frame_max=1 << 20, clients_max=10)
    yield made
    made.close(0)


def dealer(sockets: Sockets, name: bytes) -> zmq.Socket[bytes]:
    """A client, in a context of its own as clients are."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.ROUTING_ID, name)
    socket.connect(sockets.router.get(zmq.LAST_ENDPOINT).decode().rstrip("\0"))
    return socket


def test_what_was_not_read_to_the_end_is_looked_at_again(sockets: Sockets) -> None:
    poller = Poller()
    poller.register(sockets.router)
    with dealer(sockets, b"a") as client:
        for _ in range(3):
            client.send(b"x")
        taken: list[bytes] = []
        until = time.monotonic() + 10
        while len(taken) < 3:
            assert time.monotonic() < until
            unsettled = {*sockets.unsettled}
            sockets.unsettled.clear()
            if sockets.router in poller.poll(1000, unsettled):
                taken += [client for client, _ in sockets.requests(1, 0)]
    poller.close()


def test_a_request_that_came_while_a_reply_was_sent_is_seen(sockets: Sockets) -> None:
    poller = Poller()
    poller.register(sockets.router)
    with dealer(sockets, b"a") as client:
        client.send(b"x")
        taken: list[bytes] = []
        while not taken:  # its descriptor also tells of a connection that is being opened
            assert poller.poll(10_000, sockets.unsettled) == {sockets.router}
            sockets.unsettled.clear()
            taken = [name for name, _ in sockets.requests(64, 0)]
        assert taken == [b"a"]
        assert poller.poll(0, sockets.unsettled) == set()
        client.send(b"y")
        descriptor = int(sockets.router.get(zmq.FD))
        assert select.select([descriptor], [], [], 10)[0]
        deadline = time.monotonic() + 10
        while select.select([descriptor], [], [], 0)[0]:
            # A send makes the socket take note of what came, about once a millisecond.
            assert time.monotonic() < deadline
            sockets.reply(Conversation(b"a", False, 1), ErrorReply(id=1, code="x", message=""))
        assert poller.poll(0, ()) == set(), "its descriptor says nothing of it"
        assert poller.poll(10_000, sockets.unsettled) == {sockets.router}
    poller.close()
