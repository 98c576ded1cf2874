"""What W&B told of a run, kept exactly among the run's artifacts in any other tracker, and the way back.

    wandb/run.json       {"version": 1, "run": ...}: the fields of shape.WandbRun that say something.  A file there has,
                         beside what W&B told of it, `at`: the path it lies at among the run's artifacts, or `gone`: why
                         it does not.  References (s3://...) have their `ref` alone, for W&B never had their bytes.
    wandb/history.jsonl  see `lines` and `values`

Numbers that JSON has no word for are {"$float": "NaN"}; an object of that very form is {"$is": object}.

A name out of W&B is no path: what could not be one (absolute, "..", a file where a folder is) lies under a name
that ends in a hash of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from mlmigrate.adapters.wandb.gathering import SPELT, sound, spelt
from mlmigrate.adapters.wandb.names import hashed
from mlmigrate.adapters.wandb.provenance import ARTIFACTS, FILES, RUN_JSON
from mlmigrate.adapters.wandb.shape import Block, File, Opener, Version, WandbRun
from mlmigrate.errors import BadData

VERSION = 1
LONGEST = 200  # bytes of one part of a path: file systems hold 255
_FLOAT, _IS = "$float", "$is"
_BAD_PART = re.compile(r"[\0/\\]")


class Value(NamedTuple):
    """A value in a row of history that is no number; `text` is its JSON."""

    step: int | None
    time: float | None
    runtime: float | None
    key: str
    text: str


class Place(NamedTuple):
    """Where a file of W&B's lies among the run's artifacts."""

    path: str
    file: File


@dataclass(slots=True)
class Index:
    """A run's files with their places, and what became of them on the way.

    files, versions  as in the run: of each file its place, of each version the places of its files
    gone             path among the artifacts -> why there is nothing, as it turns out while they are read
    """

    run: WandbRun
    files: list[Place]
    versions: list[list[Place]]
    gone: dict[str, str] = field(default_factory=dict)

    def places(self) -> Iterator[Place]:
        """All files whose bytes there may be, those of the run page first."""
        for place in (*self.files, *(place for places in self.versions for place in places)):
            if not place.file.ref:
                yield place

    def encoded(self) -> bytes:
        """The bytes of wandb/run.json."""
        told = _told(self.run) | {
            "files": [self._file(place) for place in self.files],
            "logged": [
                _told(version) | {"files": [self._file(place) for place in places]}
                for version, places in zip(self.run.logged, self.versions, strict=True)
            ],
            "used": [_told(version) for version in self.run.used],
        }
        told = {name: value for name, value in told.items() if value not in ([], {})}
        return encode({"version": VERSION, "run": told})

    def _file(self, place: Place) -> dict[str, Any]:
        told = {name: getattr(place.file, name) for name in ("path", "size", "md5", "ref", "digest")}
        said = {name: value for name, value in told.items() if value not in ("", None)} | {"path": place.file.path}
        if place.file.ref:
            return said
        gone = self.gone.get(place.path) or place.file.gone
        return said | ({"gone": gone} if gone or place.file.open is None else {"at": place.path})


def of(run: WandbRun) -> Index:
    """The index of a run: every file gets its place."""
    files = _Folder(FILES)
    folders = [f"{folder}/" for folder in folders_of(run.logged)]
    versions = [
        [Place(one.place(file.path), file) for file in version.files]
        for version, one in zip(run.logged, map(_Folder, folders), strict=True)
    ]
    return Index(run, [Place(files.place(file.path), file) for file in run.files], versions)


def folders_of(versions: Iterable[Version]) -> list[str]:
    """The folder of each version among the artifacts of the run that logged them all."""
    taken: dict[str, int] = {}
    found = []
    for version in versions:
        folder = folder_of(version)
        n = taken[folder] = taken.get(folder, 0) + 1
        found.append(folder if n == 1 else f"{folder}~{n}")
    return found


def folder_of(version: Version) -> str:
    """Where a version lies; one that has no number yet (offline) is called by its digest."""
    number = version.version or (f"unnumbered-{hashed(version.digest)}" if version.digest else "unnumbered")
    return f"{ARTIFACTS}{_part(version.name)}/{_part(number)}"


def nothing(at: str) -> Opener | None:  # noqa: ARG001  one of those that `parse` asks
    """Finds no file."""
    return None


def parse(data: bytes, found: Callable[[str], Opener | None] = nothing) -> WandbRun:
    """The run that wandb/run.json tells of.

    `found` opens what lies at a path among the run's artifacts; a file that it does not find is gone.
    Raises BadData for what is no index.
    """
    try:
        return msgspec.convert(decode(data), _Document).run.opened(found)
    except msgspec.ValidationError as error:
        raise BadData(f"{RUN_JSON} is not what mlmigrate writes: {error}", "Copy the run without wandb/") from None


def lines(block: Block) -> Iterator[bytes]:
    """The lines of wandb/history.jsonl for what is no number in these rows."""
    if not block.others:
        return
    steps, times, runtimes = (column.to_pylist() for column in (block.step, block.time, block.runtime))
    for row, key, text in block.others:
        at = _head({"_step": steps[row], "_timestamp": times[row], "_runtime": runtimes[row], "key": key})
        yield at[:-1] + b',"value":' + _readable(text) + b"}\n"


def values(given: Iterable[bytes]) -> Iterator[Value]:
    """The values that the lines of wandb/history.jsonl tell of. Raises BadData, with the number of the line."""
    for n, line in enumerate(given, 1):
        if not line.strip():
            continue
        try:
            yield _line(line)
        except (msgspec.MsgspecError, BadData, ValueError) as error:
            raise BadData(f"line {n} of wandb/history.jsonl is not what mlmigrate writes: {error}") from None


def encode(value: Any) -> bytes:  # noqa: ANN401  any JSON
    """JSON that everybody can read, exact: any float, any text."""
    return sound(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)).encode()


def decode(data: bytes) -> Any:  # noqa: ANN401  any JSON
    """The reverse. Raises BadData for what is no JSON."""
    try:
        return _exact(json.loads(data.decode("utf-8", "surrogatepass")))
    except (ValueError, RecursionError) as error:
        raise BadData(f"{RUN_JSON} is no JSON: {error}", "Copy the run without wandb/") from None


class _Folder:
    """Gives each file a path of its own below a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def place(self, path: str) -> str:
        clean = "/".join(map(_part, path.split("/")))
        above = clean.split("/")[:-1]
        parents = {"/".join(above[: n + 1]) for n in range(len(above))}
        if clean in self._files or clean in self._folders or parents & self._files:
            clean = f"{_part(path.replace('/', '_'))}~{hashed(path)}"
            while clean in self._files or clean in self._folders:
                clean += "~"
            parents = set()
        self._files.add(clean)
        self._folders |= parents
        return self.folder + clean


