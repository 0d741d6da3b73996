"""How fast a group reads, and when it will have caught up: out of two looks at it.

Pure. A rate is of committed offsets over the time between the two commits, which need not be that between the looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from zbroker.client.records import GroupDescription


class Pace(NamedTuple):
    """A partition: records a second that the group reads, and seconds until it is up to date, None for never."""

    rate: float
    seconds_left: float | None


def paces(before: GroupDescription, after: GroupDescription) -> dict[tuple[str, int], Pace]:
    """The pace in each partition of which two offsets are known.

    Partitions that grow as fast as they are read are never caught up with: what counts is how the lag shrinks.
    """
    earlier = {(one.topic, one.partition): one for one in before.offsets}
    found: dict[tuple[str, int], Pace] = {}
    for now in after.offsets:
        then = earlier.get((now.topic, now.partition))
        if (
            then is None or then.offset is None or now.offset is None
            or then.time is None or now.time is None or now.lag is None or then.lag is None
            or before is after
        ):  # fmt: skip
            continue
        seconds = (now.time - then.time) / 1000
        rate = max(0.0, (now.offset - then.offset) / seconds) if seconds > 0 else 0.0
        shrinks = (then.lag - now.lag) / seconds if seconds > 0 else 0.0
        if now.lag == 0:
            left: float | None = 0.0
        else:
            left = now.lag / shrinks if shrinks > 0 else None
        found[now.topic, now.partition] = Pace(rate, left)
    return found
