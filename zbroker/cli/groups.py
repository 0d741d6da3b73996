"""`zbroker group`: which consumer groups there are, how far each is behind, and putting one elsewhere.

Owns how a group is drawn for a person. What a reset comes to is `Admin.reset_group`'s.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from zbroker.cli import words
from zbroker.cli.catching_up import Pace, paces
from zbroker.cli.common import (
    GroupName,
    Parsed,
    Topic,
    client_options,
    complain,
    epilog,
    json_option,
    note,
    on_terminal,
    say_json,
)

if TYPE_CHECKING:
    from zbroker.client.admin import Admin
    from zbroker.client.records import GroupDescription, OffsetChange

SAMPLE_S = 2.0
"""Seconds between two looks at a group, out of which rates come: members commit each second."""

_NUMBERS = (
    "partition",
    "offset",
    "end",
    "lag",
    "rate",
    "members",
    "partitions",
    "from",
    "to",
    "by",
    "heard",
)


def _read_target(text: str) -> words.Start:
    return words.parse_start(text, int(time.time() * 1000))


@click.group(epilog=epilog("zbroker group describe invoices"))
def group() -> None:
    """List, describe, reset and delete consumer groups."""


@group.command("list", epilog=epilog("zbroker group list"))
@json_option
@client_options
def list_groups(as_json: bool, servers: str, timeout: float) -> None:
    """List groups: names alone, one a line, where it is a pipe that reads them."""
    with _admin(servers, timeout) as admin:
        found = admin.groups()
    if as_json:
        say_json(found)
    elif not on_terminal():
        for one in found:
            click.echo(one.name)
    elif not found:
        note(
            "there are no groups yet; a consumer with `group=` makes one, or `zbroker consume --group`"
        )
    else:
        from zbroker.cli import tables

        rows = [[one.name, one.state, str(one.members)] for one in found]
        tables.show(["group", "state", "members"], rows, numbers=_NUMBERS)


@group.command(
    epilog=epilog(
        "zbroker group describe invoices",
        "zbroker group describe invoices --watch",
        "zbroker group describe invoices --watch 10 --json",
    )
)
@click.argument("name", metavar="GROUP", type=GroupName())
@click.option(
    "--watch",
    metavar="[SECONDS]",
    is_flag=False,
    flag_value="2",
    type=Parsed("seconds", words.parse_seconds),
    help="Show it anew every so often (2 s), until Ctrl-C.",
)
@json_option
@client_options
def describe(name: str, watch: float | None, as_json: bool, servers: str, timeout: float) -> None:
    """Show a group's members and, of each partition, who reads it, how far, how fast, and when it will be up to date.

    Rates are of what the group has committed between two looks, 2 seconds apart. JSON is without rates, and one look.
    """
    with _admin(servers, timeout) as admin:
        before = found = admin.describe_group(name)
        if watch is not None:
            _watch(admin, found, watch, as_json)
        elif as_json:
            say_json(found)
        else:
            if found.members and found.lag:
                time.sleep(SAMPLE_S)
                found = admin.describe_group(name)
            _show(found, paces(before, found))


def _watch(admin: Admin, found: GroupDescription, pause: float, as_json: bool) -> None:
    """Shows the group again and again; where no coordinator answers for a while, says so and goes on."""
    import msgspec

    from zbroker.cli.failures import sentence
    from zbroker.errors import ZBrokerError

    before = found
    while True:
        if as_json:
            click.echo(msgspec.json.encode(found).decode())
        else:
            if on_terminal():
                click.clear()
            _show(found, paces(before, found))
            click.echo()
        time.sleep(pause)
        try:
            before, found = found, admin.describe_group(found.name)
        except ZBrokerError as error:
            complain(sentence(error), kind="warning")


def _show(found: GroupDescription, pace: dict[tuple[str, int], Pace]) -> None:
    from zbroker.cli import tables

    behind = (
        f"{words.count(found.lag, 'record')} behind{_total(pace)}"
        if found.offsets
        else "nothing read yet"
    )
    tables.facts([
        ("group", found.name),
        ("state", f"{found.state}, {words.count(len(found.members), 'member')}, epoch {found.epoch}, {found.assignor}"),
        ("coordinator", found.coordinator),
        ("in all", behind),
    ])  # fmt: skip
    if found.members:
        click.echo()
        rows = [
            [
                member.instance or member.client or "-", member.id[:8], member.state,
                str(len(member.assignment)), ",".join(member.topics), f"{member.heard:.1f}s ago",
            ]
            for member in found.members
        ]  # fmt: skip
        columns = ["member", "id", "state", "partitions", "topics", "heard"]
        tables.show(columns, rows, numbers=_NUMBERS)
    if found.offsets:
        click.echo()
        who = {member.id: member.instance or member.id[:8] for member in found.members}
        rows = []
        for one in found.offsets:
            at = pace.get((one.topic, one.partition))
            rows.append([
                one.topic, str(one.partition), who.get(one.member or "", "-"),
                _number(one.offset, "none"), _number(one.high_watermark, "?"), _number(one.lag, "?"),
                "-" if at is None else words.approximate_rate(at.rate),
                _when(one.lag, at),
            ])  # fmt: skip
        columns = ["topic", "partition", "member", "offset", "end", "lag", "rate", "up to date"]
        tables.show(columns, rows, numbers=_NUMBERS)


def _number(value: int | None, absent: str) -> str:
    return absent if value is None else str(value)


def _when(lag: int | None, at: Pace | None) -> str:
    if lag == 0:
        return "now"
    if at is None or lag is None:
        return "-"
    return (
        "never at this rate"
        if at.seconds_left is None
        else f"in {words.approximate_time(at.seconds_left)}"
    )


def _total(pace: dict[tuple[str, int], Pace]) -> str:
    """The group as a whole: it is as far as its slowest partition."""
    if not pace:
        return ""
    rate = sum(one.rate for one in pace.values())
    text = f", {words.approximate_rate(rate)}"
    left = [one.seconds_left for one in pace.values()]
    if any(one is None for one in left):
        return text
    longest = max(one for one in left if one is not None)
    return f"{text}, up to date in {words.approximate_time(longest)}" if longest else text


@group.command(
    epilog=epilog(
        "zbroker group reset invoices --to earliest",
        "zbroker group reset invoices --to -1h --topic sales --yes",
        "zbroker group reset invoices --shift -100 --topic sales --partition 2 --yes",
    ),
)
@click.argument("name", metavar="GROUP", type=GroupName())
@click.option(
    "--to",
    metavar="WHERE",
    type=Parsed("start", _read_target),
    help="earliest, latest, an offset, a time such as 2024-05-31T12:00, or how long ago, such as -1h.",
)
@click.option(
    "--shift", metavar="N", type=int, help="N records further, or back where it is below 0."
)
@click.option(
    "--topic", "topics", type=Topic(), multiple=True, help="Only this topic; may be given again."
)
@click.option("--partition", type=click.IntRange(0), help="Only this partition of the topic.")
@click.option(
    "--yes",
    "--execute",
    "yes",
    is_flag=True,
    help="Do it; without this, it is only said what would be done.",
)
@json_option
@client_options
def reset(
    name: str,
    to: words.Start | None,
    shift: int | None,
    topics: tuple[str, ...],
    partition: int | None,
    yes: bool,
    as_json: bool,
    servers: str,
    timeout: float,
) -> None:
    """Put a group elsewhere, which must have no members. Without --yes it is only said what that comes to.

    What lies before a partition's first record or behind its last becomes that. Without --topic it is what the group
    has read so far; a group that does not exist yet is made where topics are named.
    """
    if (to is None) == (shift is None):
        raise click.UsageError("say where to: --to WHERE or --shift N, one of them")
    if partition is not None and len(topics) != 1:
        raise click.UsageError("--partition is one of a single topic: give one --topic")
    chosen: Any = list(dict.fromkeys(topics)) or None
    if partition is not None:
        chosen = [(topics[0], partition)]
    with _admin(servers, timeout) as admin:
        changes = admin.reset_group(name, _target(to, shift), chosen, dry_run=not yes)
    if as_json:
        say_json(changes)
    else:
        _show_changes(changes)
    moved = sum(one.before != one.after for one in changes)
    if yes:
        note(f"group {name}: {words.count(moved, 'partition')} set")
    elif moved:
        note(
            f"group {name}: nothing was changed yet; say --yes to set {words.count(moved, 'partition')}"
        )
    else:
        note(f"group {name}: it is there already")


def _target(to: words.Start | None, shift: int | None) -> Any:
    """As `Admin.reset_group` takes it."""
    if to is None:
        return ("shift", shift)
    if to.at == "time":
        return ("time", to.value)
    return to.value if to.at == "offset" else to.at


def _show_changes(changes: list[OffsetChange]) -> None:
    from zbroker.cli import tables

    rows = [
        [
            one.topic, str(one.partition), _number(one.before, "none"), _number(one.after, "none"),
            "-" if one.before is None or one.after is None else f"{one.after - one.before:+d}",
        ]
        for one in changes
    ]  # fmt: skip
    tables.show(["topic", "partition", "from", "to", "by"], rows, numbers=_NUMBERS)


@group.command(
    epilog=epilog("zbroker group delete invoices", "zbroker group delete invoices --topic sales")
)
@click.argument("name", metavar="GROUP", type=GroupName())
@click.option(
    "--topic",
    "topics",
    type=Topic(),
    multiple=True,
    help="Only its offsets in this topic; may be given again.",
)
@client_options
def delete(name: str, topics: tuple[str, ...], servers: str, timeout: float) -> None:
    """Delete a group that has no members, with its offsets; or only its offsets in some topics."""
    with _admin(servers, timeout) as admin:
        if topics:
            gone = admin.delete_offsets(name, topics)
            note(f"group {name}: offsets of {words.count(len(gone), 'partition')} deleted")
        else:
            admin.delete_group(name)
            note(f"deleted group {name}")


def _admin(servers: str, timeout: float) -> Admin:
    from zbroker.client.admin import Admin

    return Admin(servers, timeout=timeout)
