"""Configuration files: the good ones' values, and the exact place and words of what is wrong in the broken ones."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker import config, topics
from zbroker.config import Config, Limits, NodeConfig
from zbroker.errors import ConfigError, ZBrokerError
from zbroker.units import Address

ROOT = Path(__file__).parents[2]
BROKEN = sorted((ROOT / "tests/data/broken").glob("*.yaml"))
EXPECT = re.compile(
    r"# expect: (?:(?P<file>\S+\.yaml) )?(?P<line>\d+):(?P<column>\d+) (?P<gist>.+)"
)

ONE_NODE = """
node: node1
data: data
cluster:
  name: lab
  nodes: {node1: "127.0.0.1:5550"}
"""

EVERYTHING = """
node: node2
data: /var/lib/zbroker
cluster:
  name: lab
  nodes:
    node1: 192.168.1.11:5550
    node2: {address: node2.local:5550, listen: 0.0.0.0, rack: shelf-b}
    node3: {address: "[fd00::3]:5550", listen: "::"}
  voters: [node3, node1]
  session_timeout: 1500ms
  topics: {partitions: 4, replicas: 3, min_insync: 2, fsync: interval, retention: 7d}
http: "[::1]:5554"
limits: {frame: 16MiB, memory: 1GiB, clients: 50}
"""


def nodes(count: int, *more: str) -> str:
    """A configuration of so many nodes, with further lines in its cluster."""
    lines = ["node: n1", "data: data", "cluster:", "  name: lab", "  nodes:"]
    lines += [f"    n{number}: 10.0.0.{number}:5550" for number in range(1, count + 1)]
    return "\n".join([*lines, *(f"  {line}" for line in more)])


@pytest.mark.parametrize("file", BROKEN, ids=lambda file: file.stem)
def test_broken_file(file: Path) -> None:
    """Each file's first line says where its fault is and how the message begins."""
    expect = EXPECT.fullmatch(file.read_bytes().split(b"\n")[0].decode())
    assert expect is not None
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    at = file.parent / expect["file"] if expect["file"] else file
    assert str(caught.value).startswith(
        f"{at}:{expect['line']}:{expect['column']}: {expect['gist']}"
    )
    details = caught.value.details
    assert (details["file"], details["line"], details["column"]) == (
        str(at),
        int(expect["line"]),
        int(expect["column"]),
    )


def test_there_are_broken_files() -> None:
    assert len(BROKEN) >= 45


@pytest.mark.parametrize("text", ["", ONE_NODE + "http: 5554"])
def test_an_error_is_one_line_and_coded(text: str) -> None:
    with pytest.raises(ZBrokerError) as caught:
        config.loads(text, "some/where.yaml")
    assert caught.value.code == "config"
    assert not caught.value.retriable
    assert str(caught.value).startswith("some/where.yaml:")
    assert "\n" not in str(caught.value)


PIECES = st.sampled_from(
    [
        b":",
        b"- ",
        b"[",
        b"{",
        b"}",
        b'"',
        b"'",
        b"&a ",
        b"*a",
        b"!!",
        b"|",
        b"\t",
        b"\n",
        b"~",
        b"%",
    ]
) | st.binary(max_size=4)


@given(st.lists(st.tuples(st.integers(0, len(EVERYTHING)), st.integers(0, 9), PIECES), max_size=5))
def test_a_mangled_file_is_read_or_refused(edits: list[tuple[int, int, bytes]]) -> None:
    """Whatever a file holds, nothing but a `ConfigError` with its place comes out."""
    data = EVERYTHING.encode()
    for start, length, piece in edits:
        data = data[:start] + piece + data[start + length :]
    try:
        read = config.loads(data.decode("utf-8", "replace"))
    except ConfigError as problem:
        assert re.match(r"node\.yaml:\d+:\d+: ", str(problem))
    else:
        assert read.self.name == read.node


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read: no such file"):
        config.load(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="cannot be read: is a directory"):
        config.load(tmp_path)


def test_a_file_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_text("#" * (1 << 20) + "\n" + ONE_NODE)
    with pytest.raises(ConfigError, match="found more than 1048576 bytes"):
        config.load(file)


def test_one_node_with_nothing_but_what_is_required(tmp_path: Path) -> None:
    file = tmp_path / "configs" / "node1.yaml"
    file.parent.mkdir()
    file.write_text(ONE_NODE)
    read = config.load(file)
    node = NodeConfig("node1", Address("127.0.0.1", 5550), listen="127.0.0.1")
    assert read == Config(
        node="node1",
        data=tmp_path / "configs" / "data",
        cluster=config.ClusterConfig("lab", (node,), ("node1",), {}),
        limits=Limits(frame=8 << 20, memory=256 << 20, clients=10_000),
    )
    assert read.self is read.cluster.nodes[0]


def test_everything_that_can_be_said() -> None:
    read = config.loads(EVERYTHING)
    assert read.data == Path("/var/lib/zbroker")
    assert read.cluster.nodes == (
        NodeConfig("node1", Address("192.168.1.11", 5550), "192.168.1.11"),
        NodeConfig("node2", Address("node2.local", 5550), "0.0.0.0", "shelf-b"),
        NodeConfig("node3", Address("fd00::3", 5550), "::"),
    )
    assert read.self.name == "node2"
    assert read.cluster.voters == ("node3", "node1")
    assert read.cluster.session_timeout == 1500
    assert read.cluster.topics == {
        "partitions": 4,
        "replicas": 3,
        "min_insync": 2,
        "fsync": "interval",
        "retention": 7 * 86_400_000,
    }
    assert read.http == Address("::1", 5554)
    assert read.limits == Limits(16 << 20, 1 << 30, 50)


