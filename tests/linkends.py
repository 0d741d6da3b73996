"""Nodes' links without a broker, for tests: in this process, turned by hand, or (run as a script) in one of their own.

As a script: `linkends.py PORT OTHER_PORT` links node `b` at PORT to node `a`, and answers every message on its lane.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import zmq

from zbroker.node.links import Links
from zbroker.units import Address

TICK_MS = 100
FRAME_MAX = 1 << 20
LANES = ("control", "data")


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class End:
    """One node's links, with what they told and received."""

    def __init__(
        self,
        port: int,
        peers: Mapping[str, str | int],
        *,
        listen: str = "127.0.0.1",
        most: int = 64,
        answers: bool = False,
    ) -> None:
        """
        Args:
            peers: a host and a base port, or a base port on loopback.
            answers: all that comes is sent to the first peer, and `received` is printed before the first.
        """
        self.context = zmq.Context()
        addresses = {
            name: Address("127.0.0.1", peer)
            if isinstance(peer, int)
            else Address(peer.rpartition(":")[0].strip("[]"), int(peer.rpartition(":")[2]))
            for name, peer in peers.items()
        }
        try:
            self.links = Links(self.context, listen, port, addresses, frame_max=FRAME_MAX)
        except BaseException:
            self.context.destroy(linger=0)
            raise
        self.events: list[tuple[str, str]] = []
        self.received: dict[str, list[list[Any]]] = {lane: [] for lane in LANES}
        self._most = most
        self._answer_to = next(iter(peers)) if answers else None
        self._answered = False
        self._next_tick = 0

    def __enter__(self) -> End:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if not self.context.closed:
            self.links.close(0)
            self.context.destroy(linger=0)

    def wait_ms(self, now: int) -> int:
        """How long nothing is due."""
        due = self._next_tick if self.links.due is None else min(self.links.due, self._next_tick)
        return max(0, due - now)

    def turn(self) -> None:
        """What a reactor does in one turn."""
        now = now_ms()
        if self.wait_ms(now) == 0:
            if now >= self._next_tick:
                self._next_tick = now + TICK_MS
            self.links.on_tick(now)
        self.events += self.links.events(now)
        for lane in LANES:
            for frames in self.links.received(lane, self._most):
                if self._answer_to is None:
                    self.received[lane].append(frames)
                else:
                    if not self._answered:
                        print("received", flush=True)
                    self._answered = True
                    self.links.send(self._answer_to, lane, frames)


def run(*ends: End, until: Callable[[], Any], timeout: float = 10.0, what: str = "") -> float:
    """Turns the ends until a condition holds; the seconds that it took.

    Raises:
        TimeoutError: it did not hold in time.
    """
    started = time.monotonic()
    while not until():
        if time.monotonic() - started > timeout:
            told = [end.events for end in ends]
            raise TimeoutError(f"waited {timeout} s for {what or until}; told: {told}")
        poller = zmq.Poller()
        for end in ends:
            for socket in end.links.sockets():
                poller.register(socket, zmq.POLLIN)
        now = now_ms()
        poller.poll(min(end.wait_ms(now) for end in ends))
        for end in ends:
            end.turn()
    return time.monotonic() - started


def start_peer(port: int, other_port: int) -> subprocess.Popen[bytes]:
    """Node `b` in a process of its own, listening when this returns."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(port), str(other_port)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    if process.stdout.readline() != b"listening\n":
        process.kill()
        raise RuntimeError(f"the peer ended with {process.wait()}")
    return process


def main(port: int, other_port: int) -> None:
    end = End(port, {"a": other_port}, answers=True)
    print("listening", flush=True)
    run(end, until=lambda: False, timeout=120)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
