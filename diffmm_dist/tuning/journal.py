"""What a search has found so far: tune.json in its folder, from which the same command goes on.

Ray Tune can restore a search itself, but from pickled files, which would run whatever somebody has put into them. So it
is told anew at every start what is known: the sampler each trial's values and figure, the scheduler how each has done
after every epoch. A trial's own state is in its run folder.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from diffmm_dist import __version__, storage
from diffmm_dist.config.load import Tree
from diffmm_dist.errors import DamagedError, UserError
from diffmm_dist.runs.config import Config, config_from_tree
from diffmm_dist.runs.run_folder import blocking_differences
from diffmm_dist.runs.run_records import Amount, Metrics, Whole, Word
from diffmm_dist.words import shown

FILE = "tune.json"
TRIALS = "trials"
LOCK = "lock"
_FORMAT = 1
_REMEDY = "choose another --out"
State = Literal["running", "complete", "stopped", "failed"]


class Search(TypedDict):
    """What is searched, and how; with another one the trials would not be comparable.

    Attributes:
        config: the whole configuration, whose other settings all trials share.
        space: what varies.
        dataset: the fingerprint of the dataset.
        epochs: of a trial, at most.
        first_stop: epochs before the first trials may be stopped.
        seed: of the sampler.
    """

    config: Tree
    space: dict[str, Any]
    dataset: Word
    epochs: Whole
    first_stop: Whole
    seed: Whole


class Trial(TypedDict):
    """One of them.

    Attributes:
        name: of its run folder too.
        values: of the settings that vary, by their keys.
        state: `running` also while nobody is at work; `stopped` by the scheduler, as others do better; `complete` where
            it has had all its epochs, or has waited long enough for a better one.
        epochs: done so far.
        curve: the best figure so far after each epoch.
        best_epoch: the epoch of the best figure; absent before there is one.
        valid: the validation figures of that epoch.
        seconds: at work on it.
        reason: why it has failed.
    """

    name: Annotated[str, Field(pattern=r"\At[0-9]{3,6}\z")]
    values: dict[str, Any]
    state: State
    epochs: Whole
    curve: list[tuple[Whole, Amount]]
    best_epoch: NotRequired[Whole]
    valid: Metrics
    seconds: Amount
    reason: NotRequired[str]


class Record(TypedDict):
    """tune.json."""

    format: Whole
    version: Word
    command: str
    metric: Word
    search: Search
    trials: list[Trial]
    best: NotRequired[Word]


class Journal:
    """The trials of a search, kept in its folder at every change.

    Args:
        folder: of the search, a path or an address.
        search: what is searched.
        command: the command line of this process.
        check: called before anything is written; it raises where that is no longer this process's to do.

    Attributes:
        folder: of the search.
        metric: what tells which trial is better.

    Raises:
        UserError: the folder holds another search, or nothing can be written there.
    """

    def __init__(self, folder: str, search: Search, *, command: str, check: Callable[[], None] = lambda: None) -> None:
        self.folder = folder
        self._check = check
        self._place = storage.join(folder, FILE)
        self._dropped: set[str] = set()
        self.metric: str = search["config"]["eval"]["metric"]
        trials: list[Trial] = []
        if storage.exists(self._place):
            found = read_record(self._place)
            _check_same(found["search"], search, folder)
            trials = found["trials"]
            _check_numbered(trials, search, self._place)
        elif storage.exists(storage.join(folder, TRIALS)):
            raise UserError(f"{folder} has trials but its {FILE} is gone; choose another --out, or remove the folder")
        elif set(storage.list_names(folder)) - {LOCK}:
            raise UserError(f"{folder} holds other files and no search; choose another --out")
        self._record = Record(
            format=_FORMAT, version=__version__, command=command, metric=self.metric, search=search, trials=trials
        )
        self.save()

    @property
    def trials(self) -> list[Trial]:
        """All of them, in the order in which they began."""
        return self._record["trials"]

    @property
    def search(self) -> Search:
        """What is searched."""
        return self._record["search"]

    @property
    def record(self) -> Record:
        """All that is known."""
        return self._record

    def of(self, *states: State) -> list[Trial]:
        """Return the trials in some states."""
        return [trial for trial in self.trials if trial["state"] in states]

    def figure(self, trial: Trial) -> float | None:
        """Return the validation figure of a trial's best epoch, None before there is one, or where it has failed."""
        return None if trial["state"] == "failed" else trial["valid"].get(self.metric)

    def ranked(self) -> list[Trial]:
        """Return the trials, the best first, those without a figure last."""

        def place(trial: Trial) -> tuple[bool, float]:
            figure = self.figure(trial)
            return figure is None, -(figure or 0.0)

        return sorted(self.trials, key=place)

    def best(self) -> Trial | None:
        """Return the best trial, None before there is a figure."""
        return next((trial for trial in self.ranked() if self.figure(trial) is not None), None)

    def begin(self, values: Mapping[str, Any]) -> Trial:
        """Add a trial."""
        trial = Trial(
            name=name_of(len(self.trials)),
            values=dict(values),
            state="running",
            epochs=0,
            curve=[],
            valid={},
            seconds=0.0,
        )
        self.trials.append(trial)
        self.save()
        return trial

    def report(self, trial: Trial, *, epochs: int, best_epoch: int, valid: Mapping[str, float], seconds: float) -> None:
        """Take down how a trial stands after an epoch, which may have been told before."""
        trial["epochs"], trial["best_epoch"] = epochs, best_epoch
        trial["valid"], trial["seconds"] = dict(valid), seconds
        trial["curve"] = [point for point in trial["curve"] if point[0] < epochs] + [(epochs, valid[self.metric])]
        self.save()

    def end(self, trial: Trial, state: State, *, reason: str | None = None) -> None:
        """Take down how a trial has ended."""
        trial["state"] = state
        if reason is not None:
            trial["reason"] = reason
        self.save()

    def drop_checkpoints(self, *, keep: int) -> None:
        """Remove the checkpoints of the trials that have ended, but for those of the ``keep`` best."""
        ended = [trial for trial in self.ranked() if trial["state"] != "running"]
        for trial in ended[keep:]:
            if trial["name"] not in self._dropped:
                storage.remove_folder(storage.join(trial_folder(self.folder, trial["name"]), "checkpoints"))
                self._dropped.add(trial["name"])

    def save(self) -> None:
        """Write everything; the file is replaced at once."""
        best = self.best()
        if best is not None:
            self._record["best"] = best["name"]
        self._check()
        storage.write_record(self._place, self._record)


