"""What the processes of forked.py have imported before they begin."""

from contextlib import suppress
from importlib import import_module

import torch

from diffmm_dist.errors import UserError
from diffmm_dist.graph.dgl_package import import_dgl

for name in (
    "duckdb", "s3fs", "torch._dynamo", "torch.distributed.checkpoint", "tensorboard.summary.writer.record_writer",
    "diffmm_dist.cli", "diffmm_dist.preparation.importers.published", "diffmm_dist.preparation.importers.tables",
    "diffmm_dist.preparation.synthetic",
    "diffmm_dist.exports.bundle", "diffmm_dist.bundles.tables", "diffmm_dist.launch.local_job",
    "diffmm_dist.preparation.partitioning", "diffmm_dist.training.trained", "diffmm_dist.training.worker",
):  # fmt: skip
    import_module(name)
torch.set_num_threads(1)
with suppress(UserError):  # tests that need it are skipped
    import_dgl()
