"""The frame in which objects beside runs are written to a server: one writer for some kinds each.

    RestPlace.keep(record) ---> the writer of its kind ---> calls of that kind's API
             .put(artifact) --> the writer of its owner ("@model/...", "@trace/...")
             .commit() -------> every writer, in the order of WRITERS

A writer belongs to one pack.  Each of its calls may be made again, in a second try or by a second
process, and then changes nothing.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Protocol

from mlmigrate.adapters.base import Settings
from mlmigrate.adapters.mlflow.objects import Named
from mlmigrate.adapters.mlflow.references import References
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.server import Server
from mlmigrate.adapters.mlflow.rest.uploads import Uploads
from mlmigrate.adapters.mlflow.rest.writing import Writing
from mlmigrate.errors import MigrateError, NotFound, Unavailable
from mlmigrate.model import Artifact, Loss, Record

HERE = "mlmigrate.adapters.mlflow.rest."
WRITERS = (  # imported when something of theirs comes
    HERE + "models:ModelWriter",
    HERE + "registry:RegistryWriter",
    HERE + "write_datasets:DatasetWriter",
    HERE + "write_datasets:ScorerWriter",
    HERE + "write_traces:TraceWriter",
    HERE + "write_others:OtherWriter",
)


class Writer(Protocol):
    """What writes objects of some kinds.

    kinds  those of the records that it takes, "mlflow.trace"
    owner  how the owner of its files begins, "@trace/"; "" for none
    raw    whether it takes records as they come; the others get those with the ids of this server in their rows
           (the record's own id and owner stay the source's)
    """

    kinds: tuple[str, ...]
    owner: str
    raw: bool

    def __init__(self, frame: Frame) -> None: ...

    def keep(self, record: Record) -> None:
        """Takes an object; it may be written now or later, up to commit."""

    def put(self, artifact: Artifact) -> None:
        """Takes a file; all objects of the pack came before. Its owner is called as in the source."""

    def commit(self) -> None:
        """Everything of the pack is there when this comes back."""


@dataclass
class Known:
    """What the source's things are called here, filled as they are found and made; shared by all packs.

    by_origin   of registered models and versions: name or number here, by origin
    references  rewrites with all that; it sees every later change
    """

    ids: dict[Named, dict[str, str]] = field(default_factory=dict)
    places: dict[Named, dict[str, str]] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    versions: dict[tuple[str, int], int] = field(default_factory=dict)
    by_origin: dict[str, str] = field(default_factory=dict)
    here: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        everything: tuple[Named, ...] = ("run", "experiment", "logged_model", "evaluation_dataset")
        for named in everything:
            self.ids.setdefault(named, {})
        for named in everything[:3:2]:
            self.places.setdefault(named, {})
        self.references = References(self.ids, self.places, self.models, self.versions)

    def note(self, named: Named, id: str, here: str, place: str = "") -> None:
        """Something has this id here, and its artifacts this place."""
        self.ids[named][id] = here
        self.here.add(here)
        if place:
            self.places[named][id] = place

    def name(self, origin: str, here: str) -> None:
        """A registered model of this origin (`objects.model_origin`) has this name here."""
        self.by_origin[origin] = here
        self.models[origin.rpartition("@")[0]] = here

    def number(self, origin: str, here: int) -> None:
        """A version of this origin (`objects.version_origin`) has this number here."""
        self.by_origin[origin] = str(here)
        name, _, number = origin.rpartition("@")[0].rpartition("/")
        if number.isdigit() and int(number) != here:
            self.versions[name, int(number)] = here

    def of(self, name: str, here: str, versions: Mapping[int, str]) -> Known:
        """The same, where `name` is the model of that name here, with these versions (number -> origin)."""
        numbers = {(name, n): int(self.by_origin[origin]) for n, origin in versions.items() if origin in self.by_origin}
        return Known(self.ids, self.places, {**self.models, name: here or name}, {**self.versions, **numbers})

    def source(self, text: str) -> str:
        """The source of a version as it is here. Names with spaces are found only here, where they stand alone."""
        found = _ALONE.fullmatch(text)
        if found is None or _NAMED.fullmatch(text):
            return self.references.text(text)
        name, number = found[1], int(found[2])
        return f"models:/{self.models.get(name, name)}/{self.versions.get((name, number), number)}"

    def waits(self, text: str) -> bool:
        """Whether a text, already rewritten, names something that is not known here, and may be later."""
        if any(name not in self.models for name in _NAMED.findall(text)):
            return True
        ids = _IDS.findall(_UUID.sub("", text))
        return any(id_ not in self.here and all(id_ not in known for known in self.ids.values()) for id_ in ids)


@dataclass
class Frame:
    """What a writer is given.

    known   what was found and made so far; `references` rewrites with it
    home    the id here of an experiment of the source, which is made active for the time of the pack
    later   runs a call in another thread, soon
    settle  waits for all that `later` was given; raises what one of them raised
    """

    client: Client
    server: Server
    settings: Settings
    known: Known
    writing: Writing
    uploads: Uploads
    home: Callable[[str], str]
    later: Callable[..., None]
    settle: Callable[[], None]
    losses: list[Loss]
    turns: dict[str, threading.Lock] = field(default_factory=dict)

    @property
    def references(self) -> References:
        """What things are called here."""
        return self.known.references

    def lose(self, what: str, because: str, experiment: str = "") -> None:
        """Something does not arrive as it was; `experiment` is the source's id."""
        self.losses.append(Loss("", what, because, experiment))

    def on_run(self, run: str, call: Callable[[], None]) -> None:
        """Makes a call that writes to the run of this id here, also when that is deleted."""
        try:
            call()
        except (Unavailable, NotFound):
            raise
        except MigrateError:
            if self.writing.get(run).info.lifecycle_stage != "deleted":
                raise
            with self.active(run):
                call()

    @contextmanager
    def active(self, run: str) -> Iterator[None]:
        """For the time of the block, the run of this id here can be written to though it is deleted."""
        with self.turns.setdefault(run, threading.Lock()):
            deleted = self.writing.get(run).info.lifecycle_stage == "deleted"
            if deleted:
                self.writing.restore(run)
            yield
            if deleted:
                self.writing.delete(run)


