"""`zbroker log`: segments on disk, read without a node.

Owns how batches and damage are told. What is whole and what is damaged, `zbroker.log.inspect` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zbroker.cli import words
from zbroker.cli.common import epilog, json_option, on_terminal, say_json

if TYPE_CHECKING:
    from zbroker.cli.comparing import Pair
    from zbroker.cli.offline import Place
    from zbroker.log.inspect import Damage, Report, ScannedBatch
    from zbroker.log.storage import Files


@click.group(epilog=epilog("zbroker log verify data/node1"))
def log() -> None:
    """Look at segments on disk, without a node."""


_path = click.argument("path", type=click.Path(path_type=Path))


@log.command(
    epilog=epilog("zbroker log show data/node1", "zbroker log show data/node1 --records --json")
)
@_path
@click.option("--records", is_flag=True, help="The records of each batch too.")
@json_option
def show(path: Path, records: bool, as_json: bool) -> None:
    """Show every batch, a line each.

    PATH is a .log file, a partition's folder, a topic's folder or a whole data folder. JSON is an object a line. Beside
    a running node, the last batch may be half written.
    """
    from zbroker.cli.offline import find
    from zbroker.log.inspect import scan_segment

    for place in find(path):
        files = place.files
        for segment in place.segments():
            if not as_json:
                click.echo(click.style(f"{place.title}  {place.root / segment}", bold=True))
            for found in scan_segment(files, segment):
                rows = _rows(place, files, segment, found) if records else None
                if as_json:
                    click.echo(_json_line(place, segment, found, rows))
                    continue
                click.echo(_line(found))
                for row in rows or ():
                    click.echo(row if isinstance(row, str) else _record_line(row))


@log.command(
    epilog=epilog(
        "zbroker log verify data/node1",
        "zbroker log verify data/node1 --json",
        "zbroker log verify node1/data node2/data node3/data",
    )
)
@click.argument("paths", metavar="PATH…", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def verify(paths: tuple[Path, ...], as_json: bool) -> None:
    """Read everything, check every CRC, and say what is damaged.

    PATH is a .log file, a partition's folder, a topic's folder or a whole data folder. Of several, the copies that two
    or more have of a partition are compared too, batch by batch and byte for byte, over the offsets that both keep.

    The exit status is 1 when something is damaged or different. Stop the nodes before: what they write at this moment
    looks damaged. In a cluster that did not stop in order, copies may differ in what was not committed.
    """
    from zbroker.cli import comparing
    from zbroker.cli.offline import find

    found = [(path, [(place, _verified(place)) for place in find(path)]) for path in paths]
    checked = [each for _, places in found for each in places]
    compared = comparing.all_pairs(found) if len(paths) > 1 else []
    if as_json:
        reports = [report for _, report in checked]
        say_json(
            reports
            if len(paths) == 1
            else {"logs": reports, "comparisons": [pair.as_json() for pair in compared]}
        )
    else:
        for place, report in checked:
            for line in _report_lines(place, report, whole=len(paths) > 1):
                click.echo(line)
        for pair in compared:
            for line in pair.lines(_line):
                click.echo(line)
    _raise_problems(checked, compared)


def _raise_problems(checked: list[tuple[Place, Report]], compared: list[Pair]) -> None:
    """The sentence that ends a check in which something was found."""
    from zbroker.errors import DataDamaged

    damaged = list(dict.fromkeys(place.title for place, report in checked if report.problems))
    differ = list(dict.fromkeys(pair.title for pair in compared if pair.differs))
    if damaged:
        problems = sum(bool(report.problems) for _, report in checked)
        raise DataDamaged(
            f"found problems in {problems} of {words.count(len(checked), 'log')}: {_listed(damaged)}; "
            "start the node, which reads around damage and keeps it aside, or restore a copy"
        )
    if differ:
        raise DataDamaged(
            f"copies differ: {_listed(differ)}; start the nodes together, which agree on what is committed, and "
            "verify again once they have stopped in order"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def _verified(place: Place) -> Report:
    """A partition's report; for a segment alone, of that segment."""
    from zbroker.cli.offline import COMPANIONS, snapshot_of
    from zbroker.errors import ZBrokerError
    from zbroker.log.inspect import verify_folder

    report = verify_folder(place.files, place.folder)
    if place.is_metadata:
        report.others = [name for name in report.others if name not in COMPANIONS]
        try:
            snapshot_of(place)
        except ZBrokerError as error:
            report.problems.append(str(error))
    if place.segment is None:
        return report
    segment = place.segment
    report.segments = [one for one in report.segments if one.path == segment]
    report.problems = [problem for problem in report.problems if segment in problem]
    report.others = []
    for one in report.segments:
        report.start_offset, report.end_offset = one.base, one.end
    return report


