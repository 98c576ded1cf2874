"""A file store as a Source."""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH100, PTH110, PTH111, PTH112, PTH114, PTH118, PTH119, PTH120, PTH123

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import unquote

import pyarrow as pa

from mlmigrate.adapters.base import Context, Packing, Reading, Settings, Source
from mlmigrate.adapters.mlflow.direct import Far, Stores
from mlmigrate.adapters.mlflow.files import disk, homes, meta, points, records, runs
from mlmigrate.adapters.mlflow.files.artifacts import Whereabouts, artifacts, local_path
from mlmigrate.adapters.mlflow.files.homes import Home
from mlmigrate.adapters.mlflow.files.links import Links
from mlmigrate.adapters.mlflow.files.runs import META
from mlmigrate.address import Address
from mlmigrate.errors import NotFound
from mlmigrate.model import Artifact, Experiment, Loss, Record, Run, RunRef

SQLITE = b"SQLite format 3\0"


def open_source(address: Address, context: Context) -> Source:
    """The store in the folder that the address names, or in its mlruns/.

    Raises NotFound when there is no such folder, or no store in it.
    """
    return Files(root_of(address), context.settings, Stores.of(context))


def root_of(address: Address) -> str:
    """The folder of the store that the address names. Raises NotFound as `open_source` does."""
    place = folder_of(address.place)
    if not os.path.isdir(place):
        raise _no_folder(place, address)
    for folder, loosely in ((place, False), (_mlruns(place), False), (place, True), (_mlruns(place), True)):
        if homes.is_store(folder, loosely=loosely):
            return os.path.abspath(folder)
    raise _no_store(place, address)


def folder_of(place: str) -> str:
    """The path that a tracking URI of a folder names."""
    path = local_path(place) or place
    return path if os.path.exists(path) else os.path.expanduser(path)


def _mlruns(place: str) -> str:
    return os.path.join(place, "mlruns")


def _no_folder(place: str, address: Address) -> NotFound:
    if not os.path.exists(place):
        return NotFound(f"{address.shown} does not exist.", f"Looked for the folder {os.path.abspath(place)}")
    if is_sqlite(place):
        return NotFound(f"{address.shown} is a SQLite database, not a folder.", f"Read it as {_database(place)}")
    return NotFound(f"{address.shown} is a file, not a folder.", "Name the folder that holds the experiments (mlruns).")


def _no_store(place: str, address: Address) -> NotFound:
    message = f"{address.shown} holds no experiment (no <experiment id>/meta.yaml, here or in mlruns/)."
    said = meta.load(os.path.join(place, META)).meta
    if "experiment_id" in said:
        above = "../.." if homes.is_run(said) else ".."
        what = "run" if homes.is_run(said) else "experiment"
        store = os.path.normpath(os.path.join(os.path.abspath(place), above))
        return NotFound(message, f"That is a single {what}; its store is mlflow:{store} (pick with -e or -r)")
    for entry in disk.entries(place):
        if entry.is_file() and is_sqlite(entry.path):
            return NotFound(message, f"There is a database in it: {_database(entry.path)}")
    return NotFound(message, f"To find every store under a folder: --scan {place}")


def _database(path: str) -> str:
    return f"mlflow:sqlite:///{unquote(os.path.abspath(path))}"


def is_sqlite(path: str) -> bool:
    """Whether a regular file begins as a SQLite database does."""
    try:
        with open(path, "rb") as file:
            return file.read(len(SQLITE)) == SQLITE
    except OSError:
        return False


