"""The commands for a cluster of several nodes, against one that is scripted."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result
from completing import complete
from scripted import ScriptedCluster, partition

from zbroker.cli.moving import under_way
from zbroker.cli.root import cli
from zbroker.client.flows import described
from zbroker.protocol import messages


@pytest.fixture
def cluster() -> Iterator[ScriptedCluster]:
    with ScriptedCluster() as running:
        yield running


def run(cluster: ScriptedCluster, *arguments: str) -> Result:
    runner = CliRunner(env={"ZBROKER_DEBUG": "", "ZBROKER_SERVERS": cluster.server})
    return runner.invoke(cli, arguments, prog_name="zbroker")


def said(cluster: ScriptedCluster, *arguments: str, status: int = 0) -> str:
    """The one line on standard error."""
    result = run(cluster, *arguments)
    assert result.exit_code == status, result.output
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    return line.removeprefix("zbroker: ")


# Status ---


def table(text: str, first: str) -> dict[str, list[str]]:
    """A table's rows by their first cell; `first` is the head of its first column."""
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"{first} "))
    rows = {}
    for line in lines[at + 1 :]:
        if not line.strip():
            break
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
        rows[cells[0]] = cells[1:]
    return rows


def test_a_healthy_cluster(cluster: ScriptedCluster) -> None:
    result = run(cluster, "cluster", "status")
    assert result.exit_code == 0
    facts = dict(line.split("  ", 1) for line in result.stdout.split("\n\n")[0].splitlines())
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    assert facts == {
        "cluster": f"lab ({'c' * 32})",
        "controller": "node1",
        "nodes": "3 of 3 up",
        "voters": "node1, node2, node3",
        "under-replicated": "0 partitions",
    }
    nodes = table(result.stdout, "node")
    assert [row[0] for row in nodes.values()] == ["controller", "voter", "voter"]
    assert [row[2] for row in nodes.values()] == ["up", "up", "up"]
    assert "partition  " not in result.stdout


def test_everything_that_can_be_wrong_is_named(cluster: ScriptedCluster) -> None:
    cluster.down.add("node3")
    cluster.drained.add("node2")
    cluster.voters.remove("node3")
    cluster.full = True
    cluster.partitions = [
        partition(0, "node1", "123", "12"),
        partition(1, None, "231", "3"),
        partition(2, "node1", "1234", "123"),
        partition(3, "node1", "123", "123", unclean=True),
        partition(4, "node1", "123", "123"),
        partition(5, None, "123", "123", waiting_for=["node2", "node3"]),
        partition(6, "node1", "123", "1", unclean=True, lost_from=90),
    ]
    text = run(cluster, "cluster", "status").stdout
    assert "nodes             2 of 3 up; down: node3\n" in text
    assert "under-replicated  3 partitions\n" in text
    assert "without leader    2 partitions\n" in text
    assert "moving            1 partition\n" in text
    assert "unclean election  2 partitions\n" in text
    assert "disk full         node1, node2, node3\n" in text
    assert table(text, "partition") == {
        "sales/0": ["node1", "node1,node2,node3", "node3", "under-replicated"],
        "sales/1": ["none", "node2,node3,node1", "node2,node1", "no leader, under-replicated"],
        "sales/2": ["node1", "node1,node2,node3,node4", "node4", "moving"],
        "sales/3": ["node1", "node1,node2,node3", "-", "unclean election"],
        "sales/5": ["none", "node1,node2,node3", "-", "no leader: waits for node2 and node3"],
        "sales/6": [
            "node1",
            "node1,node2,node3",
            "node2,node3",
            "unclean election: may have lost records from offset 90 on, under-replicated",
        ],
    }
    nodes = table(text, "node")
    assert nodes["node2"][2] == "up, drained, disk full"
    assert nodes["node3"][0] == "-"
    assert nodes["node3"][2].startswith("down")

    found = json.loads(run(cluster, "cluster", "status", "--json").stdout)
    assert [part["partition"] for part in found["unhealthy"]] == [0, 1, 2, 3, 5, 6]
    assert found["nodes"][2]["voter"] is False


def test_a_cluster_without_controller(cluster: ScriptedCluster) -> None:
    cluster.controller = None
    assert "controller        none\n" in run(cluster, "cluster", "status").stdout