class Writers:
    """The writers of one pack, made when something of theirs comes."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._made: dict[str, Writer] = {}

    def keep(self, record: Record) -> None:
        """Gives a record to the writer of its kind; one that nobody takes was said to be lost."""
        for name, kind in _classes().items():
            if record.kind in kind.kinds:
                writer = self._of(name)
                writer.keep(record if getattr(writer, "raw", False) else self._frame.references.record(record))
                return

    def put(self, artifact: Artifact) -> None:
        """Gives a file to the writer of its owner."""
        for name, kind in _classes().items():
            if kind.owner and artifact.owner.startswith(kind.owner):
                self._of(name).put(artifact)
                return

    def commit(self) -> None:
        """Everything that was given is there when this comes back."""
        for name in _classes():
            if name in self._made:
                self._made[name].commit()
        self._frame.settle()

    def _of(self, name: str) -> Writer:
        if name not in self._made:
            self._made[name] = _classes()[name](self._frame)
        return self._made[name]


def modules() -> Iterator[ModuleType]:
    """The modules of all writers."""
    for name in dict.fromkeys(writer.partition(":")[0] for writer in WRITERS):
        try:
            yield import_module(name)
        except ModuleNotFoundError as error:  # its kinds are declared as lost then
            if error.name != name:
                raise


@cache
def _classes() -> Mapping[str, type[Writer]]:
    """The writers by the names in WRITERS."""
    found = {module.__name__: module for module in modules()}
    named = (name.partition(":") for name in WRITERS)
    return {f"{at}:{kind}": getattr(found[at], kind) for at, _, kind in named if hasattr(found.get(at), kind)}


# What References may change. A model_uuid is nobody's id.
_MAY_REFER = re.compile(r"(?<![0-9A-Za-z])(?:m-|tr-|d-)?[0-9a-f]{32}(?![0-9A-Za-z])|models:/")
_IDS = re.compile(r"(?<![0-9A-Za-z])(?:m-|tr-|d-)?[0-9a-f]{32}(?![0-9A-Za-z])")
_NAMED = re.compile(r"models:/([^/\s\"'#?@]+)(?:/\d+(?![\w.])|@)")
_ALONE = re.compile(r"models:/([^/]+)/(\d+)")
_UUID = re.compile(r"model_uuid\W{1,8}[0-9a-f]{32}")


def may_refer(text: str) -> bool:
    """Whether a text may name something by its id or its name."""
    return _MAY_REFER.search(text) is not None
