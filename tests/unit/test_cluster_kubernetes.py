"""The Kubernetes objects of cluster/, as far as they can be checked without Kubernetes."""

import re
from importlib.metadata import requires

import pytest
import yaml
from packaging.requirements import Requirement

from diffmm_dist.data.schema import InteractionFile, Manifest, Modality
from diffmm_dist.runs.config import load_config
from diffmm_dist.training.clip import clipped
from diffmm_dist.training.estimate import GIB, estimate
from tests.support.builders import ROOT
from tests.support.kubernetes import FOLDER, definition, mistakes, objects, ray_cluster

PATHS = sorted(FOLDER.rglob("*.yaml"))
RAY_PATHS = [path for path in PATHS if path.name.startswith(("ray", "kustomization"))]
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}  # the names by which KubeRay knows them
UNITS = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}

each_ray = pytest.mark.parametrize("path", RAY_PATHS, ids=lambda path: f"{path.parent.name}/{path.name}")


def only(path):
    (tree,) = objects(path)
    return tree


def groups(cluster):
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(tree):
    """The specifications of every pod that an object makes, by whoever names them."""
    if tree["kind"] == "StatefulSet":
        return [tree["spec"]["template"]["spec"]]
    if "Ray" not in tree["kind"]:
        return []
    submitter = tree["spec"].get("submitterPodTemplate")
    return [group["template"]["spec"] for group in groups(ray_cluster(tree))] + (
        [submitter["spec"]] if submitter else []
    )


def amount(text):
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text).groups()
    return float(number) * UNITS[unit]


EVERY_POD = [pytest.param(pod, id=f"{path.stem} {place}") for path in PATHS for tree in objects(path)
             for place, pod in enumerate(pods(tree))]  # fmt: skip


@each_ray
def test_the_published_definitions_take_it(path):
    tree = only(path)
    if tree["kind"] == "RayService":  # what stands around its cluster is checked below
        tree = {"apiVersion": tree["apiVersion"], "kind": "RayCluster", "metadata": {}, "spec": ray_cluster(tree)}
    assert mistakes(tree, definition(f"{tree['kind'].lower()}s")) == []


@pytest.mark.parametrize("change", [("maxReplica", 8), ("replicas", "one")])
def test_a_wrong_field_is_found(change):
    tree = only(FOLDER / "raycluster.yaml")
    tree["spec"]["workerGroupSpecs"][0].update([change])
    (mistake,) = mistakes(tree, definition("rayclusters"))
    assert change[0] in mistake


