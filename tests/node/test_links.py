"""The links between nodes over real sockets on loopback, in this process and between processes."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
import zmtp
from linkends import FRAME_MAX, LANES, End, run, start_peer

from zbroker.errors import AddressInUse
from zbroker.node import links, outgoing
from zbroker.node.links import FRAMES_MAX
from zbroker.testing.nodes import free_ports, wait_for

KIB, MIB = 1 << 10, 1 << 20

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 and /proc are Linux's")


@pytest.fixture
def ports() -> tuple[int, int]:
    first = free_ports(8)
    return first, first + 4


@pytest.fixture
def pair(ports: tuple[int, int]) -> Iterator[tuple[End, End]]:
    """Nodes `a` and `b`, linked."""
    with End(ports[0], {"b": ports[1]}) as a, End(ports[1], {"a": ports[0]}) as b:
        run(a, b, until=lambda: a.events and b.events)
        assert (a.events, b.events) == ([("b", "up")], [("a", "up")])
        _open(a, "b", b)
        _open(b, "a", a)
        yield a, b


def _open(end: End, to: str, other: End) -> None:
    """Waits until both lanes carry messages, and takes those away."""

    def is_open() -> bool:
        for lane in LANES:
            if not other.received[lane]:
                end.links.send(to, lane, [b"?"])
        return all(other.received[lane] for lane in LANES)

    run(end, other, until=is_open)
    _drain(end, other)
    end.links.counters.clear()


def _drain(*ends: End) -> None:
    """Waits until nothing more arrives."""
    quiet_since = time.monotonic()

    def is_quiet() -> bool:
        nonlocal quiet_since
        if any(end.received[lane] for end in ends for lane in LANES):
            quiet_since = time.monotonic()
            for end in ends:
                for lane in LANES:
                    end.received[lane].clear()
        return time.monotonic() - quiet_since > 0.05

    run(*ends, until=is_quiet)


@contextlib.contextmanager
def peer_process(port: int, other_port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = start_peer(port, other_port)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextlib.contextmanager
def silent(host: str, port: int) -> Iterator[None]:
    """A port that answers no connect at all: its backlog is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind((host, port))
        server.listen(0)

        def is_full() -> bool:
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((host, port))
            return not select.select([], [client], [], 0.05)[1]

        wait_for(is_full)
        yield


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# Messages ---


def test_both_lanes_keep_order_and_bytes(pair: tuple[End, End]) -> None:
    a, b = pair
    chance = random.Random(7)
    sizes = [chance.choice([0, 10, 1500, 100 * KIB, 200 * KIB, FRAME_MAX]) for _ in range(150)]
    sent: dict[str, list[list[bytes]]] = {lane: [] for lane in LANES}
    for number, size in enumerate(sizes):
        for lane in LANES:
            message = [lane.encode(), b"%d" % number, chance.randbytes(size), chance.randbytes(3)]
            sent[lane].append(message)
            a.links.send("b", lane, message)
    run(a, b, until=lambda: all(len(b.received[lane]) >= len(sizes) for lane in LANES))
    got = {lane: [[bytes(frame) for frame in m] for m in b.received[lane]] for lane in LANES}
    assert got == sent
    assert all(
        isinstance(frame, bytes) for m in b.received["data"] for frame in m if len(frame) < KIB
    )
    assert not a.links.counters
    assert not b.links.counters


def test_what_was_received_is_sent_on_as_it_is_and_in_part(pair: tuple[End, End]) -> None:
    a, b = pair
    body = random.Random(7).randbytes(500 * KIB)
    a.links.send("b", "data", [b"", body])
    run(a, b, until=lambda: b.received["data"])
    view = b.received["data"][0][1]
    assert isinstance(view, memoryview)
    b.links.send("a", "data", [b"whole", view])
    b.links.send("a", "data", [b"part", view[1000 : 300 * KIB]])
    run(a, b, until=lambda: len(a.received["data"]) == 2)
    whole, part = (bytes(message[1]) for message in a.received["data"])
    assert whole == body
    assert part == body[1000 : 300 * KIB]


def test_at_most_so_many_messages_are_taken_at_once(pair: tuple[End, End]) -> None:
    a, b = pair
    for number in range(10):
        a.links.send("b", "control", [b"%d" % number])
    taken: list[Any] = []

    def is_there() -> bool:
        batch = list(b.links.received("control", 3))
        assert len(batch) <= 3
        taken.extend(batch)
        return len(taken) == 10

    wait_for(is_there)
    assert [message[0] for message in taken] == [b"%d" % number for number in range(10)]


