"""What people write where a consumer is to begin, and which partitions it is to read.

Pure but for the clock that a `timedelta` needs.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from zbroker.client.buffer import Start
from zbroker.client.guard import option
from zbroker.client.records import TopicPartition
from zbroker.errors import InvalidRequest

StartOption = (
    Literal["earliest", "latest"] | int | datetime.datetime | datetime.timedelta | tuple[str, int]
)


def parse_starts(
    start: StartOption | Mapping[tuple[str, int], StartOption],
) -> tuple[Start, dict[TopicPartition, Start]]:
    """Where partitions begin: all of them, and those that are told apart."""
    if isinstance(start, Mapping):
        return "latest", {TopicPartition(*place): parse_start(one) for place, one in start.items()}
    return parse_start(start), {}


def parse_start(start: Any) -> Start:
    """What people write for a place to begin, as the core takes it."""
    if start in ("earliest", "latest"):
        return start  # type: ignore[no-any-return]
    if isinstance(start, int) and not isinstance(start, bool) and start >= 0:
        return start
    if isinstance(start, datetime.datetime):
        return ("time", max(0, int(start.timestamp() * 1000)))
    if isinstance(start, datetime.timedelta):
        moment = datetime.datetime.now(datetime.UTC) - abs(start)
        return ("time", max(0, int(moment.timestamp() * 1000)))
    if (
        isinstance(start, tuple)
        and len(start) == 2
        and start[0] == "time"
        and isinstance(start[1], int)
    ):
        return ("time", max(0, start[1]))
    raise InvalidRequest(
        'a start is "earliest", "latest", an offset from 0 on, a datetime, a timedelta or ("time", milliseconds), '
        f"not {start!r}"
    )


def chosen_partitions(
    partitions: Iterable[int | tuple[str, int]] | None, topics: tuple[str, ...]
) -> frozenset[TopicPartition] | None:
    """The partitions that are read; None for all (`InvalidRequest` says what is wrong)."""
    if partitions is None:
        return None
    chosen = []
    for given in partitions:
        one: Any = given
        if isinstance(one, int) and not isinstance(one, bool):
            option(len(topics) == 1, "with several topics, partitions are (topic, number) pairs")
            one = (topics[0], one)
        option(
            isinstance(one, tuple) and len(one) == 2 and one[0] in topics
            and isinstance(one[1], int) and one[1] >= 0,
            f"a partition is a number from 0 on, or a (topic, number) pair of a topic that is read, not {one!r}",
        )  # fmt: skip
        chosen.append(TopicPartition(one[0], one[1]))
    option(bool(chosen), "partitions is empty; leave it out to read all")
    return frozenset(chosen)
