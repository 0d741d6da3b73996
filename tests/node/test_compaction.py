"""A compacted topic on a real node: what it refuses, and the benchmark with few records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zbroker import Admin, Consumer, Producer
from zbroker.errors import InvalidRecord, InvalidSetting
from zbroker.testing.nodes import running_node, wait_for

ROOT = Path(__file__).parents[2]


def test_a_topic_keeps_each_keys_newest_value_and_takes_no_record_without_a_key(
    tmp_path: Path,
) -> None:
    with running_node(tmp_path) as node, Admin(node.servers) as admin:
        admin.create_topic(
            "t", cleanup="compact", min_dirty=1, segment_age="1ms", tombstone_grace="0s"
        )
        with Producer(node.servers) as producer:
            with pytest.raises(InvalidRecord, match="every record of a compacted topic has a key"):
                producer.send("t", b"value").result(30)
            for at in range(300):
                producer.send("t", b"%d" % at, key=b"k%d" % (at % 3)).result(30)
            producer.send("t", None, key=b"k1").result(30)

        wanted = [(b"k0", b"297"), (b"k2", b"299")]
        wait_for(lambda: seen(node.servers) == wanted, 30, "compaction")
        assert "compacted up to offset" in node.said()
        assert admin.offsets("t") == {0: 301}
        with pytest.raises(InvalidSetting):
            admin.alter_topic("t", cleanup="burn")
        assert (
            admin.alter_topic("t", cleanup="delete,compact").settings["cleanup"] == "compact,delete"
        )
        admin.alter_topic("t", cleanup="delete")
        with Producer(node.servers) as producer:
            producer.send("t", b"no key").result(30)
        node.kill()
        node.start()
        assert seen(node.servers) == [*wanted, (None, b"no key")]


def seen(servers: str) -> list[tuple[bytes | None, bytes | None]]:
    """Every record's key and value."""
    with Consumer(servers, "t", start="earliest", until_end=True) as consumer:
        return [(record.key, record.value) for record in consumer]


def test_the_benchmark_with_few_records() -> None:
    command = [
        sys.executable, "-m", "bench.compaction", "--records", "60000", "--keys", "500",
        "--segment", "262144", "--before", "0.5",
    ]  # fmt: skip
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "a reader gets 500 records now" in told.stdout
