"""What must be true of a simulated cluster at rest: equal metadata, replicas that are equal byte for byte.

Looks at files and at applied state, and never changes anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from zbroker.cluster.metadata import Metadata
from zbroker.cluster.quorum import FOLDER
from zbroker.log.compacted import segment_paths
from zbroker.log.compare import Copy, compare
from zbroker.log.segment import Bounds, Gap, scan
from zbroker.testing.cluster import SimulatedCluster
from zbroker.testing.disk import SimulatedDisk


def differences(cluster: SimulatedCluster, excused: Collection[str] = ()) -> list[str]:
    """What is not equal that should be, in sentences; none where all is well.

    Args:
        excused: folders of logs that need not be equal.
    """
    return [*_metadata_differ(cluster), *_logs_differ(cluster, excused)]


def _metadata_differ(cluster: SimulatedCluster) -> Iterator[str]:
    first = None
    for machine in cluster.up:
        quorum = machine.broker.quorum
        state = (quorum.applied, _state(quorum.metadata))
        if first is None:
            first = (machine.name, state)
        elif first[1] != state:
            yield (
                f"16: the metadata of {first[0]} and {machine.name} differ, applied up to {first[1][0]} and {state[0]}"
            )


def _state(metadata: Metadata) -> bytes:
    """Everything that records make of the state."""
    fields = (
        metadata.cluster_id, metadata.voters, metadata.nodes, metadata.fenced, metadata.topics, metadata.ids,
        metadata.next_producer_id, metadata.deletions,
    )  # fmt: skip
    return msgspec.msgpack.encode(fields)


def _logs_differ(cluster: SimulatedCluster, excused: Collection[str]) -> Iterator[str]:
    keeping: dict[str, list[str]] = {FOLDER: [machine.name for machine in cluster.up]}
    for machine in cluster.up:
        for partition in machine.broker.keeper:
            if machine.copies.of(partition.log.folder).harmed:
                continue  # what nobody has read nobody has missed
            keeping.setdefault(partition.log.folder, []).append(machine.name)
    for folder, nodes in keeping.items():
        if folder in excused:
            continue
        logs = {node: _copy(cluster.machines[node].disk, folder) for node in nodes}
        for node, found in logs.items():
            if isinstance(found, str):
                yield f"18: {folder} at {node}: {found}"
        whole = {node: found for node, found in logs.items() if not isinstance(found, str)}
        yield from _compare(folder, whole)


def _compare(folder: str, logs: dict[str, Copy]) -> Iterator[str]:
    reference = None
    for node, log in logs.items():
        if reference is None:
            reference = (node, log)
            continue
        at = -1
        difference = compare(log, reference[1]).difference
        if difference is not None:
            at = difference.offset
        elif log.end != reference[1].end:
            at = min(log.end, reference[1].end)
        if at >= 0:
            yield f"18: {folder} differs between {reference[0]} and {node} from offset {at} on"


def _copy(disk: SimulatedDisk, folder: str) -> Copy | str:
    """A log from its first batch to its last; or what is wrong."""
    paths, first, end = [], -1, 0
    for base, path in segment_paths(disk, folder):
        paths.append(path)
        for item in scan(disk, path, 0, disk.size(path), Bounds(base), payloads=True):
            if isinstance(item, Gap):
                return f"a gap at position {item.position} of {path}"
            first = item[1].base_offset if first < 0 else first
            end = item[1].next_offset
    return Copy(disk, paths, max(first, 0), end)
