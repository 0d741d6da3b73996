"""A LAN on one machine, for tests: machines are network namespaces, each on a cable to one switch.

Owns the namespaces, the cables and what becomes of them: pulled, cut between two machines in one direction or both,
slow and lossy. Linux alone, and for root alone: `why_not` says what is missing. Where the kernel has no `netem`, a
thread of this process carries the frames of a slow cable. Nothing is left behind: what a killed run left, the next one
clears away. Never touches the machine's own network.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import itertools
import os
import random
import re
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zbroker.testing.nodes import ClusterProcesses, NodeProcess

NETWORK = "10.77.0"
PORT = 5550
NOBODY = "02:00:00:00:00:fe"
"""A link address that no machine has: frames to it go nowhere, and nobody is told."""
CLONE_NEWNET = 0x40000000
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, ETH_P_ALL = 263, 15, 23, 3
FRAME_MAX = 10 + 14 + 65_536

_numbers = itertools.count()


def why_not() -> str | None:
    """Why this machine cannot have such a LAN; None where it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if _ip_command() is None:
        return "network namespaces need the command ip (iproute2)"
    try:
        with Lan(["probe"]) as lan, lan.inside("probe"):
            return None
    except (OSError, RuntimeError) as error:
        return f"network namespaces are not permitted here: {error}"


def _ip_command() -> str | None:
    return shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Lan:
    """Machines by name, and the switch between them. A context manager.

    Attributes:
        addresses: each machine's address.
    """

    def __init__(self, machines: Sequence[str]) -> None:
        self.addresses = {name: f"{NETWORK}.{number + 1}" for number, name in enumerate(machines)}
        self._prefix = f"zb{os.getpid()}n{next(_numbers)}-"
        self._slow: list[_SlowCable] = []
        self._cut: set[tuple[str, str]] = set()

    def __enter__(self) -> Lan:
        _clear_leftovers()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _build(self) -> None:
        for name in ("switch", *self.addresses):
            _ip("netns", "add", self._prefix + name)
        self._at("switch", "link", "add", "switch", "type", "bridge")
        self._at("switch", "link", "set", "switch", "up")
        for name, address in self.addresses.items():
            self._at("switch", "link", "add", _port(name), "type", "veth",
                     "peer", "name", "lan", "netns", self._prefix + name)  # fmt: skip
            self._at("switch", "link", "set", _port(name), "master", "switch", "up")
            self._at(name, "address", "add", f"{address}/24", "dev", "lan")
            self._at(name, "link", "set", "lo", "up")
            self._at(name, "link", "set", "lan", "up")

    def close(self) -> None:
        """Takes it all away; whatever still runs in it loses its network."""
        for cable in self._slow:
            cable.stop()
        self._slow.clear()
        for name in _namespaces():
            if name.startswith(self._prefix):
                _ip("netns", "delete", name)

    @contextlib.contextmanager
    def inside(self, machine: str) -> Iterator[None]:
        """The calling thread is on that machine: sockets that it opens, threads and processes that it starts."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(f"/var/run/netns/{self._prefix}{machine}", os.O_RDONLY)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)

    # Faults ---

    def unplug(self, machine: str) -> None:
        """Pulls a machine's cable: it sees no carrier, the others see silence."""
        self._at("switch", "link", "set", _port(machine), "down")

    def plug(self, machine: str) -> None:
        """Puts the cable back."""
        self._at("switch", "link", "set", _port(machine), "up")

    def lose(self, source: str, target: str) -> None:
        """What one machine sends to another is lost from now on; the other direction goes on."""
        self._cut.add((source, target))
        self._at(source, "neighbor", "replace", self.addresses[target],
                 "lladdr", NOBODY, "dev", "lan", "nud", "permanent")  # fmt: skip

    def cut(self, ones: Sequence[str], others: Sequence[str]) -> None:
        """Neither of the ones and the others hear each other any more."""
        for one, other in itertools.product(ones, others):
            self.lose(one, other)
            self.lose(other, one)

    def slow_down(self, machine: str, delay: float, loss: float) -> None:
        """A machine's cable delays each frame by so many seconds, and loses a share of them, in both directions."""
        delay_ms = f"{delay * 1000:g}ms"
        rule = ("root", "netem", "delay", delay_ms, "loss", f"{loss:.2%}")
        try:
            self._tc("switch", "qdisc", "replace", "dev", _port(machine), *rule)
            self._tc(machine, "qdisc", "replace", "dev", "lan", *rule)
        except RuntimeError:
            self._slow.append(self._spliced(machine, delay, loss))

    def _spliced(self, machine: str, delay: float, loss: float) -> _SlowCable:
        """The machine's cable ends in two loose ends at the switch, with a thread in between."""
        near, far = f"{_port(machine)}n", f"{_port(machine)}f"
        self._at("switch", "link", "set", _port(machine), "nomaster")
        self._at("switch", "link", "add", near, "type", "veth", "peer", "name", far)
        self._at("switch", "link", "set", far, "master", "switch", "up")
        self._at("switch", "link", "set", near, "up")
        with self.inside("switch"):
            return _SlowCable((_port(machine), near), delay, loss)

    def mend(self) -> None:
        """All cables are plugged in, and nothing is cut or slow."""
        for source, target in sorted(self._cut):
            self._at(source, "neighbor", "delete", self.addresses[target], "dev", "lan")
        self._cut.clear()
        for cable in self._slow:
            cable.stop()
            self._at("switch", "link", "delete", f"{cable.name}n")
            self._at("switch", "link", "set", cable.name, "master", "switch")
        self._slow.clear()
        for machine in self.addresses:
            self.plug(machine)
            with contextlib.suppress(RuntimeError):  # there is none
                self._tc("switch", "qdisc", "delete", "dev", _port(machine), "root")
                self._tc(machine, "qdisc", "delete", "dev", "lan", "root")

    def _at(self, machine: str, *arguments: str) -> None:
        _ip("-netns", self._prefix + machine, *arguments)

    def _tc(self, machine: str, *arguments: str) -> None:
        command = Path(_ip_command() or "ip").with_name("tc")
        _run(str(command), "-netns", self._prefix + machine, *arguments)


