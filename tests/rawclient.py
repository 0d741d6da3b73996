"""A bare client for tests: one DEALER, requests and replies as structs, no retries, no decisions."""

from __future__ import annotations

import itertools
import time
from typing import Any

import zmq

from zbroker.protocol import frames as wire
from zbroker.protocol.batch import encode_batch
from zbroker.protocol.messages import CreateTopic, ErrorReply, Message, Produce


class RawClient:
    """Speaks to one node."""

    def __init__(self, servers: str, **options: int) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        for name, value in options.items():
            self.socket.set(getattr(zmq, name.upper()), value)
        self.socket.connect(f"tcp://{servers}")
        self.servers = servers
        self._ids = itertools.count(1)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=0)

    def send(self, request: Message, *bodies: bytes | bytearray) -> int:
        """Sends a request and returns its correlation number."""
        request.id = next(self._ids)
        self.socket.send_multipart((wire.encode(request), *bodies))
        return request.id

    def receive(self, timeout: float = 10.0) -> tuple[Any, list[bytes]]:
        """The next reply, whosesoever it is, and its bodies."""
        if not self.socket.poll(int(timeout * 1000)):
            raise TimeoutError(f"no reply within {timeout} s")
        head, *bodies = self.socket.recv_multipart()
        return wire.decode_reply(head), bodies

    def ask(self, request: Message, *bodies: bytes | bytearray, timeout: float = 10.0) -> Any:
        """A request's reply; an error is returned as `ErrorReply`."""
        return self.ask_whole(request, *bodies, timeout=timeout)[0]

    def ask_whole(
        self, request: Message, *bodies: bytes | bytearray, timeout: float = 10.0
    ) -> tuple[Any, list[bytes]]:
        """A request's reply and what follows it."""
        correlation = self.send(request, *bodies)
        deadline = time.monotonic() + timeout
        while True:
            reply, rest = self.receive(max(0.0, deadline - time.monotonic()))
            if reply.id == correlation:
                return reply, rest

    def create_topic(self, name: str, **settings: int | str) -> str:
        """Makes a topic and returns its id."""
        reply = self.ask(CreateTopic(name=name, settings=settings, request_id=name))
        assert not isinstance(reply, ErrorReply), reply
        topic_id: str = reply.topic.topic_id
        return topic_id

    def produce(self, topic: str, *values: bytes | None, partition: int = 0, **fields: Any) -> Any:
        """Sends one batch of values and returns the reply."""
        return self.ask(Produce(topic=topic, partition=partition, **fields), batch(*values))


def batch(*values: bytes | None, timestamp: int = 1_700_000_000_000, **fields: Any) -> bytearray:
    """A batch of values without keys, all of one timestamp."""
    return encode_batch(
        [(0, None, value, ()) for value in values],
        base_timestamp=timestamp,
        max_timestamp=timestamp,
        **fields,
    )
