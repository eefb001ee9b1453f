"""What `bench serve` writes, without a server but a small one of the standard library."""

import http.server
import json

import pytest

from diffmm_dist.bench.load import load
from diffmm_dist.bench.report import markdown
from tests.support.builders import ROOT
from tests.support.web import running

FILE = ROOT / "docs" / "benchmarks" / "serving.json"


class Answering(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, body))
        self.send_response(200 if body == b"good" else 422)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"xyz")


@pytest.mark.parametrize(("bodies", "good"), [([b"good"], True), ([b"bad"], False), ([b"good", b"bad"], None)])
def test_answers_and_errors_are_counted(bodies, good):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads, server.asked = True, []
    with running(server):
        found = load("127.0.0.1", server.server_port, "/p", bodies, clients=2, warm_s=0, for_s=0.05)
    assert {path for path, _ in server.asked} == {"/p"}
    assert {body for _, body in server.asked} == set(bodies)
    assert len(found.seconds) + found.errors == len(server.asked)
    assert bool(found.seconds) == (good is not False)
    assert bool(found.errors) == (good is not True)
    assert all(0 < seconds <= found.elapsed for seconds in found.seconds)


def test_the_page_has_the_table_of_its_file():
    page = FILE.with_suffix(".md").read_text()
    document = json.loads(FILE.read_text())
    assert set(document["serving"]) == {"1", "2"}
    for line in markdown([str(FILE)]).splitlines():
        assert line in page