def test_thousands_of_partitions_do_not_fill_the_screen(cluster: ScriptedCluster) -> None:
    cluster.partitions = [partition(number, "node1", "123", "12") for number in range(1000)]
    text = run(cluster, "cluster", "status").stdout
    assert len(text.splitlines()) < 80
    assert "and 950 more" in text


def watching(cluster: ScriptedCluster, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "zbroker", "cluster", "status", "--servers", cluster.server, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_watching_in_a_pipe_repeats_plain_lines(cluster: ScriptedCluster) -> None:
    process = watching(cluster, "--watch", "50ms")
    assert process.stdout is not None
    text = b""
    while text.count(b"controller        node1") < 2:
        text += process.stdout.readline()
    cluster.partitions[0] = partition(0, "node1", "123", "12")
    while b"sales/0" not in text:
        text += process.stdout.readline()
    assert b"\x1b" not in text
    assert text.split(b"\n")[0].endswith(b"Z")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.strip()) == (130, b"")


def test_watching_as_json_is_an_object_a_line(cluster: ScriptedCluster) -> None:
    process = watching(cluster, "--watch", "50ms", "--json")
    assert process.stdout is not None
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    assert first["controller"] == second["controller"] == "node1"
    process.stdout.close()  # as `| head -2` does
    assert process.wait(20) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_watching_goes_on_when_nobody_answers(cluster: ScriptedCluster) -> None:
    process = watching(cluster, "--watch", "50ms", "--json", "--timeout", "300ms")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    answer, cluster.broker.intercept = cluster.broker.intercept, lambda *_: "drop"
    assert process.stderr.readline().startswith(b"zbroker: warning: no server answered in time")
    cluster.broker.intercept = answer
    cluster.controller = "node2"
    while json.loads(process.stdout.readline())["controller"] != "node2":
        pass
    process.kill()
    process.communicate()


def test_watching_on_a_terminal_draws_over_itself(cluster: ScriptedCluster) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "zbroker", "cluster", "status", "--watch", "50ms"],
        stdout=slave, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env={**os.environ, "ZBROKER_SERVERS": cluster.server, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"},
    )  # fmt: skip
    os.close(slave)
    text = b""
    deadline = time.monotonic() + 20
    while text.count(b"controller") < 5:
        assert select.select([master], [], [], max(0, deadline - time.monotonic()))[0], text
        text += os.read(master, 65536)
    assert b"\x1b[1A" in text  # the cursor goes up
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # its other end was closed
        while os.read(master, 65536):  # a terminal that nobody reads holds the process up
            pass
    _, errors = process.communicate(timeout=20)
    os.close(master)
    assert (process.returncode, errors.strip()) == (130, b"")


# Nodes ---


def test_draining(cluster: ScriptedCluster) -> None:
    assert said(cluster, "cluster", "drain", "node2") == "drained node2: it leads nothing"
    assert "still leads 1 partition: no other" in said(cluster, "cluster", "drain", "node3")
    assert said(cluster, "cluster", "drain", "node2", "--undo") == "node2 may lead again"
    assert [(one.node, one.undo) for one in cluster.changes] == [
        ("node2", False),
        ("node3", False),
        ("node2", True),
    ]
    assert "no node 'node9'" in said(cluster, "cluster", "drain", "node9", status=1)


def test_voters(cluster: ScriptedCluster) -> None:
    line = said(cluster, "cluster", "replace-voter", "node2")
    assert line == "node2 votes with its new disk; voters are node1, node2, node3"
    cluster.voters.remove("node2")  # as long as it catches up
    line = said(cluster, "cluster", "replace-voter", "node2")
    assert line == "node2 votes as soon as its new disk has caught up; voters are node1, node3"
    cluster.voters.insert(1, "node2")
    assert said(cluster, "cluster", "add-voter", "node3").startswith("node3 votes; ")
    line = said(cluster, "cluster", "remove-voter", "node1")
    assert line == "node1 votes no more; voters are node2, node3"
    assert [one.action for one in cluster.changes] == ["replace", "replace", "add", "remove"]


# The last resort ---


