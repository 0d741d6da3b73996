"""Where a command line arrives, and where every failure ends: one sentence, the right exit status, no traceback.

Owns the list of commands, each imported when it is called for, and what an exception means to a shell:

=========================== ====== =====================================================================
what happened               status what is said
=========================== ====== =====================================================================
done                        0
a closed pipe               0      nothing: whoever read had enough
`ZBrokerError`, `OSError`   1      the sentence, and what to do
`click.UsageError`          2      what is wrong in the arguments, and where to read about them
Ctrl-C                      130    what is worth telling, as the command sees it
anything else               1      the error's name; `ZBROKER_DEBUG=1` shows where it was
=========================== ====== =====================================================================
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any, NoReturn

import click

from zbroker import __version__
from zbroker.cli.common import complain, epilog

COMMANDS = {
    "run": "zbroker.cli.nodes:run",
    "dev": "zbroker.cli.nodes:dev",
    "topic": "zbroker.cli.topics:topic",
    "produce": "zbroker.cli.produce:produce",
    "consume": "zbroker.cli.consume:consume",
    "group": "zbroker.cli.groups:group",
    "cluster": "zbroker.cli.cluster:cluster",
    "log": "zbroker.cli.logs:log",
    "config": "zbroker.cli.config:config",
    "completion": "zbroker.cli.completion:completion",
}
"""Each command and where it is, in the order in which they are shown."""


class Interrupted(Exception):
    """Ctrl-C, where a command has something to tell about it."""


class _ReaderGone(Exception):
    """Standard output is a pipe that nobody reads any more."""


class Root(click.Group):
    """The command line as a whole."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from zbroker.topics import did_you_mean

            near = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"there is no command {args[0]!r}{near}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except OSError as error:
            # click turns a broken pipe into status 1 where it sees it.
            if is_closed_pipe(error):
                raise _ReaderGone from None
            raise
        return result

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
        try:
            status = super().main(*args, **{**extra, "standalone_mode": False})
        except Exception as error:
            sys.exit(end_of(error))
        sys.exit(status if isinstance(status, int) else 0)


def end_of(error: Exception) -> int:
    """Says what went wrong and answers the exit status."""
    if isinstance(error, _ReaderGone):
        _forget_stdout()
        return 0
    if isinstance(error, Interrupted):
        complain(str(error), kind="interrupted")
        return 130
    if isinstance(error, click.Abort):
        return 130
    if _debugging():
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, click.UsageError):
        _usage(error)
        return 2
    if isinstance(error, click.ClickException):
        complain(error.format_message())
        return 1
    from zbroker.cli.failures import sentence

    complain(sentence(error))
    return 1


def _usage(error: click.UsageError) -> None:
    path = error.ctx.command_path if error.ctx else "zbroker"
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError" or not message:
        click.echo(message, err=True)
        return
    lines = " ".join(message.split()).rstrip(".")
    complain(f"{lines[:1].lower()}{lines[1:]}; see `{path} --help`")


def is_closed_pipe(error: OSError) -> bool:
    """Whether standard output has no reader any more; Windows says so in its own way."""
    return isinstance(error, BrokenPipeError) or (
        sys.platform == "win32" and error.errno == errno.EINVAL
    )


def _forget_stdout() -> None:
    """Nothing that is still buffered is to be written when the interpreter ends."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):
        return


def _debugging() -> bool:
    return os.environ.get("ZBROKER_DEBUG", "") not in ("", "0")


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=epilog(
        "zbroker dev",
        "zbroker topic create sales --partitions 4",
        "echo hello | zbroker produce sales",
        "zbroker consume sales --from earliest",
    ),
)
@click.version_option(__version__, "--version", message="zbroker %(version)s")
def cli() -> None:
    """A replicated log broker over ZeroMQ.

    Client commands find a node at --servers, at ZBROKER_SERVERS or at localhost:5550. Data goes to standard output,
    everything else to standard error.
    """
