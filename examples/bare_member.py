"""A member of a consumer group without zbroker: a REQ socket, MessagePack, and the protocol by hand.

    python bare_member.py HOST:PORT TOPIC GROUP

Joins the group, prints what its share of the topic has beyond the committed positions, commits, and leaves. The node is
asked for the group's coordinator first, and that one is spoken to from then on. Needs pyzmq and msgpack; see
docs/protocol.md, Groups.
"""

import sys
import time
import uuid

import msgpack
import zmq

_, address, topic, group = sys.argv
context = zmq.Context()


class Refused(Exception):
    """An error from the node."""

    def __init__(self, reply):
        super().__init__(f"{reply['message']} ({reply['code']})")
        self.code, self.hint = reply["code"], reply["hint"]


def ask(socket, op, **fields):
    """One request: the reply as a dict, and the frames behind it."""
    socket.send_multipart([msgpack.packb({"op": op, **fields})])
    head, *rest = socket.recv_multipart()
    reply = msgpack.unpackb(head)
    if reply["op"] == "error":
        raise Refused(reply)
    return reply, rest


def patiently(socket, op, **fields):
    """The same, again while the node says that it will pass by itself."""
    while True:
        try:
            return ask(socket, op, **fields)
        except Refused as error:
            if error.hint != "retry":
                raise
            time.sleep(0.1)


def connect(to):
    socket = context.socket(zmq.REQ)
    socket.connect(f"tcp://{to}")
    return socket


found, _ = patiently(connect(address), "find_coordinator", group=group)
coordinator = connect(f"{found['host']}:{found['port']}")
about, _ = patiently(connect(address), "metadata", topics=[topic])
nodes = {node["name"]: f"{node['host']}:{node['port']}" for node in about["nodes"]}
leaders = {each["partition"]: each["leader"] for each in about["topics"][0]["partitions"]}

me = uuid.uuid4().hex
reply, _ = patiently(
    coordinator, "group_heartbeat", group=group, member=me, member_epoch=0, topics=[topic], owned=[]
)
epoch, share = reply["member_epoch"], reply.get("assignment", [])
# Having taken what it was given, a member says so. A long-running one would go on with a heartbeat each
# `heartbeat_interval`, give back what is no longer in an assignment, and say that too.
patiently(coordinator, "group_heartbeat", group=group, member=me, member_epoch=epoch, owned=share)

positions, _ = patiently(coordinator, "fetch_offsets", group=group, partitions=share)
for place in positions.get("offsets", []):
    leader = connect(nodes[leaders[place.get("partition", 0)]])
    position, number = max(0, place.get("offset", -1)), place.get("partition", 0)
    while True:
        reply, [chunk] = patiently(
            leader,
            "fetch",
            topic=topic,
            topic_id=place["topic_id"],
            partition=number,
            offset=position,
        )
        while chunk:
            attributes, length = (
                int.from_bytes(chunk[6:8], "little"),
                int.from_bytes(chunk[12:16], "little"),
            )
            offset = int.from_bytes(chunk[60:68], "little")
            if not attributes & 0xFF:  # neither compressed nor the nodes' own
                for at, record in enumerate(msgpack.unpackb(chunk[88 : 88 + length]), offset):
                    if record is not None and at >= position:
                        print(record[2].decode())
            chunk = chunk[88 + length :]
        position = reply.get("next", 0)
        if position >= reply.get("high_watermark", 0):
            break
    done = {
        "topic_id": place["topic_id"],
        "partition": number,
        "offset": position,
        "epoch": reply.get("next_epoch", -1),
    }
    reply, _ = patiently(
        coordinator, "commit_offsets", group=group, member=me, member_epoch=epoch, offsets=[done]
    )
    for refused in reply.get("refused", []):
        sys.exit(f"partition {number}: {refused['error']}")

patiently(coordinator, "group_heartbeat", group=group, member=me, member_epoch=-1)
