"""A run's folder as a RunRef (by names, sizes and times alone) and as a Run (read).

<experiment>/<run id>/meta.yaml
                      params/<key>  tags/<key>      one file a value, its whole text
                      metrics/<key>                 one line a point
                      inputs/<id>/meta.yaml         datasets (in <experiment>/datasets) and links to models
                      outputs/<model id>/meta.yaml  links to models; a model's own object carries them
                      artifacts/...
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH118, PTH119, PTH120

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mlmigrate.adapters.mlflow.files import disk, meta
from mlmigrate.adapters.mlflow.files.artifacts import FOLDER, Whereabouts
from mlmigrate.adapters.mlflow.files.meta import Meta
from mlmigrate.adapters.mlflow.files.points import MetricFile
from mlmigrate.adapters.mlflow.objects import Row
from mlmigrate.errors import BadData
from mlmigrate.model import OURS, PARENT_TAG, STATUSES, DatasetInput, Loss, Run, RunRef

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.files.links import Links

META = "meta.yaml"
NAME_TAG = "mlflow.runName"
MODELS_TAG = "mlflow.log-model.history"
PARTS = ("metrics", "params", "tags", "inputs", "outputs", FOLDER)
CONTENT = ("metrics", "params", "tags", FOLDER)
MOST = 64 << 20  # bytes of one param or tag
BYTES_A_POINT = 30
SOURCE_TYPES = {1: "NOTEBOOK", 2: "JOB", 3: "PROJECT", 4: "LOCAL", 1000: "UNKNOWN"}
_SYSTEM = ("source_type", "source_name", "source_version", "entry_point_name")
_KNOWN = frozenset(
    (
        *_SYSTEM,
        *("run_id", "run_uuid", "experiment_id", "name", "run_name", "user_id", "status", "start_time", "end_time"),
        *("deleted_time", "lifecycle_stage", "artifact_uri", "tags"),
    )
)
_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Link:
    """A run that made ("outputs") or read ("inputs") a logged model."""

    run: str
    model: str
    part: str
    step: int = 0

    @property
    def row(self) -> Row:
        """The link as the table `inputs` holds it."""
        word = "OUTPUT" if self.part == "outputs" else "INPUT"
        return {
            "source_type": f"RUN_{word}",
            "source_id": self.run,
            "destination_type": f"MODEL_{word}",
            "destination_id": self.model,
            "step": self.step,
        }


def link_of(run: str, part: str, name: str, said: Meta) -> Link | None:
    """What the meta.yaml in the folder `name` says; None for a dataset."""
    if part == "outputs":
        step = meta.time(said.get("step")) or 0
        return Link(run, escaped(meta.word(said.get("destination_id")) or name), part, step)
    source = meta.word(said.get("source_id"))
    return Link(run, escaped(source), part) if source and said.get("source_type") == "MODEL" else None


def origin(run: str) -> str:
    """What the run is called wherever it is found again."""
    return f"mlflow:{run}"


# ---- listing ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Look:
    """What names, sizes and times tell of a run's folder."""

    marks: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    odd: list[tuple[str, str]] = field(default_factory=list)
    has_meta: bool = False

    @property
    def plausible(self) -> bool:
        """Whether a folder without a readable meta.yaml is a run all the same."""
        return any(self.counts.get(part) for part in CONTENT)

    @property
    def stamp(self) -> str:
        """Changes when any name, size or time does."""
        whole = "\n".join(sorted(self.marks)).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(whole, digest_size=16).hexdigest()


def look(folder: str) -> Look:
    """One walk over a run's folder; opens no file."""
    seen = Look()
    for entry in disk.entries(folder, in_order=False):
        if entry.name in PARTS and disk.is_folder(entry):
            _add(seen, entry.name, entry.path)
        elif entry.name == META and entry.is_file(follow_symlinks=False):
            seen.has_meta = True
            told = entry.stat(follow_symlinks=False)
            seen.marks.append(f"{META}\0{told.st_size}\0{told.st_mtime_ns}")
        elif entry.is_symlink():
            seen.odd.append((entry.name, disk.odd_kind(entry)))
        else:
            seen.odd.append((entry.name, "left behind: MLflow keeps nothing of that name in a run"))
    return seen