def _report_lines(place: Place, report: Report, *, whole: bool = False) -> Iterator[str]:
    """What was found in one log; with `whole`, it is said where that is."""
    state = (
        click.style("ok", fg="green")
        if report.intact
        else click.style("damaged", fg="red", bold=True)
    )
    batches = sum(segment.batches for segment in report.segments)
    size = sum(segment.size for segment in report.segments)
    offsets = (
        f"offsets {report.start_offset} to {report.end_offset - 1}"
        if report.end_offset > report.start_offset
        else f"empty at offset {report.end_offset}"
    )
    where = f"{place.title} in {place.root}" if whole else place.title
    closed = "" if report.clean or place.segment else ", not closed in order"
    yield (
        f"{where}: {state}: {offsets} in {words.count(batches, 'batch')}, "
        f"{words.count(len(report.segments), 'segment')}, {words.approximate_size(size)}{closed}"
    )
    for problem in report.problems:
        yield f"  {problem}"
    if report.others:
        yield f"  not of the log, and left alone: {', '.join(report.others)}"


# Batches ------------------------------------------------------------------------------------------


def _line(found: ScannedBatch | Damage) -> str:
    from zbroker.log.inspect import Damage

    if isinstance(found, Damage):
        following = "the end" if found.next is None else f"offset {found.next}"
        text = (
            f"  damaged: bytes {found.position} to {found.until}, "
            f"from offset {found.first} to before {following}"
        )
        return click.style(text, fg="red")
    header = found.header
    parts = [
        f"  {_range('offset', header.base_offset, header.next_offset - 1)}",
        f"epoch {header.leader_epoch}",
        f"appended {words.iso(header.append_time)}",
        f"records of {_times(header.base_timestamp, header.max_timestamp)}",
        f"{_codec(header.compression)} {header.size} B",
        f"at {found.position}",
    ]
    if header.producer_id >= 0:
        parts.append(
            f"producer {header.producer_id} epoch {header.producer_epoch} "
            f"sequence {header.base_sequence}"
        )
    if header.is_control:
        parts.append("control")
    if not found.payload_intact:
        parts.append(click.style("damaged payload", fg="red"))
    return "  ".join(parts)


def _range(noun: str, first: int, last: int) -> str:
    return f"{noun} {first}" if first == last else f"{noun}s {first}-{last}"


def _times(first: int, last: int) -> str:
    return words.iso(first) if first == last else f"{words.iso(first)} to {words.iso(last)}"


def _codec(number: int) -> str:
    from zbroker.protocol.compression import CODECS

    return CODECS[number] if number < len(CODECS) else f"codec {number}"


def _json_line(
    place: Place, segment: str, found: ScannedBatch | Damage, rows: list[Any] | None
) -> str:
    import msgspec

    from zbroker.cli.visible import printable_json
    from zbroker.log.inspect import Damage

    line: dict[str, Any] = {"log": place.title, "segment": str(place.root / segment)}
    if isinstance(found, Damage):
        line["damage"] = found
    else:
        header = msgspec.structs.asdict(found.header)
        del header["magic"]
        line |= {"position": found.position, "payload_intact": found.payload_intact, **header}
        line["compression"] = _codec(found.header.compression)
    if rows is not None and not isinstance(found, Damage):
        broken = [row for row in rows if isinstance(row, str)]
        line["records"] = None if broken else rows
    text = msgspec.json.encode(line)
    return (printable_json(text) if on_terminal() else text).decode()


# Records ------------------------------------------------------------------------------------------


def _rows(place: Place, files: Files, segment: str, found: ScannedBatch | Damage) -> list[Any]:
    """A batch's records in the shape of `consume --json`, or a sentence that says why there are none."""
    from zbroker.cli.writing import to_json
    from zbroker.client.records import Record
    from zbroker.errors import ZBrokerError
    from zbroker.log.inspect import Damage
    from zbroker.protocol.batch import APPEND_TIME, decode_records

    if isinstance(found, Damage):
        return []
    header = found.header
    try:
        batch = files.read(segment, found.position, header.size)
        rows = decode_records(batch, 0, header)
    except ZBrokerError as error:
        return [f"    {error}"]
    topic, partition, base = place.topic, place.partition, header.base_timestamp
    stamped = header.append_time if header.stamp_attributes & APPEND_TIME else None
    return [
        to_json(
            Record(
                topic, partition, offset, base + row[0] if stamped is None else stamped, *row[1:]
            )
        )
        for offset, row in enumerate(rows, header.base_offset)
        if row is not None
    ]


def _record_line(row: Any) -> str:
    import msgspec

    from zbroker.cli.visible import printable_json

    facts = {
        name: value
        for name, value in (("key", row.key), ("value", row.value), ("headers", row.headers))
        if name != "headers" or value
    }
    text = printable_json(msgspec.json.encode(facts)).decode()
    return f"    {row.offset}  {words.iso(row.timestamp)}  {text}"
