"""Ray Serve on this machine with the application, asked over HTTP."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pyarrow as pa
import pytest
import yaml

from diffmm_dist.errors import UserError
from diffmm_dist.export.bundle import export_bundle, read_bundle
from diffmm_dist.export.recommend import recommend, user_rows_of
from diffmm_dist.training.trained import load_trained
from tests.support.kubernetes import FOLDER, objects
from tests.support.processes import free_port
from tests.support.sockets import descendants, listening

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

# As `serve run` does it, but for a port and a Ray of its own; the end of the standard input ends it.
SERVER = """
import sys
from diffmm_dist.launch.ray_cluster import ray_cluster
with ray_cluster():
    from ray import serve
    from diffmm_dist.serve.application import app
    serve.start(http_options={"port": int(sys.argv[2])})
    serve.run(app({"bundle": sys.argv[1]}))
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
"""


@pytest.fixture(scope="module")
def bundle(short_run, tmp_path_factory):
    place = str(tmp_path_factory.mktemp("bundle") / "b")
    export_bundle(load_trained(str(short_run)), place)
    return place


@pytest.fixture(scope="module")
def server(bundle):
    """Its address and its first process."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, bundle, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "RAY_ADDRESS": ""}, start_new_session=True,
    )  # fmt: skip
    try:
        while "ready" not in (line := process.stdout.readline()):
            assert line, process.wait()
        yield f"http://127.0.0.1:{port}", process.pid
        process.stdin.close()
        assert process.wait(timeout=120) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)


@pytest.fixture
def address(server):
    return server[0]


def ask(address, path, body=None):
    """The status and the answer of a request."""
    request = urllib.request.Request(address + path, data=body if body is None else json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_asked_over_http_it_recommends_what_the_command_line_does(address, bundle):
    source = read_bundle(bundle)
    status, health = ask(address, "/healthz")
    assert (status, health) == (200, {"status": "ok", "users": len(source.user_ids), "items": len(source.item_ids)})
    users = [source.user_ids[row].as_py() for row in (7, 2)]
    status, answer = ask(address, "/recommend", {"users": users, "k": 5})
    assert status == 200
    expected = pa.concat_tables(recommend(source, user_rows_of(source, list(map(str, users))), k=5)).to_pylist()
    answered = [(one["user"], item, score) for one in answer["recommendations"]
                for item, score in zip(one["items"], one["scores"], strict=True)]  # fmt: skip
    assert answered == [(row["user"], row["item"], pytest.approx(row["score"], abs=1e-6)) for row in expected]


def test_a_wrong_request_is_a_sentence_with_its_status(address):
    for path, body, status, text in (
        ("/recommend", {"users": ["nobody"]}, 422, "the bundle has no user"),
        ("/recommend", [], 400, "no JSON object"), ("/recommend", None, 405, "takes POST"),
        ("/x", None, 404, "nothing"),
    ):  # fmt: skip
        got, answer = ask(address, path, body)
        assert got == status
        assert list(answer) == ["error"]
        assert text in answer["error"]


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


@pytest.mark.parametrize("args", [{}, {"bundel": "x"}, {"bundle": "x", "k": "3"}, {"bundle": 3}])
def test_the_application_takes_a_bundle_alone(args):
    from diffmm_dist.serve.application import app

    with pytest.raises(UserError, match="takes bundle=PLACE alone"):
        app(args)


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
