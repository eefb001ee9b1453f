"""Trials of a search on Ray: Optuna's sampler suggests them, ASHA stops those that lag, Ray Tune runs them.

Ray Tune keeps what it writes in a folder of this process's own, which goes when it ends: what a search knows is in its
journal, and what a trial knows in its run folder. At every start the sampler and the scheduler are told all of that.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from diffmm_dist import storage
from diffmm_dist.config.section import changed
from diffmm_dist.errors import StoppedError, TakenOverError, UserError, is_of_system, one_line, system_sentence
from diffmm_dist.monitoring.log import logger, set_up_logging
from diffmm_dist.parallel.group import changed_environment
from diffmm_dist.runs.config import Config, config_from_tree
from diffmm_dist.staging import scratch_folder
from diffmm_dist.training.loop import Standing
from diffmm_dist.tuning.journal import FILE, Journal, Trial, trial_folder
from diffmm_dist.tuning.space import Choice, Range, Space, own_values, with_values

_EPOCHS, _BEST = "epochs", "best"  # what trials report to the scheduler and the sampler
_REDUCTION = 3
_PATIENCE_S = 60.0  # for the trials of an earlier command to be gone
# Ray Tune's own handling of Ctrl-C, files of results, checks of names and tables in the terminal.
_QUIET = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # of files that nobody reads
}


@dataclass(frozen=True)
class Resources:
    """What trials take.

    Attributes:
        parallel: how many run at a time.
        each: Ray's resources of each.
        on_one_machine: how many may share a machine.
    """

    parallel: int
    each: Mapping[str, float]
    on_one_machine: int


def run_trials(journal: Journal, space: Space, config: Config, *, trials: int, keep: int, resources: Resources) -> None:
    """Run trials until there are so many, those first that an earlier command has begun; Ray is connected.

    Args:
        journal: what is known, and where it goes.
        space: what varies.
        config: of the trials, all but their values and their folders, with absolute paths.
        trials: how many there are to be.
        keep: how many of the best keep their checkpoints.
        resources: what they take.
    """
    left = trials - len(journal.trials) + len(journal.of("running"))
    if left <= 0:
        return
    with scratch_folder("diffmm-tune-") as scratch, changed_environment(_QUIET), _quiet():
        first = own_values(space, config) if not journal.trials else None
        search = _Sampler(journal, space, first=first, parallel=resources.parallel)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(
                    _trial,
                    config=config.model_dump(mode="json"),
                    folder=journal.folder,
                    on_one_machine=resources.on_one_machine,
                ),
                dict(resources.each),
            ),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=_Halving(journal),
                num_samples=left,
                max_concurrent_trials=resources.parallel,
                reuse_actors=True,  # a new process would load torch again
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name="search",
                callbacks=[_Recorder(journal, trials=trials, keep=keep)],
                failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
                verbose=0,
            ),
        )
        tuner.fit()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave what is said to this module."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", module="optuna")  # of epochs that are told again when a process had died
        yield


class _Sampler(OptunaSearch):
    """Optuna's sampler, told what is known; trials that were begun come first, under their own names.

    Args:
        journal: what is known.
        space: what varies.
        first: values of the first trial, None for any.
        parallel: trials at a time.
    """

    def __init__(self, journal: Journal, space: Space, *, first: dict[str, Any] | None, parallel: int) -> None:
        import optuna

        self._journal, self._dimensions = journal, space
        self._again = journal.of("running")
        begun = [trial["values"] for trial in self._again]
        # Another seed at every start: with the same one the first new trials would be those of the first start again.
        seed = journal.search["seed"] + len(journal.trials)
        super().__init__(
            {key: _distribution(dimension) for key, dimension in space.items()},
            metric=_BEST,
            mode="max",
            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=parallel > 1),
            points_to_evaluate=[self._coded(values) for values in begun or ([first] if first else [])],
        )
        for trial in journal.of("complete", "stopped", "failed"):
            figure = journal.figure(trial)
            self.add_evaluated_point(self._coded(trial["values"]), figure or 0.0, error=figure is None)

    def _coded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values in Optuna's terms, in which a choice is its place among the choices."""
        return {
            key: dimension.values.index(values[key]) if isinstance(dimension, Choice) else values[key]
            for key, dimension in self._dimensions.items()
        }

    def _plain(self, coded: Mapping[str, Any]) -> dict[str, Any]:
        """Return values as the configuration has them."""
        return {
            key: dimension.values[coded[key]] if isinstance(dimension, Choice) else coded[key]
            for key, dimension in self._dimensions.items()
        }

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return which trial is next."""
        coded = super().suggest(trial_id)
        trial = self._again.pop(0) if self._again else self._journal.begin(self._plain(coded))
        return {"trial": trial["name"], "values": trial["values"]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial has ended; one that has failed has no figure."""
        failed = error or bool(result and "failed" in result)
        super().on_trial_complete(trial_id, None if failed else result, failed)

    def save(self, checkpoint_path: str) -> None:
        """Leave an empty file where Ray Tune wants a pickled one; the journal has all that is needed."""
        Path(checkpoint_path).touch()


def _distribution(dimension: Range | Choice) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        return CategoricalDistribution(range(len(dimension.values)))
    low, high, step = dimension.low, dimension.high, dimension.step
    if dimension.whole:
        return IntDistribution(int(low), int(high), log=dimension.log, step=int(step or 1))
    return FloatDistribution(low, high, log=dimension.log, step=step)


