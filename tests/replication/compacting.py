"""The replicas of `world`, of a compacted topic: each compacts its copy when chance says so, deleted keys or not.

What must be true of each copy: who reads it all has, for each key, what was committed last. A key that was deleted is
not there, and every record that is there is the one that was committed at its offset.
"""

from __future__ import annotations

from replication.world import FOLDER, Node, World

from zbroker.log.compacted import segment_paths
from zbroker.log.compare import Copy, compare
from zbroker.log.segment import Bounds, scan
from zbroker.log.settings import LogSettings
from zbroker.protocol.batch import BatchHeader, EncodedRecord, decode_records, read_header

KEYS = 6
GRACE = 600

Row = tuple[bytes | None, bytes | None]


class CompactingWorld(World):
    """See the module."""

    def __init__(self, seed: int, *, flushed: bool = True) -> None:
        self.rows: dict[int, Row] = {}
        """Every committed record."""
        self.compactions = 0
        super().__init__(seed, flushed=flushed)

    def settings(self) -> LogSettings:
        return LogSettings(
            segment_size=600, segment_age=10**9, retention=None, compact=True, min_dirty=1,
            fsync="always" if self.flushed else "never", tombstone_grace=GRACE,
        )  # fmt: skip

    def who_follows(self, incarnations: dict[str, int]) -> dict[str, int]:
        return {name: at for name, at in incarnations.items() if self.nodes[name].up}

    def records(self, node: Node, span: int) -> list[EncodedRecord]:
        rows: list[EncodedRecord] = []
        for _ in range(span):
            self.values += 1
            value = b"%d of %s" % (self.values, node.name.encode()) + bytes(self.rng.randrange(80))
            key = b"k%d" % self.rng.randrange(KEYS)
            rows.append((0, key, None if self.rng.random() < 0.25 else value, ()))
        return rows

    def compact(self, node: Node) -> None:
        """One copy is compacted, if its role lets it be, and its active segment perhaps sealed before."""
        replica = node.replica
        if not node.up or replica.log.state != "open":
            return
        serves = replica.leader is not None and replica.leader.high_watermark >= 0
        if not (serves or replica.follower is not None):
            return
        if self.rng.random() < 0.5 and (serves or replica.follower is not None):
            replica.log.roll(1 << 60)
        committed = max(replica.high_watermark, 0)
        replica.log.compact(committed, self.now, replica.has_all_below)
        self.compactions += replica.log.compacting

    # What must be true ---

    def look(self, node: Node) -> None:
        leader = node.replica.leader
        if leader is not None and leader.high_watermark >= 0:
            for base, following, batch in leader.uncommitted:
                if following <= leader.high_watermark:
                    rows = decode_records(batch, 0, read_header(batch))
                    self.rows.update(
                        {
                            base + at: (row[1], row[2])
                            for at, row in enumerate(rows)
                            if row is not None
                        }
                    )
        super().look(node)

    def stored(self, node: Node) -> dict[int, Row]:
        """The records in a node's files."""
        found: dict[int, Row] = {}
        for base, path in segment_paths(node.disk, FOLDER):
            size = node.disk.size(path)
            for item in scan(node.disk, path, 0, size, Bounds(base), payloads=False):
                if isinstance(item, tuple) and isinstance(item[1], BatchHeader):
                    data = node.disk.read(path, item[0], item[1].size)
                    for at, row in enumerate(decode_records(data, 0, item[1])):
                        if row is not None:
                            found[item[1].base_offset + at] = (row[1], row[2])
        return found

    def check_has_committed(self, node: Node) -> None:
        replica, found = node.replica, self.stored(node)
        for offset, row in found.items():
            if offset < replica.high_watermark:
                self.rows.setdefault(offset, row)  # committed by whom it was not written under
            assert self.rows.get(offset, row) == row, f"offset {offset} at {node.name}"
        start = max(self.deleted_below, replica.log.start_offset)
        for key, offset in newest(self.rows).items():
            if self.rows[offset][1] is not None:
                assert offset in found or offset < start, (
                    f"{key!r} at {offset} is not at {node.name}"
                )
            else:
                older = [at for at, (other, _) in found.items() if other == key and at < offset]
                assert offset in found or not older, f"{key!r} at {offset} is back at {node.name}"

    def check_healed(self) -> None:
        leader = self.leader
        assert leader is not None
        assert leader.replica.leader is not None
        assert leader.replica.leader.isr == self.names, leader.replica.leader.isr
        end = leader.replica.log.end_offset
        assert leader.replica.high_watermark == end
        for node in self.nodes.values():
            self.check_has_committed(node)
            log = node.replica.log
            assert log.end_offset == end
            assert log.damaged == []
            for offset in range(max(log.start_offset, leader.replica.log.start_offset), end):
                assert log.epoch_at(offset) == leader.replica.log.epoch_at(offset), offset
        copies = [
            Copy(node.disk, [path for _, path in segment_paths(node.disk, FOLDER)],
                 node.replica.log.start_offset, end)
            for node in self.nodes.values()
        ]  # fmt: skip
        for left in copies:
            for right in copies:
                assert compare(left, right).difference is None


def newest(rows: dict[int, Row]) -> dict[bytes | None, int]:
    """The offset at which each key was written last."""
    return {rows[offset][0]: offset for offset in sorted(rows)}
