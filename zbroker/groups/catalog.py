"""The topics as a coordinator sees them, and which of them a subscription means.

Owns the rule of matching: a name means itself, and a pattern, which is what has a `*` in it, every topic that it fits;
topics whose names begin with `__` are the system's own and fit no pattern. Never knows what else the metadata say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from zbroker.topics import is_internal


class TopicView(msgspec.Struct, frozen=True):
    """One topic: its id, its name, and who leads each partition (a node's name, None where nobody does)."""

    topic_id: str
    name: str
    leaders: Sequence[str | None]


class Catalog:
    """All topics at one moment.

    Attributes:
        by_id, by_name: the topics.
        racks: node names to racks, for nodes that have one.
    """

    def __init__(
        self, topics: Iterable[TopicView] = (), racks: Mapping[str, str | None] | None = None
    ) -> None:
        self.by_id: dict[str, TopicView] = {topic.topic_id: topic for topic in topics}
        self.by_name: dict[str, TopicView] = {topic.name: topic for topic in self.by_id.values()}
        self.racks: dict[str, str] = {
            node: rack for node, rack in (racks or {}).items() if rack is not None
        }
        self._matches: dict[tuple[str, ...], tuple[str, ...]] = {}

    def matching(self, subscription: Sequence[str]) -> tuple[str, ...]:
        """Ids of the topics that a subscription means, by name; the same object for the same subscription."""
        key = tuple(subscription)
        found = self._matches.get(key)
        if found is None:
            names: set[str] = set()
            for each in key:
                if "*" in each:
                    names.update(
                        name for name in self.by_name if not is_internal(name) and fits(name, each)
                    )
                elif each in self.by_name:
                    names.add(each)
            found = tuple(self.by_name[name].topic_id for name in sorted(names))
            self._matches[key] = found
        return found

    def counts(self, topic_ids: Iterable[str]) -> dict[str, int]:
        """How many partitions each of these topics has."""
        return {topic_id: len(self.by_id[topic_id].leaders) for topic_id in topic_ids}


def fits(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern in which `*` stands for any characters, none among them. Takes linear time.

    >>> fits("sales.eu", "sales.*"), fits("sales", "sales.*"), fits("a.b.c", "*.b.*")
    (True, False, True)
    """
    first, *middle, last = pattern.split("*")
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True