def test_what_would_be_lost_is_said_first(cluster: ScriptedCluster) -> None:
    cluster.partitions[1] = partition(1, None, "231", "2")
    cluster.down.add("node2")
    arguments = ("topic", "accept-loss", "sales", "--partition", "1")
    line = said(cluster, *arguments, status=1)
    assert "only node2, which is down, has everything" in line
    assert "whoever has most of node3, node1 would lead with the records that it has itself" in line
    assert line.endswith("say --yes to give that up for ever, or start node2")
    assert "node1 would lead" in said(cluster, *arguments, "--node", "node1", status=1)
    cluster.down.clear()
    assert "only the disk that node2 had" in said(cluster, *arguments, status=1)
    cluster.partitions[1] = partition(1, None, "231", "231", waiting_for=["node2"])
    line = said(cluster, *arguments, status=1)
    assert "its in-sync replicas stopped uncleanly, and node2 may have more" in line
    cluster.down |= {"node1", "node3"}
    assert "no other replica is up" in said(cluster, *arguments, status=1)
    assert not cluster.changes


def test_a_loss_is_accepted(cluster: ScriptedCluster) -> None:
    cluster.partitions[1] = partition(1, None, "231", "2")

    def accept(request: messages.AcceptLoss) -> None:
        cluster.partitions[1] = partition(1, "node3", "231", "3", unclean=True)

    cluster.on_accept = accept
    line = said(cluster, "topic", "accept-loss", "sales", "--partition", "1", "--yes")
    assert line == "partition 1 of sales is led by node3, with the records that it has itself"
    (request,) = cluster.changes
    assert (request.partition, request.epoch, request.node) == (1, 4, None)


def test_there_is_nothing_to_give_up(cluster: ScriptedCluster) -> None:
    for more in ((), ("--yes",)):
        line = said(cluster, "topic", "accept-loss", "sales", "--partition", "0", *more, status=1)
        assert "partition 0 of sales has a leader, node1" in line
    arguments = ("topic", "accept-loss", "sales", "--partition", "7", "--yes")
    assert "no partition 7" in said(cluster, *arguments, status=1)
    assert "'clicks'" in said(
        cluster, "topic", "accept-loss", "clicks", "--partition", "0", status=1
    )
    assert not cluster.changes


# Moving ---


def test_moving_one_partition(cluster: ScriptedCluster) -> None:
    def begin(request: messages.MovePartitions) -> None:
        cluster.partitions[0] = partition(0, "node1", "1234", "123")

    cluster.on_move = begin
    line = said(cluster, "topic", "move", "sales", "--partition", "0", "--to", "node2,node3,node4")
    assert line.startswith("topic sales: 1 partition on the way; see how far with")
    (request,) = cluster.changes
    assert (request.partition, request.to) == (0, ["node2", "node3", "node4"])


def test_nothing_to_move(cluster: ScriptedCluster) -> None:
    assert said(cluster, "topic", "move", "sales") == "topic sales: nothing to move"
    assert said(cluster, "topic", "move", "sales", "--wait") == "topic sales: nothing to move"
    assert "no partition 7" in said(cluster, "topic", "move", "sales", "--partition", "7", status=1)
    assert "'clicks'" in said(cluster, "topic", "move", "clicks", status=1)


def waiting(cluster: ScriptedCluster) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "zbroker", "topic", "move", "sales", "--wait"],
        stderr=subprocess.PIPE, env={**os.environ, "ZBROKER_SERVERS": cluster.server},
    )  # fmt: skip


def test_waiting_until_all_have_arrived(cluster: ScriptedCluster) -> None:
    """The script goes on when what it has come to is said."""
    cluster.partitions = [
        partition(0, "node1", "1234", "123"),
        partition(1, "node2", "2314", "231"),
    ]
    process = waiting(cluster)
    assert process.stderr is not None

    def says(*lines: str) -> None:
        assert process.stderr is not None
        for line in lines:
            assert process.stderr.readline().decode() == f"zbroker: {line}\n"

    says("partition 0: copies to node4", "partition 1: copies to node4")
    cluster.partitions[0] = partition(0, "node1", "1234", "1234")
    says("partition 0: kept by node1, node2, node3, node4, of which some are to go")
    cluster.partitions[1] = partition(1, None, "2314", "231")
    says("partition 1: has no leader")
    cluster.partitions[0] = partition(0, "node2", "234", "234")
    says("partition 0 of sales has moved")
    cluster.partitions[1] = partition(1, "node2", "231", "231")
    says("partition 1 of sales has moved")
    assert process.communicate(timeout=20) == (None, b"")
    assert process.returncode == 0


