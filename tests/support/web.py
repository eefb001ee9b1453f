"""A web server over a folder, which gives parts of files and lists folders."""

import functools
import http.server
import io
import re
import threading
from contextlib import contextmanager
from pathlib import Path


class Web(http.server.ThreadingHTTPServer):
    """A server on loopback.

    Attributes:
        mode: ``ranges``; ``whole``: parts of files are not given; ``forbidden``: nothing is.
        headers: those of every request.
    """

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.mode = "ranges"
        self.headers: list[dict[str, str]] = []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send_head(self):
        self.server.headers.append(dict(self.headers))
        if self.server.mode == "forbidden":
            self.send_error(403)
            return None
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return super().send_head()
        data = path.read_bytes()
        size = len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is not None and self.server.mode == "ranges":
            data = data[int(asked[1]) : int(asked[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{size}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return io.BytesIO(data)


@contextmanager
def running(server):
    """Serve until the block ends."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def web_server(folder):
    """Serve a folder."""
    return running(Web(folder))
