"""What a node is told: one YAML file, checked as a whole, frozen.

Owns the configuration's closed list of keys, what each may hold, the defaults, and the checks of one value
against another. Everything that is wrong is a `ConfigError` that names file, line, column, what was found and
what was expected; nothing is guessed, and no unknown key is passed over. Never looks up a host, opens a port or
makes a folder.

The keys, and where each is read: the file itself in `_config`, `cluster` in `_cluster`, its `nodes` in `_node`,
`limits` in `_limits`. The words under `topics` are those of `zbroker.topics`.
"""

from __future__ import annotations

import importlib.resources
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from zbroker import _yaml, topics
from zbroker._yaml import Item
from zbroker.errors import InvalidSetting
from zbroker.units import (
    Address,
    UnitError,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_host,
    parse_size,
)

PORTS_PER_NODE = 4
"""A node's sockets are on its base port and the three after it."""

FRAME_OVERHEAD = 64 << 10
"""What a frame may hold beside a batch's payload, in bytes."""

NODES_MAX = 255

SESSION_TIMEOUTS = (300, 60_000)
"""The shortest and the longest session timeout, in milliseconds."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_NAME_EXPECTED = "a name of up to 63 letters, digits, dots, underscores and hyphens"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Limits(msgspec.Struct, frozen=True):
    """Where a node says no. Sizes in bytes."""

    frame: int = 8 << 20
    """The largest frame that is taken from anybody."""
    memory: int = 256 << 20
    """What requests and replies in flight may hold together."""
    clients: int = 10_000
    """The most clients at once."""


class NodeConfig(msgspec.Struct, frozen=True):
    """One of the cluster's nodes, as every machine knows it."""

    name: str
    address: Address
    """Where others reach its base port."""
    listen: str
    """The numeric address that it binds; 0.0.0.0 or :: is all of the machine's."""
    rack: str | None = None


class ClusterConfig(msgspec.Struct, frozen=True):
    """What every machine of a cluster is told alike."""

    name: str
    nodes: tuple[NodeConfig, ...]
    """In the file's order."""
    voters: tuple[str, ...]
    """Names of the nodes that elect the controller, in the order of `nodes` unless told."""
    topics: Mapping[str, topics.Value]
    """Defaults for new topics, parsed: what `zbroker.topics.create` takes."""
    session_timeout: int = 1000
    """Milliseconds of silence after which a node is taken for dead."""


class Config(msgspec.Struct, frozen=True):
    """One node's whole configuration."""

    node: str
    data: Path
    """The folder for its logs, absolute."""
    cluster: ClusterConfig
    http: Address | None = None
    """Where /metrics and /health are served, if anywhere."""
    limits: Limits = Limits()

    @property
    def self(self) -> NodeConfig:
        """This node among the cluster's."""
        return next(node for node in self.cluster.nodes if node.name == self.node)


def load(file: str | os.PathLike[str]) -> Config:
    """A node's configuration from its file, the cluster's file included.

    Raises:
        ConfigError: one of the files cannot be read or is wrong; `.details` has `file`, `line` and `column`.
    """
    return _config(_yaml.read(Path(file)))


def loads(text: str, file: str | os.PathLike[str] = "node.yaml") -> Config:
    """As `load`, from a text. Relative paths count from the folder of `file`, which need not exist."""
    return _config(_yaml.parse(text.encode(), Path(file)))


def template() -> str:
    """A commented configuration of a one-node cluster that runs alone: what `config init` writes."""
    return importlib.resources.files("zbroker").joinpath("node1.yaml").read_text(encoding="utf-8")


# The file itself ---------------------------------------------------------------------------------


def _config(root: Item) -> Config:
    fields = root.fields(
        ("node", "data", "cluster", "http", "limits"),
        required=("node", "data", "cluster"),
        expected="a node's configuration",
    )
    limits = _limits(fields["limits"]) if "limits" in fields else Limits()
    cluster = _cluster(_included(fields["cluster"]), limits)
    if "limits" in fields and "max_batch" not in cluster.topics:
        _check_frame(topics.TopicSettings().max_batch, limits, fields["limits"])
    node = fields["node"].name("the name of one of the cluster's nodes")
    names = [member.name for member in cluster.nodes]
    if node not in names:
        fields["node"].fail(
            f"node {node!r} is not among the cluster's nodes{topics.did_you_mean(node, names)}"
        )
    config = Config(
        node=node, data=_data(fields["data"]), cluster=cluster, http=None, limits=limits
    )
    if "http" not in fields:
        return config
    return msgspec.structs.replace(config, http=_http(fields["http"], config))


