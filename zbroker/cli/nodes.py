"""`zbroker run` and `zbroker dev`: a node in the foreground.

Owns where the configuration comes from. The node itself, its log and its signals are `zbroker.node`'s.
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
def run(config: Path, log_format: LogFormat, log_level: str) -> int:
    """Run a node.

    CONFIG is the node's YAML file; `zbroker config init` writes one. The node runs in the foreground and says when it
    serves. SIGTERM or Ctrl-C stops it in order; a second one stops it at once.
    """
    from zbroker.config import load

    return _run(load(config), log_format, log_level)


@click.command(epilog=epilog("zbroker dev", "zbroker dev --data ./data --port 6550"))
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
    help="Folder for the logs, which stay; without it they are gone at the end.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65532),
    default=5550,
    show_default=True,
    help="The base port; the three after it are used too.",
)
@_log_format
@_log_level
def dev(nodes: int, data: Path | None, port: int, log_format: LogFormat, log_level: str) -> int:
    """Run a broker to try things out, until Ctrl-C.

    Needs no configuration. It listens on this machine only.
    """
    if nodes > 1:
        from zbroker.errors import InvalidRequest

        raise InvalidRequest(
            f"this version runs one node, not {nodes}: several come with the mesh; leave out --nodes"
        )
    with contextlib.ExitStack() as stack:
        folder = data
        if folder is None:
            import tempfile

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zbroker-dev-")))
            note(f"a broker on localhost:{port}, gone without a trace after Ctrl-C")
        else:
            note(f"a broker on localhost:{port}, until Ctrl-C; its data stay in {folder}")
        return _run(_dev_config(folder, port), log_format, log_level)


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
