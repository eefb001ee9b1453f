"""A server on loopback that passes requests on and keeps what was asked, and one that hands out keys of roles."""

import http.client
import http.server
import json
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    """One request.

    Attributes:
        method: such as GET.
        target: the path, or what a proxy was asked for as a whole.
        headers: by names in small letters.
        body: what came with it.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = field(repr=False)


class _Answering(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _any(self):
        length = int(self.headers.get("Content-Length", 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self.rfile.read(length))
        status, answered, body = self.server.answer(request)  # type: ignore[attr-defined]
        self.send_response_only(status)
        for name, value in answered.items():
            self.send_header(name, value)
        if "content-length" not in answered:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answering)
        self.requests: list[Request] = []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, request):
        raise NotImplementedError


class Recorder(_Server):
    """Passes requests on to a server, as a proxy or in its place.

    Args:
        port: the server's.
    """

    def __init__(self, port):
        super().__init__()
        self._port = port

    def answer(self, request):
        self.requests.append(request)
        parts = urlsplit(request.target)
        server = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        server.putrequest(request.method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name not in ("connection", "expect", "proxy-connection"):
                server.putheader(name, value)
        server.endheaders(request.body)
        answer = server.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        body = answer.read()
        server.close()
        left_out = ("connection", "transfer-encoding", "" if request.method == "HEAD" else "content-length")
        return answer.status, {name: value for name, value in headers.items() if name not in left_out}, body


_CREDENTIALS = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>
<SessionToken>of-the-role</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


class Roles(_Server):
    """Gives the key of a role to who has the token of a service account, as STS does, or the agent on a node.

    Attributes:
        token: what has to be shown.
    """

    token = "of-the-account"

    def __init__(self, key, secret):
        super().__init__()
        self._key, self._secret = key, secret

    def answer(self, request):
        self.requests.append(request)
        if request.method == "POST":
            asked = parse_qs(request.body.decode())
            right = asked["Action"] == ["AssumeRoleWithWebIdentity"] and asked["WebIdentityToken"] == [self.token]
            text = _CREDENTIALS.format(key=self._key, secret=self._secret)
            return (200, {"Content-Type": "text/xml"}, text.encode()) if right else (403, {}, b"")
        if request.headers.get("authorization") != self.token:
            return 403, {}, b""
        given = {"AccessKeyId": self._key, "SecretAccessKey": self._secret, "Token": "of-the-role",
                 "Expiration": "2099-01-01T00:00:00Z"}  # fmt: skip
        return 200, {"Content-Type": "application/json"}, json.dumps(given).encode()