class _Halving(ASHAScheduler):
    """ASHA, told how the trials of earlier commands have done.

    Args:
        journal: what is known.
    """

    def __init__(self, journal: Journal) -> None:
        search = journal.search
        super().__init__(
            time_attr=_EPOCHS, metric=_BEST, mode="max", max_t=search["epochs"], grace_period=search["first_stop"],
            reduction_factor=_REDUCTION,
        )  # fmt: skip
        self._known = {trial["name"]: trial for trial in journal.trials}
        for trial in journal.of("complete", "stopped"):
            self.on_trial_add(None, SimpleNamespace(trial_id=trial["name"], config={"trial": trial["name"]}))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take up a trial with what it has reported before."""
        super().on_trial_add(tune_controller, trial)
        for epochs, best in self._known.get(trial.config["trial"], {"curve": ()})["curve"]:
            self.on_trial_result(tune_controller, trial, {_EPOCHS: epochs, _BEST: best})


class _Recorder(tune.Callback):
    """Takes down in the journal what trials report.

    Args:
        journal: where.
        trials: how many there are to be.
        keep: how many of the best keep their checkpoints.
    """

    def __init__(self, journal: Journal, *, trials: int, keep: int) -> None:
        self._journal, self._wanted, self._keep = journal, trials, keep
        self._before = {trial["name"]: trial["seconds"] for trial in journal.trials}
        self._ended: set[str] = set()

    def _of(self, trial: Any) -> Trial:
        name = trial.config["trial"]
        return next(one for one in self._journal.trials if one["name"] == name)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Take down an epoch."""
        mine = self._of(trial)
        if "failed" in result:
            mine["reason"] = result["failed"]
            return
        if result["ended"]:
            self._ended.add(mine["name"])
        seconds = self._before.get(mine["name"], 0.0) + result["time_total_s"]
        self._journal.report(
            mine, epochs=result[_EPOCHS], best_epoch=result["best_epoch"], valid=result["valid"], seconds=seconds
        )

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Take down that a trial has ended or was stopped."""
        mine = self._of(trial)
        if "reason" in mine:
            self._end(mine, "failed")
        else:
            self._end(mine, "complete" if mine["name"] in self._ended else "stopped")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Take down that a trial's process has died again and again, or that this program has a mistake."""
        mine = self._of(trial)
        mine["reason"] = _reason(trial)
        self._end(mine, "failed")

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Count the time of a process that has died."""
        mine = self._of(trial)
        self._before[mine["name"]] = mine["seconds"]

    def _end(self, mine: Trial, state: Any) -> None:
        self._journal.end(mine, state)
        self._journal.drop_checkpoints(keep=self._keep)
        figure, metric = self._journal.figure(mine), self._journal.metric
        what = mine.get("reason") or (f"valid {metric} {figure:.4f}, epoch {mine['best_epoch']}" if figure else "")
        done = len(self._journal.of("complete", "stopped", "failed"))
        logger.info(
            "%d of %d trials: %s %s after %d epochs, %s; best: %s",
            done, self._wanted, mine["name"], state, mine["epochs"], what, self._best(),
        )  # fmt: skip

    def _best(self) -> str:
        best = self._journal.best()
        return "none yet" if best is None else f"{best['name']} with {self._journal.figure(best):.4f}"


def _reason(trial: Any) -> str:
    """Return why a trial has failed: the last line of what Ray Tune has noted, which has a traceback before it."""
    try:
        text = Path(trial.error_file).read_text()
    except (OSError, TypeError):  # nothing was noted
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["for no known reason"]
    died = "actor died" in text or "actor is dead" in text
    return "its process has died, perhaps for want of memory" if died else lines[-1]


def _trial(job: dict[str, Any], *, config: dict[str, Any], folder: str, on_one_machine: int) -> dict[str, Any] | None:
    """What a Ray worker runs.

    What the user can put right is reported as the trial's end, since Ray Tune would begin it again when raised.
    """
    set_up_logging()
    logger.setLevel(logging.WARNING)  # of many trials at a time nobody wants every line
    os.environ["LOCAL_WORLD_SIZE"] = str(on_one_machine)  # by it workers share a machine's cores and memory
    if not storage.exists(storage.join(folder, FILE)):
        return _failed(f"{folder} cannot be seen from the trial's machine; give a store or a path that all nodes share")
    from diffmm_dist.training.worker import run_worker

    try:
        base = config_from_tree(config, source="driver")
        settings = with_values(base, job["values"], source=f"trial {job['trial']}")
        settings = changed(settings, {"run.path": trial_folder(folder, job["trial"])})
        run_worker(
            settings,
            stop_requested=lambda: False,
            show_progress=False,
            patience_s=_PATIENCE_S,
            between_epochs=lambda standing: _report(standing, base.eval.metric),
        )
    except StoppedError:
        return None
    except (UserError, TakenOverError) as error:
        return _failed(one_line(error))
    except (OSError, MemoryError, RuntimeError) as error:
        if not is_of_system(error):
            raise
        return _failed(system_sentence(error))
    raise AssertionError("a trial ends between epochs, before test is measured")


def _report(standing: Standing, metric: str) -> None:
    """Tell how a trial stands; where it is to end, Ray Tune ends this thread here, and so does the last epoch."""
    best = standing.best
    tune.report(
        {
            _EPOCHS: standing.epochs,
            _BEST: best.metrics[metric],
            "best_epoch": best.epoch,
            "valid": dict(best.metrics),
            "ended": standing.ended,
        }
    )
    if standing.ended:
        raise StoppedError("the last epoch of a trial")


def _failed(reason: str) -> dict[str, Any]:
    return {"failed": reason, _BEST: float("nan"), _EPOCHS: 0}
