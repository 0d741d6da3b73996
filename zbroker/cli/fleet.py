"""`zbroker dev --nodes N`: a cluster of child processes for one foreground process.

Owns the children's files, their log lines on the way to standard error, and their end: none outlives this process,
however it ends. A child's standard input is a pipe that this process holds open and never writes to; where it closes,
the child stops. Never starts a child again: that is for whoever tries things out.

=========== ===================== ==================================================================
state       event                 then
=========== ===================== ==================================================================
starting    every node serves     running: said in one line
starting    a node ends           stopping, exit status 1: there is no cluster of that many
running     a node ends           running: said with its status, and how to start it again
any         SIGTERM, Ctrl-C       stopping: each node is asked to stop in order; exit status 0
stopping    every node has ended  done
stopping    a signal, or 40 s     killing: each node that is left is killed; exit status 130 or 143, or 1
=========== ===================== ==================================================================
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click

from zbroker.cli.common import complain, note
from zbroker.cli.nodes import PORTS_APART
from zbroker.cli.visible import printable
from zbroker.errors import ConfigError

STOP_TIMEOUT_S = 40
"""Longer than a node gives itself for an orderly stop."""

MARK = "# Written by `zbroker dev`, anew at each start.\n"
COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red")


class Ended(NamedTuple):
    """A child's end: its exit status, negative for a signal."""

    node: str
    status: int


class Serving(NamedTuple):
    """A child takes requests."""

    node: str


Event = Ended | Serving | signal.Signals


def write_configuration(folder: Path, nodes: int, port: int) -> dict[str, Path]:
    """The YAML files of a cluster on this machine's loopback: each node's, by its name.

    Raises:
        ConfigError: one of the files is there already, and somebody else's.
    """
    names = [f"node{number}" for number in range(1, nodes + 1)]
    lines = [
        f"  {name}: 127.0.0.1:{port + PORTS_APART * number}" for number, name in enumerate(names)
    ]
    _write(folder / "cluster.yaml", "\n".join(["name: dev", "nodes:", *lines, ""]))
    files = {name: folder / f"{name}.yaml" for name in names}
    for name, file in files.items():
        _write(file, f"node: {name}\ndata: {name}\ncluster: cluster.yaml\n")
    return files


def _write(file: Path, text: str) -> None:
    if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise ConfigError(f"{file} exists and is not from `zbroker dev`; choose another folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(MARK + text, encoding="utf-8")


class Child:
    """One node as a child process, and the thread that passes its log lines on."""

    def __init__(self, node: str, file: Path, events: queue.SimpleQueue[Event], log: Log) -> None:
        self.node = node
        self.serves = False
        self.ended = False
        self._events, self._log = events, log
        # A session of its own: Ctrl-C is for this process, which then asks each child once.
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "zbroker", "run", str(file), "--stop-with-stdin",
                "--log-format", "json", "--log-level", log.asked_level,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._read, name=f"log of {node}", daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if self._log.take(self.node, line) == "serving":
                self._events.put(Serving(self.node))
        self._events.put(Ended(self.node, self.process.wait()))

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Log:
    """Children's log lines, which come as JSON, on their way to standard error in the form that was asked for."""

    def __init__(self, form: str, level: str, nodes: list[str]) -> None:
        self._json = form == "json"
        self._level = getattr(logging, level.upper())
        self._lock = threading.Lock()
        width = max(map(len, nodes))
        self._labels = {
            node: click.style(f"{node.ljust(width)} |", fg=COLOURS[number % len(COLOURS)])
            for number, node in enumerate(nodes)
        }
        # That a node serves is told at level info, whatever is shown.
        self.asked_level = level if level in ("debug", "info") else "info"

    def take(self, node: str, line: bytes) -> str | None:
        """Passes one line on; answers which event it tells of."""
        text = line.decode("utf-8", "replace").rstrip("\n")
        try:
            facts = json.loads(text)
            level = logging.getLevelName(facts["level"].upper())
            event, message, when = facts["event"], facts["message"], facts["time"]
        except (ValueError, TypeError, KeyError, AttributeError):
            self._write(node, {"message": text}, printable(text))
            return None
        if not isinstance(level, int) or level >= self._level:
            moment = datetime.fromisoformat(when).astimezone().strftime("%H:%M:%S.%f")[:-3]
            self._write(node, facts, printable(f"{moment} {facts['level']:8} {message}"))
        return str(event)

    def _write(self, node: str, facts: Mapping[str, Any], text: str) -> None:
        shown = json.dumps({"node": node, **facts}, ensure_ascii=False) if self._json else None
        with self._lock:
            click.echo(shown or f"{self._labels[node]} {text}", err=True)


class Fleet:
    """The children, from their start to their end."""

    def __init__(self, files: Mapping[str, Path], log: Log) -> None:
        self._files = files
        self._log = log
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Fleet:
        self._before = {
            number: signal.signal(number, lambda got, _: self._events.put(signal.Signals(got)))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            for node, file in self._files.items():
                self.children[node] = Child(node, file, self._events, self._log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():
            child.signal(signal.SIGKILL)
            child.process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, serving: str) -> int:
        """Runs until a signal or a failed start; says `serving` once all serve. Answers the exit status."""
        while (event := self._events.get()) not in (signal.SIGTERM, signal.SIGINT):
            if isinstance(event, Serving):
                self.children[event.node].serves = True
                if all(child.serves for child in self.children.values()):
                    note(serving)
            elif isinstance(event, Ended):
                self.children[event.node].ended = True
                again = f"start it again with `zbroker run {self._files[event.node]}`"
                complain(f"{how_it_ended(event)}; {again}", kind="warning")
                if not all(child.serves for child in self.children.values()):
                    complain("not all nodes came to serve: the others are stopped")
                    return self._stop() or 1
        return self._stop()

    def _stop(self) -> int:
        """Asks each child to stop in order and waits for all; a second signal, or much time, ends them at once."""
        for child in self.children.values():
            child.signal(signal.SIGTERM)
        timer = threading.Timer(STOP_TIMEOUT_S, self._events.put, (signal.SIGALRM,))
        timer.daemon = True
        timer.start()
        try:
            while not all(child.ended for child in self.children.values()):
                event = self._events.get()
                if isinstance(event, Ended):
                    self.children[event.node].ended = True
                    if event.status:
                        complain(how_it_ended(event), kind="warning")
                elif isinstance(event, signal.Signals):
                    return 1 if event is signal.SIGALRM else 128 + event
            return 0
        finally:
            timer.cancel()


def how_it_ended(event: Ended) -> str:
    """A child's end in words."""
    if event.status < 0:
        return f"{event.node} was ended by {signal.Signals(-event.status).name}"
    return f"{event.node} ended with status {event.status}"


def run_fleet(folder: Path, nodes: int, port: int, form: str, level: str) -> int:
    """Runs a cluster of so many nodes until it is told to stop; answers the exit status."""
    files = write_configuration(folder, nodes, port)
    servers = [f"localhost:{port + PORTS_APART * number}" for number in range(nodes)]
    with Fleet(files, Log(form, level, list(files))) as fleet:
        for child in fleet.children.values():
            note(
                f"{child.node} is process {child.process.pid}; kill it with `kill -9 {child.process.pid}`, "
                f"start it again with `zbroker run {files[child.node]}`"
            )
        return fleet.run(f"all {nodes} nodes serve, on {','.join(servers)}")


def stop_with_stdin() -> None:
    """Has this process stop in order when its standard input is closed: whoever started it is gone."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):  # not sys.stdin, which a waiting thread would lock at the end
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stdin", daemon=True).start()
