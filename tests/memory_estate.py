"""A store in memory whose artifacts lie in folders: what relocate is tested with, quickly and at every point."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlmigrate.adapters.estate import Cell
from mlmigrate.address import Address
from mlmigrate.errors import Unavailable
from mlmigrate.events import Silent
from mlmigrate.relocate.job import Relocation, Wish
from mlmigrate.relocate.ledger import Ledger
from mlmigrate.relocate.sources import Sources
from mlmigrate.steps import Steps
from mlmigrate.storage.folder import FolderObjects


@dataclass
class MemoryEstate:
    """Values by (table, key, column). `root` is where experiments' files lie; `hooks` are called by their names."""

    root: Path
    values: dict = field(default_factory=dict)
    hooks: dict = field(default_factory=dict)
    busy: bool = False
    shown = "mlflow:memory"
    identity = "memory"

    def add(self, kind, id, uri, experiment="1", **more):
        table = {"experiment": "experiments", "run": "runs", "model": "logged_models", "version": "model_versions"}[
            kind
        ]
        owner = {"experiment": "", "run": id, "model": f"@model/{id}", "version": f"@version/{id}"}[kind]
        cell = Cell(table, (id,), "uri", uri, kind, owner, experiment, **more)
        self.values[table, (id,), "uri"] = cell
        return cell

    def experiment(self, id="1", uri=None):
        return self.add("experiment", id, uri or f"{self.root}/{id}", id)

    def run(self, id, files, experiment="1", uri=None, **more):
        place = self.root / experiment / id / "artifacts"
        for path, data in files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(data)
        return self.add("run", id, uri or str(place), experiment, **more)

    def value(self, table, id):
        return self.values[table, (id,), "uri"].value

    def state(self):
        return {key: cell.value for key, cell in self.values.items()}

    def set(self, table, id, **changes):
        at = (table, (id,), "uri")
        self.values[at] = replace(self.values[at], **changes)

    # Estate

    def cells(self):
        yield from list(self.values.values())

    def folder(self, cell):
        uri = cell.value.removeprefix("file://")
        return Path(uri) if uri.startswith(str(self.root)) else None

    @contextmanager
    def switching(self):
        if self.busy:
            raise Unavailable("others are writing there")
        self._called("lock")
        yield MemorySwitching(self, dict(self.values))

    def close(self): ...

    def _called(self, name):
        self.hooks.get(name, lambda: None)()


@dataclass
class MemorySwitching:
    estate: MemoryEstate
    values: dict

    def cells(self):
        yield from list(self.values.values())

    def edit(self, edits):
        missed = []
        for one in edits:
            at = (one.table, one.key, one.column)
            if at in self.values and self.values[at].value == one.old:
                self.values[at] = replace(self.values[at], value=one.new)
            else:
                missed.append(one)
        self.estate._called("edited")
        return missed

    def commit(self):
        self.estate._called("before commit")
        self.estate.values.update(self.values)
        self.estate._called("after commit")


class Reader:
    """Downloads as MLflow would from a folder."""

    def of_uri(self, uri, to):
        return Path(uri)

    def close(self): ...


class Move:
    """One move, command after command."""

    def __init__(self, estate, to: Path, ledger: Path, target=None):
        self.estate, self.to, self.ledger = estate, to, ledger
        self.target = target or FolderObjects(to)

    def __call__(self, *, hooks=None, **wish):
        self.estate.hooks = hooks or {}
        book = (
            Ledger.open(self.ledger, "memory", str(self.to))
            if not wish.get("dry_run")
            else Ledger.of_nobody(self.ledger)
        )
        steps = Steps(1)
        work = Relocation(
            Wish(Address("mlflow", "memory"), str(self.to), **wish),
            self.estate,
            self.target,
            book,
            Sources(book, {}),
            Silent(),
            steps,
        )
        work._client = Reader
        try:
            work.begin()
            self.estate._called("begun")
            work.do()
            work.end()
        finally:
            book.close()
            self.estate.hooks = {}
        return work.done


def files_below(folder):
    """Every file below, but those of our own making."""
    return {
        one.relative_to(folder).as_posix(): one.read_bytes()
        for one in sorted(folder.rglob("*"))
        if one.is_file() and ".mlmigrate-parts" not in one.parts
    }
