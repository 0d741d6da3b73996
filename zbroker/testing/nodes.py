"""Real nodes as processes, for tests: start, kill, restart, and no process left behind.

Owns the choice of free ports and a node's life. A test that uses a node says what it needs and waits for conditions;
it never sleeps for a while and hopes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

PORTS_A_NODE = 4
LOWEST_PORT, HIGHEST_PORT = 10_000, 30_000
"""Below the ephemeral range: a loopback port in it can be taken by anybody's own connecting socket."""


def free_ports(count: int = PORTS_A_NODE, host: str = "127.0.0.1") -> int:
    """The first of `count` consecutive ports that could all be bound a moment ago.

    Processes of a parallel test run look in ranges of their own, so that they do not race for the same ports.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    share = (HIGHEST_PORT - LOWEST_PORT) // 8
    first = LOWEST_PORT + (int(worker) % 8 if worker.isdigit() else 0) * share
    for _ in range(1000):
        base = random.randrange(first, first + share - count)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                    probe.bind((host, port))
            except OSError:
                continue
            return base
    raise RuntimeError(f"no {count} consecutive free ports were found from {first} on")


def wait_for(condition: Callable[[], Any], timeout: float = 10.0, what: str = "") -> Any:
    """What `condition` returns once that is true.

    Raises:
        TimeoutError: it did not become true within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    pause = 0.001
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what or condition}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return result


class NodeProcess:
    """One node as a process of its own, on loopback and with a data folder of its own.

    Attributes:
        port: its base port.
        servers: what clients connect to.
        config: its configuration file.
        log: the file that takes its standard error.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        topics: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        http: bool = False,
        log_format: str = "human",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port if port is not None else free_ports(PORTS_A_NODE + 1)
        self.http_port = self.port + PORTS_A_NODE if http else None
        self.servers = f"127.0.0.1:{self.port}"
        self.config = folder / "node1.yaml"
        self.data = folder / "data"
        self.log = folder / "node1.log"
        self._log_format = log_format
        self._process: subprocess.Popen[bytes] | None = None
        cluster: dict[str, Any] = {"name": "test", "nodes": {"node1": self.servers}}
        if topics:
            cluster["topics"] = dict(topics)
        config: dict[str, Any] = {"node": "node1", "data": str(self.data), "cluster": cluster}
        if self.http_port:
            config["http"] = f"127.0.0.1:{self.http_port}"
        if limits:
            config["limits"] = dict(limits)
        # JSON is YAML: no writer of YAML is needed for this.
        self.config.write_text(json.dumps(config, indent=1), encoding="utf-8")

    def start(self, timeout: float = 20.0) -> NodeProcess:
        """Starts the node and waits until it serves."""
        assert self._process is None, "the node runs already"
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "zbroker",
                    "run",
                    str(self.config),
                    "--log-format",
                    self._log_format,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

        def serving() -> bool:
            assert self._process is not None
            with self.log.open("rb") as log:
                log.seek(before)
                text = log.read()
            if self._process.poll() is not None:
                raise RuntimeError(f"the node ended: {text.decode(errors='replace')}")
            return b"is serving" in text

        wait_for(serving, timeout, "the node to serve")
        return self

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def send_signal(self, number: int) -> None:
        """Sends the process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the process as a crash would: SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self, timeout: float = 20.0) -> int:
        """Asks for an orderly stop and returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(timeout)
        self._process = None
        return status


@contextlib.contextmanager
def running_node(folder: Path, **settings: Any) -> Iterator[NodeProcess]:
    """A node that serves, killed at the end if it still runs. Settings as for `NodeProcess`."""
    node = NodeProcess(folder, **settings)
    try:
        yield node.start()
    finally:
        with contextlib.suppress(ProcessLookupError):
            if node.running:
                node.send_signal(signal.SIGCONT)
        node.kill()