@each_ray
def test_its_cluster_is_one_that_works_and_that_nobody_else_gets_into(path):
    cluster = ray_cluster(only(path))
    assert cluster["authOptions"] == {"mode": "token"}
    ray = next(Requirement(text) for text in requires("diffmm-dist") if text.startswith("ray["))
    assert ray.specifier.contains(cluster["rayVersion"])
    if cluster.get("enableInTreeAutoscaling"):
        assert cluster["autoscalerOptions"]["version"] == "v2"  # it alone never starts a worker's container again
        assert cluster["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False
    else:
        assert all(group["replicas"] == group["minReplicas"] for group in cluster["workerGroupSpecs"])
    assert cluster["workerGroupSpecs"]
    for group in cluster["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] > 0
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("pod", EVERY_POD)
def test_its_pods_are_confined_and_say_what_they_need(pod):
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0  # a name in an image says nothing to Kubernetes
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", ())}
    assert mounted <= {volume["name"] for volume in pod.get("volumes", ())} | {"data"}  # of a claim's template
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert set(requests) == set(limits) >= {"cpu", "memory"}
        assert all(0 < amount(requests[name]) <= amount(limits[name]) for name in limits)
        if "diffmm-dist" in container["image"]:
            assert container["imagePullPolicy"] == "Always"  # the same name stands for another image after a push
        names = {port["name"]: port["containerPort"] for port in container.get("ports", ()) if port["name"] != "redis"}
        assert names.items() <= PORTS.items()
        assert all(source == {"secretRef": {"name": "diffmm-s3"}} for source in container.get("envFrom", ()))


@each_ray
def test_its_gpus_can_be_had(path):
    for group in ray_cluster(only(path))["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        resources = pod["containers"][0]["resources"]
        if "nvidia.com/gpu" in resources["limits"]:
            assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
            assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
            assert group["minReplicas"] == 0 or path.name == "kustomization.yaml"  # none is paid for before it is used


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_a_head_that_is_drained_lets_the_run_save(name):
    pod = ray_cluster(only(FOLDER / name))["headGroupSpec"]["template"]["spec"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["save-and-stop"]
    image = (ROOT / "cluster" / "docker" / "Dockerfile").read_text()
    assert "/usr/local/bin/save-and-stop" in image
    assert pod["terminationGracePeriodSeconds"] > int(re.search(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", image)[1]) >= 120


@pytest.mark.parametrize("path", [path for path in RAY_PATHS if path.name in ("rayjob.yaml", "kustomization.yaml")])
def test_a_run_ends_and_is_begun_again_only_where_that_may_help(path):
    """What the entrypoint's exit status is, KubeRay does not ask: the job has to say that it was stopped."""
    spec = only(path)["spec"]
    assert 1 <= spec["backoffLimit"] <= 3
    (head,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "DIFFMM_STOP_JOB", "value": "1"} in head["env"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] < spec["activeDeadlineSeconds"]
    assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"
    assert not set(";|&\n\"'$`") & set(spec["entrypoint"].strip())  # KubeRay puts it into a shell's line as it is
    words = spec["entrypoint"].split()
    assert words[:2] == ["diffmm-dist", "train"]
    most = spec["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert f"cluster.num_workers=[1,{most}]" in words
    assert len(only(path)["metadata"]["name"]) <= 47


def test_in_a_queue_a_run_waits_until_it_is_let_in():
    tree = only(FOLDER / "kueue" / "kustomization.yaml")
    assert tree["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "diffmm"}
    assert tree["spec"]["suspend"] is True
    assert tree["spec"]["shutdownAfterJobFinishes"] is True  # without it KubeRay does not suspend
    assert tree["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False  # Kueue counts what a job says


def test_a_head_that_stays_keeps_what_it_knows_elsewhere():
    options = only(FOLDER / "raycluster.yaml")["spec"]["gcsFaultToleranceOptions"]
    service, redis = objects(FOLDER / "redis.yaml")
    assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert service["spec"]["selector"] == redis["spec"]["selector"]["matchLabels"]
    assert redis["spec"]["template"]["metadata"]["labels"] == redis["spec"]["selector"]["matchLabels"]
    (container,) = redis["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["valueFrom"] == options["redisPassword"]["valueFrom"]
    claimed = {claim["metadata"]["name"] for claim in redis["spec"]["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == claimed == {"data"}


def labels_of(tree):
    """The labels of the pods of a Ray cluster: its own, and those that KubeRay sets."""
    for group in groups(ray_cluster(tree)):
        name = group.get("groupName", "headgroup")
        kind = "head" if name == "headgroup" else "worker"
        yield {**group["template"]["metadata"]["labels"], "ray.io/node-type": kind, "ray.io/group": name}


def test_what_may_be_taken_away():
    heads, serving = objects(FOLDER / "disruption.yaml")
    pods = [(path.stem, labels) for path in RAY_PATHS for labels in labels_of(only(path))]

    def chosen(budget):
        wanted = budget["spec"]["selector"]["matchLabels"]
        return [(name, labels["ray.io/node-type"]) for name, labels in pods if wanted.items() <= labels.items()]

    assert {kind for _, kind in chosen(heads)} == {"head"}
    assert {name for name, _ in chosen(heads)} == {path.stem for path in RAY_PATHS}
    assert heads["spec"]["maxUnavailable"] == 0
    assert chosen(serving) == [("rayservice", "worker")]
    assert serving["spec"]["maxUnavailable"] == 1
    assert {heads["apiVersion"], serving["apiVersion"]} == {"policy/v1"}


def test_the_service_asks_for_nodes_that_hold_its_replicas():
    """Ray Serve itself reads its part in tests/integration/test_serve.py."""
    tree = only(FOLDER / "rayservice.yaml")
    assert set(tree["spec"]) == {"serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold",
                                 "serveConfigV2", "rayClusterConfig"}  # fmt: skip
    serve = yaml.safe_load(tree["spec"]["serveConfigV2"])
    (deployment,) = serve["applications"][0]["deployments"]
    (group,) = tree["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert deployment["num_replicas"] == group["replicas"] == 2
    assert deployment["ray_actor_options"]["num_cpus"] <= amount(container["resources"]["limits"]["cpu"])
    assert serve["http_options"]["port"] == PORTS["serve"]
    assert {"containerPort": 8000, "name": "serve"} in container["ports"]


def manifest_of_tiktok():
    """The sizes of the dataset that the manifests train on (docs/benchmarks/tiktok.md)."""
    checksum = "0" * 64

    def interactions(rows):
        return (InteractionFile(path="f", rows=rows, sha256=checksum, user_start=0, user_stop=9308),)

    return Manifest.model_construct(
        version=1, num_users=9308, num_items=6710, axes={}, tables={}, partition=None,
        interactions={"train": interactions(59_541), "valid": interactions(3_051), "test": interactions(6_130)},
        modalities={name: Modality.model_construct(width=128, dtype="float32") for name in ("visual", "acoustic")},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_what_a_run_is_estimated_to_need_fits_its_worker(name):
    """... beside the shared memory that counts against the same limit, and the libraries of CUDA."""
    job = only(FOLDER / "rayjob.yaml")["spec"]["entrypoint"].split()
    config = load_config(str(ROOT / job[3].removeprefix("/home/ray/diffmm_dist/")), job[4:])
    manifest = manifest_of_tiktok()
    needs = estimate(clipped(config, manifest)[0], manifest, num_workers=1, program=4 * GIB)
    (group,) = ray_cluster(only(FOLDER / name))["workerGroupSpecs"]
    pod = group["template"]["spec"]
    shared = amount(pod["volumes"][0]["emptyDir"]["sizeLimit"])
    room = amount(pod["containers"][0]["resources"]["requests"]["memory"]) - shared
    assert 4 * GIB < needs.total < room / 2  # what the nodes' own processes take is a few GiB
