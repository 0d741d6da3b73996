"""The optional HTTP port: `/metrics` for Prometheus, `/health` for whatever restarts or balances nodes.

Owns one small server on a thread. Never touches the broker: it serves the last snapshot.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from zbroker.errors import AddressInUse
from zbroker.node.metrics import Snapshot, exposition

TEXT = "text/plain; version=0.0.4; charset=utf-8"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    snapshot: Callable[[], Snapshot]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10
    server_version = "zbroker"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        snapshot = self.server.snapshot()
        if path == "/metrics":
            self._answer(HTTPStatus.OK, TEXT, exposition(snapshot))
        elif path == "/health":
            healthy = snapshot.state == "serving" and not snapshot.disk_full
            body = {"node": snapshot.node, "state": snapshot.state, "disk_full": snapshot.disk_full}
            status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, "application/json", json.dumps(body).encode() + b"\n")
        else:
            self._answer(HTTPStatus.NOT_FOUND, TEXT, b"there are /metrics and /health\n")

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are not logged: they come every few seconds."""


class HttpServer:
    """Serves a node's metrics and health until closed."""

    def __init__(self, host: str, port: int, snapshot: Callable[[], Snapshot]) -> None:
        """Raises `AddressInUse` where the port is taken."""
        try:
            self._server = _Server((host, port), _Handler)
        except OSError as error:
            raise AddressInUse(
                f"{host}:{port} cannot be bound for HTTP: {error.strerror}; change `http:` or stop what uses it",
                address=f"{host}:{port}",
            ) from None
        self._server.snapshot = snapshot
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