@pytest.mark.parametrize(
    ("count", "voters"),
    [(1, "n1"), (2, "n1 n2"), (3, "n1 n2 n3"), (4, "n1 n2 n3"), (7, "n1 n2 n3 n4 n5")],
)
def test_voters_left_out(count: int, voters: str) -> None:
    assert config.loads(nodes(count)).cluster.voters == tuple(voters.split())


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("", 1000), ("300ms", 300), ("1s", 1000), ("1m", 60_000)]
)
def test_session_timeouts(text: str, milliseconds: int) -> None:
    line = f"session_timeout: {text}" if text else "voters: [n1]"
    assert config.loads(nodes(3, line)).cluster.session_timeout == milliseconds


@pytest.mark.parametrize(
    ("count", "line", "replicas", "min_insync"),
    [
        (1, "topics: {}", 1, 1),
        (2, "topics: {}", 2, 2),
        (5, "topics: {}", 3, 2),
        (5, "topics: {replicas: 5}", 5, 2),
        (5, "topics: {replicas: 1}", 1, 1),
        (5, "topics: {min_insync: 3}", 3, 3),
    ],
)
def test_replicas_left_out(count: int, line: str, replicas: int, min_insync: int) -> None:
    cluster = config.loads(nodes(count, line)).cluster
    settings = topics.create({}, cluster.topics, nodes=count)
    assert (settings.replicas, settings.min_insync) == (replicas, min_insync)


@pytest.mark.parametrize(
    ("host", "listen"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("[::1]", "::1"),
        ("node1.local", "0.0.0.0"),
    ],
)
def test_listen_left_out(host: str, listen: str) -> None:
    text = ONE_NODE.replace("127.0.0.1", host)
    assert config.loads(text).self.listen == listen


def test_nodes_on_one_host_four_ports_apart() -> None:
    text = ONE_NODE.replace("}", ', node2: "localhost:5554", node3: "127.0.0.1:5546"}')
    assert [node.address.port for node in config.loads(text).cluster.nodes] == [5550, 5554, 5546]


def test_http_may_use_a_port_that_another_machine_needs() -> None:
    assert config.loads(nodes(2) + "\nhttp: 127.0.0.1:5554").http == Address("127.0.0.1", 5554)
    text = nodes(1, "  n2: 10.0.0.2:6000") + "\nhttp: 0.0.0.0:6000"
    assert config.loads(text).http == Address("0.0.0.0", 6000)


def test_a_smaller_frame_with_smaller_batches() -> None:
    text = nodes(1, "topics: {max_batch: 512KiB}") + "\nlimits: {frame: 1MiB}"
    assert config.loads(text).limits.frame == 1 << 20


def test_the_cluster_is_read_from_beside_the_file_and_not_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lan").mkdir()
    (tmp_path / "lan/cluster.yaml").write_text("name: lab\nnodes: {a: 'h:5550', b: 'i:5550'}\n")
    (tmp_path / "lan/b.yaml").write_text("node: b\ndata: ../b\ncluster: cluster.yaml\n")
    monkeypatch.chdir(tmp_path)
    read = config.load("lan/b.yaml")
    assert read.self.address == Address("i", 5550)
    assert read.data == tmp_path / "b"


def test_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    text = ONE_NODE.replace("data: data", "data: ~/logs")
    assert config.loads(text).data == Path("/home/ada/logs")


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "node1.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + ONE_NODE.replace("\n", "\r\n").encode())
    assert config.load(file).node == "node1"


def test_it_is_frozen() -> None:
    read = config.loads(ONE_NODE)
    with pytest.raises(AttributeError):
        read.node = "node2"  # type: ignore[misc]
    with pytest.raises(TypeError):
        read.cluster.topics["partitions"] = 2  # type: ignore[index]


# The files that ship ----------------------------------------------------------------------------


def test_the_one_node_configuration_runs_alone_beside_the_clone() -> None:
    read = config.load(ROOT / "configs/node1.yaml")
    assert read.self.address == Address("127.0.0.1", 5550)
    assert read.data == ROOT / "data/node1"
    assert read.cluster.voters == ("node1",)


def test_the_template_is_the_one_node_configuration() -> None:
    """`config init` writes into the user's own folder: its data go beside the file, and that is all."""
    written = config.template().replace("zbroker run node1", "zbroker run configs/node1")
    written = re.sub(r"data: data/node1   ", "data: ../data/node1", written)
    assert written == (ROOT / "configs/node1.yaml").read_text()


def test_the_template_shows_the_defaults() -> None:
    """Each line behind a #, put to use, changes nothing but that HTTP is served."""
    text = config.template()
    settings = re.sub(
        r"(?m)^(  )?# ((?:voters|session_timeout|topics|http|limits):|  \w+: )", r"\1\2", text
    )
    read = config.loads(settings)
    plain = config.loads(text)
    assert read.http == Address("127.0.0.1", 5554)
    assert set(read.cluster.topics) == set(topics.SETTINGS)
    assert topics.create({}, read.cluster.topics, nodes=1) == topics.create({}, nodes=1)
    cluster = msgspec.structs.replace(read.cluster, topics=plain.cluster.topics)
    assert msgspec.structs.replace(read, http=None, cluster=cluster) == plain


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_three_machines(number: int) -> None:
    read = config.load(ROOT / f"configs/lan/node{number}.yaml")
    assert read.self.name == f"node{number}"
    assert [node.name for node in read.cluster.nodes] == ["node1", "node2", "node3"]
    assert topics.create({}, read.cluster.topics, nodes=3).min_insync == 2
