"""What a node must bear from clients that mean ill or do not know better, while it serves the others."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq
import zmtp
from rawclient import RawClient, batch

from zbroker.protocol import frames as wire
from zbroker.protocol.batch import iter_batches
from zbroker.protocol.messages import (
    ErrorReply,
    Fetch,
    FetchReply,
    Metadata,
    Produce,
    ProduceReply,
    Status,
)
from zbroker.testing.nodes import NodeProcess, running_node, wait_for

MIB = 1 << 20


def resident(pid: int) -> int:
    """A process's resident memory in bytes."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_a_flood_of_requests_is_refused_beyond_what_is_in_flight_and_others_are_served(
    node: NodeProcess,
) -> None:
    with RawClient(node.servers, sndhwm=0, rcvhwm=0) as flood, RawClient(node.servers) as other:
        flood.create_topic("t")
        waiting = Fetch(topic="t", wait=20_000)
        for _ in range(1000):
            flood.send(waiting)
        refused = []
        # In portions: of more replies than may wait for one client some are dropped.
        for _ in range(10):
            for _ in range(200):
                flood.send(waiting)
            refused += [flood.receive()[0] for _ in range(200)]
        assert {type(reply) for reply in refused} == {ErrorReply}
        assert {(reply.code, reply.hint) for reply in refused} == {("overloaded", "retry")}
        # Another client is served meanwhile, and the record that it sends answers those that were in flight.
        assert isinstance(other.produce("t", b"v"), ProduceReply)
        answered = [flood.receive()[0] for _ in range(1000)]
        assert {type(reply) for reply in answered} == {FetchReply}


FLOODING = """
import sys, zmq
from zbroker.protocol import frames
from zbroker.protocol.messages import Status
socket = zmq.Context().socket(zmq.DEALER)
for option, value in (zmq.SNDHWM, 0), (zmq.RCVHWM, 1), (zmq.HEARTBEAT_IVL, 1), (zmq.HEARTBEAT_TIMEOUT, 600_000):
    socket.set(option, value)
socket.connect("tcp://" + sys.argv[1])
message = frames.encode(Status(id=1))
print("goes", flush=True)
while True:
    socket.send(message)
"""


@pytest.mark.slow
def test_floods_with_heartbeats_that_are_killed_do_not_take_the_node_with_them(
    node: NodeProcess,
) -> None:
    for _ in range(5):
        with contextlib.ExitStack() as stack:
            floods = [
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", FLOODING, node.servers], stdout=subprocess.PIPE
                    )
                )
                for _ in range(3)
            ]
            for flood in floods:
                stack.callback(flood.kill)
                assert flood.stdout is not None
                assert flood.stdout.readline() == b"goes\n"
            with RawClient(node.servers) as other:
                for _ in range(3):  # answered in turn with thousands of the floods'
                    assert other.ask(Status()).node == "node1"
        assert node.running
    with RawClient(node.servers) as after:
        assert after.ask(Status()).node == "node1"


@needs_proc
def test_a_thousand_silent_connections_are_dropped_and_their_descriptors_freed(
    node: NodeProcess,
) -> None:
    before = descriptors(node.pid)
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", node.port + offset)))
            for offset in (0, 1)
            for _ in range(500)
        ]
        wait_for(
            lambda: descriptors(node.pid) >= before + 900, what="the connections to be accepted"
        )
        with RawClient(node.servers) as client:
            assert client.ask(Status()).node == "node1"
        wait_for(
            lambda: descriptors(node.pid) <= before + 10, timeout=15, what="the handshake timeout"
        )
        assert silent[0].recv(1000) is not None


@needs_proc
def test_a_client_that_never_reads_its_replies_costs_bounded_memory(node: NodeProcess) -> None:
    with RawClient(node.servers) as writer:
        writer.create_topic("t", fsync="never")
        for _ in range(64):
            assert isinstance(writer.produce("t", os.urandom(MIB)), ProduceReply)
        before = resident(node.pid)
        with RawClient(node.servers, sndhwm=0, rcvhwm=1, rcvbuf=4096) as deaf:
            for number in range(900):
                deaf.send(Fetch(topic="t", offset=number % 60, max_bytes=4 * MIB))
            # Its requests are taken in turn with ours: once ours, sent later, is answered, so are many of its.
            for _ in range(20):
                assert isinstance(writer.produce("t", b"alive"), ProduceReply)
            assert resident(node.pid) - before < 160 * MIB


@needs_proc
def test_a_frozen_subscriber_neither_delays_the_others_nor_fills_the_memory(
    node: NodeProcess, tmp_path: Path
) -> None:
    script = tmp_path / "frozen.py"
    script.write_text(
        "import sys, zmq\n"
        "s = zmq.Context().socket(zmq.SUB); s.subscribe(b't/0/'); s.connect(sys.argv[1])\n"
        "s.recv_multipart(); print('first', flush=True)\n"
        "while True: s.recv_multipart()\n",
        encoding="utf-8",
    )
    address = f"tcp://127.0.0.1:{node.port + 1}"
    with subprocess.Popen([sys.executable, str(script), address], stdout=subprocess.PIPE) as frozen:
        with RawClient(node.servers) as client, zmq.Context() as context:
            client.create_topic("t", fsync="never")
            healthy = context.socket(zmq.SUB)
            healthy.set(zmq.LINGER, 0)
            healthy.subscribe(b"t/0/")
            healthy.connect(address)
            assert frozen.stdout is not None
            frozen.stdout.readline()  # it has seen a beacon: it is subscribed
            healthy.recv_multipart()
            frozen.send_signal(signal.SIGSTOP)
            before = resident(node.pid)
            body = batch(os.urandom(200 * 1024))
            for number in range(1500):
                reply = client.ask(Produce(topic="t"), body)
                assert reply.base_offset == number
                assert number in _offsets(healthy), "the healthy subscriber missed a batch"
            assert resident(node.pid) - before < 180 * MIB
            healthy.close()
        frozen.kill()