class Files:
    """A folder that MLflow wrote, read without MLflow and never written."""

    def __init__(self, root: str, settings: Settings, stores: Stores | None = None) -> None:
        self.root = root
        self.packing = Packing()
        self._whereabouts = Whereabouts(root, settings, stores)
        self._whereabouts.stores.named = lambda: [one.artifact_root for one in self.experiments()]
        self._links = Links(root)
        self._oddities: dict[str, list[Loss]] = {}
        self._notes: dict[Loss, None] = {}

    def experiments(self) -> Sequence[Experiment]:
        """All experiments; two folders of one id, one of them in the trash, are one experiment."""
        odd: list[Loss] = []
        found: dict[str, Experiment] = {}
        for home in homes.homes(self.root, odd):
            if home.id in found:
                because = f"experiment {home.id} is there and in the trash: their runs are kept together"
                odd.append(Loss("", f".trash/{disk.shown(home.id)}", because, home.id))
            else:
                found[home.id] = homes.experiment(home, odd)
        experiments = list(found.values())
        self._oddities["experiments"] = odd + homes.shared_names(experiments)
        return experiments

    def refs(self) -> Sequence[RunRef]:
        """All runs, parents first, and what belongs to no run. Looks at names, sizes and times; reads meta.yaml."""
        odd: list[Loss] = []
        self._links.forget()
        listing = _Listing(self._whereabouts, odd)
        found = homes.homes(self.root, [])
        for home in found:
            listing.add(home)
        self._oddities["refs"] = odd
        return [*listing.parents_first(), *records.Finder(self.root, self._links, found, listing.names).refs()]

    def oddities(self) -> Sequence[Loss]:
        """What is strange about the store; also, once they were read, what is odd about its points."""
        listed = [loss for stage in ("experiments", "refs") for loss in self._oddities.get(stage, ())]
        return listed + list(self._notes)

    @contextmanager
    def read(self, refs: Sequence[RunRef]) -> Iterator[Reading]:
        """The runs and things that `refs` name."""
        reading = FileReading(self.root, self._whereabouts, self._links, refs)
        yield reading
        self._notes.update(dict.fromkeys(reading.notes))

    def close(self) -> None:
        """Lets the threads go that read from object stores; nothing else is held open."""
        self._whereabouts.stores.close()


class _Listing:
    """The runs of a store as refs, in the making."""

    def __init__(self, whereabouts: Whereabouts, oddities: list[Loss]) -> None:
        self._whereabouts, self._oddities = whereabouts, oddities
        self._refs: dict[str, RunRef] = {}
        self._parents: dict[str, str] = {}
        self._folders: dict[str, str] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, home: Home) -> None:
        """The runs in an experiment's folder."""
        names = self._names.setdefault(home.path, [])
        for entry in disk.entries(home.path):
            if entry.name in (META, *homes.RESERVED):
                if entry.is_symlink():
                    self._note(home, entry.name, "", disk.odd_kind(entry))
            elif disk.is_folder(entry):
                names.append(entry.name)
                self._add(home, entry)
            elif not disk.noise(entry.name):
                because = disk.odd_kind(entry) if entry.is_symlink() else "left behind: no part of an experiment"
                self._note(home, entry.name, "", because)

    def _add(self, home: Home, entry: os.DirEntry[str]) -> None:
        seen = runs.look(entry.path)
        found = meta.load(os.path.join(entry.path, META)) if seen.has_meta else meta.Found({}, "missing")
        if not _is_run(entry.name, seen, found):
            self._note(home, entry.name, "", "left behind: no run")
            return
        if entry.name in self._refs:
            self._twice(home, entry)
            return
        for path, because in seen.odd:
            self._note(home, f"{entry.name}/{path}", entry.name, because)
        self._check(home, entry.name, found)
        self._refs[entry.name] = runs.ref(entry.path, home.id, self._whereabouts, seen, found)
        self._folders[entry.name] = entry.path
        parent = runs.parent_of(entry.path, seen)
        if parent:
            self._parents[entry.name] = parent

    def _check(self, home: Home, name: str, found: meta.Found) -> None:
        if found.flaw:
            self._note(home, f"{name}/{META}", name, f"{found.flaw}: the run is kept as far as it can be read")
            return
        told = meta.word(found.meta.get("run_id") or found.meta.get("run_uuid"))
        if not told:
            self._note(home, f"{name}/{META}", name, "names no run id: kept under its folder's name")
        elif told != name:
            because = f"says that it is run {disk.shown(told)!r}: kept under its folder's name"
            self._note(home, f"{name}/{META}", name, because)
        elsewhere = meta.word(found.meta.get("experiment_id"))
        if elsewhere not in ("", home.id):
            because = f"says that it is in experiment {disk.shown(elsewhere)!r}: kept where it lies"
            self._note(home, f"{name}/{META}", name, because)

    def _twice(self, home: Home, entry: os.DirEntry[str]) -> None:
        first = self._folders[entry.name]
        where = f"experiment {os.path.basename(os.path.dirname(first))}"
        if same_files(first, entry.path):
            because = f"the same run, byte for byte, lies in {where}: carried once"
        else:
            because = f"another run with this id lies in {where}, and that one is carried: this one is left behind"
        self._note(home, entry.name, entry.name, because)

    def _note(self, home: Home, path: str, run: str, because: str) -> None:
        trash = f"{homes.TRASH}/" if home.trashed else ""
        self._oddities.append(Loss(run, f"{trash}{disk.shown(home.id)}/{disk.shown(path)}", because, home.id))

    @property
    def names(self) -> dict[str, list[str]]:
        """The names of the folders in an experiment that may be runs, by its path."""
        return self._names

    def parents_first(self) -> Iterator[RunRef]:
        """Every ref, after that of its parent where there is one."""
        told: set[str] = set()
        for run in self._refs:
            chain: list[str] = []
            at = run
            while at in self._refs and at not in told:
                told.add(at)
                chain.append(at)
                at = self._parents.get(at, "")
            yield from (self._refs[one] for one in reversed(chain))


