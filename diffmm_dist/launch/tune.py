"""A search for settings: what it needs is checked, trials run on Ray, and what they have found is written."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffmm_dist import storage
from diffmm_dist.config.section import changed
from diffmm_dist.cores import usable_cores
from diffmm_dist.errors import DamagedError, StoppedEarlyError, TakenOverError, UserError, one_line
from diffmm_dist.launch.ray_cluster import ray_cluster, room_for, rooms
from diffmm_dist.launch.ray_job import with_absolute_paths
from diffmm_dist.launch.ray_package import is_local
from diffmm_dist.launch.signals import at_once
from diffmm_dist.monitoring.log import logger
from diffmm_dist.places import check_shared
from diffmm_dist.runs.config import Config
from diffmm_dist.runs.lease import LeaseLock
from diffmm_dist.runs.lock import FileLock, RunLock
from diffmm_dist.training.build import check_trainable, open_dataset
from diffmm_dist.training.selection import check_selection_split
from diffmm_dist.training.teacher import check_teacher
from diffmm_dist.tuning.journal import LOCK, Journal, Search
from diffmm_dist.tuning.space import Space, as_tree, read_space

_TRIALS_PER_PLACE = 10  # a sampler that knows nothing yet of many trials at work suggests at random
_FIRST_OF = 9  # trials may be stopped at a ninth of their epochs, and at a third


@dataclass(frozen=True)
class Asked:
    """What the command line asks of a search.

    Attributes:
        space: file with what varies.
        out: the search's folder.
        trials: how many in all.
        epochs: of a trial, at most; None for those of the configuration.
        first_stop: epochs before the first trials may be stopped; None for a ninth of theirs.
        parallel: trials at a time; None for what there is room for, up to a tenth of all.
        seed: of the sampler.
        keep: how many of the best trials keep their checkpoints.
        command: the command line.
    """

    space: str
    out: str
    trials: int
    epochs: int | None
    first_stop: int | None
    parallel: int | None
    seed: int
    keep: int
    command: str


def run_search(config: Config, asked: Asked) -> Journal:
    """Search, or go on searching; return what all trials have found.

    Raises:
        UserError: something that the user can put right, or all trials have failed.
        StoppedEarlyError: Ctrl-C or SIGTERM.
        TakenOverError: another process has taken the search over.
    """
    _check_installed()
    _check_config(config)
    space = read_space(asked.space, config)
    dataset = open_dataset(config)
    check_trainable(config, dataset)
    check_selection_split(dataset, config.eval.protocol)
    check_teacher(config, dataset)
    folder = _absolute(asked.out)
    search = _search(config, asked, space, dataset.manifest.fingerprint)
    lock = _locked(folder, config.cluster.lease_s)
    try:
        journal = Journal(folder, search, command=asked.command, check=lambda: _check_own(lock, folder))
        _check_values(journal, space)
        if len(journal.of("complete", "stopped", "failed")) < asked.trials:
            _run(journal, space, config, asked)
    finally:
        lock.release()
    if journal.best() is None:
        reason = next((trial.get("reason", "") for trial in journal.of("failed")), "")
        raise UserError(f"all {len(journal.trials)} trials of {asked.out} have failed, the first because: {reason}")
    return journal


def _check_installed() -> None:
    if find_spec("optuna") is None:
        raise UserError("tune needs optuna; pip install 'diffmm-dist[tune]'")


def _check_config(config: Config) -> None:
    wrong = []
    if config.eval.protocol != "validation":
        wrong.append(
            f"eval.protocol={config.eval.protocol} would choose settings on test; set eval.protocol=validation"
        )
    if config.cluster.num_workers != 0:
        wrong.append(
            "cluster.num_workers is for one run on many workers, and a trial is one process; set cluster.num_workers=0 "
            "and with --parallel how many trials run at a time"
        )
    if wrong:
        raise UserError("; ".join(wrong))


def _search(config: Config, asked: Asked, space: Space, fingerprint: str) -> Search:
    epochs = asked.epochs or config.train.epochs
    first_stop = asked.first_stop or max(1, round(epochs / _FIRST_OF))
    if first_stop > epochs:
        raise UserError(f"--first-stop {first_stop} is more than the {epochs} epochs of a trial; lower it")
    return Search(
        config=config.model_dump(mode="json"), space=as_tree(space), dataset=fingerprint, epochs=epochs,
        first_stop=first_stop, seed=asked.seed,
    )  # fmt: skip


def _check_values(journal: Journal, space: Space) -> None:
    for trial in journal.trials:
        odd = [key for key, value in trial["values"].items() if not space[key].holds(value)]
        if odd:
            raise DamagedError(
                f"{journal.folder} is damaged: {odd[0]} of its trial {trial['name']} lies outside the space; choose "
                "another --out"
            )


def _absolute(folder: str) -> str:
    check_shared({"--out": folder})
    return folder if storage.is_remote(folder) else str(Path(folder).absolute())


def _locked(folder: str, lease_s: float) -> RunLock:
    """Keep other commands out of the folder."""
    place = storage.join(folder, LOCK)
    lock: RunLock = LeaseLock(place, lease_s=lease_s) if storage.is_remote(folder) else FileLock(Path(place))
    try:
        lock.acquire(folder, patience_s=0, option="--out")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {one_line(error)}; choose another --out") from error
    return lock


def _check_own(lock: RunLock, folder: str) -> None:
    try:
        lock.check()
    except TakenOverError as error:
        raise TakenOverError(f"the search {folder} {error}") from error


def _run(journal: Journal, space: Space, config: Config, asked: Asked) -> None:
    stopped = StoppedEarlyError(
        f"the search {asked.out} was stopped; the same command goes on with it, its trials from their last epochs"
    )
    with at_once(stopped), ray_cluster() as ray:
        from diffmm_dist.launch.ray_tune import run_trials

        config, resources = _resources(ray, config, asked)
        logger.info("%d trials of at most %d epochs, %d at a time of %s", asked.trials, journal.search["epochs"],
                    resources.parallel, _words(resources.each))  # fmt: skip
        epochs = journal.search["epochs"]
        # Saved after every epoch, so that a trial that is stopped or killed loses none.
        own = {"train.epochs": epochs, "checkpoint.every_epochs": 1, "checkpoint.keep": 1}
        config = with_absolute_paths(changed(config, own))
        run_trials(journal, space, config, trials=asked.trials, keep=asked.keep, resources=resources)


def _words(each: Any) -> str:
    return ", ".join(f"{number:g} {name}" for name, number in each.items())


def _resources(ray: Any, config: Config, asked: Asked) -> tuple[Config, Any]:
    """Return how many trials run at a time and what each takes, and the configuration with its threads."""
    from diffmm_dist.launch.ray_tune import Resources

    threads = config.cluster.threads_per_worker
    wanted = asked.parallel or max(1, asked.trials // _TRIALS_PER_PLACE)
    if not threads and is_local():
        cores = usable_cores().share()[0]
        threads = max(1, cores // min(wanted, cores))
    config = changed(config, {"cluster.threads_per_worker": max(1, threads)})
    request = room_for(ray, changed(config.cluster, {"num_workers": 1}))  # a trial is one
    everywhere, on_one = rooms(ray, request)
    parallel = min(wanted, everywhere) if is_local() or asked.parallel is None else wanted
    return config, Resources(max(1, parallel), request.resources, max(1, min(on_one, parallel)))
