"""`zbroker run` and `zbroker dev`: a node in the foreground.

Owns where the configuration comes from. The node itself, its log and its signals are `zbroker.node`'s; several nodes at
once are `fleet`'s.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from zbroker.cli.common import epilog, note

if TYPE_CHECKING:
    from zbroker.config import Config

LogFormat = Literal["human", "json"]

PORTS_APART = 10
"""From one node's base port to the next one's."""

_log_format = click.option(
    "--log-format",
    type=click.Choice(["human", "json"]),
    default="human",
    show_default=True,
    help="How the node's log is written to standard error.",
)
_log_level = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What is worth a line.",
)


@click.command(epilog=epilog("zbroker run configs/node1.yaml"))
@click.argument("config", type=click.Path(path_type=Path))
@_log_format
@_log_level
@click.option("--stop-with-stdin", is_flag=True, hidden=True)
def run(config: Path, log_format: LogFormat, log_level: str, stop_with_stdin: bool) -> int:
    """Run a node.

    CONFIG is the node's YAML file; `zbroker config init` writes one. The node runs in the foreground and says when it
    serves. SIGTERM or Ctrl-C stops it in order; a second one stops it at once.
    """
    from zbroker.config import load

    if stop_with_stdin:
        from zbroker.cli import fleet

        fleet.stop_with_stdin()
    return _run(load(config), log_format, log_level)


@click.command(
    epilog=epilog("zbroker dev", "zbroker dev --nodes 3", "zbroker dev --data ./data --port 6550")
)
@click.option(
    "--nodes",
    type=click.IntRange(1, 255),
    default=1,
    show_default=True,
    help="How many nodes.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for logs and configurations, which stay; without it they are gone at the end.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65532),
    default=5550,
    show_default=True,
    help="The base port, of which the three after it are used too; further nodes are at +10, +20, …",
)
@_log_format
@_log_level
def dev(nodes: int, data: Path | None, port: int, log_format: LogFormat, log_level: str) -> int:
    """Run a broker to try things out, until Ctrl-C.

    Needs no configuration, and listens on this machine only. Several nodes are a cluster, each a process of its own
    that can be killed and started again: it is said how.
    """
    highest = port + PORTS_APART * (nodes - 1) + 3
    if highest > 65535:
        raise click.UsageError(f"--port {port}: {nodes} nodes need ports up to {highest}")
    with contextlib.ExitStack() as stack:
        folder = data
        what = f"a broker on localhost:{port}" if nodes == 1 else f"a cluster of {nodes} nodes"
        if folder is None:
            import tempfile

            temporary = tempfile.TemporaryDirectory(
                prefix="zbroker-dev-", ignore_cleanup_errors=True
            )
            folder = Path(stack.enter_context(temporary))
            note(f"{what}, gone without a trace after Ctrl-C")
        else:
            note(f"{what}, until Ctrl-C; its data stay in {folder}")
        if nodes == 1:
            return _run(_dev_config(folder, port), log_format, log_level)
        from zbroker.cli.fleet import run_fleet

        return run_fleet(folder.absolute(), nodes, port, log_format, log_level)


def _dev_config(folder: Path, port: int) -> Config:
    from zbroker.config import loads

    settings = {
        "node": "node1",
        "data": "node1",
        "cluster": {"name": "dev", "nodes": {"node1": f"127.0.0.1:{port}"}},
    }
    # JSON is YAML.
    return loads(json.dumps(settings), folder.absolute() / "dev.yaml")


def _run(config: Config, log_format: LogFormat, log_level: str) -> int:
    from zbroker.node import run_node

    return run_node(config, log_format=log_format, log_level=log_level)