def test_ctrl_c_while_waiting_leaves_the_move_going(cluster: ScriptedCluster) -> None:
    cluster.partitions[0] = partition(0, "node1", "1234", "123")
    process = waiting(cluster)
    assert process.stderr is not None
    assert process.stderr.readline() == b"zbroker: partition 0: copies to node4\n"
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 130
    assert rest.startswith(
        b"zbroker: interrupted: 1 partition of sales still on the way, which goes on"
    )


@pytest.mark.parametrize(
    ("replicas", "isr", "partition_", "to", "arrived"),
    [
        ("123", "123", None, "", True),
        ("123", "12", None, "", False),
        ("1234", "1234", None, "", False),
        ("123", "123", 0, "123", True),
        ("321", "123", 0, "123", True),
        ("123", "123", 0, "124", False),
        ("12", "12", 0, "12", True),
        ("123", "123", 1, "124", True),
        ("123", "123", None, "1234", True),
        ("123", "123", None, "124", False),
    ],
)
def test_when_a_move_is_over(
    replicas: str, isr: str, partition_: int | None, to: str, arrived: bool
) -> None:
    topic = messages.Topic(
        name="sales", settings={"replicas": 3}, partitions=[partition(0, "node1", replicas, isr)]
    )
    found = under_way(described(topic, {}), partition_, [f"node{digit}" for digit in to])
    assert bool(found) is not arrived


# Topics ---


def test_describe_says_who_is_not_in_sync(cluster: ScriptedCluster) -> None:
    text = run(cluster, "topic", "describe", "sales").stdout
    assert "not in sync" not in text
    assert "election" not in text
    cluster.partitions = [
        partition(0, "node1", "123", "13", unclean=True),
        partition(1, None, "231", "2"),
        partition(2, "node1", "1234", "123"),
        partition(3, None, "123", "123", waiting_for=["node2", "node3"]),
        partition(4, "node1", "123", "123", lost_from=90),
    ]
    text = run(cluster, "topic", "describe", "sales").stdout
    assert "2 partitions under-replicated; 1 partition moving; 2 partitions without leader" in text
    rows = table(text, "partition")
    assert rows["0"][:4] == ["node1", "4", "node1,node2,node3", "node1,node3"]
    assert rows["0"][-4:] == ["node2", "unclean", "-", "-"]
    assert rows["1"][0] == "none"
    assert rows["1"][-4:] == ["node3,node1", "-", "-", "-"]
    assert rows["3"][-4:] == ["-", "-", "-", "node2,node3"]
    assert rows["4"][-4:] == ["-", "-", "from 90", "-"]


# Completing ---


def test_names_of_nodes_are_completed(cluster: ScriptedCluster) -> None:
    server = {"ZBROKER_SERVERS": cluster.server}
    assert complete("zbroker cluster drain ", **server) == ["node1", "node2", "node3"]
    assert complete("zbroker cluster replace-voter node2", **server) == ["node2"]
    found = complete("zbroker topic move sales --to node1,", **server)
    assert found == ["node1,node2", "node1,node3"]
    assert complete("zbroker topic move ", **server) == ["sales"]


def test_a_dead_node_does_not_hold_the_status_up(cluster: ScriptedCluster) -> None:
    """A node that is taken for dead has little time to say how it is."""
    cluster.down |= {"node2", "node3"}
    answer = cluster.broker.intercept
    assert answer is not None

    def intercept(broker: object, request: object, body: object) -> object:
        silent = isinstance(request, messages.Status) and len(cluster.broker.requests) > 2
        return "drop" if silent else answer(broker, request, body)  # type: ignore[arg-type]

    cluster.broker.intercept = intercept
    began = time.monotonic()
    text = run(cluster, "cluster", "status").stdout
    assert time.monotonic() - began < 4.5  # one server has 5 s to answer what matters
    assert table(text, "node")["node3"][3] == "?"
