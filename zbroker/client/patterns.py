"""Patterns of topic names: `*` stands for any characters, as in `sensors.*`.

Pure. The system's own topics match none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


def is_pattern(topic: str) -> bool:
    """Whether a text is a pattern: no topic's name has a star."""
    return "*" in topic


def matches(patterns: Iterable[str], topic: str) -> bool:
    """Whether one of the patterns matches a topic's name.

    >>> matches(["sensors.*"], "sensors.hall-1"), matches(["sensors.*"], "sensors")
    (True, False)
    >>> matches(["*"], "__groups")
    False
    """
    if topic.startswith("__"):
        return False
    return any(_compiled(pattern).fullmatch(topic) for pattern in patterns)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