def test_a_data_lane_that_is_full_delays_no_control_message(ports: tuple[int, int]) -> None:
    with (
        End(ports[0], {"b": ports[1]}, most=1) as a,
        End(ports[1], {"a": ports[0]}, most=1) as b,
    ):
        _open(a, "b", b)
        body = bytes(FRAME_MAX)
        count = 400
        for _ in range(count):
            a.links.send("b", "data", [b"", body])
        a.links.send("b", "control", [b"heartbeat"])
        run(a, b, until=lambda: b.received["control"])
        assert len(b.received["data"]) < count / 2
        run(a, b, until=lambda: len(b.received["data"]) == count)


def test_a_frozen_peer_fills_a_lane_and_what_is_more_is_dropped_at_once(
    ports: tuple[int, int],
) -> None:
    with peer_process(ports[1], ports[0]) as peer, End(ports[0], {"b": ports[1]}) as a:
        run(a, until=lambda: a.received["data"] or a.links.send("b", "data", [b"?"]))
        _drain(a)
        peer.send_signal(signal.SIGSTOP)
        before = a.links.counters["data_messages_dropped"]
        # A send that waits would wait for ever.
        body = bytes(64 * KIB)
        for _ in range(outgoing.QUEUE_MAX + 1000):
            a.links.send("b", "data", [b"", body])
        assert a.links.counters["data_messages_dropped"] > before


def test_a_message_to_nobody_is_dropped(pair: tuple[End, End]) -> None:
    a, _ = pair
    a.links.send("c", "control", [b"x"])
    assert a.links.counters == {"control_messages_dropped": 1}


# What peers do ---


def test_a_killed_process_is_gone_at_once_and_up_again_when_it_is_back(
    ports: tuple[int, int],
) -> None:
    took = []
    with End(ports[0], {"b": ports[1]}) as a:
        for _ in range(5):
            with peer_process(ports[1], ports[0]) as peer:
                run(a, until=lambda: a.events and a.events[-1] == ("b", "up"))
                # What is sent at `up` arrives.
                a.links.send("b", "control", [b"hello"])
                assert peer.stdout is not None
                assert peer.stdout.readline() == b"received\n"
                a.events.clear()
                peer.kill()
                took.append(run(a, until=lambda: a.events))
                assert a.events == [("b", "gone")]
        before = len(a.events)
        repeated = run(a, until=lambda: len(a.events) >= before + 5)
        assert set(a.events) == {("b", "gone")}
        assert repeated > 0.3, "gone is repeated at most every 100 ms"
    assert sorted(took)[2] < 0.1


def test_what_is_sent_to_a_peer_that_is_gone_never_reaches_its_next_process(
    ports: tuple[int, int],
) -> None:
    with End(ports[0], {"b": ports[1]}) as a:
        with End(ports[1], {"a": ports[0]}) as b:
            _open(a, "b", b)
        a.events.clear()
        run(a, until=lambda: a.events)
        assert a.events == [("b", "gone")]
        run(a, until=lambda: a.links.counters["data_messages_dropped"]
            or a.links.send("b", "data", [b"lost"]))  # fmt: skip
        a.links.counters.clear()
        for lane in LANES:
            for _ in range(20):
                a.links.send("b", lane, [b"lost"])
        assert a.links.counters == {f"{lane}_messages_dropped": 20 for lane in LANES}
        a.events.clear()
        with End(ports[1], {"a": ports[0]}) as b:
            run(a, b, until=lambda: ("b", "up") in a.events)
            a.links.send("b", "control", [b"first"])
            run(a, b, until=lambda: b.received["control"])
            run(a, b, until=lambda: b.received["data"] or a.links.send("b", "data", [b"later"]))
            assert b.received["control"] == [[b"first"]]
            assert set(map(bytes, b.received["data"][0])) == {b"later"}


def test_a_frozen_process_is_not_gone_until_it_is_killed(
    ports: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "HEARTBEAT_MS", 20)
    monkeypatch.setattr(outgoing, "HEARTBEAT_TIMEOUT_MS", 60)
    monkeypatch.setattr(outgoing, "HANDSHAKE_MS", 200)
    with peer_process(ports[1], ports[0]) as peer, End(ports[0], {"b": ports[1]}) as a:
        run(a, until=lambda: a.events)
        peer.send_signal(signal.SIGSTOP)

        def is_dropped() -> bool:
            a.links.send("b", "control", [b"?"])
            return a.links.counters["control_messages_dropped"] > 0

        run(a, until=is_dropped, what="the link to be lost")
        lost_at = time.monotonic()
        # Longer than probes come quickly, and for some attempts of libzmq's.
        run(a, until=lambda: time.monotonic() - lost_at > 1.5)
        assert a.events == [("b", "up")]
        peer.kill()
        run(a, until=lambda: len(a.events) > 1)
        assert a.events[1] == ("b", "gone")


