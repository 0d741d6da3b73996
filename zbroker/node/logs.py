"""The node's log: what happened, for people or as JSON, one line an event, on standard error.

Owns the two forms, and how the broker's events read to a person. Never decides what is worth telling.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["human", "json"]

LOGGER = logging.getLogger("zbroker")

SENTENCES: dict[str, tuple[int, str]] = {
    "starting": (
        logging.INFO,
        "zbroker {version}: node {node} of cluster {cluster} starts, data in {data}",
    ),
    "serving": (
        logging.INFO,
        "node {node} is serving on {address}: {topics} topics, {partitions} partitions here",
    ),
    "waiting": (logging.INFO, "waiting for {waiting_for}"),
    "controller": (logging.INFO, "node {node} is the controller now (epoch {epoch})"),
    "node_fenced": (
        logging.WARNING,
        "{peer} is taken for dead ({reason}): others lead what it led",
    ),
    "recovery_began": (
        logging.WARNING,
        "partition {partition} of topic {topic} waits for {waiting_for}: all stopped uncleanly (epoch {epoch})",
    ),
    "leader_recovered": (
        logging.WARNING,
        "{leader} leads partition {partition} of topic {topic} up to {end}; records from {lost_from} on may be lost",
    ),
    "loss_accepted": (
        logging.WARNING,
        "a loss was accepted: {leader} leads partition {partition} of topic {topic} with what it has (epoch {epoch})",
    ),
    "fenced": (
        logging.WARNING,
        "this node was taken for dead ({reason}) and leads nothing; it registers again",
    ),
    "set_aside": (
        logging.WARNING,
        "{partition} was deleted while this node was away; its files are left in {folder}",
    ),
    "stopping": (logging.INFO, "stopping in order ({signal}); once more stops at once"),
    "stopped": (logging.INFO, "stopped: everything is on disk"),
    "stop_timed_out": (
        logging.ERROR,
        "stopped after {seconds} s with work left: the disk did not keep up",
    ),
    "failed": (logging.CRITICAL, "the node must stop: {error}"),
    "damage_found": (
        logging.ERROR,
        "{partition} is damaged: offsets {ranges} cannot be read, the others can",
    ),
    "torn_tail_cut": (
        logging.WARNING,
        "{partition}: cut {bytes} bytes of a write that a crash had torn",
    ),
    "log_scanned": (
        logging.INFO,
        "{partition} was not closed in order: {bytes} bytes behind its last checkpoint were checked",
    ),
    "coordinating": (logging.INFO, "this node coordinates the {groups} groups of {partition} now"),
    "group_assigned": (
        logging.INFO,
        "group {group}: {partitions} partitions for {members} members (epoch {epoch}, {assignor})",
    ),
    "group_member_out": (
        logging.WARNING,
        "group {group}: {client} is out ({reason}); others get its partitions",
    ),
    "compacted": (
        logging.INFO,
        "{partition}: compacted up to offset {point}, {removed} records went, {read} bytes are {written}",
    ),
    "append_failed": (logging.ERROR, "{partition} takes no records for now: {error}"),
    "storage_request_failed": (logging.ERROR, "{folder}: {error}"),
    "memory_exceeded": (
        logging.ERROR,
        "connections hold {held} MiB, more than {allowed} MiB: all are ended, clients come back",
    ),
    "few_descriptors": (
        logging.WARNING,
        "only {limit} file descriptors are allowed for {clients} clients; raise `ulimit -n`",
    ),
    "http": (logging.INFO, "metrics and health on http://{address}"),
}
"""Level and sentence of each event; the fields in braces are its facts."""


class _Human(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = (
            datetime.fromtimestamp(record.created)
            .astimezone()
            .strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        )
        return f"{when} {record.levelname.lower():8} {record.getMessage()}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event = getattr(record, "event", record.name)
        facts: dict[str, Any] = getattr(record, "facts", {})
        line = {
            "time": when,
            "level": record.levelname.lower(),
            "event": event,
            "message": record.getMessage(),
        }
        return json.dumps({**line, **facts}, default=str, ensure_ascii=False)


def set_up(form: LogFormat, level: str) -> None:
    """Sends the log to standard error in one of the two forms."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Human())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False


def reporter(**always: Any) -> Callable[..., None]:
    """A broker's `Report` that writes to the log; `always` are facts of every event."""

    def report(event: str, /, **facts: Any) -> None:
        level, sentence = SENTENCES.get(event, (logging.INFO, event))
        every = {**always, **facts}
        LOGGER.log(level, "%s", sentence.format_map(every), extra={"event": event, "facts": facts})

    return report
