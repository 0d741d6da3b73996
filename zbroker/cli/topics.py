"""`zbroker topic`: what topics there are, what they are like, and changing that.

Owns how a topic is drawn for a person. What may be set, and to what, is `zbroker.topics`'.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from zbroker.cli import losing, moving, words
from zbroker.cli.common import (
    Parsed,
    Topic,
    client_options,
    epilog,
    json_option,
    note,
    on_terminal,
    say_json,
)

if TYPE_CHECKING:
    from zbroker.client.admin import Admin
    from zbroker.client.records import PartitionDescription, TopicDescription

Settings = dict[str, Any]

SETTINGS_WIDTH = 78
"""Columns that settings take, beside their label."""

_NUMBERS = (
    "partition",
    "epoch",
    "start",
    "end",
    "records",
    "size",
    "segments",
    "in",
    "partitions",
    "replicas",
)


def _read_setting(text: str) -> tuple[str, str]:
    """`KEY=VALUE`, checked as far as it can be without a server."""
    from zbroker.errors import InvalidSetting
    from zbroker.topics import parse_one

    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"found {text!r}, expected KEY=VALUE, such as retention=7d")
    name = name.strip().replace("-", "_")
    try:
        parse_one(name, value.strip())
    except InvalidSetting as problem:
        raise ValueError(str(problem)) from None
    return name, value.strip()


_set = click.option(
    "--set",
    "pairs",
    metavar="KEY=VALUE",
    type=Parsed("setting", _read_setting),
    multiple=True,
    help="A setting, such as retention=7d; may be given again.",
)


@click.group(epilog=epilog("zbroker topic create sales --partitions 4 --set retention=30d"))
def topic() -> None:
    """Make, list, describe, change, move and delete topics."""


topic.add_command(moving.move)
topic.add_command(losing.accept_loss)


@topic.command(
    epilog=epilog(
        "zbroker topic create sales --partitions 4",
        "zbroker topic create clicks --set fsync=interval --set retention_size=10GiB",
        "zbroker topic create prices --set cleanup=compact",
    )
)
@click.argument("name", type=Topic(new=True))
@click.option("--partitions", type=click.IntRange(1), help="How many logs it is split into.")
@click.option("--replicas", type=click.IntRange(1), help="How many nodes keep each partition.")
@_set
@click.option("--if-not-exists", is_flag=True, help="A topic that exists is no error.")
@client_options
def create(
    name: str,
    partitions: int | None,
    replicas: int | None,
    pairs: tuple[tuple[str, str], ...],
    if_not_exists: bool,
    servers: str,
    timeout: float,
) -> None:
    """Make a topic. What is not said is as the cluster's configuration has it."""
    from zbroker.errors import TopicExists, UnknownTopic

    settings = _settings(pairs, partitions=partitions, replicas=replicas)
    with _admin(servers, timeout) as admin:
        try:
            made = admin.create_topic(name, **settings)
        except TopicExists:
            if not if_not_exists:
                raise
            try:
                admin.describe_topic(name)
            except UnknownTopic:
                pass  # another one, whose name differs only in case
            else:
                note(f"topic {name} exists")
                return
            raise
    parts = words.count(len(made.partitions), "partition")
    copies = words.count(
        max((len(part.replicas) for part in made.partitions), default=0), "replica"
    )
    note(f"created topic {name}: {parts}, {copies} each")


@topic.command("list", epilog=epilog("zbroker topic list"))
@click.option("--all", "everything", is_flag=True, help="The system's own topics too.")
@json_option
@client_options
def list_topics(everything: bool, as_json: bool, servers: str, timeout: float) -> None:
    """List topics: names alone, one a line, where it is a pipe that reads them."""
    with _admin(servers, timeout) as admin:
        found = admin.topics(internal=everything)
    if as_json:
        say_json(found)
    elif not on_terminal():
        for one in found:
            click.echo(one.name)
    elif not found:
        note("there are no topics yet; make one with `zbroker topic create`")
    else:
        from zbroker.cli import tables

        rows = [
            [one.name, str(len(one.partitions)), str(one.settings.get("replicas", "")), _kept(one)]
            for one in found
        ]
        tables.show(["topic", "partitions", "replicas", "kept"], rows, numbers=_NUMBERS)


