"""`zbroker produce`: standard input into a topic.

Owns how input becomes records; what becomes of them is `sending`'s. Reads whole chunks, and sends what is complete at
once: a line typed at a terminal goes without waiting for the next.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Literal

import click

from zbroker.cli import words
from zbroker.cli.common import (
    Parsed,
    Topic,
    check_separator,
    client_options,
    epilog,
    log_to_stderr,
    note,
    refuse_together,
    separator_option,
)

if TYPE_CHECKING:
    from zbroker.cli.progress import Advance
    from zbroker.cli.reading import Splitter
    from zbroker.cli.sending import Sender
    from zbroker.client.producer import Producer

READ_SIZE = 1 << 20
JSON_GROWTH_MAX = 6
"""Bytes that JSON may need for one of a record: `\\u0000`."""
INTERRUPT_PATIENCE = 1.0
"""Seconds after Ctrl-C in which what was read may still be acknowledged."""

Take = Callable[["Sender", int, list[bytes]], None]
"""Sends records; the first has the number given, counted from 1."""


@click.command(
    epilog=epilog(
        "seq 10 | zbroker produce numbers",
        r"zbroker produce sales --key-separator '\t' < sales.tsv",
        """echo '{"key": "k", "value": "v", "headers": [["a", "b"]]}' | zbroker produce sales --json""",
    )
)
@click.argument("topic", type=Topic())
@separator_option("A record is KEY SEP VALUE; SEP is looked for once, from the left.")
@click.option("--null", is_flag=True, help="A record ends with NUL, not with a line's end.")
@click.option("--json", "as_json", is_flag=True, help="A record is a JSON object, one a line.")
@click.option(
    "--acks",
    type=click.Choice(["all", "leader", "none"]),
    default="all",
    show_default=True,
    help="Who must have a record before it counts.",
)
@click.option(
    "--compression",
    type=click.Choice(["none", "lz4", "zstd"]),
    default="none",
    show_default=True,
    help="How batches are compressed.",
)
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="Stop at a record that is at fault, or leave it out.",
)
@click.option(
    "--delivery-timeout",
    metavar="SECONDS",
    type=Parsed("seconds", words.parse_seconds),
    default="120",
    show_default=True,
    help="How long a record is sent again before it is given up.",
)
@client_options
def produce(
    topic: str,
    separator: bytes | None,
    null: bool,
    as_json: bool,
    acks: Literal["all", "leader", "none"],
    compression: Literal["none", "lz4", "zstd"],
    on_error: str,
    delivery_timeout: float,
    servers: str,
    timeout: float,
) -> None:
    """Send standard input to a topic, one record a line.

    Bytes are sent as they are, and an empty line is an empty record. A JSON object has value, and perhaps key, headers,
    timestamp and partition; bytes that are not UTF-8 are {"base64": …}, a null value is a tombstone.

    A server must answer within --timeout at the start. From then on the producer outlives restarts of its nodes, for
    --delivery-timeout. The exit status is 0 only when every record was acknowledged.
    """
    refuse_together(json=as_json, null=null)
    refuse_together(json=as_json, key_separator=separator)
    check_separator(separator, null)
    from zbroker.cli.reading import Splitter
    from zbroker.cli.sending import Sender
    from zbroker.client.producer import Producer

    log_to_stderr()
    source = _standard_input()
    limit = _record_limit(topic, servers, timeout)
    if sys.stdin.isatty() and sys.stderr.isatty():
        note("a record a line; Ctrl-D ends")
    producer = Producer(
        servers, acks=acks, compression=compression, delivery_timeout=delivery_timeout
    )
    sender = Sender(producer, topic, limit=limit, skip=on_error == "skip", tell=note)
    # What the splitter cuts must still be too large once its separator is gone, or its JSON read.
    longest = limit * JSON_GROWTH_MAX + (64 << 10) if as_json else limit + len(separator or b"")
    splitter = Splitter(b"\0" if null else b"\n", longest)
    _run(producer, sender, source, splitter, _taker(as_json, separator), timeout)


def _run(
    producer: Producer,
    sender: Sender,
    source: BinaryIO,
    splitter: Splitter,
    take: Take,
    timeout: float,
) -> None:
    """Sends all there is and waits for the answers; whatever happens, says what is known."""
    from zbroker.cli.failures import sentence
    from zbroker.cli.progress import reading_progress
    from zbroker.cli.root import Interrupted
    from zbroker.cli.sending import RecordFailed
    from zbroker.errors import ZBrokerError

    try:
        with reading_progress() as advance:
            _pump(source, splitter, sender, take, advance)
            producer.flush()
        sender.settle()
    except KeyboardInterrupt:
        _flush(producer, INTERRUPT_PATIENCE)
        raise Interrupted(sender.summary()) from None
    except RecordFailed as failure:
        _flush(producer, timeout)
        raise RecordFailed(f"{failure.message} ({sender.summary()})") from None
    except (ZBrokerError, OSError) as error:
        raise RecordFailed(f"{sentence(error)} ({sender.summary()})") from error
    finally:
        producer.close(0)
    complete, summary = sender.complete, sender.summary()
    if not complete:
        raise RecordFailed(summary)
    if sys.stderr.isatty():
        note(summary)


def _pump(
    source: BinaryIO, splitter: Splitter, sender: Sender, take: Take, advance: Advance
) -> None:
    number = 1
    while chunk := _read(source):
        records = splitter.feed(chunk)
        if records:
            take(sender, number, records)
            number += len(records)
        sender.settle()
        advance(len(chunk), len(records))
    if last := splitter.finish():
        take(sender, number, last)
        advance(0, 1)


def _taker(as_json: bool, separator: bytes | None) -> Take:
    if as_json:
        return _take_json
    if separator is None:
        return _take_values

    def take_keyed(sender: Sender, number: int, records: list[bytes]) -> None:
        from zbroker.cli.reading import split_keys

        keys, values, bad = split_keys(records, separator)
        if not bad:
            sender.many(range(number, number + len(records)), values, keys)
            return
        start = sent = 0
        for at in [*bad, len(records)]:
            # Those before it go first: a record that stops the run stops nothing in front of it.
            end = sent + at - start
            sender.many(range(number + start, number + at), values[sent:end], keys[sent:end])
            if at < len(records):
                sender.refuse(number + at, _no_separator(separator))
            start, sent = at + 1, end

    return take_keyed


def _take_values(sender: Sender, number: int, records: list[bytes]) -> None:
    sender.many(range(number, number + len(records)), records, None)


def _take_json(sender: Sender, number: int, records: list[bytes]) -> None:
    from zbroker.cli.reading import parse_json

    for at, line in enumerate(records, number):
        try:
            record = parse_json(line)
        except ValueError as problem:
            sender.refuse(at, str(problem))
        else:
            sender.one(at, record)


def _no_separator(separator: bytes) -> str:
    from zbroker.cli.visible import visible

    return f"found no separator '{visible(separator).decode()}' in it, expected KEY SEP VALUE"


def _record_limit(topic: str, servers: str, timeout: float) -> int:
    """Bytes that a record of the topic may have; asking is also how it is known that topic and server are there."""
    from zbroker.client.admin import Admin
    from zbroker.units import parse_size

    with Admin(servers, timeout=timeout) as admin:
        return parse_size(admin.describe_topic(topic).settings["max_batch"])


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise click.ClickException("standard input is closed; give the records on it")
    return sys.stdin.buffer


def _read(source: BinaryIO) -> bytes:
    """What there is by now, at least a byte; nothing at the end."""
    read: Callable[[int], bytes] = getattr(source, "read1", source.read)
    return read(READ_SIZE)


def _flush(producer: Producer, patience: float) -> None:
    """Waits a moment for what was sent; Ctrl-C ends that too."""
    from zbroker.errors import ZBrokerError

    with contextlib.suppress(ZBrokerError, KeyboardInterrupt):
        producer.flush(patience)
