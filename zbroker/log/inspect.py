"""Looking at a partition's folder offline: every batch of a segment, and whether all files fit together.

Owns no rule of its own: it applies those of `segment`, `index`, `epochs` and `checkpoint`, and reports. Never changes
a file. Meant for a log that no node has open; beside a running node it may see the end half written.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from zbroker.errors import UnsupportedVersion
from zbroker.log import checkpoint as checkpoints
from zbroker.log import compacted, envelope, epochs, names, producers
from zbroker.log import index as indexes
from zbroker.log.checkpoint import Checkpoint
from zbroker.log.epochs import EpochTable
from zbroker.log.segment import Bounds, Gap, read_leniently, scan
from zbroker.log.storage import Files
from zbroker.protocol.batch import BatchHeader, payload_intact


class ScannedBatch(msgspec.Struct):
    """A batch in a segment; its header's CRC holds, or it would be damage.

    Attributes:
        position: where it stands in the file, in bytes.
        payload_intact: whether the producer's CRC holds over its zone and the payload.
    """

    position: int
    header: BatchHeader
    payload_intact: bool


class Damage(msgspec.Struct):
    """Bytes from `position` to `until` that are no batches.

    Attributes:
        first: the offset that was expected there.
        next: the offset of the batch that follows; None where none does: a torn tail looks like that.
    """

    position: int
    until: int
    first: int
    next: int | None


class SegmentReport(msgspec.Struct):
    """One segment: what is in it, and the state of its index (`ok`, `missing`, `corrupt`, `stale`)."""

    path: str
    base: int
    size: int
    end: int
    batches: int = 0
    records: int = 0
    first_append_time: int = -1
    last_append_time: int = -1
    index: str = "ok"
    damage: list[Damage] = []


class Report(msgspec.Struct):
    """A partition's folder; `problems` has a sentence for each thing that is not as it should be.

    Attributes:
        start_offset: log start offset as the checkpoint has it, else the first segment's base.
        end_offset: the offset after the last whole batch.
        clean: whether the log was closed in order.
        checkpoint, epochs: `ok`, `missing`, `corrupt`, `newer` or, for epochs, `contradicts`.
        others: names in the folder that are not the log's; they are left alone.
    """

    folder: str
    start_offset: int = 0
    end_offset: int = 0
    clean: bool = False
    checkpoint: str = "ok"
    epochs: str = "ok"
    segments: list[SegmentReport] = []
    problems: list[str] = []
    others: list[str] = []

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def scan_segment(files: Files, path: str) -> Iterator[ScannedBatch | Damage]:
    """Every batch of a `.log` file in order, with its position, and what is damaged in between."""
    name = path.rpartition("/")[2].removesuffix(names.TEMPORARY)
    base = names.offset_of(name, names.LOG)
    size = max(0, files.size(path))
    for found in scan(files, path, 0, size, Bounds(base or 0), payloads=False):
        if isinstance(found, Gap):
            yield Damage(found.position, found.until, found.first, found.next)
        else:
            position, header = found
            data = read_leniently(files, path, position, header.size)
            yield ScannedBatch(position, header, payload_intact(data, 0, header))


def verify_folder(files: Files, folder: str) -> Report:
    """Reads all of a partition's folder and says what does not fit."""
    report = Report(folder)
    listing = files.list(folder)
    paths = compacted.segment_paths(files, folder)
    known = _checkpoint(files, report)
    table = _epochs(files, report, bool(paths))
    expected: int | None = None
    for base, path in paths:
        segment = _segment(files, path, base, table, report)
        if expected is not None and base != expected:
            report.problems.append(
                f"offsets {expected} to {base - 1} are missing before {segment.path}"
            )
        report.segments.append(segment)
        expected = report.end_offset = segment.end
    if known is not None:
        report.start_offset, report.clean = known.start, known.clean
        report.end_offset = max(report.end_offset, known.start)
        if paths and report.end_offset < known.offset:
            report.problems.append(
                f"the log ends at {report.end_offset}, but offsets below {known.offset} had been on disk"
            )
    elif paths:
        report.start_offset = paths[0][0]
    _others(files, report, listing)
    return report


