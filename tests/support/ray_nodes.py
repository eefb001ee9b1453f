"""Ray's provider of make-believe nodes, each with a folder of its own; Ray's autoscaler loads it."""

import os
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import ray._private.parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

FOLDERS = "DIFFMM_TEST_NODES"  # the variable with where the nodes' folders are made
HELD = "held"  # while there is a file of this name, no node comes


class NodesApart(FakeMultiNodeProvider):
    """Nodes in one folder would unpack a job's program there anew, each from under the feet of the others' workers."""

    def _create_node_with_resources_and_labels(self, *arguments):
        folder = Path(os.environ[FOLDERS])
        while (folder / HELD).exists():
            time.sleep(0.1)
        with self.lock:
            parameters = partial(ray._private.parameter.RayParams, temp_dir=str(folder / str(self._next_node_id + 1)))
            with patch.object(ray._private.parameter, "RayParams", parameters):
                super()._create_node_with_resources_and_labels(*arguments)
