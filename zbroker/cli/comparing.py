"""Copies of logs side by side: which pairs there are, and how it reads whether they are the same.

What makes two copies equal, `zbroker.log.compare` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from zbroker.cli import words

if TYPE_CHECKING:
    from zbroker.cli.offline import Place
    from zbroker.log.compare import Comparison
    from zbroker.log.inspect import Report, ScannedBatch

Checked = Sequence[tuple[Path, Sequence[tuple["Place", "Report"]]]]
"""The paths that were given, each with its logs and what was found in them."""


class Pair(NamedTuple):
    """Two copies of one log, and how they compare."""

    title: str
    paths: tuple[Path, Path]
    result: Comparison

    @property
    def differs(self) -> bool:
        return self.result.difference is not None

    def lines(self, line_of: Callable[[ScannedBatch], str]) -> Iterator[str]:
        """How it reads; `line_of` writes a batch's header."""
        found, (left, right) = self.result, self.paths
        between = f"{left} and {right}"
        if found.first >= found.next:
            yield f"{self.title}: no offset that both have: {between}"
            return
        offsets = f"offsets {found.first} to {found.next - 1}"
        if found.difference is None:
            equal = click.style("equal", fg="green")
            batches = words.count(found.batches, "batch")
            yield f"{self.title}: {equal}: {offsets} in {batches}: {between}"
            return
        differ = click.style("different", fg="red", bold=True)
        what = f" in {', '.join(found.difference.fields)}" if found.difference.fields else ""
        same = words.count(found.batches, "batch")
        yield (
            f"{self.title}: {differ} at offset {found.difference.offset}{what}, "
            f"of {offsets}, {same} before it equal: {between}"
        )
        for path, batch in ((left, found.difference.left), (right, found.difference.right)):
            yield f"  {path}: {'no batch there' if batch is None else line_of(batch).strip()}"

    def as_json(self) -> dict[str, Any]:
        """The pair for programs: the log's name, both paths, the range, and the first difference."""
        import msgspec

        found = self.result
        difference = None
        if found.difference is not None:
            difference = {
                "offset": found.difference.offset,
                "fields": found.difference.fields,
                "left": _header(found.difference.left),
                "right": _header(found.difference.right),
            }
        facts = {**msgspec.structs.asdict(found), "difference": difference}
        return {"log": self.title, "left": str(self.paths[0]), "right": str(self.paths[1]), **facts}


def _header(batch: ScannedBatch | None) -> dict[str, Any] | None:
    import msgspec

    if batch is None:
        return None
    header = msgspec.structs.asdict(batch.header)
    del header["magic"]
    return {"position": batch.position, "payload_intact": batch.payload_intact, **header}


def all_pairs(found: Checked) -> list[Pair]:
    """Every two copies of a log in different paths, compared."""
    from zbroker.cli.offline import copies
    from zbroker.log.compare import compare

    reports = {
        (path, place.root, place.folder, place.segment): report
        for path, places in found
        for place, report in places
    }
    pairs: list[Pair] = []
    for same in copies([(path, [place for place, _ in places]) for path, places in found]):
        named = min((place.title for _, place in same), key=len)
        keeps = [
            (path, _copy(place, reports[path, place.root, place.folder, place.segment]))
            for path, place in same
        ]
        for (left, ours), (right, theirs) in combinations(keeps, 2):
            pairs.append(Pair(named, (left, right), compare(ours, theirs)))
    return pairs


def _copy(place: Place, report: Report) -> Any:
    from zbroker.log.compare import Copy

    return Copy(place.files, place.segments(), report.start_offset, report.end_offset)
