"""What is too much for one request: lists of names and of partitions against the size that a head may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from zbroker.client.records import TopicPartition

Value = TypeVar("Value")

LIST_MAX = 48 * 1024
"""Bytes that a list may take in a head; the rest of the node's `HEAD_MAX` is for the other fields."""
NAME = 5
"""Most bytes that a name takes beside its characters."""
PLACE = 100
"""Most bytes that a partition takes beside its topic's name: the topic's id, a position, and what they are called."""


def names_fit(names: Iterable[str]) -> bool:
    """Whether one request can name all of these."""
    return sum(NAME + _size(name) for name in names) <= LIST_MAX


def parts_of(places: Mapping[TopicPartition, Value]) -> list[dict[TopicPartition, Value]]:
    """Partitions in parts of which each fits into one request; at least one, in the order that they have."""
    parts: list[dict[TopicPartition, Value]] = [{}]
    size = 0
    for place, value in places.items():
        more = PLACE + _size(place.topic)
        if parts[-1] and size + more > LIST_MAX:
            parts.append({})
            size = 0
        parts[-1][place] = value
        size += more
    return parts


def _size(name: str) -> int:
    return len(name.encode(errors="replace"))
