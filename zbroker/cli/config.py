"""`zbroker config`: a node's YAML file, written and checked."""

from __future__ import annotations

from pathlib import Path

import click

from zbroker.cli.common import epilog, note


@click.group(epilog=epilog("zbroker config check configs/node1.yaml"))
def config() -> None:
    """Write and check a node's configuration."""


@config.command(epilog=epilog("zbroker config check configs/node1.yaml"))
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check a node's configuration, and say what it comes to.

    Starts nothing and opens no port. What is wrong is said with file, line and column, and exit status 1.
    """
    from zbroker.cli.words import count
    from zbroker.config import load

    found = load(file)
    cluster = found.cluster
    click.echo(
        f"{file}: ok: node {found.node} at {found.self.address}, one of "
        f"{count(len(cluster.nodes), 'node')} of cluster {cluster.name}, data in {found.data}"
    )


@config.command(epilog=epilog("zbroker config init", "zbroker config init conf/node1.yaml --force"))
@click.argument("path", type=click.Path(path_type=Path), default="node1.yaml")
@click.option("--force", is_flag=True, help="Overwrite the file where there is one.")
def init(path: Path, force: bool) -> None:
    """Write a commented configuration of one node.

    PATH is node1.yaml unless given; a folder gets a node1.yaml.
    """
    from zbroker.config import template
    from zbroker.errors import ConfigError

    if path.is_dir():
        path = path / "node1.yaml"
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError:
        raise ConfigError(
            f"{path} exists; choose another name, or say --force to overwrite it"
        ) from None
    note(f"wrote {path}; start the node with `zbroker run {path}`")