def _add(seen: Look, part: str, folder: str) -> None:
    tree = disk.walk(folder, stats=True, skip_noise=part != FOLDER)
    seen.marks += [f"{part}/{file.path}\0{file.size}\0{file.changed}" for file in tree.files]
    seen.sizes[part] = sum(file.size for file in tree.files)
    seen.counts[part] = len(tree.files) + sum(1 for _, because in tree.odd if "link" in because)
    if part == "tags":
        seen.tags = {file.path for file in tree.files}
    if part != FOLDER:  # what is odd among artifacts is told as a loss when they are read
        seen.odd += [(f"{part}/{path}", because) for path, because in tree.odd if "link" not in because]


def ref(folder: str, experiment: str, whereabouts: Whereabouts, seen: Look, found: meta.Found) -> RunRef:
    """The run in this folder, to be listed."""
    run = os.path.basename(folder)
    uri = meta.word(found.meta.get("artifact_uri"))
    if not seen.counts.get(FOLDER):
        elsewhere = whereabouts.elsewhere((experiment, run), uri)
        if elsewhere:
            _add(seen, FOLDER, elsewhere)
    status, _ = status_of(found.meta)
    return RunRef(
        experiment=experiment,
        id=run,
        name=name_of(found.meta) or (tag(folder, NAME_TAG) if NAME_TAG in seen.tags else ""),
        origin=origin(run),
        stamp=seen.stamp,
        status=status,
        start=meta.time(found.meta.get("start_time")),
        deleted=is_deleted(found.meta),
        points=-(-seen.sizes.get("metrics", 0) // BYTES_A_POINT),
        size=seen.sizes.get(FOLDER, 0),
    )


def parent_of(folder: str, seen: Look) -> str:
    """The id of the run that this one is nested in; "" for none."""
    return tag(folder, PARENT_TAG) if PARENT_TAG in seen.tags else ""


def tag(folder: str, name: str) -> str:
    """One tag's text; "" when it cannot be read."""
    try:
        return disk.text(disk.read(os.path.join(folder, "tags", name), MOST))
    except (OSError, BadData):
        return ""


def is_deleted(said: Meta) -> bool:
    """Whether a meta.yaml tells of something deleted."""
    return said.get("lifecycle_stage") == "deleted"


def status_of(said: Meta) -> tuple[str, str]:
    """The status, and the store's own word when it is none that is known. None given: RUNNING, as in MLflow."""
    given = said.get("status")
    if given is None:
        return "RUNNING", ""
    told = str(given)
    if told.isdecimal() and 1 <= int(told[:9]) <= len(STATUSES):
        return STATUSES[int(told) - 1], ""
    if told.upper() in STATUSES:
        return told.upper(), ""
    return ("RUNNING" if said.get("end_time") is None else "FINISHED"), told


def name_of(said: Meta) -> str:
    """The run's name in its own field or the field of old versions; where both are blank a tag may know it."""
    return meta.word(said.get("run_name")) or meta.word(said.get("name"))


# ---- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """A run that was read, and where its points and artifacts are."""

    run: Run
    metrics: tuple[MetricFile, ...]
    artifacts: str


class Opener:
    """Reads runs; keeps the datasets that it met, for most runs of an experiment share them."""

    def __init__(self, whereabouts: Whereabouts, links: Links, losses: list[Loss]) -> None:
        self._whereabouts, self._links, self._losses = whereabouts, links, losses
        self._datasets: dict[str, Meta] = {}

    def open(self, folder: str, wanted: RunRef) -> Opened:
        """The run in a folder, without its points and artifact bytes."""
        found = meta.load(os.path.join(folder, META))
        self._note_flaws(found, wanted)
        parts = self._parts(folder, wanted)
        params = self._values(parts, "params", wanted)
        tags = _inline_tags(found.meta) | self._values(parts, "tags", wanted)
        inputs = self._inputs(folder, wanted) if "inputs" in parts else []
        if "outputs" in parts:
            self._outputs(folder, wanted)
        run = replace(
            _described(found.meta),
            id=wanted.id,
            experiment=wanted.experiment,
            origin=wanted.origin,
            stamp=wanted.stamp,
            name=name_of(found.meta) or tags.get(NAME_TAG, ""),
            params=params,
            tags={key: value for key, value in tags.items() if not key.startswith(OURS)},
            inputs=tuple(inputs),
        )
        return Opened(run, tuple(self._metrics(parts, wanted)), self._artifacts(folder, wanted, run))

    def _parts(self, folder: str, wanted: RunRef) -> dict[str, str]:
        """The folders of a run that are there, by name; one that is a link is a loss."""
        parts = {}
        for entry in disk.entries(folder, in_order=False):
            if entry.name in PARTS and disk.is_folder(entry):
                parts[entry.name] = entry.path
            elif entry.name in PARTS:
                self._lose(wanted, entry.name, disk.odd_kind(entry))
        return parts

    def _lose(self, wanted: RunRef, what: str, because: str) -> None:
        self._losses.append(Loss(wanted.id, what, because, wanted.experiment))

    def _note_flaws(self, found: meta.Found, wanted: RunRef) -> None:
        said = found.meta
        if found.flaw:
            kept = "what its whole lines say is kept" if said else "status, times, user and name are unknown"
            self._lose(wanted, META, f"{found.flaw}: {kept}")
        for name in ("start_time", "end_time", "deleted_time"):
            if said.get(name) is not None and meta.time(said[name]) is None:
                self._lose(wanted, name, f"{disk.shown(str(said[name]))} is no time")
        for name in sorted(said.keys() - _KNOWN):
            self._lose(wanted, f"{disk.shown(name)} in {META}", "MLflow knows no such field")

    def _files(self, parts: Mapping[str, str], part: str, wanted: RunRef) -> Iterable[disk.File]:
        if part not in parts:
            return ()
        tree = disk.walk(parts[part])
        for path, because in tree.odd:
            if "link" in because:
                self._lose(wanted, f"{part[:-1]} {disk.shown(path)}", because)
        return tree.files

    def _values(self, parts: Mapping[str, str], part: str, wanted: RunRef) -> dict[str, str]:
        values = {}
        for file in self._files(parts, part, wanted):
            try:
                values[file.path] = disk.text(disk.read(file.place, MOST))
            except BadData:
                self._lose(wanted, f"{part[:-1]} {disk.shown(file.path)}", f"larger than {MOST >> 20} MiB")
            except OSError as error:
                self._lose(wanted, f"{part[:-1]} {disk.shown(file.path)}", disk.why(error))
        return values

    def _metrics(self, parts: Mapping[str, str], wanted: RunRef) -> Iterator[MetricFile]:
        files = self._files(parts, "metrics", wanted)
        keys = {file.path for file in files}
        for file in files:
            key = escaped(file.path)
            if key != file.path:
                while key in keys:
                    key += "_"
                keys.add(key)
                self._lose(wanted, f"metric {key!r}", "its name is not UTF-8: carried under this name")
            yield MetricFile(wanted.experiment, wanted.id, key, file.place)

    def _artifacts(self, folder: str, wanted: RunRef, run: Run) -> str:
        place = self._whereabouts.folder(folder, (wanted.experiment, wanted.id), run.artifact_uri)
        if not place:
            absence = self._whereabouts.absence(run.artifact_uri, bool(run.tags.get(MODELS_TAG)))
            if absence:
                self._lose(wanted, "artifacts", absence)
        return place

    def _inputs(self, folder: str, wanted: RunRef) -> list[DatasetInput]:
        inputs = []
        for entry in disk.folders(os.path.join(folder, "inputs")):
            found = meta.load(os.path.join(entry.path, META))
            source = meta.word(found.meta.get("source_id"))
            link = link_of(wanted.id, "inputs", entry.name, found.meta)
            if found.flaw or not source:
                self._lose(wanted, f"input {disk.shown(entry.name)}", found.flaw or "names no source")
            elif link is not None:
                self._check(link, found.meta, wanted)
            elif dataset := self._dataset(os.path.dirname(folder), source):
                inputs.append(_input(dataset, found.meta))
            else:
                self._lose(wanted, f"input {disk.shown(source)}", "the experiment holds no such dataset")
        return inputs

    def _dataset(self, experiment: str, id: str) -> Meta:
        path = os.path.join(experiment, "datasets", id, META)
        if path not in self._datasets and plain(id):
            self._datasets[path] = meta.load(path).meta
        return self._datasets.get(path, {})

    def _outputs(self, folder: str, wanted: RunRef) -> None:
        for entry in disk.folders(os.path.join(folder, "outputs")):
            found = meta.load(os.path.join(entry.path, META))
            link = link_of(wanted.id, "outputs", entry.name, found.meta)
            if found.flaw or link is None:
                self._lose(wanted, f"output {disk.shown(entry.name)}", found.flaw or "names no model")
            else:
                self._check(link, found.meta, wanted)

    def _check(self, link: Link, said: Meta, wanted: RunRef) -> None:
        """Tells what of a link to a model does not arrive with the model."""
        what = f"{link.part[:-1]} {disk.shown(link.model)}"
        if not self._links.knows(link.model):
            self._lose(wanted, what, "the store holds no such logged model")
        elif said.get("tags"):
            self._lose(wanted, f"tags of {what}", "MLflow's tables keep none for models")


def plain(name: str) -> bool:
    """Whether a name from outside is one part of a path, leading nowhere else."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name and os.sep not in name


def escaped(name: str) -> str:
    """A name that is valid UTF-8: bytes that were none become escapes."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def looks_like_id(name: str) -> bool:
    """Whether MLflow would have given a run this id."""
    return _RUN_ID.fullmatch(name) is not None


def _described(said: Meta) -> Run:
    """A run as its meta.yaml describes it."""
    status, word = status_of(said)
    return Run(
        id="",
        experiment="",
        status=status,
        status_word=word,
        start=meta.time(said.get("start_time")),
        end=meta.time(said.get("end_time")),
        user=meta.word(said.get("user_id")),
        deleted=is_deleted(said),
        deleted_at=meta.time(said.get("deleted_time")),
        system=_system(said),
        artifact_uri=meta.word(said.get("artifact_uri")),
    )


def _system(said: Meta) -> dict[str, str]:
    found = {name: said.get(name) for name in _SYSTEM}
    kind = found["source_type"]
    if isinstance(kind, int):
        found["source_type"] = SOURCE_TYPES.get(kind, str(kind))
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def _inline_tags(said: Meta) -> dict[str, str]:
    """Tags in the meta.yaml itself, as the first versions wrote them."""
    given = said.get("tags")
    pairs: Iterable[object] = given if isinstance(given, list) else ()
    return {
        str(pair["key"]): meta.word(pair.get("value")) for pair in pairs if isinstance(pair, dict) and "key" in pair
    }


def _input(dataset: Meta, said: Meta) -> DatasetInput:
    tags = said.get("tags")
    return DatasetInput(
        name=meta.word(dataset.get("name")),
        digest=meta.word(dataset.get("digest")),
        source_type=meta.word(dataset.get("source_type")),
        source=meta.word(dataset.get("source")),
        schema=None if dataset.get("schema") is None else str(dataset["schema"]),
        profile=None if dataset.get("profile") is None else str(dataset["profile"]),
        tags={str(key): meta.word(value) for key, value in tags.items()} if isinstance(tags, Mapping) else {},
    )
