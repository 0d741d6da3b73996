"""What members of a group have written down, and what it must come to.

Owns the checks: every record was processed, none twice but for a reason, and how long each partition paused. Pure but
for reading files. Times are monotonic seconds, the same in every process of a machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Run(NamedTuple):
    """Records that a member was handed together: offsets `first` to before `after`."""

    at: float
    partition: int
    first: int
    after: int


class Journal(NamedTuple):
    """One member's life: its runs, and its other entries as (kind, when, words)."""

    name: str
    runs: list[Run]
    entries: list[tuple[str, float, list[str]]]

    def when(self, kind: str, after: float = 0.0) -> float | None:
        """When it first wrote an entry of a kind after a moment."""
        return next((at for name, at, _ in self.entries if name == kind and at > after), None)

    def runs_between(self, since: float, until: float) -> list[Run]:
        """What it was handed in between."""
        return [run for run in self.runs if since < run.at < until]


class Duplicate(NamedTuple):
    """Offsets that a second member was handed, too, or the same one again."""

    partition: int
    first: int
    after: int
    by: str
    before: str
    """Who had been handed them first."""


def read_journal(name: str, path: Path) -> Journal:
    """A member's journal, but for a last line that is not whole."""
    journal = Journal(name, [], [])
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.split("\n")[:-1]:
        kind, at, *words = line.split(" ")
        if kind == "got":
            partition, first, after = map(int, words)
            journal.runs.append(Run(float(at), partition, first, after))
        else:
            journal.entries.append((kind, float(at), words))
    return journal


def by_partition(journals: Iterable[Journal]) -> dict[int, list[tuple[Run, str]]]:
    """Every run of each partition, with who got it, in order of time."""
    found: dict[int, list[tuple[Run, str]]] = {}
    for journal in journals:
        for run in journal.runs:
            found.setdefault(run.partition, []).append((run, journal.name))
    for runs in found.values():
        runs.sort()
    return found


def missing(journals: Iterable[Journal], ends: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """Offsets that nobody was handed: (partition, first, after)."""
    found = []
    runs = by_partition(journals)
    for partition, end in sorted(ends.items()):
        reached = 0
        for first, after in sorted((run.first, run.after) for run, _ in runs.get(partition, [])):
            if first > reached:
                found.append((partition, reached, first))
            reached = max(reached, after)
        if reached < end:
            found.append((partition, reached, end))
    return found


def duplicates(journals: Iterable[Journal]) -> list[Duplicate]:
    """What was handed out more than once, by who had it first."""
    found = []
    for partition, runs in by_partition(journals).items():
        had: list[tuple[int, int, str]] = []
        for run, name in runs:
            for first, after, before in had:
                low, high = max(first, run.first), min(after, run.after)
                if low < high:
                    found.append(Duplicate(partition, low, high, name, before))
            had.append((run.first, run.after, name))
    return found


def taken_over(
    journals: Iterable[Journal], partitions: Iterable[int], name: str, since: float
) -> dict[int, float]:
    """For each partition, when somebody else was first handed some of it after a moment; infinite for never."""
    runs = by_partition(journals)
    return {
        partition: next(
            (run.at for run, who in runs.get(partition, []) if run.at > since and who != name),
            float("inf"),
        )
        for partition in partitions
    }


def pauses(journals: Iterable[Journal], since: float, until: float) -> dict[int, float]:
    """The longest pause in each partition that one member had all through, in seconds."""
    found: dict[int, float] = {}
    for partition, runs in by_partition(journals).items():
        first = max((at for at, (run, _) in enumerate(runs) if run.at <= since), default=None)
        last = min((at for at, (run, _) in enumerate(runs) if run.at >= until), default=None)
        if first is None or last is None:
            continue
        through = runs[first : last + 1]
        if len({name for _, name in through}) == 1:
            found[partition] = max(
                (after.at - before.at for (before, _), (after, _) in itertools.pairwise(through)),
                default=0.0,
            )
    return found