def _port(machine: str) -> str:
    """The name of a machine's port at the switch; an interface's name has 15 letters at most."""
    return machine[:14]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _ip(*arguments: str) -> str:
    return _run(_ip_command() or "ip", *arguments)


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()]


def _clear_leftovers() -> None:
    for name in _namespaces():
        made_by = re.match(r"zb(\d+)n\d+-", name)
        if made_by and not Path(f"/proc/{made_by[1]}").exists():
            with contextlib.suppress(RuntimeError):  # somebody else was quicker
                _ip("netns", "delete", name)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _SlowCable:
    """Carries frames between two ends, late, and not all of them: what `netem` does, for kernels without it."""

    def __init__(self, ends: tuple[str, str], delay: float, loss: float) -> None:
        self.name = ends[0]
        self._delay, self._loss = delay, loss
        self._random = random.Random(0)
        self._sockets = [_packets(end) for end in ends]
        self._told, self._tell = socket.socketpair()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        left, right = self._sockets
        across = {left: right, right: left}
        waiting: list[tuple[float, int, socket.socket, bytes]] = []
        count = itertools.count()
        while True:
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            ready, _, _ = select.select([left, right, self._told], [], [], pause)
            if self._told in ready:
                return
            now = time.monotonic()
            for end in ready:
                frame = end.recv(FRAME_MAX)
                if self._random.random() >= self._loss:
                    late = (now + self._delay, next(count), across[end], frame)
                    heapq.heappush(waiting, late)
            while waiting and waiting[0][0] <= now:
                _, _, end, frame = heapq.heappop(waiting)
                with contextlib.suppress(OSError):  # the other end is down, or has no room
                    end.send(frame)

    def stop(self) -> None:
        """What is on its way is lost."""
        self._tell.send(b".")
        self._thread.join()
        for end in (*self._sockets, self._told, self._tell):
            end.close()


def _packets(interface: str) -> socket.socket:
    """All frames that come in at an interface, with what the kernel has left undone of their checksums."""
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    end.bind((interface, ETH_P_ALL))
    return end


class LanNode(NodeProcess):
    """A node on a machine of its own."""

    def __init__(self, lan: Lan, folder: Path, **settings: Any) -> None:
        super().__init__(folder, port=PORT, **settings)
        self.servers = f"{lan.addresses[self.name]}:{PORT}"
        self._lan = lan

    def spawn(self) -> NodeProcess:
        with self._lan.inside(self.name):
            return super().spawn()


class LanCluster(ClusterProcesses):
    """A cluster with each node on a machine of its own, for clients that are on the LAN too."""

    def __init__(
        self, folder: Path, lan: Lan, nodes: Sequence[str], *, log_format: str = "human"
    ) -> None:
        """
        Args:
            nodes: the machines that run a node each; the others are for clients.
        """
        cluster: Mapping[str, Any] = {
            "name": "test",
            "nodes": {name: f"{lan.addresses[name]}:{PORT}" for name in nodes},
        }
        self.nodes = {
            name: LanNode(lan, folder / name, name=name, cluster=cluster, log_format=log_format)
            for name in nodes
        }
        self.servers = ",".join(node.servers for node in self.nodes.values())
        self._admin = None
