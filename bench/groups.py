"""Many members in one group on one node: how long joining takes, and what the coordinator costs afterwards.

    python -m bench.groups [--members 1000] [--partitions 1000] [--seconds 10] [--json FILE]

One process plays all the members over a few sockets, by bare messages at default heartbeats. It checks that in the end
every partition is one member's, and that nobody has two more than another.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import zmq

from zbroker import Admin
from zbroker.protocol import frames as wire
from zbroker.protocol.messages import (
    ErrorReply,
    FindCoordinator,
    FindCoordinatorReply,
    GroupHeartbeat,
    GroupHeartbeatReply,
    TopicPartitions,
)
from zbroker.testing.nodes import running_node

GROUP, TOPIC = "bench", "bench"
MEMBERS_A_SOCKET = 50
WAIT_MS = 2500


class Member(msgspec.Struct):
    """One member, as far as it has come."""

    name: str
    socket: zmq.Socket[bytes]
    epoch: int = 0
    wanted: list[TopicPartitions] = []
    held: list[TopicPartitions] = []
    says_owned: bool = True


class Members:
    """All members, in one loop."""

    def __init__(self, servers: str, count: int) -> None:
        self.context = zmq.Context()
        self.poller = zmq.Poller()
        self.members: list[Member] = []
        self.asked: dict[int, Member] = {}
        self.replies: Counter[str] = Counter()
        self.ids = itertools.count(1)
        socket = None
        for number in range(count):
            if socket is None or number % MEMBERS_A_SOCKET == 0:
                socket = self.context.socket(zmq.DEALER)
                socket.connect(f"tcp://{servers}")
                self.poller.register(socket, zmq.POLLIN)
            self.members.append(Member(f"member-{number}", socket))

    def close(self) -> None:
        """Ends every connection."""
        self.context.destroy(linger=0)

    def find(self) -> None:
        """Waits until there is a coordinator, which makes the internal topic."""
        socket = self.members[0].socket
        socket.send(wire.encode(FindCoordinator(id=next(self.ids), group=GROUP)))
        assert isinstance(wire.decode_reply(socket.recv_multipart()[0]), FindCoordinatorReply)

    def beat(self, member: Member) -> None:
        """One heartbeat."""
        joins = member.epoch == 0
        request = GroupHeartbeat(
            id=next(self.ids), group=GROUP, member=member.name, member_epoch=member.epoch,
            topics=[TOPIC] if joins else [], owned=member.held if member.says_owned else None,
            wait=WAIT_MS,
        )  # fmt: skip
        member.says_owned = False
        self.asked[request.id] = member
        member.socket.send(wire.encode(request))

    def run(self, until: float, done: Any = lambda: False) -> bool:
        """Answers whatever comes, until a time or until it is done."""
        while time.monotonic() < until:
            if done():
                return True
            for socket, _ in self.poller.poll(100):
                while True:
                    try:
                        head = socket.recv_multipart(zmq.NOBLOCK)[0]
                    except zmq.Again:
                        break
                    self.take(wire.decode_reply(head))
        return bool(done())

    def take(self, reply: Any) -> None:
        """One reply."""
        member = self.asked.pop(reply.id)
        if isinstance(reply, ErrorReply):
            assert reply.hint == "retry", reply
            self.replies[reply.code] += 1
            self.beat(member)
            return
        assert isinstance(reply, GroupHeartbeatReply)
        self.replies["changed" if reply.assignment is not None else "unchanged"] += 1
        member.epoch = reply.member_epoch
        if reply.assignment is not None:
            member.held = reply.assignment  # it has nothing to finish: it releases at once
            member.says_owned = True
        self.beat(member)

    def is_settled(self, partitions: int) -> bool:
        """Whether every partition is somebody's, and shares are even."""
        sizes = [sum(len(each.partitions) for each in member.held) for member in self.members]
        return sum(sizes) == partitions and max(sizes) - min(sizes) <= 1

    def check(self, partitions: int) -> None:
        """That nobody shares a partition."""
        seen = Counter(
            number for member in self.members for each in member.held for number in each.partitions
        )
        assert set(seen) == set(range(partitions)), "a partition is nobody's"
        assert max(seen.values()) == 1, "a partition is two members'"


def cpu_seconds(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(count: int, partitions: int, seconds: float) -> dict[str, Any]:
    """One node, one group."""
    with tempfile.TemporaryDirectory() as folder, running_node(Path(folder)) as node:
        with Admin(node.servers) as admin:
            admin.create_topic(TOPIC, partitions=partitions)
        members = Members(node.servers, count)
        idle = cpu_seconds(node.pid), time.monotonic()
        time.sleep(2)
        idle_share = (cpu_seconds(node.pid) - idle[0]) / (time.monotonic() - idle[1])
        members.find()
        begun, used = time.monotonic(), cpu_seconds(node.pid)
        for member in members.members:
            members.beat(member)
        assert members.run(begun + 60, lambda: members.is_settled(partitions)), "it did not settle"
        joined, joining_used = time.monotonic() - begun, cpu_seconds(node.pid) - used
        members.check(partitions)
        joining = dict(members.replies)
        members.run(time.monotonic() + WAIT_MS / 1000)  # the last news settle
        members.replies.clear()
        begun, used = time.monotonic(), cpu_seconds(node.pid)
        members.run(begun + seconds)
        took = time.monotonic() - begun
        share = (cpu_seconds(node.pid) - used) / took
        members.check(partitions)
        steady = {name: round(each / took) for name, each in members.replies.items()}
        members.close()
    return {
        "members": count, "partitions": partitions, "joining_s": round(joined, 2),
        "joining_cpu_s": round(joining_used, 2), "joining_replies": joining,
        "idle_core_share": round(idle_share, 3), "steady_core_share": round(share, 3),
        "steady_replies_a_s": steady,
    }  # fmt: skip


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--partitions", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    found = measure(told.members, told.partitions, told.seconds)
    for name, value in found.items():
        print(f"{name:22} {value}")
    if told.json:
        told.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
