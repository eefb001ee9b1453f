"""The Kubernetes objects of cluster/kuberay, and KubeRay's published definitions where they are at hand."""

import copy
import gzip
import os
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.support.builders import ROOT

FOLDER = ROOT / "cluster" / "kuberay"
# The definitions come with a release of the operator (ray-operator/config/crd/bases); they are 1.4 MB each.
DEFINITIONS = Path(os.environ.get("KUBERAY_CRDS") or ROOT.parent / "shared" / "kuberay-crd")


def objects(path):
    """The objects of a file; of a kustomization the patched ones."""
    trees = list(yaml.safe_load_all(path.read_text()))
    if path.name != "kustomization.yaml":
        return trees
    (tree,) = trees
    found = [one for name in tree["resources"] for one in objects(path.parent / name)]
    for entry in tree["patches"]:
        for one in found:
            if all({"kind": one["kind"], "name": one["metadata"]["name"]}[key] == entry["target"][key]
                   for key in entry["target"]):  # fmt: skip
                patch(one, yaml.safe_load(entry["patch"]))
    return found


def patch(tree, operations):
    """Change a tree as JSON patches say (RFC 6902), with the operations that are used here."""
    for operation in operations:
        *parents, last = operation["path"].strip("/").split("/")
        place = tree
        for name in parents:
            place = place[int(name) if isinstance(place, list) else name]
        assert operation["op"] == "add" or last in place, operation
        if operation["op"] == "remove":
            del place[last]
        else:
            place[last] = copy.deepcopy(operation["value"])


def ray_cluster(tree):
    """The part of an object of KubeRay's that describes its Ray cluster."""
    spec = tree["spec"]
    return {"RayCluster": lambda: spec, "RayJob": lambda: spec["rayClusterSpec"],
            "RayService": lambda: spec["rayClusterConfig"]}[tree["kind"]]()  # fmt: skip


@cache
def definition(plural):
    """The published schema of a kind, in which fields that it does not name are errors; skips where it is not there."""
    pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    paths = sorted(DEFINITIONS.glob(f"*{plural}.yaml*"))
    if not paths:
        pytest.skip("KubeRay's definitions are not here; KUBERAY_CRDS names a folder that has them")
    text = gzip.decompress(paths[-1].read_bytes()) if paths[-1].suffix == ".gz" else paths[-1].read_bytes()
    tree = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [one for one in tree["spec"]["versions"] if one["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    close(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def close(schema):
    """Forbid fields that a schema does not name, where Kubernetes would drop them."""
    if isinstance(schema, list):
        for one in schema:
            close(one)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for one in schema.values():
            close(one)


def mistakes(tree, schema):
    """What a schema finds wrong, each with its place."""
    import jsonschema  # type: ignore[import-untyped]

    found = jsonschema.Draft202012Validator(schema).iter_errors(tree)
    return [f"{'/'.join(map(str, one.absolute_path))}: {one.message[:200]}" for one in found]