def name_of(number: int) -> str:
    """Return the name of a trial."""
    return f"t{number:03d}"


def trial_folder(folder: str, name: str) -> str:
    """Return the run folder of a trial."""
    return storage.join(folder, TRIALS, name)


def read_record(place: str) -> Record:
    """Read a search's tune.json.

    Raises:
        DamagedError: it is not what was written.
        UserError: a later version of the program has written it.
    """
    found: Record = storage.read_record(place, Record, remedy=_REMEDY, must_be_sealed=True)
    if found["format"] > _FORMAT:
        raise UserError(f"{place} is of a later version of the program, {found['version']}; go on with that one")
    return found


def _check_same(old: Search, new: Search, folder: str) -> None:
    configs = [config_from_tree(search["config"], source=f"{folder}/{FILE}") for search in (old, new)]
    differences = [*_differences(*configs), *_of_space(old["space"], new["space"])]
    before, now = (config.train.patience for config in configs)
    if before != now:  # which a run may change, but not some of the trials alone
        differences.append(f"train.patience is {shown(now)} but the search has {shown(before)}")
    options = {"epochs": "--epochs", "first_stop": "--first-stop", "seed": "--seed"}
    differences += [
        f"{option} is {new[key]} but the search has {old[key]}"  # type: ignore[literal-required]
        for key, option in options.items()
        if old[key] != new[key]  # type: ignore[literal-required]
    ]
    if old["dataset"] != new["dataset"]:
        differences.append("the dataset's contents are not those that the search was started on")
    if differences:
        raise UserError(f"{folder} holds another search: {'; '.join(differences)}; choose another --out")


def _check_numbered(trials: list[Trial], search: Search, place: str) -> None:
    """Raise a ``DamagedError`` if trials are not numbered in their order, or have no values of the space."""
    for number, trial in enumerate(trials):
        if trial["name"] != name_of(number) or list(trial["values"]) != list(search["space"]):
            raise DamagedError(f"{place} is damaged: its trial {trial['name']} is not one of this search; {_REMEDY}")


def _differences(old: Config, new: Config) -> list[str]:
    return [line.replace("but the run has", "but the search has") for line in blocking_differences(old, new)]


def _of_space(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"the space of {key} is {shown(new.get(key, 'absent'))} but the search has {shown(old.get(key, 'none'))}"
        for key in dict.fromkeys([*new, *old])
        if new.get(key) != old.get(key)
    ]
