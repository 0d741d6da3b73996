"""Starting and stopping one node in order: `run_node` is what `zbroker run` does.

Owns the order: lock the data folder, bind the ports, read the logs, serve; then on SIGTERM or Ctrl-C finish what is
in hand, flush, close, and remove the lock. Whatever goes wrong before it serves is raised as a coded error.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import secrets
import signal
import sys
from types import FrameType

from zbroker import __version__
from zbroker.broker.broker import Broker
from zbroker.broker.ports import BrokerSettings, Report
from zbroker.config import FRAME_OVERHEAD, Config
from zbroker.node import logs, metrics
from zbroker.node.files import RealFiles
from zbroker.node.folder import DataFolder
from zbroker.node.http import HttpServer
from zbroker.node.links import Links
from zbroker.node.memory import MemoryGuard
from zbroker.node.reactor import Reactor
from zbroker.node.sockets import Sockets
from zbroker.node.storage import ThreadedStorage

STOP_TIMEOUT_MS = 30_000
LINGER_MS = 1000
TICKS_A_SNAPSHOT = 10
SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter while another waits: storage threads must not wait 5 ms."""
SPARE_DESCRIPTORS = 1000
"""Descriptors that a node needs for itself: files, sockets, pipes."""


def run_node(
    config: Config, *, log_format: logs.LogFormat = "human", log_level: str = "info"
) -> int:
    """Runs a node in this thread until SIGTERM, Ctrl-C or a failure.

    Returns:
        The exit status: 0 after an orderly stop, 1 after a failure.

    Raises:
        DataFolderError, AddressInUse, UnsupportedVersion: the node could not start; the sentence says why.
    """
    logs.set_up(log_format, log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    me = config.self
    address = (
        f"{me.listen}:{me.address.port}"
        if ":" not in me.listen
        else f"[{me.listen}]:{me.address.port}"
    )
    report = logs.reporter(node=config.node, cluster=config.cluster.name, address=address)
    report("starting", version=__version__, data=str(config.data))
    _allow_descriptors(config.limits.clients, report)
    with contextlib.ExitStack() as stack:
        folder = DataFolder(config.data, config.node)
        stack.callback(folder.close)
        limits = config.limits
        sockets = Sockets(
            me.listen, me.address.port, frame_max=limits.frame, clients_max=limits.clients
        )
        stack.callback(lambda: sockets.close(LINGER_MS))
        peers = {
            each.name: each.address for each in config.cluster.nodes if each.name != config.node
        }
        links = Links(sockets.context, me.listen, me.address.port, peers, frame_max=limits.frame)
        stack.callback(lambda: links.close(LINGER_MS))
        storage = ThreadedStorage(RealFiles(str(config.data), reserve=folder.reserve))
        stack.callback(storage.close)
        broker = Broker(
            _broker_settings(config, folder),
            storage=storage,
            transport=sockets,
            peers=links,
            fresh_id=lambda: secrets.token_hex(16),
            random=random.random,
            report=report,
        )
        latest = _Latest(broker, sockets, links)
        if config.http is not None:
            server = HttpServer(config.http.host, config.http.port, latest.get)
            stack.callback(server.close)
            report("http", address=str(config.http))
        stopping = stack.enter_context(_Signals(report))
        reactor = Reactor(
            broker,
            sockets,
            links,
            storage,
            stop_requested=lambda: stopping.requested,
            wake_fd=stopping.wake_fd,
            on_tick=latest.on_tick,
            memory=MemoryGuard(limits.memory, report),
        )
        served = False
        try:
            reactor.run(stop_timeout_ms=STOP_TIMEOUT_MS)
            served = True
        finally:
            if not served or broker.state == "failed":
                # What waits for the disk is not worth waiting for now.
                stack.pop_all().callback(folder.close)
        if broker.state == "failed":
            assert broker.error is not None
            raise broker.error
        if broker.state != "stopped":
            report("stop_timed_out", seconds=STOP_TIMEOUT_MS // 1000)
            return 1
        if broker.stopped_well:
            folder.note_clean_stop()
    report("stopped")
    return 0


class _Latest:
    """The newest snapshot of the node, renewed by the reactor about once a second."""

    def __init__(self, broker: Broker, sockets: Sockets, links: Links) -> None:
        self._broker, self._sockets, self._links = broker, sockets, links
        self._ticks = 0
        self._snapshot = metrics.take_snapshot(broker, sockets, links)

    def get(self) -> metrics.Snapshot:
        return self._snapshot

    def on_tick(self) -> None:
        self._ticks += 1
        if self._ticks % TICKS_A_SNAPSHOT == 0 or self._snapshot.state != self._broker.state:
            self._snapshot = metrics.take_snapshot(self._broker, self._sockets, self._links)


class _Signals:
    """SIGTERM and SIGINT ask for an orderly stop; a second one ends the process at once."""

    def __init__(self, report: Report) -> None:
        self.requested = False
        self._report = report
        self.wake_fd, self._signal_fd = os.pipe()
        os.set_blocking(self._signal_fd, False)

    def __enter__(self) -> _Signals:
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        self._wakeup_before = signal.set_wakeup_fd(self._signal_fd, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.wake_fd)
        os.close(self._signal_fd)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            os._exit(130 if number == signal.SIGINT else 143)
        self.requested = True
        self._report("stopping", signal=signal.Signals(number).name)


def _broker_settings(config: Config, folder: DataFolder) -> BrokerSettings:
    me = config.self
    return BrokerSettings(
        node=config.node,
        cluster_name=config.cluster.name,
        disk_id=folder.disk_id,
        incarnation=folder.incarnation,
        clean=folder.was_clean,
        host=me.address.host,
        port=me.address.port,
        rack=me.rack,
        session_timeout=config.cluster.session_timeout,
        peers=tuple(each.name for each in config.cluster.nodes if each.name != config.node),
        voters=config.cluster.voters,
        topic_defaults=config.cluster.topics,
        frame_max=config.limits.frame,
        batch_max=config.limits.frame - FRAME_OVERHEAD,
        memory_max=config.limits.memory,
        software=f"zbroker {__version__}",
    )


def _allow_descriptors(clients: int, report: Report) -> None:
    """As many descriptors as the system allows: a connection that finds none makes libzmq spin."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = clients + SPARE_DESCRIPTORS
    limit = hard if hard != resource.RLIM_INFINITY else max(soft, needed, 65536)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        report("few_descriptors", limit=soft, clients=clients)
