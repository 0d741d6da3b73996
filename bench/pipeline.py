"""The yardstick: what this machine and these libraries allow a log broker in Python over ZeroMQ.

A producer packs each record by itself into 64 KiB batches; a broker process checks a CRC-32C, appends the batch to a
file, publishes it and acknowledges it; with `fsync`, one fdatasync covers all that was written before it began. There
are no offsets, no recovery, no idempotence, no limits: a broker that reaches half of it does well.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import statistics
import struct
import tempfile
import threading
import time
from multiprocessing.process import BaseProcess

import crc32c
import msgspec
import zmq

from zbroker.testing.nodes import free_ports

BATCH_BYTES = 64 * 1024
WINDOW = 32
SETTLE_S = 0.5


def pipeline(value_bytes: int, records: int, *, fsync: bool = False) -> float:
    """Records a second through the smallest pipeline, one producer, acknowledged."""
    port = free_ports(2)
    per_batch = max(1, BATCH_BYTES // (value_bytes + 8))
    records -= records % per_batch
    with tempfile.TemporaryDirectory() as folder:
        server = multiprocessing.get_context("spawn").Process(
            target=_broker, args=(folder, port, records // per_batch, fsync)
        )
        server.start()
        try:
            return _produce(port, value_bytes, records, per_batch)
        finally:
            _join(server)


def _produce(port: int, value_bytes: int, records: int, per_batch: int) -> float:
    encoder, value = msgspec.msgpack.Encoder(), os.urandom(value_bytes)
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.sndhwm = dealer.rcvhwm = 0
    dealer.connect(f"tcp://127.0.0.1:{port}")
    dealer.send_multipart((b"", b""))
    dealer.recv()
    time.sleep(SETTLE_S)
    start = time.perf_counter()
    batch, in_flight = bytearray(), 0
    for number in range(records):
        if not batch:
            batch += b"\xdd" + struct.pack(">I", per_batch)
        encoder.encode_into((0, None, value), batch, len(batch))
        if (number + 1) % per_batch == 0:
            body = bytes(batch)
            dealer.send(struct.pack("<I", crc32c.crc32c(body)), zmq.SNDMORE)
            dealer.send(body, copy=False)
            batch, in_flight = bytearray(), in_flight + 1
            while in_flight >= WINDOW:
                dealer.recv()
                in_flight -= 1
    while in_flight:
        dealer.recv()
        in_flight -= 1
    took = time.perf_counter() - start
    context.destroy(linger=0)
    return records / took


def _broker(folder: str, port: int, batches: int, fsync: bool) -> None:
    """Appends, publishes and acknowledges each batch once it is as durable as asked."""
    context = zmq.Context()
    router, publisher = context.socket(zmq.ROUTER), context.socket(zmq.XPUB)
    router.bind(f"tcp://127.0.0.1:{port}")
    publisher.bind(f"tcp://127.0.0.1:{port + 1}")
    log = os.open(f"{folder}/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    flusher = _Flusher(context, log) if fsync else None
    if flusher is not None:
        poller.register(flusher.done, zmq.POLLIN)
    waiting: collections.deque[tuple[bytes, bytes, bytes]] = collections.deque()
    written = flushed = committed = 0
    while committed < batches:
        ready = dict(poller.poll())
        if router in ready:
            for _ in range(64):
                try:
                    identity, head, body = router.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                if not body:
                    router.send_multipart((identity, b""))
                    continue
                assert crc32c.crc32c(body) == struct.unpack("<I", head)[0]
                os.write(log, body)
                written += 1
                waiting.append((identity, head, body))
            if flusher is not None:
                flusher.written = written
                flusher.wake.set()
        if flusher is not None and flusher.done in ready:
            flushed = struct.unpack("<Q", flusher.done.recv())[0]
        while committed < (written if flusher is None else flushed):
            identity, head, body = waiting.popleft()
            publisher.send_multipart((b"t/0/", body))
            router.send_multipart((identity, head))
            committed += 1
    if flusher is not None:
        flusher.stop()
    os.close(log)
    context.destroy(linger=2000)


class _Flusher(threading.Thread):
    """Group commit: one fdatasync covers all that was written before it began."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], log: int) -> None:
        super().__init__(daemon=True)
        self.log, self.wake, self.written = log, threading.Event(), 0
        self._sender = context.socket(zmq.PAIR)
        self._sender.bind("inproc://flushed")
        self.done = context.socket(zmq.PAIR)
        self.done.connect("inproc://flushed")
        self.start()

    def run(self) -> None:
        flushed = 0
        while True:
            self.wake.wait()
            self.wake.clear()
            if self.written < 0:
                self._sender.close(0)
                return
            if self.written > flushed:
                flushed = self.written
                os.fdatasync(self.log)
                self._sender.send(struct.pack("<Q", flushed))

    def stop(self) -> None:
        self.written = -1
        self.wake.set()
        self.join()


def _join(server: BaseProcess) -> None:
    server.join(10)
    if server.is_alive():
        server.kill()
        server.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--records", type=int, default=1_000_000)
    args = parser.parse_args()
    for size in (100, 1024):
        for fsync in (False, True):
            rates = [pipeline(size, args.records, fsync=fsync) for _ in range(args.runs)]
            median = statistics.median(rates)
            kind = "fsync" if fsync else "no fsync"
            print(
                f"{size:5} B, {kind:8} {median:>12,.0f} records/s {1e9 / median:>8,.0f} ns a record"
            )


if __name__ == "__main__":
    main()
