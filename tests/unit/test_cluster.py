"""What cluster/ says to Ray, to Docker and to our own command line, as far as it can be checked without a cluster."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from diffmm_dist.cli import app
from diffmm_dist.runs.config import load_config
from tests.support.builders import ROOT

CLUSTER = ROOT / "cluster"
TEXTS = [path for path in sorted(CLUSTER.rglob("*")) if path.is_file()]
AWS = CLUSTER / "aws" / "ray.yaml"
VARIABLES = {"BUCKET": "BUCKET", "SKYPILOT_NUM_NODES": "2"}
TAKES_ITS_WORDS = 'train "$@" &'  # from the command line of sbatch


def test_the_aws_file_is_valid_to_ray():
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.autoscaler._private.util import prepare_config, validate_config

    def validate(text):
        validate_config(prepare_config(yaml.safe_load(text)))

    text = AWS.read_text()
    validate(text)
    with pytest.raises(Exception, match="max_worker"):
        validate(text.replace("max_workers: 8\nidle", "max_worker: 8\nidle"))


def test_rays_provider_for_aws_can_be_imported_and_leaves_the_image_of_the_machines():
    """... with what the extra `aws` brings, which the image has."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.autoscaler._private.aws import config
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    tree = yaml.safe_load(AWS.read_text())
    assert AWSNodeProvider.is_readonly is not None
    images = {name: entry["node_config"]["ImageId"] for name, entry in tree["available_node_types"].items()}
    assert all(image.startswith("resolve:ssm:/aws/service/deeplearning/ami/") for image in images.values())
    config._check_ami(tree)
    assert images == {name: entry["node_config"]["ImageId"] for name, entry in tree["available_node_types"].items()}


def test_on_aws_machines_have_a_disk_a_role_and_the_token():
    tree = yaml.safe_load(AWS.read_text())
    for name, entry in tree["available_node_types"].items():
        machine = entry["node_config"]
        (disk,) = machine["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 100  # the image alone takes some ten GiB, twice while it is unpacked
        assert disk["Ebs"]["DeleteOnTermination"] is True
        assert machine["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
        is_head = name == tree["head_node_type"]
        assert machine["IamInstanceProfile"] == {"Name": "diffmm-head" if is_head else "diffmm-s3"}
        assert ("InstanceMarketOptions" in machine) == (not is_head)
    assert tree["available_node_types"]["gpu"]["min_workers"] == 0  # no GPU is paid for before a run asks for it
    assert tree["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "--env RAY_AUTH_MODE=token" in tree["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in tree["head_start_ray_commands"][-1]


def test_compose():
    tree = yaml.safe_load((CLUSTER / "compose.yaml").read_text())
    services = tree["services"]
    assert set(services) == {"storage", "head", "worker"}
    assert all(needed in services for service in services.values() for needed in service.get("depends_on", ()))
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published == ["127.0.0.1:8265:8265"]
    for name in ("head", "worker"):
        service = services[name]
        assert (CLUSTER / service["build"]["context"] / service["build"]["dockerfile"]).resolve().is_file()
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
        assert service["cap_drop"] == ["ALL"]
    assert services["worker"]["depends_on"] == {"head": {"condition": "service_healthy"}}
    assert "health-check" in services["head"]["healthcheck"]["test"]


def test_no_cluster_is_open_to_others():
    """Whoever reaches a head without a token runs what he likes there."""
    for path in TEXTS:
        assert not re.search(r"RAY_AUTH_MODE['\"]?[:=] ?['\"]?disabled", path.read_text()), path


def commands():
    """Every command of ours in the files: the words behind ``diffmm-dist`` or ``python launch.py``."""
    found = []
    for path in TEXTS:
        text = path.read_text()
        if path.suffix == ".yaml":
            trees = yaml.safe_load_all(text)
            texts = [str(leaf) for tree in trees for leaf in leaves(tree) if "diffmm-dist " in str(leaf)]
            text = "\n".join(texts)
        for line in text.splitlines():
            if line.startswith("#") or "`" in line:  # a comment, or prose
                continue
            match = re.search(r"(?:\bdiffmm-dist|python launch\.py|train\.sbatch) +([a-z-].*)$", line.strip())
            if match and match[1] != TAKES_ITS_WORDS:
                words = shlex.split(match[1].partition(" || ")[0])
                words = [re.sub(r"\$(\w+)", lambda variable: VARIABLES[variable[1]], word) for word in words]
                words = ["train", *words] if "train.sbatch " in line else words
                found.append(pytest.param(words, id=f"{path.name}: {match[1][:40]}"))
    return found


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    return [leaf for value in tree for leaf in leaves(value)] if isinstance(tree, list) else [tree]


def test_there_are_commands():
    assert len(commands()) >= 12


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
        assert settings.data.path.startswith(("s3://", "/"))
        assert settings.run.path.startswith(("s3://", "/"))


def test_a_wrong_command_is_found():
    with pytest.raises(Exception, match="no-such"):
        test_our_commands_are_parsed(["prepare", "tables", "x", "--no-such", "y"])


def test_no_secret_is_written_down():
    for path in TEXTS:
        for line in path.read_text().splitlines():
            match = re.search(r"SECRET_ACCESS_KEY[=:] *\"?(\S*)", line)
            assert match is None or match[1].startswith(("$", "{", "null")), line
