"""Sending a run to a Ray cluster as a job, and following it.

A clone of the project is sent as it stands, so that what was changed here runs there. Without one the job runs the
project that the cluster's nodes have installed, and all that is sent is the configuration.
"""

import asyncio
import fnmatch
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from diffmm_dist.config.render import to_yaml
from diffmm_dist.errors import StoppedEarlyError, TryAgainError, UserError, one_line
from diffmm_dist.launch.private_places import check_token
from diffmm_dist.monitoring.log import logger
from diffmm_dist.places import check_shared
from diffmm_dist.runs.config import Config, load_config, places
from diffmm_dist.safe_text import visible
from diffmm_dist.schemes import listed
from diffmm_dist.staging import scratch_folder
from diffmm_dist.storage import is_remote

# Data, results, history and what tools leave behind; in the form of .gitignore, as Ray wants it.
EXCLUDES = (
    "/.git", "/datasets", "/data", "/runs", "/bundles", "/build", "/dist", "/tests", ".venv*", "venv", "*.egg-info",
    "__pycache__", ".*_cache", ".hypothesis", "node_modules",
)  # fmt: skip
LARGEST_MIB = 100.0  # what Ray takes
# By these Ray's client would go to another cluster than the one that it is told.
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def submit(
    address: str, config: str, overrides: Sequence[str], *, working_dir: str | None = None, follow: bool = True
) -> int:
    """Submit a ``train`` command with a configuration and return the job's exit status, 0 at once if not followed.

    Args:
        address: of the cluster's dashboard, such as http://HEAD:8265.
        config: configuration file, inside the clone if there is one.
        overrides: ``section.key=value``.
        working_dir: a clone of the project, which is uploaded without data, runs and history; None for this folder if
            it is one, and else for what the nodes have installed.
        follow: print the job's log until it ends.

    Raises:
        UserError: the address is none, the configuration is wrong or could not be read there, the folder is too large,
            or the cluster's token cannot be read.
        TryAgainError: the cluster does not answer or does not take the job.
    """
    _check_address(address)
    check_token()
    with _upload(config, overrides, working_dir) as (folder, entrypoint):
        client, job = _sent(address, folder, entrypoint)
    logger.info("job %s: %s", job, entrypoint)
    if not follow:
        return 0
    try:
        asyncio.run(_follow(client, job))
    except (KeyboardInterrupt, StoppedEarlyError):
        logger.info("the job goes on; stop it with: ray job stop --address %s %s", address, job)
        raise
    return _exit_status(client, job)


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server:
        raise UserError(f"--address '{visible(address)}' is not the address of a dashboard; write http://HEAD:8265")


def _sent(address: str, folder: Path, entrypoint: str) -> tuple[Any, str]:
    """Return Ray's client, and the name of the job that it has sent."""
    try:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UserError(f"Ray cannot be imported ({one_line(error)}); install ray[default,train]") from error
    others = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        client = JobSubmissionClient(address)
        job: str = client.submit_job(
            entrypoint=entrypoint, runtime_env={"working_dir": str(folder), "excludes": list(EXCLUDES)}
        )
    except (RayError, RuntimeError, OSError) as error:
        raise TryAgainError(f"the cluster at {address} does not take the job: {one_line(error)}") from error
    finally:
        os.environ.update(others)
    return client, job


@contextmanager
def _upload(config: str, overrides: Sequence[str], working_dir: str | None) -> Iterator[tuple[Path, str]]:
    """Yield the folder to upload and what the job runs in it."""
    if working_dir is None and not _is_clone(Path.cwd()):
        with scratch_folder("diffmm-submit-") as scratch:
            folder = Path(scratch, "job")
            folder.mkdir()
            yield folder, installed_command(folder, config, overrides)
        return
    folder = Path(working_dir or ".").resolve()
    entrypoint = job_command(folder, config, overrides)
    check_size(folder)
    yield folder, entrypoint


def _is_clone(folder: Path) -> bool:
    return (folder / "launch.py").is_file() and (folder / "diffmm_dist" / "start.py").is_file()


def job_command(folder: Path, config: str, overrides: Sequence[str]) -> str:
    """Return what the job runs in an uploaded clone, after checking that it can be right where it runs.

    Raises:
        UserError: the configuration is wrong, lies outside the folder, or trains outside Ray.
    """
    settings = _checked(config, overrides)
    path = Path(config).resolve()
    if not _is_clone(folder):
        raise UserError(
            f"{folder} is no clone of the project; leave --working-dir out to run what the nodes have installed"
        )
    if not path.is_relative_to(folder):
        raise UserError(f"{config} lies outside {folder}, which is all that is uploaded; copy it there")
    # A path from the home folder is meant to be the one of here, whoever runs the job there.
    home = os.path.join(os.path.expanduser("~"), "")
    settled = [f"{key}={place}" for key, place in places(settings).items() if place.startswith(home)]
    file = path.relative_to(folder).as_posix()
    return shlex.join(["python", "launch.py", "train", "--config", file, *overrides, *settled])


def installed_command(folder: Path, config: str, overrides: Sequence[str]) -> str:
    """Write the whole configuration to a folder and return what the job runs there with the installed project.

    Raises:
        UserError: the configuration is wrong, or trains outside Ray.
    """
    settings = _checked(config, overrides)
    name = f"{Path(config).stem}.yaml"
    (folder / name).write_text(to_yaml(settings))
    return shlex.join(["diffmm-dist", "train", "--config", name])


def _checked(config: str, overrides: Sequence[str]) -> Config:
    """Return the configuration after checking that it can be right on a cluster."""
    settings = load_config(config, overrides)
    if settings.cluster.num_workers == 0:
        raise UserError("cluster.num_workers=0 would train in one process on the head node; give the number of workers")
    check_shared(places(settings))
    shared = [place for key, place in places(settings).items() if key != "data.cache"]
    local = [place for place in shared if not is_remote(place) and not os.path.isabs(place)]
    if local:
        raise UserError(
            f"{' and '.join(local)} would be looked for inside the uploaded folder; give {listed(writable=True)} "
            "addresses, or absolute paths that all nodes share"
        )
    return settings


def check_size(folder: Path) -> float:
    """Return the MiB that would be uploaded.

    Raises:
        UserError: they are more than Ray takes; it names the largest parts.
    """
    sizes: dict[str, int] = {}
    for path in _uploaded(folder):
        top = path.relative_to(folder).parts[0]
        sizes[top] = sizes.get(top, 0) + path.stat().st_size
    total = sum(sizes.values()) / 2**20
    if total > LARGEST_MIB:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
        names = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in largest)
        raise UserError(
            f"{folder} holds {total:.0f} MiB besides what is left out, and Ray uploads {LARGEST_MIB:.0f} at most; move "
            f"the largest elsewhere: {names}"
        )
    return total


def _uploaded(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        at_top = Path(root) == folder
        folders[:] = [name for name in folders if not _excluded(name, at_top)]
        yield from (Path(root, name) for name in files if not _excluded(name, at_top) and Path(root, name).is_file())


def _excluded(name: str, at_top: bool) -> bool:
    patterns = (pattern.removeprefix("/") for pattern in EXCLUDES if at_top or not pattern.startswith("/"))
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


async def _follow(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def _exit_status(client: Any, job: str) -> int:
    """Return the exit status of the job's command; 1 if Ray ended it without one."""
    from ray.job_submission import JobStatus

    info = client.get_job_info(job)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    logger.info("job %s: %s", job, one_line(info.message or info.status.value))
    return int(info.driver_exit_code or 1)
