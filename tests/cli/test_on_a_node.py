"""The command line against a real node: where reading begins, what is wrong with the data, how it ends."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from zbroker import Producer
from zbroker.testing.nodes import NodeProcess, running_node, wait_for

pytestmark = pytest.mark.slow

HOUR = 3600


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """One node for all that leaves it as it was, but for topics."""
    with running_node(tmp_path_factory.mktemp("node")) as node:
        yield node


def run(
    node: NodeProcess, *arguments: str, stdin: bytes = b"", timeout: float = 30
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "zbroker", *arguments],
        input=stdin, capture_output=True, timeout=timeout, check=False,
        env={**os.environ, "ZBROKER_SERVERS": node.servers},
    )  # fmt: skip


def well(node: NodeProcess, *arguments: str, stdin: bytes = b"") -> bytes:
    done = run(node, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def wrong(node: NodeProcess, *arguments: str, stdin: bytes = b"", status: int = 1) -> str:
    """What is said of something wrong: one sentence, on standard error."""
    done = run(node, *arguments, stdin=stdin)
    assert done.returncode == status, done
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("zbroker: error: "), lines
    return lines[0]


@pytest.fixture
def topic(server: NodeProcess, request: pytest.FixtureRequest) -> str:
    name = f"t{abs(hash(request.node.nodeid))}"
    well(server, "topic", "create", name)
    return name


# Where reading begins ---


def test_from_every_place(server: NodeProcess, topic: str) -> None:
    now = datetime.now().astimezone()
    with Producer(server.servers) as producer:
        for hours in (5, 3, 0.5, 0):
            at = int((now - timedelta(hours=hours)).timestamp() * 1000)
            producer.send(topic, f"{hours}", timestamp=at)

    def values(start: str) -> list[str]:
        out = well(server, "consume", topic, "--until-end", f"--from={start}")
        return out.decode().splitlines()

    everything = ["5", "3", "0.5", "0"]
    assert values("earliest") == everything
    assert values("latest") == []
    assert values("0") == everything
    assert values("2") == ["0.5", "0"]
    assert values("4") == []
    assert values("-1h") == ["0.5", "0"]
    assert values("-4h") == ["3", "0.5", "0"]
    assert values("-30d") == everything
    four = now - timedelta(hours=4)
    assert values(four.isoformat()) == ["3", "0.5", "0"]
    assert values(four.replace(tzinfo=None).isoformat(timespec="seconds")) == ["3", "0.5", "0"]
    assert values((now + timedelta(hours=1)).isoformat()) == []


def test_a_start_that_is_not_there_or_is_none(server: NodeProcess, topic: str) -> None:
    well(server, "produce", topic, stdin=b"a\nb\n")
    said = wrong(server, "consume", topic, "--from", "7", "--until-end")
    assert "there is no offset 7" in said
    assert "offsets 0 to 1" in said
    for start in ("soon", "-1parsec", "2026-13-01", "1.5", "-5"):
        said = wrong(server, "consume", topic, f"--from={start}", status=2)
        assert start.lstrip("-") in said
        assert "expected" in said


def test_one_partition_alone(server: NodeProcess, topic: str) -> None:
    well(server, "topic", "alter", topic, "--partitions", "2")
    with Producer(server.servers) as producer:
        producer.send(topic, b"zero", partition=0)
        producer.send(topic, b"one", partition=1)
    assert (
        well(server, "consume", topic, "--from=earliest", "--until-end", "--partition", "1")
        == b"one\n"
    )
    said = wrong(server, "consume", topic, "--from=earliest", "--until-end", "--partition", "2")
    assert "partitions 0 to 1" in said


# Records ---


def test_bytes_are_untouched(server: NodeProcess, topic: str) -> None:
    values = [
        b"",
        b" lead and trail ",
        b"\xff\xfe\x00"[:2],
        "caf\u00e9".encode(),
        b"\ttab",
        b"a=b=c",
        b"\r",
    ]
    well(server, "produce", topic, stdin=b"\n".join(values))
    out = well(server, "consume", topic, "--from", "earliest", "--until-end")
    assert out == b"".join(value + b"\n" for value in values)


def test_a_round_trip_through_json_is_exact(server: NodeProcess, topic: str) -> None:
    records = [
        {"key": None, "value": None, "headers": [], "timestamp": 5, "partition": 0},
        {"key": "", "value": "", "headers": [["a", None], ["a", "x"]], "timestamp": 6, "partition": 0},
        {"key": {"base64": base64.b64encode(b"\xff\x00").decode()}, "value": "caf\u00e9\n\x00", "headers":
            [["b", {"base64": "gA=="}]], "timestamp": 7, "partition": 0},
    ]  # fmt: skip
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    well(server, "produce", topic, "--json", stdin=lines)
    out = well(server, "consume", topic, "--from", "earliest", "--until-end", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [record.pop("offset") for record in found] == [0, 1, 2]
    assert {record.pop("topic") for record in found} == {topic}
    assert found == records
    again = well(server, "consume", topic, "--from", "earliest", "--until-end", "--json")
    assert out == again


def test_format_writes_what_it_is_told(server: NodeProcess, topic: str) -> None:
    record = b'{"key": "k", "value": "v", "headers": [["a", "1"]], "timestamp": 1000}\n'
    well(server, "produce", topic, "--json", stdin=record)
    out = well(
        server,
        "consume",
        topic,
        "--from=0",
        "--until-end",
        "--format",
        r"%t|%p|%o|%T|%k|%v|%h|%%\x41\0",
    )
    assert out == f"{topic}|0|0|1000|k|v|a=1|%A\0".encode()


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["--key-separator", "="], b"a=1\nnone\nb=2\n", "record 2"),
        (["--json"], b'{"value": "x"}\n{"value": \n', "record 2"),
        (["--json"], b'{"value": {"base64": "???"}}\n', "record 1"),
        (["--json"], b'{"value": "x", "colour": 1}\n', "colour"),
        (["--json"], b'[1]\n', "record 1"),
        (["--json"], b'{"value": "x", "partition": 9}\n', "no partition 9"),
        ([], b"x" * (5 << 20) + b"\n", "max_batch"),
    ],
)  # fmt: skip
def test_a_record_that_is_wrong(
    server: NodeProcess, topic: str, arguments: list[str], stdin: bytes, said: str
) -> None:
    assert said in wrong(server, "produce", topic, *arguments, stdin=stdin)


def test_what_is_wrong_can_be_skipped(server: NodeProcess, topic: str) -> None:
    done = run(
        server,
        "produce",
        topic,
        "--key-separator",
        "=",
        "--on-error",
        "skip",
        stdin=b"a=1\nnone\nb=2\n",
    )
    assert done.returncode == 1
    assert b"record 2" in done.stderr
    assert well(server, "consume", topic, "--from=0", "--until-end") == b"1\n2\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["produce", "nowhere-at-all"],
        ["consume", "nowhere-at-all", "--from", "earliest"],
        ["topic", "describe", "nowhere-at-all"],
        ["topic", "alter", "nowhere-at-all", "--partitions", "3"],
        ["topic", "delete-records", "nowhere-at-all", "--before", "latest"],
    ],
)
def test_an_unknown_topic(server: NodeProcess, arguments: list[str]) -> None:
    said = wrong(server, *arguments, stdin=b"x\n")
    assert "'nowhere-at-all'" in said
    assert "zbroker topic create" in said


def test_topics_that_cannot_be(server: NodeProcess, topic: str) -> None:
    assert f"topic '{topic}' exists" in wrong(server, "topic", "create", topic)
    assert "differ only in case" in wrong(server, "topic", "create", topic.upper())
    well(server, "topic", "create", topic, "--if-not-exists")
    assert "the cluster has one node" in wrong(server, "topic", "create", "wide", "--replicas", "3")
    well(server, "topic", "alter", topic, "--partitions", "2")
    assert "only grow" in wrong(server, "topic", "alter", topic, "--partitions", "1")


# How it ends ---


def test_a_closed_pipe_is_no_error(server: NodeProcess, topic: str) -> None:
    well(server, "produce", topic, stdin=b"".join(b"%d\n" % number for number in range(100_000)))
    command = f"{sys.executable} -m zbroker consume {topic} --from earliest --until-end | head -n 2"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, timeout=30, check=False,
        env={**os.environ, "ZBROKER_SERVERS": server.servers},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0\n1\n", b"")


def test_ctrl_c_while_waiting(server: NodeProcess, topic: str) -> None:
    well(server, "produce", topic, stdin=b"first\n")
    for arguments in (["consume", topic, "--from", "earliest"], ["produce", topic]):
        process = subprocess.Popen(
            [sys.executable, "-m", "zbroker", *arguments, "--servers", server.servers],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        if arguments[0] == "produce":
            process.stdin.write(b"second\n")
            process.stdin.flush()
            wait_for(lambda: b"second" in read_all(server, topic), 10, "the record to be committed")
        else:
            assert process.stdout.readline() == b"first\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130, errors
        assert b"Traceback" not in errors


def read_all(node: NodeProcess, topic: str) -> bytes:
    return well(node, "consume", topic, "--from", "earliest", "--until-end")


def test_max_ends_a_consumer(server: NodeProcess, topic: str) -> None:
    well(server, "produce", topic, stdin=b"1\n2\n3\n")
    assert well(server, "consume", topic, "--from", "earliest", "--max", "2") == b"1\n2\n"


def test_describe_shows_what_a_person_wants(server: NodeProcess, topic: str) -> None:
    well(server, "produce", topic, stdin=b"1\n2\n3\n")
    shown = well(server, "topic", "describe", topic).decode()
    assert topic in shown
    described = json.loads(well(server, "topic", "describe", topic, "--json"))
    (partition,) = described["partitions"]
    assert partition["leader"] == "node1"
    assert (partition["start_offset"], partition["high_watermark"]) == (0, 3)
    well(server, "topic", "delete-records", topic, "--before", "2")
    assert well(server, "consume", topic, "--from", "earliest", "--until-end") == b"3\n"
    said = wrong(server, "consume", topic, "--from", "0", "--until-end")
    assert "offsets 2 to 2" in said


# Nodes that cannot start ---


def start(config: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "zbroker", "run", str(config)], capture_output=True, timeout=30, check=False
    )  # fmt: skip
    text = done.stderr.decode()
    assert "Traceback" not in text
    return done.returncode, text.strip().splitlines()[-1]


def test_two_nodes_on_one_folder(server: NodeProcess, tmp_path: Path) -> None:
    other = NodeProcess(tmp_path)
    text = other.config.read_text().replace(str(other.data), str(server.data))
    other.config.write_text(text)
    status, said = start(other.config)
    assert status == 1
    assert str(server.data) in said
    assert str(server.pid) in said


def test_a_port_in_use(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", node.port))
        taken.listen()
        status, said = start(node.config)
    assert status == 1
    assert (
        f"127.0.0.1:{node.port} cannot be bound: Address already in use; stop what uses it" in said
    )


def test_the_http_port_in_use_is_advised_on_once(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, http=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", node.http_port or 0))
        taken.listen()
        status, said = start(node.config)
    assert status == 1
    assert said.endswith("change `http:` or stop what uses it")


@pytest.mark.parametrize("change", ["newer", "damaged", "other node", "a file", "unwritable"])
def test_a_data_folder_that_is_not_ours(tmp_path: Path, change: str) -> None:
    node = NodeProcess(tmp_path)
    node.start()
    assert node.stop() == 0
    identity = node.data / "node.json"
    content = json.loads(identity.read_text())
    if change == "newer":
        identity.write_text(json.dumps({**content, "format": 99}))
    elif change == "damaged":
        identity.write_text("{")
    elif change == "other node":
        identity.write_text(json.dumps({**content, "node": "node7"}))
    elif change == "a file":
        node.config.write_text(node.config.read_text().replace(str(node.data), str(identity)))
    elif os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    else:
        node.data.chmod(0o500)
    status, said = start(node.config)
    if change == "unwritable":
        node.data.chmod(0o700)
    assert status == 1
    assert str(node.data) in said
    if change == "newer":
        assert "99" in said
