"""`zbroker consume`: topics to standard output.

Owns when reading begins and ends, and what becomes of a closed pipe; how records look is `writing`'s. What there is
goes out in one write, and at once: nobody waits for a buffer to fill.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from zbroker.cli import words
from zbroker.cli.common import (
    GroupName,
    Parsed,
    Topic,
    check_separator,
    client_options,
    epilog,
    log_to_stderr,
    on_terminal,
    output,
    refuse_together,
    separator_option,
)

if TYPE_CHECKING:
    from zbroker.cli.writing import Writer
    from zbroker.client.consumer import Consumer

IDLE = 1.0
"""Seconds without a record after which it is looked whether anybody still reads, and whether servers are there."""
RECORDS_AT_ONCE = 5000


def _read_start(text: str) -> words.Start:
    return words.parse_start(text, int(time.time() * 1000))


@click.command(
    epilog=epilog(
        "zbroker consume sales",
        "zbroker consume sales --from -1h --until-end --json",
        "zbroker consume sales --group invoices --from earliest",
        r"zbroker consume sales clicks --from earliest --format '%t %p %o %T %k %v %h\n'",
    )
)
@click.argument("topics", metavar="TOPIC…", type=Topic(), nargs=-1, required=True)
@click.option(
    "--from",
    "start",
    metavar="WHERE",
    default="latest",
    show_default=True,
    type=Parsed("start", _read_start),
    help="earliest, latest, an offset, a time such as 2024-05-31T12:00, or how long ago, such as -1h.",
)
@click.option("--partition", type=click.IntRange(0), help="One partition; all, if left out.")
@click.option(
    "--group",
    metavar="GROUP",
    type=GroupName(),
    help="Share the partitions with the group's other members, and go on where the group is.",
)
@click.option("--max", "most", metavar="N", type=click.IntRange(1), help="End after N records.")
@click.option("--until-end", is_flag=True, help="End at what is there now.")
@separator_option("Write KEY SEP VALUE.")
@click.option("--null", is_flag=True, help="End a record with NUL, not with a line's end.")
@click.option("--json", "as_json", is_flag=True, help="Write a JSON object a record, one a line.")
@click.option(
    "--format",
    "form",
    metavar="FORMAT",
    help=r"%t topic, %p partition, %o offset, %T timestamp, %k key, %v value, %h headers, %% percent; \t \n \0 \xNN.",
)
@client_options
def consume(
    topics: tuple[str, ...],
    start: words.Start,
    partition: int | None,
    group: str | None,
    most: int | None,
    until_end: bool,
    separator: bytes | None,
    null: bool,
    as_json: bool,
    form: str | None,
    servers: str,
    timeout: float,
) -> None:
    """Write a topic's records to standard output: the value alone, one a line.

    A pipe gets bytes as they are, a terminal gets control bytes as escapes. Of --from, an offset counts in each
    partition, and a time is that of records. Without --until-end and --max it goes on until Ctrl-C, and outlives
    restarts of its nodes. With --group, --from counts where the group has read nothing yet, and what was written is
    committed.
    """
    for other in ({"key_separator": separator}, {"null": null}):
        refuse_together(json=as_json, **other)
        refuse_together(format=form is not None, **other)
    refuse_together(json=as_json, format=form is not None)
    refuse_together(group=group, partition=partition is not None)
    check_separator(separator, null)
    write = _writer(separator, null, as_json, form)
    log_to_stderr()
    _check_places(topics, start, partition, servers, timeout)
    from zbroker.client.consumer import Consumer

    with Consumer(
        servers,
        *dict.fromkeys(topics),
        group=group,
        start=_start(start),
        partitions=None if partition is None else [(topic, partition) for topic in topics],
        until_end=until_end,
    ) as consumer:
        alive = (lambda: _ask(topics[0], servers, timeout)) if until_end else None
        _copy(consumer, write, most, timeout, alive)


def _copy(
    consumer: Consumer,
    write: Writer,
    most: int | None,
    timeout: float,
    alive: Callable[[], None] | None,
) -> None:
    """Records to standard output until there is a reason to end.

    Args:
        alive: raises when no server answers; asked after `timeout` seconds without a record.
    """
    out = output()
    left = most
    idle_since = time.monotonic()
    while left is None or left > 0:
        at_once = RECORDS_AT_ONCE if left is None else min(left, RECORDS_AT_ONCE)
        records = consumer.poll(IDLE, at_once)
        if records:
            out.write(write(records))
            out.flush()
            idle_since = time.monotonic()
            if left is not None:
                left -= len(records)
        elif consumer.ended or _reader_gone():
            return
        elif alive is not None and time.monotonic() - idle_since >= timeout:
            alive()
            idle_since = time.monotonic()


def _writer(separator: bytes | None, null: bool, as_json: bool, form: str | None) -> Writer:
    from zbroker.cli import writing

    terminal = on_terminal()
    if as_json:
        return writing.json_lines(terminal=terminal)
    if form is None:
        return writing.lines(separator, b"\0" if null else b"\n", terminal=terminal)
    try:
        return writing.formatted(form, terminal=terminal)
    except ValueError as problem:
        raise click.BadParameter(str(problem), param_hint="'--format'") from None


def _start(start: words.Start) -> Any:
    """As the consumer takes it."""
    if start.at == "time":
        return ("time", start.value)
    return start.value if start.at == "offset" else start.at


def _check_places(
    topics: tuple[str, ...],
    start: words.Start,
    partition: int | None,
    servers: str,
    timeout: float,
) -> None:
    """That a server answers, and that topics, partition and offset are there: before anything is written."""
    from zbroker.cli.places import check_offset, choose_partitions
    from zbroker.client.admin import Admin

    with Admin(servers, timeout=timeout) as admin:
        for topic in topics:
            found = admin.describe_topic(topic)
            for part in choose_partitions(found, partition):
                if start.at == "offset":
                    advice = "start with --from earliest or --from latest"
                    check_offset(topic, part, start.value, advice)


def _ask(topic: str, servers: str, timeout: float) -> None:
    from zbroker.client.admin import Admin

    with Admin(servers, timeout=timeout) as admin:
        admin.describe_topic(topic)


def _reader_gone() -> bool:
    """Whether standard output is a pipe whose reader has left: nobody waits for the next record."""
    if not hasattr(select, "poll"):
        return False
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))
    except (OSError, ValueError):
        return False
