"""Which experiment of a server is whose home: told by its tags, so that it is found again.

mlmigrate.origin           where the experiment came from that we made
mlmigrate.joined.<hash>    where one came from that was merged into an experiment of others
mlmigrate.stamp.<hash>     [origin, stamp] of objects beside runs that arrived, here or (the lowest id) anywhere
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import msgspec

from mlmigrate.adapters.base import OnConflict
from mlmigrate.adapters.mlflow import conflicts
from mlmigrate.adapters.mlflow.conflicts import Choice
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.source import API, all_experiments, run_pages
from mlmigrate.adapters.mlflow.rest.wire import Anything, ExperimentInfo, Made, Pair
from mlmigrate.adapters.mlflow.rest.writing import pairs
from mlmigrate.errors import Conflict, NotFound, UsageError
from mlmigrate.model import ORIGIN_TAG, OURS, STAMP_TAG, UNKNOWN_STAMP, Arrival, Experiment, Loss, RunRef

JOINED = OURS + "joined."
ISSUE_TAG = OURS + "issue."  # [the source's id of an issue, its id here]: issues have no tags of their own
DEFAULT = "0"  # the id of the experiment that every server has


def issue_ids(infos: Sequence[ExperimentInfo]) -> dict[str, str]:
    """The source's ids of issues -> their ids here."""
    pairs = (pair for info in infos for pair in info.tags if pair.key.startswith(ISSUE_TAG))
    return dict(msgspec.json.decode(pair.value, type=tuple[str, str]) for pair in pairs)


