"""Partitions and offsets that a command line names, against those that there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zbroker.errors import OffsetOutOfRange, UnknownPartition

if TYPE_CHECKING:
    from zbroker.client.records import PartitionDescription, TopicDescription


def choose_partitions(
    found: TopicDescription, partition: int | None
) -> Sequence[PartitionDescription]:
    """The partition named, or all.

    Raises:
        UnknownPartition: there is none of that number.
    """
    if partition is None:
        return found.partitions
    chosen = [part for part in found.partitions if part.partition == partition]
    if not chosen:
        last = len(found.partitions) - 1
        there = "partition 0 only" if last == 0 else f"partitions 0 to {last}"
        raise UnknownPartition(f"topic {found.name!r} has {there}, and no partition {partition}")
    return chosen


def check_offset(topic: str, part: PartitionDescription, offset: int, advice: str) -> None:
    """Raises `OffsetOutOfRange`, with the range, for an offset that a partition certainly does not have."""
    start, end = part.start_offset, part.high_watermark
    if start is None or end is None or start <= offset <= end:
        return
    there = (
        f"is empty, and its next record gets offset {end}"
        if start == end
        else f"has offsets {start} to {end - 1}"
    )
    raise OffsetOutOfRange(
        f"there is no offset {offset}: partition {part.partition} of topic {topic!r} {there}; {advice}",
        start=start,
        end=end,
    )
