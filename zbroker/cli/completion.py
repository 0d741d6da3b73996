"""`zbroker completion`: what a shell needs to complete commands, options and topics' names."""

from __future__ import annotations

import click

from zbroker.cli.common import epilog

VARIABLE = "_ZBROKER_COMPLETE"


@click.command(
    epilog=epilog(
        'eval "$(zbroker completion bash)"',
        'eval "$(zbroker completion zsh)"',
        "zbroker completion fish > ~/.config/fish/completions/zbroker.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Write a shell's completion script.

    Topics' names are completed from a server that runs, the one of --servers or ZBROKER_SERVERS.
    """
    from click.shell_completion import get_completion_class

    from zbroker.cli.root import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "zbroker", VARIABLE).source())