@topic.command(epilog=epilog("zbroker topic describe sales", "zbroker topic describe sales --json"))
@click.argument("name", type=Topic())
@json_option
@client_options
def describe(name: str, as_json: bool, servers: str, timeout: float) -> None:
    """Show a topic's settings and partitions: who leads and keeps them, how much is in them and comes in."""
    with _admin(servers, timeout) as admin:
        found = admin.describe_topic(name)
    if as_json:
        say_json(found)
        return
    from zbroker.cli import tables

    settings = textwrap.wrap(
        "  ".join(f"{key}={value}" for key, value in found.settings.items()),
        SETTINGS_WIDTH,
        break_on_hyphens=False,
    )
    facts = [("topic", found.name), ("id", found.id), ("in all", _sum(found))]
    facts += zip(["settings"] + [""] * len(settings), settings, strict=False)
    tables.facts(facts)
    click.echo()
    columns = [
        "partition",
        "leader",
        "epoch",
        "replicas",
        "isr",
        "start",
        "end",
        "records",
        "size",
        "in",
    ]
    rows = [_row(part) for part in found.partitions]
    for column, cell in _WHERE_NEEDED.items():
        cells = [cell(part) for part in found.partitions]
        if any(cells):
            columns.append(column)
            for row, text in zip(rows, cells, strict=True):
                row.append(text or "-")
    tables.show(columns, rows, numbers=_NUMBERS)


_WHERE_NEEDED: dict[str, Callable[[PartitionDescription], str]] = {
    "not in sync": lambda part: ",".join(part.missing),
    "damaged": lambda part: ", ".join(f"{first}-{end - 1}" for first, end in part.damaged),
    "election": lambda part: "unclean" if part.unclean else "",
    "may have lost": lambda part: _lost(part),
    "waits for": lambda part: ",".join(part.waiting_for),
}
"""Columns that are there only where a partition has something to say in them."""


def _row(part: PartitionDescription) -> list[str]:
    """A partition as a row; what only its leader knows is `?` where that did not answer."""
    end = part.high_watermark
    records = None if end is None or part.start_offset is None else end - part.start_offset
    rate = "?" if part.records_rate is None else words.approximate_rate(part.records_rate)
    if part.bytes_rate:
        rate += f" {words.approximate_size(part.bytes_rate)}/s"
    return [
        str(part.partition),
        part.leader or "none",
        str(part.epoch),
        ",".join(part.replicas),
        ",".join(part.isr),
        _number(part.start_offset),
        _number(end),
        "?" if records is None else f"{records:,}",
        "?" if part.size is None else words.approximate_size(part.size),
        rate,
    ]


def _lost(part: PartitionDescription) -> str:
    """From where on records may be missing, unless all of that is deleted by now."""
    found = part.lost_from
    return "" if found is None or found < (part.start_offset or 0) else f"from {found}"


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)


def _sum(found: TopicDescription) -> str:
    """The topic as a whole, as far as leaders answered."""
    parts = found.partitions
    records = sum((part.high_watermark or 0) - (part.start_offset or 0) for part in parts)
    size = sum(part.size or 0 for part in parts)
    rate = sum(part.records_rate or 0 for part in parts)
    text = f"{words.count(records, 'record')}, {words.approximate_size(size)}, {words.approximate_rate(rate)}"
    silent = sum(part.high_watermark is None for part in parts)
    copies = int(found.settings.get("replicas", 1))
    short = sum(len(part.isr) < min(copies, len(part.replicas)) for part in parts)
    moving = sum(len(part.replicas) > copies for part in parts)
    headless = sum(part.leader is None for part in parts)
    if silent:
        text += f"; of {words.count(silent, 'partition')} the leader did not answer"
    if short:
        text += f"; {words.count(short, 'partition')} under-replicated"
    if moving:
        text += f"; {words.count(moving, 'partition')} moving"
    if headless:
        text += f"; {words.count(headless, 'partition')} without leader"
    return text