def _is_run(name: str, seen: runs.Look, found: meta.Found) -> bool:
    """Whether a folder in an experiment is a run, also without a whole meta.yaml."""
    if homes.is_run(found.meta):
        return True
    if seen.has_meta and not found.flaw and "artifact_location" in found.meta:
        return False
    return seen.plausible or (seen.has_meta and runs.looks_like_id(name))


def same_files(one: str, other: str) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    trees = [{file.path: file for file in disk.walk(folder, stats=True).files} for folder in (one, other)]
    if [(path, file.size) for path, file in trees[0].items()] != [(path, file.size) for path, file in trees[1].items()]:
        return False
    return all(_same_bytes(file.place, trees[1][path].place) for path, file in trees[0].items())


def _same_bytes(one: str, other: str) -> bool:
    try:
        with disk.open_file(one) as left, disk.open_file(other) as right:
            while chunk := left.read(1 << 20):
                if right.read(1 << 20) != chunk:
                    return False
            return not right.read(1)
    except NotFound:
        return False


class FileReading:
    """Some runs and things of a file store, opened. `notes` tells what is odd about their points and no loss."""

    def __init__(self, root: str, whereabouts: Whereabouts, links: Links, refs: Sequence[RunRef]) -> None:
        self._root, self._whereabouts, self._links = root, whereabouts, links
        self.distinct = True
        self.losses: list[Loss] = []
        self.notes: list[Loss] = []
        opener = runs.Opener(whereabouts, links, self.losses)
        self._opened = [
            opener.open(folder, ref) for ref in refs if ref.kind == "run" and (folder := self._folder(ref)) is not None
        ]
        self.runs: Sequence[Run] = [opened.run for opened in self._opened]
        things = records.Opener(root, whereabouts, links, self.losses, self.notes)
        self._things = [
            thing
            for ref in refs
            if ref.kind == "records"
            for thing in things.open(ref, list(self._homes(ref.experiment)))
        ]

    def points(self) -> Iterator[pa.RecordBatch]:
        """Every point once, a metric's in the order of its file."""
        files = (file for opened in self._opened for file in opened.metrics)
        return map(self._links.fill, points.batches(files, self.losses, self.notes))

    def artifacts(self) -> Iterator[Artifact]:
        """The files of the runs, then those of models and traces."""
        return self._whereabouts.stores.in_turn(self._places())

    def _places(self) -> Iterator[Iterator[Artifact] | Far]:
        for opened in self._opened:
            run = opened.run
            if opened.artifacts:
                yield artifacts(opened.artifacts, run.id, run.experiment, self.losses)
            elif self._whereabouts.far(run.artifact_uri):
                yield Far(run.artifact_uri, run.id)
        for thing in self._things:
            yield thing.artifacts()

    def records(self) -> Iterator[Record]:
        """Models, traces and whatever else belongs to no run."""
        for thing in self._things:
            yield from thing.records()

    def _homes(self, experiment: str) -> Iterator[str]:
        if runs.plain(experiment):
            yield os.path.join(self._root, experiment)
            yield os.path.join(self._root, homes.TRASH, experiment)

    def _folder(self, ref: RunRef) -> str | None:
        for home in self._homes(ref.experiment):
            folder = os.path.join(home, ref.id)
            if runs.plain(ref.id) and os.path.isdir(folder) and not os.path.islink(folder):
                return folder
        self.losses.append(Loss(ref.id, "the run", "gone since it was listed", ref.experiment))
        return None
