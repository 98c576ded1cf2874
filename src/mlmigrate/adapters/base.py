"""What an adapter is: a Source reads a tracker into our values, a Target writes our values into one.

An adapter only translates.  What its tracker cannot hold it declares in `limits`, and `fit` does the
rest; retries, mapping, renaming, packing and progress are not its business.  A module of adapters
has these functions, each optional:

    open_source(address, context) -> Source      raises NotFound when nothing is there
    open_target(address, context) -> Target      writes nothing before `prepare`
    whole(address, env) -> Address               the address with what it leaves to the environment

A target takes runs a pack at a time:

    with target.pack(id) as place:        leaving without commit takes everything back, or leaves
        place.begin(runs)                 what a second try finds and completes
        place.points(batch) ...
        place.keep(record) ...
        place.put(artifact) ...             the files of runs, and of what was kept ("@model/...")
        ids = place.commit(losses)          after this, and only then, the pack is there

Every writing call may be made again, in a second try of the pack or by a second process, and then
changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, ParamSpec, Protocol, TypeVar

import pyarrow as pa

from mlmigrate.model import Arrival, Artifact, Experiment, Loss, Record, Run, RunRef
from mlmigrate.storage.throttle import Throttle, checked, throttle

P = ParamSpec("P")
T = TypeVar("T")
# variables that say who we are, in one way or another
IDENTITIES = (
    ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"),
    (
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_ACCOUNT",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
    ),
)
LEFT_OUT = "\0left out"  # of a Change: no value of a record begins so
Side = Literal["source", "target"]
OnConflict = Literal["merge", "rename", "fail"]
How = Literal["whole", "mapped", "record", "lost"]


class Again(Protocol):
    """What calls again while a tracker is away (steps.Steps is the one that there is)."""

    def do(self, what: str, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


class Once:
    """Calls once: for tests and for places that are never away."""

    def do(self, what: str, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: ARG002  as Again
        return call(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person chose that reaches the adapters; picklable.

    artifacts_to     where a database target's artifact bytes go: "" for the adapter's own default,
                     "keep" to leave them where they are, else a folder or the address of an object store
    artifacts_at     folders to look for a source's artifact bytes in, beside where its URIs point
    allow_artifacts  prefixes of artifact URIs that a server may name though they lie elsewhere
    bwlimit          bytes of artifacts a second, both ways together; 0: as fast as it goes
    tpslimit         requests a second to servers and object stores; 0: as fast as it goes
    part_size        bytes of the parts of large files; 0: as storage.objects.part_size says
    on_conflict      what happens to an experiment or a registered model whose name a target has already, from
                     somebody else: "merge" into it, "rename" ours, or "fail"
    options          choices for single trackers, ("wandb.params", "typed"), from a mapping file
    """

    artifacts_to: str = ""
    artifacts_at: tuple[str, ...] = ()
    allow_artifacts: tuple[str, ...] = ()
    on_conflict: OnConflict = "merge"
    bwlimit: int = 0
    tpslimit: float = 0.0
    part_size: int = 0
    options: tuple[tuple[str, str | bool], ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """What an adapter is opened with. The credentials of two places never mix: `env` is one side's alone."""

    side: Side
    again: Again = field(default_factory=Once)
    settings: Settings = field(default_factory=Settings)

    @property
    def env(self) -> Mapping[str, str]:
        """The environment as this side sees it: SOURCE_X (or TARGET_X) wins over X.

        Variables that say who we are win or lose together: a common AWS_ACCESS_KEY_ID does not beat SOURCE_AWS_PROFILE.
        """
        prefix = self.side.upper() + "_"
        own = {name.removeprefix(prefix): value for name, value in os.environ.items() if name.startswith(prefix)}
        beaten = {name for family in IDENTITIES if own.keys() & set(family) for name in family}
        return {name: value for name, value in os.environ.items() if name not in beaten} | own

    @property
    def throttle(self) -> Throttle:
        """How fast this process may go; the same for both sides."""
        return checked(throttle(self.settings.bwlimit, self.settings.tpslimit), getattr(self.again, "check", None))


@dataclass(frozen=True, slots=True)
class Change:
    """A part of a record that a target cannot hold as it is.

    part     "table" (all its rows) or "table.column"
    because  the reason, as a person reads it
    becomes  what stands there instead; LEFT_OUT when the part is not written at all
    only     the values that are changed; () for all of them
    unless   values that are the target's own default: changed too, but nothing is lost
    lost     False where the target makes the part again from others: changed, and nothing is lost
    kept     the writer is given it all the same, to know the thing by; Names leave it out
    """

    part: str
    because: str
    becomes: str | int | float | bool | None = LEFT_OUT
    only: tuple[str | int | float | bool | None, ...] = ()
    unless: tuple[str | int | float | bool | None, ...] = ()
    lost: bool = True
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    """How a place holds the records of one kind.

    whole   every part arrives as it was, but for `changes`
    mapped  the same, and ids in it become those that its things have here
    record  kept, but nothing there uses it
    lost    there is no place for it, `because` says why

    A record with a value that one of `refuses` names has no place either.
    """

    kind: str
    how: How = "whole"
    because: str = ""
    changes: tuple[Change, ...] = ()
    refuses: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tracker can hold. None means no limit. Lengths are in characters.

    key_chars          the inside of a regular expression's character class that keys are made of
    key_paths          keys must be clean relative paths (no "..", "//", leading or trailing "/")
    key_words          keys that mean something else there
    experiment_folder  experiments are named by absolute paths; others are put below this one
    infinities         False: the infinities become +-1.7976931348623157e308
    distinct_points    True: points equal in all but log order are one
    nulls              points without a step or a time can be held
    negative_times     points before 1970 can be held
    micros             parts of a step or of a millisecond can be held
    point_links        the dataset and model columns of points can be held
    types              params keep their type; otherwise they become text
    experiment_times   created and updated of experiments
    deleted_times      when a run was deleted
    system             the fields in Run.system
    records            prefixes of the kinds of record that can be held ("" for all)
    holdings           how records of single kinds are held, where that is not plainly as they are
    column_lengths     ("table.column", characters): longer text in a record is cut
    owned_artifacts    artifacts of models and traces (owner "@...") can be held
    clean_files        files are named by clean relative paths (no "..", "//", leading or trailing "/")
    ids                run ids are kept
    blank_names        runs without a name can be held, and a tag mlflow.runName that is not the name
    blank_starts       runs without a start can be held
    """

    key_chars: str | None = None
    key_length: int | None = None
    key_paths: bool = False
    key_words: frozenset[str] = frozenset()
    param_length: int | None = None
    tag_length: int | None = None
    name_length: int | None = None
    user_length: int | None = None
    experiment_tag_length: int | None = None
    experiment_name_length: int | None = None
    experiment_folder: str = ""
    infinities: bool = True
    distinct_points: bool = False
    nulls: bool = True
    negative_times: bool = True
    micros: bool = True
    point_links: bool = True
    types: bool = True
    inputs: bool = True
    experiment_times: bool = True
    deleted_times: bool = True
    system: bool = True
    records: tuple[str, ...] = ("",)
    holdings: tuple[Holding, ...] = ()
    column_lengths: tuple[tuple[str, int], ...] = ()
    owned_artifacts: bool = True
    clean_files: bool = False
    ids: bool = True
    blank_names: bool = True
    blank_starts: bool = True

    def key(self, name: str) -> str:
        """A name as the tracker takes it; one that had to change ends in a hash of what it was."""
        return name if _fits(name, self) else _renamed(name, self)

    def holds(self, record_kind: str) -> bool:
        """Whether a record of this kind can be held."""
        holding = self.holding(record_kind)
        return record_kind.startswith(self.records) if holding is None else holding.how != "lost"

    def holding(self, record_kind: str) -> Holding | None:
        """What was declared for this kind; None for nothing."""
        return next((one for one in self.holdings if one.kind == record_kind), None)


@lru_cache(maxsize=65536)
def _fits(name: str, limits: Limits) -> bool:
    if limits.key_chars is not None and not _allowed(limits.key_chars).fullmatch(name):
        return False
    if (limits.key_paths and not _clean_path(name)) or name in limits.key_words:
        return False
    return limits.key_length is None or len(name) <= limits.key_length


def _renamed(name: str, limits: Limits) -> str:
    mark = "_" + hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    clean = name if limits.key_chars is None else re.sub(f"[^{limits.key_chars}]", "_", name)
    if limits.key_paths and not _clean_path(clean):
        clean = re.sub(r"[./]", "_", clean)
    return (clean if limits.key_length is None else clean[: limits.key_length - len(mark)]) + mark


@lru_cache(maxsize=16)
def _allowed(chars: str) -> re.Pattern[str]:
    return re.compile(f"[{chars}]+")


def _clean_path(name: str) -> bool:
    return all(part not in ("", ".", "..") for part in name.split("/"))


@dataclass(frozen=True, slots=True)
class Reads:
    """What a source can tell of what its tracker holds. What is not named here is told whole.

    holdings  of single kinds: what cannot be told of them ("lost": they cannot be seen at all), and why
    absent    kinds that no such place has
    """

    holdings: tuple[Holding, ...] = ()
    absent: frozenset[str] = frozenset()

    def of(self, kind: str) -> Holding | None:
        """How things of this kind are told; None where there are none."""
        if kind in self.absent:
            return None
        return next((one for one in self.holdings if one.kind == kind), Holding(kind))


@dataclass(frozen=True, slots=True)
class Packing:
    """How large a pack may be: whole runs, bounded by points and by bytes of artifacts."""

    runs: int = 1000
    points: int = 1_000_000
    size: int = 1 << 30

    def within(self, other: Packing) -> Packing:
        """The smaller of both, bound by bound."""
        return Packing(min(self.runs, other.runs), min(self.points, other.points), min(self.size, other.size))


class Reading(Protocol):
    """Some runs, opened: one consistent look at them. Each stream can be taken once, in any order.

    distinct   no two points are equal in all columns
    losses     what could not be read as it was; complete once the streams are drained
    """

    runs: Sequence[Run]
    distinct: bool
    losses: list[Loss]

    def points(self) -> Iterator[pa.RecordBatch]:
        """Batches of the schema POINTS; a run's points lie together, in log order."""

    def artifacts(self) -> Iterator[Artifact]:
        """The files of the runs, one after another."""

    def records(self) -> Iterator[Record]:
        """What belongs to no run (only for refs of kind "records")."""


class Source(Protocol):
    """A place to read from."""

    packing: Packing

    def experiments(self) -> Sequence[Experiment]:
        """All experiments, deleted ones too."""

    def refs(self) -> Iterable[RunRef]:
        """All runs, deleted ones too, parents before their children where that is known."""

    def read(self, refs: Sequence[RunRef]) -> AbstractContextManager[Reading]:
        """The runs that `refs` name. A run that is gone meanwhile is left out, with a loss."""

    def oddities(self) -> Sequence[Loss]:
        """What is strange about the place as a whole, known once experiments and refs were taken."""

    def close(self) -> None: ...


class Place(Protocol):
    """A pack being written."""

    def begin(self, runs: Sequence[Run]) -> None: ...

    def points(self, batch: pa.RecordBatch) -> None: ...

    def put(self, artifact: Artifact) -> None: ...

    def keep(self, record: Record) -> None: ...

    def commit(self, losses: Sequence[Loss] = ()) -> Mapping[str, str]:
        """Done, written last. Gives origin -> the id of the run here. `losses` are kept where possible."""


class Names(Protocol):
    """What the source's things are called in a target: verify compares with that."""

    def experiment(self, experiment: Experiment) -> Experiment:
        """The experiment under the name that it has there."""

    def run(self, run: Run) -> Run:
        """The run with the tags and params that it has there; its own id stays the source's."""

    def record(self, record: Record) -> Record:
        """The record as it is read from there, ids and places being those of the target."""

    def artifact(self, artifact: Artifact) -> Artifact:
        """The file as it is there: owner, path and bytes."""


class SameNames:
    """For targets where everything is called as it was."""

    def experiment(self, experiment: Experiment) -> Experiment:
        """The experiment itself."""
        return experiment

    def run(self, run: Run) -> Run:
        """The run itself."""
        return run

    def record(self, record: Record) -> Record:
        """The record itself."""
        return record

    def artifact(self, artifact: Artifact) -> Artifact:
        """The file itself."""
        return artifact


class Target(Protocol):
    """A place to write into."""

    limits: Limits
    packing: Packing

    def arrived(self) -> Mapping[str, Arrival]:
        """The runs that are whole here, by origin. Read from the place itself."""

    def prepare(self, experiments: Sequence[Experiment]) -> Sequence[Loss]:
        """Makes the experiments that are not there yet; an equal name is the same experiment."""

    def pack(self, id: str, refs: Sequence[RunRef], distinct: bool = False) -> AbstractContextManager[Place]:
        """A pack of the runs that `refs` name; their stamps are remembered. `distinct`: no two points are equal."""

    def finish(self, experiments: Sequence[Experiment], ids: Mapping[str, str]) -> Sequence[Loss]:
        """After the last pack: references between runs (ids: origin -> id here), then deletions."""

    def foresee(self, experiments: Sequence[Experiment], records: Sequence[Record]) -> Sequence[Loss]:
        """What meets others of its name here, and what comes of it. Writes nothing; for plan.

        Raises Conflict when that is to fail. `records` are those of kinds that are found by name.
        """

    def names(self, ids: Mapping[str, str]) -> Names:
        """What things are called here, read from the place itself (ids: the source's id of a run -> its id here)."""

    def close(self) -> None: ...