class Homes:
    """The experiments of a server, and which of them those of the source go into."""

    def __init__(self, client: Client, policy: OnConflict) -> None:
        self._client, self._policy = client, policy
        self._infos: dict[str, ExperimentInfo] = {}  # by id
        self._given: dict[str, Experiment] = {}  # by the source's id
        self.ids: dict[str, str] = {}  # the source's id -> the id here
        self._restored: set[str] = set()
        self._lock = threading.Lock()

    def look(self) -> Sequence[ExperimentInfo]:
        """All experiments as they are now."""
        self._infos = {info.experiment_id: info for info in all_experiments(self._client)}
        return list(self._infos.values())

    def foresee(self, experiments: Sequence[Experiment]) -> list[Loss]:
        """What meets others of its name. Raises Conflict when that is to fail."""
        self.look()
        return self._told(experiments, self._choices(experiments))

    def prepare(self, experiments: Sequence[Experiment]) -> list[Loss]:
        """Makes the experiments that are not there, and sets the tags of all. Raises Conflict."""
        self.look()
        choices = self._choices(experiments)
        losses = self._told(experiments, choices)
        for experiment in experiments:
            choice = choices[experiment.id]
            there = self._named(choice.name)
            if there is None:
                there = self._create(experiment, choice.name)
            self._settle(experiment, there, losses)
        return losses

    def _settle(self, experiment: Experiment, there: ExperimentInfo, losses: list[Loss]) -> None:
        if there.lifecycle_stage == "deleted" and not experiment.deleted:
            raise Conflict(
                f"Experiment {there.name!r} is deleted on {self._client.login.base}.",
                "Restore it there, or give it another name with a mapping.",
            )
        self._given[experiment.id] = experiment
        self.ids[experiment.id] = there.experiment_id
        if there.lifecycle_stage != "deleted":
            self._tag(experiment, there, losses)

    def _named(self, name: str) -> ExperimentInfo | None:
        return next((info for info in self._infos.values() if info.name == name), None)

    def _choices(self, experiments: Sequence[Experiment]) -> dict[str, Choice]:
        """The source's id -> the name here."""
        known = {origin: info for info in self._infos.values() for origin in origins_of(info)}
        chosen: dict[str, Choice] = {}
        strangers: list[Experiment] = []
        for one in experiments:
            there = self._named(one.name)
            if _origin(one) in known:
                chosen[one.id] = Choice(known[_origin(one)].name, "ours")
            elif there is not None and (there.experiment_id == DEFAULT or self._earlier(there)):
                chosen[one.id] = Choice(there.name, "ours")
            else:
                strangers.append(one)
        wanted = [(one.id, one.name) for one in strangers]
        there_all = {info.name: "" for info in self._infos.values()}
        return chosen | conflicts.settle(wanted, there_all, self._policy, "experiment")

    def _earlier(self, there: ExperimentInfo) -> bool:
        """Whether a copy of ours that set no tag made it: then runs in it are ours."""
        if any(True for _ in origins_of(there)):
            return False
        pages = run_pages(self._client, [there.experiment_id], f"tags.`{ORIGIN_TAG}` != ''")
        return bool(next(iter(pages), ()))

    def _told(self, experiments: Sequence[Experiment], choices: Mapping[str, Choice]) -> list[Loss]:
        return [
            replace(loss, experiment=one.id)
            for one in experiments
            for loss in conflicts.losses([(one.id, one.name)], choices, "experiment")
        ]

    def _create(self, experiment: Experiment, name: str) -> ExperimentInfo:
        """Two of one name cannot be, so a doubtful answer is told by the next: it is there already."""
        tags = {**experiment.tags, ORIGIN_TAG: _origin(experiment)}
        body = {"name": name, "tags": pairs(tags)}
        try:
            made = self._client.post(f"{API}/experiments/create", Made, body)
        except Conflict:
            self.look()
            there = self._named(name)
            if there is None:
                raise
            return there
        info = ExperimentInfo(made.experiment_id, name, tags=[Pair(*tag) for tag in tags.items()])
        self._infos[made.experiment_id] = info
        return info

    def _tag(self, experiment: Experiment, there: ExperimentInfo, losses: list[Loss]) -> None:
        """In an experiment that others made, no tag that is there is changed."""
        has = _tags(there)
        ours = has.get(ORIGIN_TAG) == _origin(experiment)
        for key, value in experiment.tags.items():
            if key not in has or (ours and has[key] != value):
                self.tag(there.experiment_id, key, value)
            elif has[key] != value:
                because = "the experiment of this name has another, which is kept"
                losses.append(Loss("", f"tag {key!r}", because, experiment.id))
        if _origin(experiment) not in origins_of(there):
            self.tag(there.experiment_id, JOINED + _hash(_origin(experiment)), _origin(experiment))

    def tag(self, experiment: str, key: str, value: str) -> None:
        """Sets a tag of an experiment here, which is active."""
        body = {"experiment_id": experiment, "key": key, "value": value}
        self._client.post(f"{API}/experiments/set-experiment-tag", Anything, body)

    def home(self, experiment: str) -> tuple[str, bool]:
        """The id here of an experiment of the source, which is made active, and whether that one is deleted."""
        given = self._given.get(experiment)
        if given is None:
            raise UsageError(f"Experiment {experiment!r} was not prepared.")
        id_ = self.ids[experiment]
        self.restore(id_)
        return id_, given.deleted

    def restore(self, id: str) -> None:
        """Makes an experiment active until `finish`, if it is deleted."""
        info = self._infos.get(id)
        if info is None or info.lifecycle_stage != "deleted":
            return
        with self._lock:
            if id not in self._restored:
                with suppress(NotFound):  # another worker restored it a moment ago
                    self._client.post(f"{API}/experiments/restore", Anything, {"experiment_id": id})
                self._restored.add(id)

    def finish(self, experiments: Sequence[Experiment]) -> None:
        """Deletes those that are deleted where they came from, once nothing is missing in them."""
        self.look()
        for experiment in experiments:
            info = self._infos.get(self.ids.get(experiment.id, ""))
            if experiment.deleted and info is not None and info.lifecycle_stage != "deleted":
                with suppress(NotFound):  # it is deleted already, by the call whose answer was lost
                    self._client.post(f"{API}/experiments/delete", Anything, {"experiment_id": info.experiment_id})
        self._restored.clear()

    def mark(self, ref: RunRef) -> None:
        """Notes that the objects of a ref arrived, in their experiment or (of the estate) in the lowest one."""
        if ref.stamp in ("", UNKNOWN_STAMP):
            return
        id_ = self.home(ref.experiment)[0] if ref.experiment else self._lowest()
        if id_ is not None:
            value = msgspec.json.encode([ref.origin, ref.stamp]).decode()
            self.tag(id_, f"{STAMP_TAG}.{_hash(ref.origin)}", value)

    def _lowest(self) -> str | None:
        active = [info.experiment_id for info in self._infos.values() if info.lifecycle_stage == "active"]
        return min(active, key=lambda id_: (len(id_), id_), default=None)


def marks(infos: Sequence[ExperimentInfo]) -> dict[str, Arrival]:
    """The refs of objects beside runs that arrived."""
    found: dict[str, Arrival] = {}
    for info in infos:
        for key, value in _tags(info).items():
            if key.startswith(STAMP_TAG + "."):
                with suppress(msgspec.DecodeError, msgspec.ValidationError):  # somebody else's
                    origin, stamp = msgspec.json.decode(value, type=tuple[str, str])
                    found[origin] = Arrival("@" + origin.split("@")[-1].split(":")[0], stamp)
    return found


def origins_of(info: ExperimentInfo) -> Iterator[str]:
    """Where the experiments came from that live in this one."""
    for key, value in _tags(info).items():
        if key == ORIGIN_TAG or key.startswith(JOINED):
            yield value


def _origin(experiment: Experiment) -> str:
    return experiment.origin or f"{experiment.id}@{experiment.name}"


def _tags(info: ExperimentInfo) -> dict[str, str]:
    return {pair.key: pair.value for pair in info.tags}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