def _checkpoint(files: Files, report: Report) -> Checkpoint | None:
    path = f"{report.folder}/{names.CHECKPOINT}"
    known = None
    try:
        known = checkpoints.load(files, report.folder)
        report.checkpoint = _state(files, path, whole=known is not None)
    except UnsupportedVersion as error:
        report.checkpoint = "newer"
        report.problems.append(str(error))
    if report.checkpoint == "corrupt":
        report.problems.append(f"{path} is damaged; the next start scans all segments")
    return known


def _epochs(files: Files, report: Report, needed: bool) -> EpochTable | None:
    path = f"{report.folder}/{names.EPOCHS}"
    table = None
    try:
        body = envelope.load(files, path, epochs.MAGIC)
        table = None if body is None else epochs.decode(body)
        report.epochs = _state(files, path, whole=table is not None)
    except UnsupportedVersion as error:
        report.epochs = "newer"
        report.problems.append(str(error))
    if report.epochs == "corrupt" or (report.epochs == "missing" and needed):
        report.problems.append(f"{path} is {report.epochs}; the next start rebuilds it")
    return table


def _state(files: Files, path: str, *, whole: bool) -> str:
    if whole:
        return "ok"
    return "missing" if files.size(path) < 0 else "corrupt"


def _segment(
    files: Files, path: str, base: int, table: EpochTable | None, report: Report
) -> SegmentReport:
    folder = report.folder
    segment, contradicts = SegmentReport(path, base, files.size(path), base), False
    for found in scan_segment(files, path):
        if isinstance(found, Damage):
            segment.damage.append(found)
            continue
        header = found.header
        if not found.payload_intact:
            until = found.position + header.size
            segment.damage.append(
                Damage(found.position, until, header.base_offset, header.next_offset)
            )
        segment.batches += 1
        segment.records += header.span
        segment.end = header.next_offset
        segment.last_append_time = header.append_time
        if segment.batches == 1:
            segment.first_append_time = header.append_time
        if table is not None and table.epoch_at(header.base_offset) != header.leader_epoch:
            contradicts = True
    for damage in segment.damage:
        missing = "" if damage.next is None else f", offsets {damage.first} to {damage.next - 1}"
        report.problems.append(
            f"{path} is damaged from byte {damage.position} to {damage.until}{missing}"
        )
    if contradicts:
        report.epochs = "contradicts"
        report.problems.append(f"{folder}/{names.EPOCHS} contradicts the batches in {path}")
    segment.index = _index_state(files, folder, segment)
    if segment.index == "corrupt":
        report.problems.append(f"the index of {path} is damaged; it is rebuilt when it is read")
    return segment


def _index_state(files: Files, folder: str, segment: SegmentReport) -> str:
    path = names.path(folder, segment.base, names.INDEX)
    if files.size(path) < 0:
        return "missing"
    try:
        body = envelope.load(files, path, indexes.MAGIC)
    except UnsupportedVersion:
        return "stale"
    index = None if body is None else indexes.decode(body)
    if index is None or index.base != segment.base:
        return "corrupt"
    return "ok" if index.covered == segment.size else "stale"


def _others(files: Files, report: Report, listing: list[str]) -> None:
    """Producer snapshots, the marker of a failed flush, and what is not ours."""
    for name in listing:
        offset = names.offset_of(name, names.PRODUCERS)
        path = f"{report.folder}/{name}"
        if offset is not None:
            body = envelope.load(files, path, producers.MAGIC)
            if body is None or producers.decode(body) is None:
                report.problems.append(f"{path} is damaged; producers are rebuilt from the log")
        elif name == names.FSYNC_FAILED:
            report.problems.append(f"{path}: a flush failed; the next start rewrites the tail")
        elif name == names.COMPACTION:
            if compacted.load(files, report.folder) is None:
                report.problems.append(
                    f"{path} is damaged; the next start compacts everything again"
                )
        elif not _ours(name):
            report.others.append(name)


def _ours(name: str) -> bool:
    stem = name.removesuffix(names.TEMPORARY)
    small = (names.EPOCHS, names.CHECKPOINT, names.COMPACTION, names.FSYNC_FAILED, "probe")
    return stem in small or any(
        names.offset_of(stem, suffix) is not None for suffix in (names.LOG, names.INDEX)
    )