def _data(item: Item) -> Path:
    text = item.text("the path of a folder")
    if not text or "\0" in text:
        item.fail(f"found {text!r}, expected the path of a folder")
    try:
        return Path(os.path.abspath(item.file.parent / Path(text).expanduser()))
    except RuntimeError:
        item.fail(f"found {text!r}, expected the path of a folder: there is no such user")


def _http(item: Item, config: Config) -> Address:
    """Where to serve HTTP: a port that no node on this machine needs for itself."""
    http = item.parsed(parse_address, "HOST:PORT, such as 127.0.0.1:5554")
    here = _machine(config.self.address.host)
    for node in config.cluster.nodes:
        base = node.address.port
        if _machine(node.address.host) == here and base <= http.port < base + PORTS_PER_NODE:
            item.fail(
                f"found port {http.port}, expected one outside {base} to {base + PORTS_PER_NODE - 1}, "
                f"which {node.name} needs for itself"
            )
    return http


def _limits(item: Item) -> Limits:
    fields = item.fields(Limits.__struct_fields__, expected="limits")
    ranges = {
        "frame": (64 << 10, 1 << 30),
        "memory": (1 << 20, 1 << 50),
        "clients": (1, 1_000_000),
    }
    values = {name: _limit(value, name, *ranges[name]) for name, value in fields.items()}
    limits = Limits(**values)
    if limits.memory < 2 * limits.frame:
        at = fields.get("memory", fields.get("frame", item))
        at.fail(
            f"found memory {format_size(limits.memory)}, expected at least twice "
            f"the frame of {format_size(limits.frame)}"
        )
    return limits


def _limit(item: Item, name: str, low: int, high: int) -> int:
    if name in ("frame", "memory"):
        value = item.parsed(parse_size, "a size such as 64KiB or 1GiB")
        bounds = f"{format_size(low)} to {format_size(high)}"
    else:
        value = item.parsed(_whole, "a whole number")
        bounds = f"{low} to {high}"
    if not low <= value <= high:
        item.fail(f"found {item.text('')!r}, expected {bounds}")
    return value


# The cluster -------------------------------------------------------------------------------------


def _included(item: Item) -> Item:
    """The cluster's mapping: this item, or what the file holds that it names."""
    if item.is_mapping:
        return item
    text = item.text("a mapping, or the name of a file that holds it")
    if not text or "\0" in text:
        item.fail(f"found {text!r}, expected a mapping, or the name of a file that holds it")
    file = item.file.parent / text
    if not os.path.isfile(file):
        item.fail(f"found {text!r}, expected a mapping, or a file: there is no file {file}")
    included = _yaml.read(file)
    if included.is_mapping:
        for name, (key, _) in included.entries("a cluster").items():
            if name in ("cluster", "node", "data"):
                key.fail(
                    f"found the key {name!r}, expected what stands under 'cluster' "
                    "itself: name, nodes, voters, session_timeout, topics"
                )
    return included


def _cluster(item: Item, limits: Limits) -> ClusterConfig:
    fields = item.fields(
        ("name", "nodes", "voters", "session_timeout", "topics"),
        required=("name", "nodes"),
        expected="a cluster",
    )
    name = _name(fields["name"])
    nodes = _nodes(fields["nodes"])
    names = tuple(node.name for node in nodes)
    voters = _voters(fields["voters"], names) if "voters" in fields else default_voters(names)
    defaults = _topics(fields["topics"], len(nodes), limits) if "topics" in fields else {}
    cluster = ClusterConfig(
        name=name, nodes=nodes, voters=voters, topics=MappingProxyType(defaults)
    )
    if "session_timeout" not in fields:
        return cluster
    return msgspec.structs.replace(cluster, session_timeout=_session(fields["session_timeout"]))


def _session(item: Item) -> int:
    """How long a node may be silent: shorter than a pause of its process would fence the living."""
    session = item.parsed(parse_duration, "a duration such as 1s or 500ms")
    low, high = SESSION_TIMEOUTS
    if not low <= session <= high:
        item.fail(
            f"found {item.text('')!r}, expected {format_duration(low)} to {format_duration(high)}"
        )
    return session


def _nodes(item: Item) -> tuple[NodeConfig, ...]:
    entries = item.entries("a mapping of node names to addresses")
    if not 1 <= len(entries) <= NODES_MAX:
        item.fail(f"found {len(entries)} nodes, expected 1 to {NODES_MAX}")
    nodes: list[NodeConfig] = []
    for key, value in entries.values():
        node, at = _node(_name(key), value)
        for other in nodes:
            distance = abs(node.address.port - other.address.port)
            if (
                _machine(node.address.host) == _machine(other.address.host)
                and distance < PORTS_PER_NODE
            ):
                at.fail(
                    f"found base port {node.address.port}, expected one at least "
                    f"{PORTS_PER_NODE} away from {other.address.port} of {other.name} on the same host"
                )
        nodes.append(node)
    return tuple(nodes)


