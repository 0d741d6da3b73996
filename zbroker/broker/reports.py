"""What this node tells the controller of partitions that nobody leads: how far its logs go.

Owns when that is said: once a log is open and the newest appointment, to nobody, is carried out here, so that nothing
is appended any more; once a start, until the metadata have it. Never decides what follows from it: `cluster.recovery`
does.
"""

from __future__ import annotations

from collections.abc import Iterable

from zbroker.broker.partition import Partition
from zbroker.broker.petitions import Petitions
from zbroker.cluster import recovery
from zbroker.cluster.metadata import Metadata
from zbroker.cluster.records import RECOVERY_LEVEL
from zbroker.protocol.peers import LogExtent, ReportLogs

LOGS_MAX = 1000
"""Logs that one message speaks of."""


class LogReports:
    """The reports of one node."""

    def __init__(self, node: str, incarnation: int) -> None:
        self._node = node
        self._incarnation = incarnation
        self._asking = False

    def look(
        self, metadata: Metadata, partitions: Iterable[Partition], petitions: Petitions, now: int
    ) -> None:
        """Says what the metadata do not have yet: about every 100 ms, and once a node that starts has its logs open."""
        if self._asking or metadata.feature_level < RECOVERY_LEVEL:
            return
        if not metadata.is_up(self._node):
            return
        logs = [
            log
            for partition in partitions
            if (log := self._extent(metadata, partition)) is not None
        ][:LOGS_MAX]
        if logs:
            self._asking = True
            request = ReportLogs(incarnation=self._incarnation, logs=logs)
            petitions.ask(request, lambda _: self._answered(), now)

    def _answered(self) -> None:
        self._asking = False

    def _extent(self, metadata: Metadata, partition: Partition) -> LogExtent | None:
        replica, log = partition.replica, partition.log
        appointed = replica.appointment
        if appointed is None or appointed.leader is not None or replica.state != "idle":
            return None
        topic = metadata.topics.get(partition.topic_id)
        if topic is None or log.written_offset != log.end_offset:
            return None
        state = topic.partitions[partition.number]
        if state.epoch != appointed.epoch or self._is_known(metadata, partition):
            return None
        hole = log.hole
        end = log.end_offset if hole < 0 else hole
        return LogExtent(
            partition.topic_id, partition.number, state.epoch, end, log.epoch_at(end - 1), log.end_offset
        )  # fmt: skip

    def _is_known(self, metadata: Metadata, partition: Partition) -> bool:
        state = metadata.topics[partition.topic_id].partitions[partition.number]
        return recovery.extent_of(metadata, state, self._node) is not None