def test_a_frozen_process_that_goes_on_is_linked_again(
    ports: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "HEARTBEAT_MS", 20)
    monkeypatch.setattr(outgoing, "HEARTBEAT_TIMEOUT_MS", 60)
    with peer_process(ports[1], ports[0]) as peer, End(ports[0], {"b": ports[1]}) as a:
        run(a, until=lambda: a.events)
        peer.send_signal(signal.SIGSTOP)
        dropped = "control_messages_dropped"
        run(a, until=lambda: a.links.counters[dropped] or a.links.send("b", "control", [b"?"]))
        _drain(a)
        peer.send_signal(signal.SIGCONT)
        run(a, until=lambda: a.received["control"] or a.links.send("b", "control", [b"again"]))
        assert a.events == [("b", "up")]


@on_linux
def test_a_peer_that_never_was_there_is_gone_and_one_that_cannot_be_reached_is_not(
    ports: tuple[int, int],
) -> None:
    with (
        silent("127.0.0.4", ports[1] + 2),
        End(ports[0], {"b": ports[1], "far": f"127.0.0.4:{ports[1]}"}) as a,
    ):
        run(a, until=lambda: len(a.events) == 15)
        assert set(a.events) == {("b", "gone")}


def test_probes_do_not_disturb_the_port(pair: tuple[End, End], ports: tuple[int, int]) -> None:
    a, b = pair
    for number in range(300):
        for lane, offset in zip(LANES, (2, 3), strict=True):
            connection = socket.create_connection(("127.0.0.1", ports[1] + offset))
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0" + bytes(4))
            connection.close()
            a.links.send("b", lane, [b"%d" % number])
    run(a, b, until=lambda: all(len(b.received[lane]) == 300 for lane in LANES))
    for lane in LANES:
        assert [int(m[0]) for m in b.received[lane]] == list(range(300))
    assert a.events == [("b", "up")]
    assert b.events == [("a", "up")]


@on_linux
def test_links_that_are_idle_wake_nobody_and_leave_no_descriptor(
    pair: tuple[End, End], ports: tuple[int, int]
) -> None:
    a, b = pair
    before = descriptors()
    for _ in range(100):
        socket.create_connection(("127.0.0.1", ports[1] + 2)).close()
    run(a, b, until=lambda: descriptors() <= before, what="the probes' connections to be closed")
    run(a, b, until=lambda: a.links.due is None and b.links.due is None)
    poller = zmq.Poller()
    for end in pair:
        for item in end.links.sockets():
            poller.register(item, zmq.POLLIN)
    assert poller.poll(1500) == []


# Names ---


