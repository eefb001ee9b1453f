"""`serve` on this machine, asked over HTTP, as docs/serving.md shows it."""

import json
import re
import shlex
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from diffmm_dist.bench.processes import descendants
from diffmm_dist.bundles.recommender import Recommender
from diffmm_dist.errors import UserError
from diffmm_dist.exports.bundle import export_bundle
from diffmm_dist.training.trained import load_trained
from tests.support.builders import ROOT
from tests.support.kubernetes import FOLDER, objects
from tests.support.pages import commands_of
from tests.support.processes import free_port, started
from tests.support.sockets import listening

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

PAGE = ROOT / "docs" / "serving.md"


@pytest.fixture(scope="module")
def bundle(short_run, tmp_path_factory):
    place = str(tmp_path_factory.mktemp("bundle") / "b")
    export_bundle(load_trained(str(short_run)), place)
    return place


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    """Its address, its first process, what it has said, and its log."""
    log = tmp_path_factory.mktemp("serve") / "log"
    with (
        log.open("w") as errors,
        started("serve", bundle, "--port", free_port(), "--reload-s", 0.2, env={"RAY_ADDRESS": ""},
                stdout=subprocess.PIPE, stderr=errors) as process,
    ):  # fmt: skip
        line = process.stdout.readline()
        assert "serving" in line, log.read_text()
        yield line.split(": ")[0], process.pid, line, log
        everything = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "stopped\n"
        assert process.wait(timeout=60) == 0, log.read_text()
        deadline = time.monotonic() + 30
        while any(map(runs, everything)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def runs(pid):
    """Whether a process still does anything; one that has ended may wait to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def address(server):
    return server[0]


def ask(address, path, body=None, method=None):
    """The status and the answer of a request."""
    data = body if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data=data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_asked_over_http_it_recommends_what_the_package_does(address, bundle):
    source = Recommender.load(bundle)
    users = source.users.values.take([7, 2]).to_pylist()
    expected = source.recommend(users, 5)
    status, answer = ask(address, "/recommend", {"users": users, "k": 5})
    assert status == 200
    assert json.loads(answer)["recommendations"] == [
        {"user": user, "items": items, "scores": pytest.approx(scores, abs=1e-6)}
        for user, items, scores in zip(users, expected.ids.tolist(), expected.scores.tolist(), strict=True)
    ]


def test_requests_at_the_same_time_are_answered_as_alone_and_a_wrong_one_harms_none(address):
    bodies = [{"users": [f"user_{i}"], "k": 3 + i % 2} for i in range(20)] + [{"users": ["nobody"]}, []] * 4
    alone = [ask(address, "/recommend", body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: ask(address, "/recommend", body), bodies))
    for (status, answer), (status_alone, answer_alone) in zip(together, alone, strict=True):
        assert status == status_alone
        assert masked(answer) == masked(answer_alone)
        assert re.findall("item_[0-9]+", answer) == re.findall("item_[0-9]+", answer_alone)


def test_a_wrong_request_is_a_sentence_with_its_status(address):
    for path, body, status, text in (
        ("/recommend", {"users": ["nobody"]}, 422, "the bundle has no user"),
        ("/recommend", [], 400, "no JSON object"), ("/recommend", None, 405, "takes POST"),
        ("/recommend", " " * (3 << 20), 413, "more than 1 MiB"), ("/similar", {}, 422, "give items or users"),
        ("/fold-in", {"items": ["nothing"]}, 422, "the bundle has no item"), ("/x", None, 404, "nothing"),
    ):  # fmt: skip
        got, answer = ask(address, path, body)
        assert got == status
        assert list(json.loads(answer)) == ["error"]
        assert text in json.loads(answer)["error"]


def test_head_has_no_body_and_the_page_names_the_address(address):
    assert ask(address, "/healthz", method="HEAD") == (200, "")
    assert f"curl {address}/recommend" in ask(address, "/")[1]


def test_nothing_of_it_listens_beyond_this_machine_but_what_wants_the_token(server):
    """Ray Serve lets replicas talk to one another through a port that it opens on every interface."""
    import grpc

    found = listening(descendants(server[1]))
    assert int(server[0].rpartition(":")[2]) in {port for host, port, _ in found if host == "127.0.0.1"}
    others = [port for host, port, _ in found if host not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
    assert len(others) <= 1
    for port in others:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def masked(text):
    """A text without what differs between machines, bundles and days; how many there are of each stays."""
    for pattern, word in (
        (r"http://127\.0\.0\.1:\d+", "ADDRESS"), (r"serving [^;]+;", "serving BUNDLE;"),
        (r"\d{4}-\d\d-\d\dT[\d:]+Z", "TIME"),
        (r'"[0-9a-f]{64}"', '"HASH"'), (r"-?\d+\.\d+(e-?\d+)?", "SCORE"), (r"item_\d+", "ITEM"),
        (r'"(users|items)": \d+', r'"\1": COUNT'), (r'("user": |"users": \[)("user_\d+"(, )?)+', r"\1USERS"),
    ):  # fmt: skip
        text = re.sub(pattern, word, text)
    return text.strip()


def test_the_page_shows_what_is_answered(server):
    address, _, line, _ = server
    asked = 0
    for command, lines in commands_of(PAGE):
        words, output = shlex.split(command), "\n".join(lines)
        if words[:3] == ["python", "launch.py", "serve"]:
            assert masked(line) == masked(output)
        if words[0] == "curl":
            path = re.fullmatch(r"http://127\.0\.0\.1:8000(/\S*)", words[2])[1]
            _, answer = ask(address, path, words[4] if "--data" in words else None)
            assert masked(answer) == masked(output), command
            asked += 1
    assert asked >= 6


def test_a_bundle_that_is_exported_anew_takes_over_and_no_request_fails(server, bundle, short_run):
    """The last of those that share the bundle."""
    address, _, _, log = server
    body = {"users": ["user_0"], "k": 5}
    before, health = ask(address, "/recommend", body), json.loads(ask(address, "/healthz")[1])
    answers, ended = [], threading.Event()

    def keep_asking():
        while not ended.is_set():
            answers.append(ask(address, "/recommend", body))

    askers = [threading.Thread(target=keep_asking) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        trained = load_trained(str(short_run))
        users, items = trained.model.embeddings()
        trained.model.embeddings = lambda: (-users, items)
        export_bundle(trained, bundle, force=True)
        deadline = time.monotonic() + 60
        while (after := json.loads(ask(address, "/healthz")[1]))["sha256"] == health["sha256"]:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        new = ask(address, "/recommend", body)
    finally:
        ended.set()
        for asker in askers:
            asker.join()
    expected = Recommender.load(bundle).recommend("user_0", 5)
    assert json.loads(new[1])["recommendations"][0]["items"] == expected.ids.tolist()
    assert {masked(answer) for _, answer in answers} == {masked(new[1])}  # nothing but lists
    assert {status for status, _ in answers} == {200}
    lists = {tuple(json.loads(answer)["recommendations"][0]["items"]) for _, answer in [*answers, before]}
    assert len(lists) == 2
    assert after["since"] >= health["since"]
    while "serving the bundle that is there now" not in log.read_text():  # Ray brings it from the replica
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("args", [{}, {"bundel": "x"}, {"bundle": "x", "k": "3"}, {"bundle": 3}])
def test_the_application_takes_a_bundle_and_how_often_to_look(args):
    from diffmm_dist.serve.application import app

    with pytest.raises(UserError, match="takes bundle=PLACE and reload_s=SECONDS"):
        app(args)
    with pytest.raises(UserError, match="reload_s=often must be a number of seconds"):
        app({"bundle": "x", "reload_s": "often"})
    assert app({"bundle": "x", "reload_s": "5"})._bound_deployment.init_args == ("x", 5.0)


def test_what_kubernetes_is_told_is_valid_to_ray_serve_and_names_what_is_there():
    from ray._common.utils import import_attr
    from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

    (service,) = objects(FOLDER / "rayservice.yaml")
    tree = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema(**tree).applications
    built = import_attr(application.import_path)(application.args)
    assert [deployment.name for deployment in application.deployments] == [built._bound_deployment.name]
    # Ray Serve passes over fields that it does not know.
    (of_application,) = tree["applications"]
    for model, part in (
        (ServeDeploySchema, tree), (HTTPOptionsSchema, tree["http_options"]), (ServeApplicationSchema, of_application),
        (DeploymentSchema, of_application["deployments"][0]),
    ):  # fmt: skip
        assert set(part) <= set(model.model_fields)