def _node(name: str, item: Item) -> tuple[NodeConfig, Item]:
    """A node, and where its address stands."""
    expected = "HOST:PORT, such as 192.168.1.11:5550"
    if not item.is_mapping:
        address = _base(item, expected)
        return NodeConfig(name=name, address=address, listen=_default_listen(address.host)), item
    fields = item.fields(("address", "listen", "rack"), required=("address",), expected="a node")
    address = _base(fields["address"], expected)
    listen = _default_listen(address.host)
    if "listen" in fields:
        listen = fields["listen"].parsed(_listen, "a numeric address of this machine")
    rack = _name(fields["rack"]) if "rack" in fields else None
    return NodeConfig(name=name, address=address, listen=listen, rack=rack), fields["address"]


def _base(item: Item, expected: str) -> Address:
    """A node's base address: one that others can connect to, with room for its further ports."""
    address = item.parsed(parse_address, expected)
    highest = 65535 - PORTS_PER_NODE + 1
    if address.port > highest:
        item.fail(
            f"found base port {address.port}, expected at most {highest}: "
            "the three ports after it belong to the node too"
        )
    numeric = _numeric(address.host)
    if numeric is not None and (numeric.is_unspecified or numeric.is_multicast):
        item.fail(
            f"found {address.host}, expected an address that others can connect to; "
            "what to bind is 'listen'"
        )
    return address


def _voters(item: Item, names: tuple[str, ...]) -> tuple[str, ...]:
    voters: list[str] = []
    for element in item.elements("a list of node names"):
        voter = element.name("a node's name")
        if voter not in names:
            known = topics.did_you_mean(voter, names)
            element.fail(f"voter {voter!r} is not among the cluster's nodes{known}")
        if voter in voters:
            element.fail(f"voter {voter!r} is given twice")
        voters.append(voter)
    if not voters:
        item.fail("found no voter, expected at least one")
    return tuple(voters)


def default_voters(names: tuple[str, ...]) -> tuple[str, ...]:
    """All nodes up to three, then the first three, from five nodes on the first five.

    >>> default_voters(("a", "b")), default_voters(("a", "b", "c", "d"))
    (('a', 'b'), ('a', 'b', 'c'))
    """
    return names[:5] if len(names) >= 5 else names[:3]


def _topics(item: Item, nodes: int, limits: Limits) -> dict[str, topics.Value]:
    """Defaults for new topics: each a setting, and together what this cluster can do."""
    fields = item.fields(tuple(topics.SETTINGS), expected="topic settings")
    values: dict[str, topics.Value] = {}
    for name, value in fields.items():
        text = value.text("a value")
        try:
            values[name] = topics.parse_one(name, text)
        except InvalidSetting as problem:
            value.fail(problem.message)
    try:
        settings = topics.create(values, nodes=nodes)
    except InvalidSetting as problem:
        fields.get(problem.details["setting"], item).fail(problem.message)
    if "max_batch" in fields:
        _check_frame(settings.max_batch, limits, fields["max_batch"])
    return values


def _check_frame(max_batch: int, limits: Limits, item: Item) -> None:
    """A batch travels in one frame."""
    room = limits.frame - FRAME_OVERHEAD
    if max_batch > room:
        item.fail(
            f"found max_batch {format_size(max_batch)}, expected at most {format_size(room)}, "
            f"for a frame is limited to {format_size(limits.frame)}"
        )


# Values ------------------------------------------------------------------------------------------


def _name(item: Item) -> str:
    name = item.name(_NAME_EXPECTED)
    if not _NAME.fullmatch(name):
        item.fail(f"found {name!r}, expected {_NAME_EXPECTED}, the first a letter or a digit")
    return name


def _listen(text: str) -> str:
    host = parse_host(text)
    if _numeric(host) is None:
        raise UnitError(f"found {text!r}, expected a numeric address, such as 0.0.0.0 or ::")
    return host


def _default_listen(host: str) -> str:
    """What to bind where nothing is said: a numeric address itself, for a name all interfaces."""
    if host.lower() == "localhost":
        return "127.0.0.1"
    return host if _numeric(host) is not None else "0.0.0.0"


def _machine(host: str) -> str:
    """A host as far as can be told without a look-up: the loopback's names are one machine."""
    plain = host.lower().removesuffix(".")
    numeric = _numeric(plain)
    if plain in _LOOPBACK or (numeric is not None and numeric.is_loopback):
        return "localhost"
    return str(numeric) if numeric is not None else plain


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise UnitError(f"found {text!r}, expected a whole number")
    return int(text)