Hosts = dict[str, list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Names and their addresses; one that stands for no list of them hangs until the test ends."""
    hosts: Hosts = {}
    ended = threading.Event()
    real: Callable[..., Any] = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(host, str) or not host.endswith(".test"):
            return real(host, port, *args, **options)
        if host == "dead.test":
            ended.wait(60)
        if host not in hosts:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return [real(address, port, *args, **options)[0] for address in hosts[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(outgoing, "RESOLVE_MS", 50)
    yield hosts
    ended.set()
    wait_for(lambda: not any(t.name.startswith("zbroker-name") for t in threading.enumerate()))


def test_a_name_that_is_never_answered_stalls_nobody(ports: tuple[int, int], names: Hosts) -> None:
    names["b.test"] = ["127.0.0.1"]
    peers = {"dead": "dead.test:5550", "unknown": "unknown.test:5550", "b": f"b.test:{ports[1]}"}
    with End(ports[1], {"a": ports[0]}) as b:
        a = End(ports[0], peers)
        with a:
            _open(a, "b", b)
            assert a.events == [("b", "up")]
            started = time.monotonic()
            for name in ("dead", "unknown"):
                a.links.send(name, "control", [b"x"])
            assert a.links.counters == {"control_messages_dropped": 2}
        assert time.monotonic() - started < 2


@on_linux
def test_a_peer_under_another_address_is_found(ports: tuple[int, int], names: Hosts) -> None:
    names["b.test"] = ["127.0.0.1"]
    with End(ports[0], {"b": f"b.test:{ports[1]}"}) as a:
        run(a, until=lambda: a.events)
        assert a.events == [("b", "gone")]
        names["b.test"] = ["127.0.0.2"]
        with End(ports[1], {}, listen="127.0.0.2") as b:
            run(a, b, until=lambda: ("b", "up") in a.events)
            _open(a, "b", b)
            run(a, b, until=lambda: a.links.due is None)
            assert not select.select(a.links.sockets()[2:], [], [], 0.3)[0], "nothing is left to do"


@on_linux
def test_of_a_name_s_addresses_the_one_that_is_listened_on_is_used_and_counts(
    ports: tuple[int, int], names: Hosts
) -> None:
    names["b.test"] = ["127.0.0.3", "127.0.0.2", "127.0.0.4"]
    with silent("127.0.0.4", ports[1] + 2), End(ports[0], {"b": f"b.test:{ports[1]}"}) as a:
        with End(ports[1], {}, listen="127.0.0.2") as b:
            _open(a, "b", b)
            assert a.events == [("b", "up")], "a refusal by an address of many shows nothing"
        run(a, until=lambda: len(a.events) > 1)
        assert a.events[1] == ("b", "gone"), "the address that it was linked at refuses"


@on_linux
def test_a_name_is_gone_only_where_all_its_addresses_refuse(
    ports: tuple[int, int], names: Hosts
) -> None:
    names["b.test"] = ["127.0.0.2", "127.0.0.3"]
    names["half.test"] = ["127.0.0.2", "127.0.0.4"]
    peers = {"half": f"half.test:{ports[1]}", "b": f"b.test:{ports[1]}"}
    with silent("127.0.0.4", ports[1] + 2), End(ports[0], peers) as a:
        run(a, until=lambda: len(a.events) == 4)
        assert set(a.events) == {("b", "gone")}


def test_a_peer_is_reached_where_it_says_that_it_is(ports: tuple[int, int]) -> None:
    other = free_ports()
    with End(ports[0], {"b": ports[1]}) as a, End(other, {"a": ports[0]}) as b:
        run(a, b, until=lambda: ("b", "gone") in a.events)
        a.links.connect("b", "127.0.0.1", other)
        a.links.connect("c", "127.0.0.1", other)
        run(a, b, until=lambda: {("b", "up"), ("c", "up")} <= set(a.events))
        a.links.send("b", "control", [b"to b"])
        a.links.send("c", "control", [b"to c"])
        run(a, b, until=lambda: len(b.received["control"]) == 2)


@on_linux
def test_an_address_that_cannot_be_ends_nothing(ports: tuple[int, int]) -> None:
    with End(ports[0], {"b": ports[1]}) as a, End(ports[1], {"a": ports[0]}) as b:
        a.links.connect("port", "127.0.0.1", 70_000)
        a.links.connect("zone", "fe80::1%a b", ports[1])
        a.links.connect("zero", "127.0.0.1", 0)
        run(a, until=lambda: ("zero", "gone") in a.events)
        for name in ("port", "zone", "zero"):
            a.links.send(name, "control", [b"x"])
        _open(a, "b", b)


def test_there_are_only_so_many_peers(
    ports: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "PEERS_MAX", 2)
    with End(ports[0], {"b": ports[1]}) as a:
        for name in ("c", "d", "e", "b"):
            a.links.connect(name, "127.0.0.1", ports[1])
        assert a.links.counters == {"peers_refused": 2}
        run(a, until=lambda: len(a.events) == 6)
        assert {name for name, _ in a.events} == {"b", "c"}


def test_links_over_ipv6(ports: tuple[int, int]) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with (
        End(ports[0], {"b": f"[::1]:{ports[1]}"}, listen="::1") as a,
        End(ports[1], {"a": f"[::1]:{ports[0]}"}, listen="::") as b,
    ):
        _open(a, "b", b)
        _open(b, "a", a)
        a.events.clear()
        b.close()
        run(a, until=lambda: a.events)
        assert a.events == [("b", "gone")]


# Bounds, and the end ---


def test_a_sender_that_dies_while_much_of_its_is_unread_does_not_take_the_receiver_along(
    ports: tuple[int, int],
) -> None:
    receiver = (
        f"import linkends, sys\nend = linkends.End({ports[1]}, {{}})\n"
        "print('listening', flush=True)\nsys.stdin.readline()\n"
        "linkends.run(end, until=lambda: len(end.received['data']) > 1500)\nprint('read')\n"
    )
    sender = (
        "import itertools, zmq\nsocket = zmq.Context().socket(zmq.PUSH)\n"
        "socket.set(zmq.HEARTBEAT_IVL, 2)\nsocket.set(zmq.HEARTBEAT_TIMEOUT, 60_000)\n"
        f"socket.connect('tcp://127.0.0.1:{ports[1] + 3}')\n"
        "for number in itertools.count():\n"
        "    socket.send(b'x' * 50)\n    number > 1500 and socket.poll(1, zmq.POLLIN)\n"
        "    if number == 2500: print('sent', flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c"]
    with subprocess.Popen([*command, receiver], stdin=pipe, stdout=pipe, env=environment) as there:
        assert there.stdin is not None
        assert there.stdout is not None
        assert there.stdout.readline() == b"listening\n"
        with subprocess.Popen([*command, sender], stdout=pipe, env=environment) as here:
            assert here.stdout is not None
            assert here.stdout.readline() == b"sent\n"
            here.kill()
        there.stdin.write(b"\n")
        there.stdin.flush()
        assert there.stdout.readline() == b"read\n"
    assert there.returncode == 0


def test_a_message_of_too_many_frames_is_dropped_whole(pair: tuple[End, End]) -> None:
    a, b = pair
    a.links.send("b", "data", [b"x"] * FRAMES_MAX)
    a.links.send("b", "data", [b"y"] * (FRAMES_MAX + 1))
    a.links.send("b", "data", [b"z"] * 10_000)
    a.links.send("b", "data", [b"after"])
    run(a, b, until=lambda: len(b.received["data"]) == 2)
    assert b.received["data"] == [[b"x"] * FRAMES_MAX, [b"after"]]
    assert b.links.counters == {"messages_of_too_many_frames": 2}


def test_an_oversized_frame_ends_its_connection_only(
    pair: tuple[End, End], ports: tuple[int, int]
) -> None:
    a, b = pair
    with zmtp.connect(ports[1] + 3, b"PUSH") as hostile:
        hostile.sendall(zmtp.frame(bytes(100), more=False))
        run(a, b, until=lambda: b.received["data"])
        with contextlib.suppress(OSError):
            hostile.sendall(zmtp.frame(bytes(2 * FRAME_MAX + 1), more=False))
        _wait_for_end(hostile, a, b)
    a.links.send("b", "data", [bytes(2 * FRAME_MAX)])
    run(a, b, until=lambda: len(b.received["data"]) == 2)
    assert len(b.received["data"][1][0]) == 2 * FRAME_MAX


def test_a_message_that_never_ends_is_ended_by_reopening_and_nobody_is_told_gone(
    pair: tuple[End, End], ports: tuple[int, int]
) -> None:
    a, b = pair
    with zmtp.connect(ports[1] + 2, b"PUSH") as endless:
        for _ in range(5000):
            endless.sendall(zmtp.frame(b"x" * 100, more=True))
        run(a, b, until=lambda: True)
        assert not b.received["control"]
        b.links.reopen()
        _wait_for_end(endless, a, b)
    run(a, b, until=lambda: b.received["control"] or a.links.send("b", "control", [b"back"]))
    assert bytes(b.received["control"][0][0]) == b"back"
    assert ("b", "gone") not in a.events


def _wait_for_end(connection: socket.socket, *ends: End) -> None:
    connection.setblocking(False)

    def is_ended() -> bool:
        try:
            return connection.recv(4096) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    run(*ends, until=is_ended, what="the connection to be ended")


@pytest.mark.parametrize("offset", [2, 3])
def test_a_port_that_is_taken_is_an_error_that_names_it(
    ports: tuple[int, int], offset: int
) -> None:
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", ports[0] + offset)), pytest.raises(AddressInUse) as e:
        End(ports[0], {"b": ports[1]})
    assert f"127.0.0.1:{ports[0] + offset} cannot be bound" in str(e.value)
    assert threading.active_count() == threads
    End(ports[0], {"b": ports[1]}).close()


@on_linux
def test_close_leaves_no_thread_and_no_descriptor(ports: tuple[int, int]) -> None:
    peers = {f"n{number}": ports[1] + number for number in range(9)}
    with End(ports[0], peers) as a:
        run(a, until=lambda: len(a.events) > 20)
    threads, open_before = threading.active_count(), descriptors()
    for _ in range(3):
        with End(ports[0], {**peers, "named": "localhost:1"}) as a:
            run(a, until=lambda a=a: len({name for name, _ in a.events}) == 10)
    assert threading.active_count() == threads
    assert descriptors() == open_before