def _offsets(subscriber: zmq.Socket[bytes]) -> list[int]:
    """The offsets of the next pushed batch, beacons left out."""
    while subscriber.poll(5000):
        frames = subscriber.recv_multipart()
        if len(frames) == 3:
            return [header.base_offset for _, header in iter_batches(frames[2])]
    return []


def test_an_oversized_frame_is_refused_and_the_connection_lives(node: NodeProcess) -> None:
    with RawClient(node.servers) as client:
        reply = client.ask(Status(), bytes(9 * MIB))
        assert reply.code == "too_large"
        assert "limits: frame" in reply.message
        assert client.ask(Status()).node == "node1"


def test_a_frame_of_twice_the_limit_ends_that_connection_only(node: NodeProcess) -> None:
    with RawClient(node.servers) as client, RawClient(node.servers) as hostile:
        hostile.ask(Status())
        hostile.socket.send_multipart((wire.encode(Status(id=1)), bytes(17 * MIB)))
        assert client.ask(Status()).node == "node1"


@needs_proc
def test_a_message_that_never_ends_costs_bounded_memory(tmp_path: Path) -> None:
    with (
        running_node(tmp_path, limits={"memory": "64MiB"}) as node,
        RawClient(node.servers) as client,
    ):
        client.create_topic("t")
        endless = zmtp.connect(node.port)
        body = zmtp.frame(bytes(MIB), more=True)
        highest = 0

        def is_ended() -> bool:
            nonlocal highest
            try:
                endless.sendall(body)
            except OSError:
                return True
            highest = max(highest, resident(node.pid))
            return False

        with endless:
            wait_for(is_ended, timeout=30, what="the connection to be ended")
        assert highest < 1024 * MIB
        with RawClient(node.servers) as later:
            assert isinstance(later.produce("t", b"v"), ProduceReply)
        assert isinstance(client.produce("t", b"v"), ProduceReply)


def test_too_many_clients_are_told_so(tmp_path: Path) -> None:
    with running_node(tmp_path, limits={"clients": 10}) as node, contextlib.ExitStack() as stack:
        for _ in range(10):
            assert stack.enter_context(RawClient(node.servers)).ask(Status()).node == "node1"
        refused = stack.enter_context(RawClient(node.servers)).ask(Status())
        assert isinstance(refused, ErrorReply)
        assert refused.code == "overloaded"
        assert "limits: clients" in refused.message


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"", b""],
        [b"\xc1"],
        [b"\x81\xa2op\xa4nope"],
        [b"\x93\x01\x02\x03"],
        [b"x"] * 50,
        [b"", b"\x80", b"", b"", b"", b""],
        [wire.encode(Produce(topic="t"))],
        [wire.encode(Produce(topic="t")), b"not a batch"],
        [wire.encode(Produce(topic="t")), batch(b"v"), batch(b"v")],
        [wire.encode(Metadata()), b"a body"],
        [b"\x91" * 60_000],
    ],
    ids=lambda frames: repr(frames)[:40],
)
def test_hostile_frames_get_a_coded_error_and_the_connection_lives(
    node_for_module: NodeProcess, frames: list[bytes]
) -> None:
    with RawClient(node_for_module.servers) as client:
        client.socket.send_multipart(frames)
        head = wire.decode_reply(client.socket.recv_multipart()[-1])
        assert isinstance(head, ErrorReply)
        assert head.code in {
            "malformed",
            "unknown_operation",
            "unknown_topic",
            "invalid_batch",
            "too_large",
        }
        assert head.message
        assert client.ask(Status()).node == "node1"


def test_a_frozen_node_resumes(node: NodeProcess) -> None:
    with RawClient(node.servers) as client:
        client.create_topic("t")
        node.send_signal(signal.SIGSTOP)
        correlation = client.send(Produce(topic="t"), batch(b"v"))
        assert not client.socket.poll(300)
        node.send_signal(signal.SIGCONT)
        reply, _ = client.receive()
        assert (reply.id, reply.base_offset) == (correlation, 0)


def test_a_stop_answers_what_is_in_hand_and_removes_the_lock(node: NodeProcess) -> None:
    with RawClient(node.servers, sndhwm=0) as client:
        client.create_topic("t")
        client.send(Fetch(topic="t", wait=30_000))
        sent = {client.send(Produce(topic="t"), batch(b"v" * 1000)) for _ in range(200)}
        client.receive()
        started = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - started < 10
        answered = {}
        with contextlib.suppress(TimeoutError):
            while len(answered) < 200:
                reply, _ = client.receive(timeout=0.2)
                answered[reply.id] = reply
        kept = [reply for reply in answered.values() if isinstance(reply, ProduceReply)]
    assert set(answered) <= sent | {2}
    assert not (node.data / "lock").exists()
    node.start()
    with RawClient(node.servers) as client:
        stats = client.ask(Fetch(topic="t", max_bytes=1))
        assert stats.high_watermark >= max((reply.base_offset for reply in kept), default=-1) + 1
