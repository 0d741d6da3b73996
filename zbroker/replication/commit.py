"""Which offset counts as committed: arithmetic over what each replica has, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def majority_offset(offsets: Mapping[str, int], voters: Collection[str]) -> int:
    """The offset below which a majority of the voters has everything; a voter that is not known has nothing.

    >>> majority_offset({"a": 9, "b": 7, "c": 0}, ["a", "b", "c"])
    7
    >>> majority_offset({"a": 9, "b": 7}, ["a", "b", "c", "d"])
    0
    """
    ranked = sorted((offsets.get(voter, 0) for voter in voters), reverse=True)
    return ranked[len(ranked) // 2]


def is_majority(some: Collection[str], voters: Collection[str]) -> bool:
    """Whether more than half of the voters are among `some`.

    >>> is_majority(["a", "b"], ["a", "b", "c", "d"])
    False
    """
    return 2 * sum(voter in some for voter in voters) > len(voters)


def in_sync_offset(offsets: Mapping[str, int], members: Collection[str]) -> int:
    """The offset below which every in-sync replica has everything; one that is not known has nothing.

    >>> in_sync_offset({"a": 9, "b": 7, "c": 0}, ["a", "b"])
    7
    """
    return min(offsets.get(member, 0) for member in members)
