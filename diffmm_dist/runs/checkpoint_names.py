"""Which checkpoints of a run there are, in which order, and which of them count.

A checkpoint is named after the step that comes next. Where nothing is renamed, on S3, its name ends with the number of
the run's writer: a process that was taken over and does not know it yet cannot touch what the other one writes, and
what it completes too late comes before all of that.
"""

from diffmm_dist import storage

STATE_FILE = "state.json"  # comes last
INDEX_FILE = "index.json"  # comes after all tensors
EARLIER_INDEX = ".metadata"  # of torch.distributed.checkpoint
PARTIAL = "partial-"
_PREFIX = "epoch-"
_WRITER = "-writer-"
NAME_PATTERN = r"^epoch-[0-9]{5,9}(-stage-[1-9])?(-phase-[0-9]{1,3}-step-[0-9]{7,18})?(-writer-[0-9]{5,18})?$"


def checkpoint_name(epoch: int, phase: int = 0, step: int = 0, *, stage: int = 0, writer: int | None = None) -> str:
    """Return the name of the checkpoint from which this step comes next; a writer's names sort as steps do.

    Epochs are counted through all stages. The first one goes without saying, as in the names of models that have one.
    """
    within = f"-stage-{stage}" if stage else ""
    inside = f"-phase-{phase}-step-{step:07d}" if phase or step else ""
    return f"{_PREFIX}{epoch:05d}{within}{inside}" + ("" if writer is None else f"{_WRITER}{writer:05d}")


def all_checkpoints(folder: str) -> list[str]:
    """Return the names of all checkpoints in a folder, half-written ones too, the oldest first."""
    return sorted((name for name in storage.list_names(folder) if name.startswith(_PREFIX)), key=_age)


def complete_checkpoints(folder: str) -> list[str]:
    """Return the names of the complete checkpoints in a folder, damaged ones too, the oldest first."""
    return [name for name in all_checkpoints(folder) if _is_complete(folder, name)]


def remove_incomplete(folder: str, *, writer: int) -> None:
    """Remove what killed processes have left half-written, for the present writer; what a later one writes stays."""
    half_written = (
        name for name in all_checkpoints(folder) if writer_of(name) < writer and not _is_complete(folder, name)
    )
    partial = (name for name in storage.list_names(folder) if name.startswith(PARTIAL))
    for name in (*half_written, *partial):
        storage.remove_folder(storage.join(folder, name))


def _is_complete(folder: str, name: str) -> bool:
    """Return whether a checkpoint counts; a state alone is what a writer added whose tensors were removed."""
    if not storage.is_remote(folder):
        return True
    files = storage.list_names(storage.join(folder, name))
    return STATE_FILE in files and len(files) > 1


def writer_of(name: str) -> int:
    """Return the number of the writer of a checkpoint, 0 where its name does not say."""
    number = name.partition(_WRITER)[2]
    return int(number) if number.isdecimal() else 0


def _age(name: str) -> tuple[int, str]:
    """Sort by the writer, each of which has gone on from its predecessors' newest, and then by the step."""
    return writer_of(name), name.partition(_WRITER)[0]