def _part(name: str) -> str:
    """A name as one part of a path; one that had to change ends in a hash of what it was."""
    if name not in ("", ".", "..") and len(name.encode("utf-8", "replace")) <= LONGEST and not _BAD_PART.search(name):
        return name
    clean = _BAD_PART.sub("_", name).strip(".").encode("utf-8", "replace")[: LONGEST - 10].decode("utf-8", "ignore")
    return f"{clean or '_'}~{hashed(name)}"


def _told(value: WandbRun | Version) -> dict[str, Any]:
    """The fields that say something, but for files and versions."""
    blank = _fields(WandbRun("") if isinstance(value, WandbRun) else Version("", ""))
    always, apart = ("id", "state", "name", "type"), ("files", "logged", "used")
    return {
        name: one
        for name, one in _fields(value).items()
        if name not in apart and (name in always or one != blank[name])
    }


def _plain(value: Any) -> Any:  # noqa: ANN401  any JSON
    if isinstance(value, Mapping):
        plain = {str(name): _plain(one) for name, one in value.items()}
        return {_IS: plain} if len(plain) == 1 and not plain.keys().isdisjoint((_FLOAT, _IS)) else plain
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: spelt(value)}
    return value


def _exact(value: Any, *, escaped: bool = False) -> Any:  # noqa: ANN401  any JSON
    if isinstance(value, list):
        return [_exact(one) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and not escaped:
        if isinstance(value.get(_IS), dict):
            return _exact(value[_IS], escaped=True)
        if isinstance(value.get(_FLOAT), str) and value[_FLOAT] in SPELT:
            return SPELT[value[_FLOAT]]
    return {name: _exact(one) for name, one in value.items()}


def _head(told: dict[str, Any]) -> bytes:
    try:
        return _ENCODER.encode(told)
    except UnicodeEncodeError:  # half of a surrogate pair
        return encode(told)


def _readable(text: str) -> bytes:
    """A value's JSON on one line, without words that JSON has not."""
    if any(word in text for word in ("NaN", "Infinity", _FLOAT, _IS)):
        return encode(json.loads(text))
    try:
        return text.replace("\n", " ").replace("\r", " ").encode()  # in JSON no text has a raw end of line
    except UnicodeEncodeError:
        return encode(json.loads(text))


def _as_was(raw: bytes) -> str:
    if any(word.encode() in raw for word in (_FLOAT, _IS)):
        return json.dumps(decode(raw), ensure_ascii=False)
    return raw.decode("utf-8", "surrogatepass")


_ENCODER = msgspec.json.Encoder()


class _Line(msgspec.Struct):
    value: msgspec.Raw
    key: str
    step: int | None = msgspec.field(default=None, name="_step")
    time: float | None = msgspec.field(default=None, name="_timestamp")
    runtime: float | None = msgspec.field(default=None, name="_runtime")


_LINE = msgspec.json.Decoder(_Line)


def _line(line: bytes) -> Value:
    try:
        found = _LINE.decode(line)
    except msgspec.DecodeError:
        if b"\\u" not in line:
            raise
        return _hard_line(line)
    return Value(found.step, found.time, found.runtime, found.key, _as_was(bytes(found.value)))


def _hard_line(line: bytes) -> Value:
    """A line with half of a surrogate pair in it, which Python's own reader alone takes."""
    told = decode(line)
    if not isinstance(told, dict) or "value" not in told:
        raise BadData("it has no value")
    text = json.dumps(told.pop("value"), ensure_ascii=False)
    at = msgspec.convert({**told, "value": msgspec.Raw(b"null")}, _Line)
    return Value(at.step, at.time, at.runtime, at.key, text)


@dataclass(frozen=True, slots=True)
class _File(File):
    """A file as wandb/run.json tells of it: `at` in place of what opens it."""

    open: None = None
    at: str = ""

    def opened(self, found: Callable[[str], Opener | None]) -> File:
        opener = found(self.at) if self.at and not self.ref else None
        gone = self.gone or ("" if opener or self.ref else f"{self.at or self.path} is not among the run's artifacts")
        return File(self.path, opener, self.size, self.md5, self.ref, self.digest, gone)


@dataclass(frozen=True, slots=True)
class _Version(Version):
    files: tuple[_File, ...] = ()

    def opened(self, found: Callable[[str], Opener | None]) -> Version:
        return Version(**_fields(self) | {"files": tuple(one.opened(found) for one in self.files)})


@dataclass(frozen=True, slots=True)
class _Run(WandbRun):
    files: tuple[_File, ...] = ()
    logged: tuple[_Version, ...] = ()
    used: tuple[_Version, ...] = ()

    def opened(self, found: Callable[[str], Opener | None]) -> WandbRun:
        lists = {name: tuple(one.opened(found) for one in getattr(self, name)) for name in ("files", "logged", "used")}
        return WandbRun(**_fields(self) | lists)


class _Document(msgspec.Struct):
    run: _Run
    version: int = VERSION


def _fields(value: WandbRun | Version) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
