"""The manifests of cluster/, as far as they can be checked without a cluster."""

import re
import shlex
from importlib.metadata import requires
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import TypeAdapter

from diffmm_dist.cli import app
from diffmm_dist.runs.config import load_config
from tests.support.builders import ROOT
from tests.support.kuberay import RayCluster, RayJob

CLUSTER = ROOT / "cluster"
OBJECTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
TEXTS = [path for path in sorted(CLUSTER.rglob("*")) if path.is_file()]


def kuberay_object(path):
    return TypeAdapter(RayCluster | RayJob).validate_python(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name)
def test_kuberay_objects(path):
    cluster = kuberay_object(path).cluster()
    groups = cluster.workerGroupSpecs
    assert groups
    assert all(1 <= group.minReplicas <= group.replicas <= group.maxReplicas for group in groups)
    assert cluster.enableInTreeAutoscaling
    for group in [cluster.headGroupSpec, *groups]:
        pod = group.template.spec
        mounted = {mount.name for container in pod.containers for mount in container.volumeMounts}
        assert mounted <= {volume.name for volume in pod.volumes}
        assert all(
            [reference.secretRef.name for reference in container.envFrom] == ["diffmm-s3"]
            for container in pod.containers
        )
    for group in groups:
        resources = group.template.spec.containers[0].resources
        assert resources.limits["nvidia.com/gpu"] == resources.requests["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("change", [("maxReplica", 8), ("replicas", "one")])
def test_a_wrong_field_is_found(change):
    tree = yaml.safe_load(OBJECTS[0].read_text())
    tree["spec"]["workerGroupSpecs"][0].update([change])
    with pytest.raises(ValueError, match=change[0]):
        RayCluster.model_validate(tree)


def test_the_ray_version_is_one_that_the_project_takes():
    from packaging.requirements import Requirement

    wanted = next(Requirement(text) for text in requires("diffmm-dist") if text.startswith("ray["))
    assert all(wanted.specifier.contains(kuberay_object(path).cluster().rayVersion) for path in OBJECTS)


def test_the_aws_file_is_valid_to_ray():
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.autoscaler._private.util import prepare_config, validate_config

    def validate(text):
        validate_config(prepare_config(yaml.safe_load(text)))

    text = (CLUSTER / "aws" / "ray.yaml").read_text()
    validate(text)
    with pytest.raises(Exception, match="max_worker"):
        validate(text.replace("max_workers: 8\nidle", "max_worker: 8\nidle"))


def test_compose():
    tree = yaml.safe_load((CLUSTER / "compose.yaml").read_text())
    services = tree["services"]
    assert set(services) == {"storage", "head", "worker"}
    assert all(needed in services for service in services.values() for needed in service.get("depends_on", ()))
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published == ["127.0.0.1:8265:8265"]
    for service in services.values():
        if "build" in service:
            assert (CLUSTER / service["build"]["context"] / service["build"]["dockerfile"]).resolve().is_file()


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_dockerfiles_copy_what_is_there(name):
    text = (CLUSTER / "docker" / f"Dockerfile.{name}").read_text()
    sources = [source for line in re.findall(r"^COPY (.*)", text, re.M) for source in line.split()[:-1]]
    assert all((ROOT / source).exists() for source in sources if not source.startswith("--"))
    assert "USER ray" in text
    assert all(line in (ROOT / ".dockerignore").read_text().split() for line in ("datasets", "runs", ".git"))


def commands():
    """Every command of ours in the files: the words behind ``diffmm-dist`` or ``python launch.py``."""
    found = []
    for path in TEXTS:
        text = path.read_text()
        if path.suffix == ".yaml":
            text = " ".join(str(leaf) for leaf in leaves(yaml.safe_load(text)) if "diffmm-dist " in str(leaf))
        for line in text.splitlines():
            match = re.search(r"(?:\bdiffmm-dist|python launch\.py) +([a-z].*)$", line.strip())
            if match:
                found.append(pytest.param(shlex.split(match[1]), id=f"{path.name}: {match[1][:40]}"))
    return found


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    return [leaf for value in tree for leaf in leaves(value)] if isinstance(tree, list) else [tree]


def test_there_are_commands():
    assert len(commands()) >= 8


@pytest.mark.parametrize("words", commands())
def test_our_commands_are_parsed(words):
    command = typer.main.get_command(app)
    context = None
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(context, words)
        assert command is not None, name
    parsed = command.make_context(name, list(words)).params
    if "config" in parsed:
        config = ROOT / str(parsed["config"]).removeprefix("/home/ray/diffmm_dist/")
        settings = load_config(Path(config), parsed["overrides"] or [])
        assert settings.data.path.startswith("s3://")
        assert settings.run.path.startswith("s3://")


def test_a_wrong_command_is_found():
    with pytest.raises(Exception, match="no-such"):
        test_our_commands_are_parsed(["prepare", "tables", "x", "--no-such", "y"])


def test_no_secret_is_written_down():
    for path in TEXTS:
        for line in path.read_text().splitlines():
            match = re.search(r"SECRET_ACCESS_KEY[=:] *\"?(\S*)", line)
            assert match is None or match[1].startswith(("$", "{")), line