def _kept(found: TopicDescription) -> str:
    age, size = found.settings.get("retention"), found.settings.get("retention_size")
    return str(age) if size in (None, "unlimited") else f"{age}, {size} a partition"


@topic.command(
    epilog=epilog(
        "zbroker topic alter sales --set retention=30d", "zbroker topic alter sales --partitions 8"
    )
)
@click.argument("name", type=Topic())
@click.option("--partitions", type=click.IntRange(1), help="How many partitions; only more.")
@_set
@client_options
def alter(
    name: str,
    partitions: int | None,
    pairs: tuple[tuple[str, str], ...],
    servers: str,
    timeout: float,
) -> None:
    """Change a topic's settings, or give it more partitions.

    With more partitions, keys go to other partitions from then on: their order across the change is not kept.
    """
    settings = _settings(pairs, partitions=partitions)
    if not settings:
        raise click.UsageError("nothing to change: give --set KEY=VALUE or --partitions N")
    with _admin(servers, timeout) as admin:
        admin.alter_topic(name, **settings)
    note(f"changed topic {name}: {', '.join(f'{key}={value}' for key, value in settings.items())}")


@topic.command(epilog=epilog("zbroker topic delete sales"))
@click.argument("name", type=Topic())
@click.option("--if-exists", is_flag=True, help="A topic that is not there is no error.")
@client_options
def delete(name: str, if_exists: bool, servers: str, timeout: float) -> None:
    """Delete a topic and all its records. There is no way back."""
    from zbroker.errors import UnknownTopic

    with _admin(servers, timeout) as admin:
        try:
            admin.delete_topic(name)
        except UnknownTopic:
            if not if_exists:
                raise
            note(f"there is no topic {name}")
            return
    note(f"deleted topic {name}")


def _read_before(text: str) -> words.Start:
    return words.parse_start(text, int(time.time() * 1000))


@topic.command(
    "delete-records",
    epilog=epilog(
        "zbroker topic delete-records sales --partition 0 --before 10000",
        "zbroker topic delete-records sales --before -7d",
    ),
)
@click.argument("name", type=Topic())
@click.option(
    "--before",
    metavar="WHERE",
    required=True,
    type=Parsed("offset or time", _read_before),
    help="The new first record: an offset, a time, how long ago (-7d), or latest for none.",
)
@click.option("--partition", type=click.IntRange(0), help="One partition; all, if left out.")
@client_options
def delete_records(
    name: str, before: words.Start, partition: int | None, servers: str, timeout: float
) -> None:
    """Delete a topic's oldest records. There is no way back."""
    from zbroker.cli.places import check_offset, choose_partitions

    with _admin(servers, timeout) as admin:
        chosen = choose_partitions(admin.describe_topic(name), partition)
        numbers = [part.partition for part in chosen]
        if before.at == "offset":
            for part in chosen:
                check_offset(name, part, before.value, "give an offset of it, or latest")
            offsets = dict.fromkeys(numbers, before.value)
        else:
            at = (before.at, before.value) if before.at == "time" else before.at
            offsets = admin.offsets(name, at, numbers)
        for number, offset in sorted(offsets.items()):
            start = admin.delete_records(name, number, offset)
            note(f"partition {number} of {name} begins at offset {start}")


def _settings(pairs: tuple[tuple[str, str], ...], **options: int | None) -> Settings:
    """Settings given in whatever way, each once."""
    settings: Settings = {name: value for name, value in options.items() if value is not None}
    for name, value in pairs:
        if name in settings and str(settings[name]) != value:
            raise click.UsageError(f"{name} is given twice: {settings[name]} and {value}")
        settings[name] = value
    return settings


def _admin(servers: str, timeout: float) -> Admin:
    from zbroker.client.admin import Admin

    return Admin(servers, timeout=timeout)
