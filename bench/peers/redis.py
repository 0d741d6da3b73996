"""Redis Streams: Debian's server with its append-only file, its own benchmark and redis-py.

No snapshots and no rewriting of the file, which is kind to it. `fsync never` is `appendfsync no`, `interval` is
`everysec`, `always` is `always`. Three nodes are a primary and two replicas: redis-py closes every pipeline with
WAIT 2, redis-benchmark waits for nobody. A topic is a stream, without partitions; a fail-over takes another product.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from pathlib import Path

from bench.peers.base import Arena, Client, Servers, load_command, wait_port
from bench.peers.facts import debian_version, footprint, missing, package
from bench.peers.installer import python_of
from zbroker.testing.nodes import free_ports

LOAD = load_command("redis_py", python_of("redis"))
FSYNC = {"never": "no", "interval": "everysec", "always": "always"}


class Redis:
    """The driver."""

    name = "redis"
    title = "Redis Streams"
    warm_with: tuple[str, ...] = ()
    by_topic: frozenset[str] = frozenset()
    clients = (
        Client(
            "redis-benchmark -c 50 -P 64", LOAD, frozenset({"produce"}), told={"client": "benchmark"}
        ),
        Client(
            "redis-py",
            LOAD,
            frozenset(
                {
                    "produce", "produce_producers", "produce_topics", "consume", "live", "latency_produce",
                    "latency_consume", "first", "again", "crowd",
                }
            ),
            python=True, pair="redis-benchmark -c 50 -P 64",
        ),
    )  # fmt: skip

    def why_not(self) -> str | None:
        """Whether it was installed."""
        return missing("redis")

    def version(self) -> str:
        """Server and client."""
        return f"{debian_version('redis-server')}; {package('redis', 'redis')}"

    def start(self, folder: Path, arena: Arena, *, wait: bool = True) -> RedisServers:
        """A primary and its replicas."""
        return RedisServers(folder, arena, wait)

    def footprint(self) -> dict[str, float]:
        """The package."""
        return footprint("redis")


class RedisServers(Servers):
    """The primary is number 0."""

    def __init__(self, folder: Path, arena: Arena, wait: bool) -> None:
        super().__init__(folder, arena)
        self._wait = wait
        self._base = free_ports(arena.nodes)
        self.servers = f"127.0.0.1:{self._base}"
        self.addresses = self.servers.split(",")
        self.told = {"wait": arena.nodes - 1}

    def __enter__(self) -> RedisServers:
        for number in range(self.arena.nodes):
            data = self.folder / f"r{number}"
            data.mkdir(exist_ok=True)
            command = [
                shutil.which("redis-server"), "--port", self._base + number, "--bind", "127.0.0.1",
                "--dir", data, "--save", "", "--appendonly", "yes",
                "--appendfsync", FSYNC[self.arena.fsync], "--auto-aof-rewrite-percentage", 0,
                "--repl-diskless-sync-delay", 0, "--client-output-buffer-limit", "replica 0 0 0",
            ]  # fmt: skip
            if number:
                command += ["--replicaof", "127.0.0.1", self._base]
            self.serve(command, f"redis{number}")
        if self._wait:
            for number, process in enumerate(self.processes):
                wait_port(self._base + number, lambda process=process: process.poll() is None)  # type: ignore[misc]
        return self

    def create(self, topic: str, *, partitions: int = 1, topics: int = 1) -> None:
        """A stream is there with its first record."""

    def delete(self, topic: str, *, topics: int = 1) -> None:
        """At once."""
        for name in [f"{topic}-{n}" for n in range(topics)] if topics > 1 else [topic]:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._base), 5) as link,
            ):
                link.sendall(f"UNLINK {name}\r\n".encode())
                link.recv(64)
