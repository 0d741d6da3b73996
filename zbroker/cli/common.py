"""What commands share: their options, and how they speak to a person or to a pipe.

Owns the spelling of options that mean the same everywhere. Imports nothing but click until a command runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from zbroker.cli import words

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from zbroker import Admin

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

COMPLETION_TIMEOUT = 0.7
"""Seconds that completing a name may take: a shell waits for it."""


# Speaking -----------------------------------------------------------------------------------------


def complain(message: str, kind: str = "error") -> None:
    """One line on standard error, in the form that every failure has."""
    from zbroker.cli.visible import printable

    click.echo(f"zbroker: {kind}: {printable(message)}", err=True)


def note(message: str) -> None:
    """One line on standard error: what was done."""
    from zbroker.cli.visible import printable

    click.echo(f"zbroker: {printable(message)}", err=True)


def log_to_stderr() -> None:
    """Has the client's warnings come out in the form that every line on standard error has."""
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complain(record.getMessage(), kind=record.levelname.lower())

    logger = logging.getLogger("zbroker")
    if not logger.handlers:
        logger.addHandler(Handler(logging.WARNING))


def output() -> BinaryIO:
    """Standard output for bytes."""
    return sys.stdout.buffer


def on_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def say_json(value: Any) -> None:
    """A value as JSON on standard output: indented for a person, one line for a pipe."""
    import msgspec

    text = msgspec.json.encode(value)
    if on_terminal():
        text = msgspec.json.format(text, indent=2)
    click.echo(text.decode())


def epilog(*examples: str) -> str:
    """The end of a command's help: how it is used."""
    title = "Example:" if len(examples) == 1 else "Examples:"
    return "\n".join(["\b", title, *(f"  {example}" for example in examples)])


# Kinds of arguments -------------------------------------------------------------------------------


class Parsed(ParamType):
    """An argument that one of `words` reads; its sentence says what is wrong."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


class Topic(ParamType):
    """A topic's name, of which a shell may complete the rest.

    Args:
        new: it is to be created, so that the system's names are refused.
    """

    name = "topic"

    def __init__(self, *, new: bool = False) -> None:
        self._new = new

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from zbroker.errors import InvalidTopic
        from zbroker.topics import check_name

        system = not self._new and value.startswith("__")
        try:
            check_name(value.lstrip("_") or "_" if system else value)
        except InvalidTopic as problem:
            self.fail(str(problem), param, ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        if self._new:
            return []
        names = _known(ctx, lambda admin: (topic.name for topic in admin.topics()))
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class GroupName(ParamType):
    """A consumer group's name, of which a shell may complete the rest."""

    name = "group"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        bad = not value or len(value) > 255 or any(ord(letter) < 32 for letter in value)
        if bad or "\x7f" in value:
            self.fail(
                f"found {value!r}, expected 1 to 255 characters, none of them control characters",
                param,
                ctx,
            )
        return value

    def shell_complete(
        self, ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = _known(ctx, lambda admin: (one.name for one in admin.groups()))
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class Nodes(ParamType):
    """A node's name, or with `many` a tuple of several with commas; a shell may complete the last."""

    def __init__(self, *, many: bool = False) -> None:
        self.name = "nodes" if many else "node"
        self._many = many

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        names = [name.strip() for name in value.split(",")] if self._many else [value]
        for number, name in enumerate(names):
            if not name:
                self.fail(f"found {value!r}, expected {self._expected()}", param, ctx)
            if name in names[:number]:
                self.fail(f"found {value!r}, in which {name} stands twice", param, ctx)
        return tuple(names) if self._many else value

    def _expected(self) -> str:
        return "names of nodes, such as node1,node2" if self._many else "a node's name"

    def shell_complete(
        self, ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        before, comma, last = incomplete.rpartition(",") if self._many else ("", "", incomplete)
        names = _known(ctx, lambda admin: (node.name for node in admin.cluster().nodes))
        given = before.split(",")
        return [
            CompletionItem(f"{before}{comma}{name}")
            for name in names
            if name.startswith(last) and name not in given
        ]


def _known(ctx: click.Context, names: Callable[[Admin], Iterable[str]]) -> list[str]:
    """What a server that runs knows; nothing where there is none: a shell is no place for errors."""
    servers = ctx.params.get("servers") or os.environ.get("ZBROKER_SERVERS") or DEFAULT_SERVERS
    try:
        from zbroker import Admin

        with Admin(servers, timeout=COMPLETION_TIMEOUT) as admin:
            return list(names(admin))
    except Exception:
        return []


def _read_servers(text: str) -> str:
    from zbroker.units import parse_servers

    return ",".join(map(str, parse_servers(text)))


# Options ------------------------------------------------------------------------------------------

DEFAULT_SERVERS = "localhost:5550"

_servers = click.option(
    "--servers",
    metavar="HOST:PORT[,…]",
    type=Parsed("servers", _read_servers),
    default=DEFAULT_SERVERS,
    envvar="ZBROKER_SERVERS",
    show_default=True,
    help="Nodes to ask; one that runs is enough. Also: ZBROKER_SERVERS.",
)

_timeout = click.option(
    "--timeout",
    metavar="SECONDS",
    type=Parsed("seconds", words.parse_seconds),
    default="10",
    show_default=True,
    help="How long to wait for a server; then exit with 1.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON.")


def client_options(command: F) -> F:
    """`--servers` and `--timeout`, which every command that asks a server has."""
    return _servers(_timeout(command))


def separator_option(doc: str) -> Callable[[F], F]:
    r"""`--key-separator`, with `\t \n \0 \xNN`."""
    return click.option(
        "--key-separator",
        "separator",
        metavar="SEP",
        type=Parsed("separator", _read_separator),
        help=rf"{doc} Knows \t \n \0 \xNN.",
    )


def _read_separator(text: str) -> bytes:
    separator = words.unescape(text)
    if not separator:
        raise ValueError(r"found nothing, expected at least one character, such as = or \t")
    return separator


def check_separator(separator: bytes | None, null: bool) -> None:
    """Refuses a separator that could never stand inside a record."""
    terminator = b"\0" if null else b"\n"
    if separator is not None and terminator in separator:
        name = "NUL" if null else "a line's end"
        other = "" if null else "; with --null, a record may hold line ends"
        raise click.UsageError(f"--key-separator holds {name}, which ends the record{other}")


def refuse_together(**given: Any) -> None:
    """Raises where two options that exclude each other are both given."""
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if len(names) > 1:
        raise click.UsageError(f"{names[0]} and {names[1]} exclude each other: give one of them")
