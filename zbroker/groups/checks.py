"""What a request of a group must look like to be taken: names, counts, times. Everything else is the coordinator's.

Owns the bounds. Bad input is answered with `invalid_request` and a sentence that says what was expected.
"""

from __future__ import annotations

from zbroker.errors import InvalidRequest
from zbroker.protocol.messages import GroupHeartbeat
from zbroker.units import format_duration

TOPICS_MAX = 1_000
"""Names and patterns that one member may subscribe to."""
SUBSCRIPTION_MAX = 64 << 10
"""Characters that they may have together."""
SESSION_MIN, SESSION_MAX = 500, 3_600_000
RELEASE_MIN, RELEASE_MAX = 500, 86_400_000


def check_group(name: str) -> None:
    """A group has a name.

    Raises:
        InvalidRequest: it has none, or one with control characters.
    """
    if not name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise InvalidRequest(
            f"found group name {name[:60]!r}, expected 1 to 255 characters, none of them control characters"
        )


def check_heartbeat(request: GroupHeartbeat) -> None:
    """That a heartbeat is within bounds.

    Raises:
        InvalidRequest: it is not; the sentence names the field.
    """
    check_group(request.group)
    if not request.member:
        raise InvalidRequest("member: found nothing, expected 1 to 64 characters chosen at random")
    if request.instance == "":
        raise InvalidRequest("instance: found nothing, expected nil or 1 to 255 characters")
    if not request.topics:
        return
    if len(request.topics) > TOPICS_MAX or sum(map(len, request.topics)) > SUBSCRIPTION_MAX:
        raise InvalidRequest(
            f"topics: found {len(request.topics)} names and patterns, expected at most {TOPICS_MAX}, of "
            f"{SUBSCRIPTION_MAX} characters together"
        )
    if not all(request.topics):
        raise InvalidRequest("topics: found an empty name, expected names and patterns")
    _check_time("session_timeout", request.session_timeout, SESSION_MIN, SESSION_MAX)
    _check_time("release_timeout", request.release_timeout, RELEASE_MIN, RELEASE_MAX)


def _check_time(name: str, found: int, low: int, high: int) -> None:
    if not low <= found <= high:
        raise InvalidRequest(
            f"{name}: found {format_duration(found)}, expected {format_duration(low)} to {format_duration(high)}"
        )
