"""A run that we wrote into W&B, told again exactly as it was before: the inverse of writing, out of its provenance.

What provenance does not say is what reading the run by itself gives (natives.params_of, the display name).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple

import msgspec

from mlmigrate.adapters.wandb import natives
from mlmigrate.adapters.wandb.provenance import (
    FILES,
    KEY,
    RECORD_FILES,
    RECORDS_JSONL,
    RECORDS_TYPE,
    Provenance,
    of_config,
)
from mlmigrate.adapters.wandb.shape import File, Version, WandbRun
from mlmigrate.errors import BadData, MigrateError, Unavailable
from mlmigrate.model import STATUSES, DatasetInput, Experiment, Loss, Record, Run, Value, text_of

LONGEST_LINE = 1 << 30  # bytes of one record
_CHUNK = 1 << 18


class Kept(NamedTuple):
    """A file of the neutral run, and where W&B has it."""

    path: str
    file: File


def provenance_of(run: WandbRun) -> Provenance | None:
    """What we wrote beside the run; None for a run that is W&B's own, or whose `mlmigrate` is nothing of ours."""
    found = _decoded(run.config.get(KEY))
    return found if found is not None and _sound(found) else None


def unreadable(run: WandbRun) -> list[Loss]:
    """That the config's `mlmigrate` is nothing of ours, where that is so: such a run is told as W&B's own."""
    if KEY not in run.config or provenance_of(run) is not None:
        return []
    because = "it is not what mlmigrate writes: the run is read as W&B's own, and this key is no param"
    return [Loss(run.id, f"config {KEY!r}", because)]


def run_of(run: WandbRun, provenance: Provenance) -> Run:
    """The run as it was in its source; its id is the one that it has in W&B."""
    told = provenance
    return Run(
        id=run.id,
        experiment=told.experiment_id,
        name=run.name if told.name is None else told.name,
        origin=told.origin,
        stamp=told.stamp,
        status=told.status,
        status_word=told.status_word,
        start=told.start,
        end=told.end,
        user=told.user,
        deleted=told.deleted,
        deleted_at=told.deleted_at,
        params=params_of(run.config, told),
        tags=dict(told.tags),
        system=dict(told.system),
        inputs=_inputs(told),
        artifact_uri=told.artifact_uri,
    )


def params_of(config: Mapping[str, Any], told: Provenance) -> dict[str, Value]:
    """Params: those of the config under their names in the source, then what provenance says of single ones."""
    own = {name: value for name, value in config.items() if name != told.view} if told.view else config
    found, _ = natives.params_of(own, natives.SEPARATOR)
    params = {told.order.get(name, name): value if told.typed else text_of(value) for name, value in found.items()}
    for name, text in told.params.items():
        if text is None:
            params.pop(name, None)
        else:
            params[name] = text
    return params | {name: _typed(params[name], kind) for name, kind in told.types.items() if name in params}


def experiment_of(provenance: Provenance) -> Experiment | None:
    """The experiment that a run of kind "experiment" stands for; None when it tells of none."""
    try:
        return msgspec.convert(dict(provenance.estate), Experiment)
    except msgspec.ValidationError:
        return None


def files_of(run: WandbRun, told: Provenance) -> tuple[list[Kept], list[Loss]]:
    """The run's files as they lay in its source, those of its artifacts first; and those that are not there."""
    kept: list[Kept] = []
    losses: list[Loss] = []
    for name, folder in told.trees.items():
        version = _version(run.logged, name) or _version([one for one in run.used if one.files], name)
        if version is None:
            losses.append(Loss(run.id, f"artifact {name!r} of W&B", f"it is gone, and with it what lay in {folder!r}"))
            continue
        below = f"{folder.rstrip('/')}/" if folder else ""
        # a reference had no bytes before either
        kept += [Kept(below + file.path, file) for file in version.files if not file.ref]
    pages = {file.path: file for file in run.files}
    for path in told.files:
        found = pages.get(path) or pages.get(path.removeprefix(FILES))  # of a native run they lie without the folder
        if found is None:
            losses.append(Loss(run.id, f"artifact {path!r}", "it is no longer among the files of the run"))
        else:
            kept.append(Kept(path, found))
    return kept, losses


def lent(run: WandbRun) -> frozenset[str]:
    """What holds files of a run that we wrote, and is another run's: "name" or "name:digest" of versions it has used.

    W&B makes no second version of what it has.
    """
    told = provenance_of(run)
    trees = told.trees if told is not None else ()
    return frozenset(name for name in trees if _version(run.logged, name) is None)


def has_records(run: WandbRun) -> bool:
    """Whether it logged an artifact that holds records."""
    return any(one.type == RECORDS_TYPE for one in run.logged)


def records_of(run: WandbRun, losses: list[Loss]) -> Iterator[Record]:
    """The records that a run holds, of kind "records" or within it, one line after another. Raises Unavailable."""
    file = next((one for one in _record_files(run) if one.path == RECORDS_JSONL), None)
    if file is None or file.open is None:
        losses.append(Loss(run.id, RECORDS_JSONL, file.gone if file is not None and file.gone else "it is gone"))
        return
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(file.open())
        except Unavailable:
            raise
        except (MigrateError, OSError) as error:
            losses.append(Loss(run.id, RECORDS_JSONL, f"its bytes are gone: {error}"))
            return
        for n, line in enumerate(lines_of(stream), 1):
            try:
                yield _record(line)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                losses.append(Loss(run.id, f"line {n} of {RECORDS_JSONL}", f"it is no record: {error}"))


def record_files_of(run: WandbRun) -> Iterator[tuple[str, Kept]]:
    """(owner, file) of what belongs to the records of a run of that kind: files/@model/m-1/MLmodel."""
    for file in _record_files(run):
        if not file.path.startswith(RECORD_FILES):
            continue
        kind, _, rest = file.path.removeprefix(RECORD_FILES).partition("/")
        id_, _, path = rest.partition("/")
        if path:
            yield f"{kind}/{id_}", Kept(path, file)


def lines_of(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a stream that may be anything with `read`. Raises BadData for one that never ends."""
    held: list[bytes] = []
    size = 0
    while chunk := stream.read(_CHUNK):
        first, *others = chunk.split(b"\n")
        held.append(first)
        size += len(first)
        if size > LONGEST_LINE:
            raise BadData(f"a line of {RECORDS_JSONL} has more than {LONGEST_LINE} bytes.")
        if others:
            yield b"".join(held)
            yield from others[:-1]
            held, size = [others[-1]], len(others[-1])
    if any(held):
        yield b"".join(held)


def clean(path: str) -> bool:
    """Whether a name out of W&B may be the path of a file below a folder."""
    return bool(path) and "\0" not in path and not path.startswith("/") and ".." not in path.split("/")


def _record(line: bytes) -> Record:
    try:
        return msgspec.json.decode(line, type=Record)
    except msgspec.DecodeError:  # half of a surrogate pair, perhaps, which Python's own reader alone takes
        return msgspec.convert(json.loads(line), Record)


def _decoded(told: object) -> Provenance | None:
    try:
        return of_config(told)
    except RecursionError:  # nested deeper than anything of ours
        return None


def _sound(found: Provenance) -> bool:
    """Whether what it says can be meant."""
    try:
        _inputs(found)
    except msgspec.ValidationError:
        return False
    return found.status in STATUSES and bool(found.origin) and (found.kind != "experiment" or _has_estate(found))


def _has_estate(found: Provenance) -> bool:
    return experiment_of(found) is not None


def _inputs(told: Provenance) -> tuple[DatasetInput, ...]:
    return msgspec.convert([dict(one) for one in told.inputs], tuple[DatasetInput, ...])


def _typed(value: Value, kind: str) -> Value:
    """A param as the type that it had; what cannot be that stays."""
    text = text_of(value)
    make = _TYPES.get(kind)
    try:
        return make(text) if make is not None else value
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return value


def _set_of(text: str) -> frozenset[str]:
    return frozenset(msgspec.convert(json.loads(text), list[str]))  # msgspec itself reads no half surrogate pair


def _float(text: str) -> float:
    return math.nan if text == "nan" else float(text)


_TYPES: Mapping[str, Callable[[str], Value]] = {
    "text": str,
    "int": int,
    "float": _float,
    "bool": lambda text: text == "True",
    "datetime": datetime.fromisoformat,
    "set": _set_of,
    "null": lambda _: None,
}


def _version(logged: Sequence[Version], name: str) -> Version | None:
    """The version that trees names, "name" or "name:digest": the newest where there are several."""
    mine = [one for one in logged if name in (one.name, f"{one.name}:{one.digest}")]
    return max(mine, key=lambda one: number_of(one.version), default=None)


def number_of(version: str) -> int:
    """3 of "v3"; -1 of what is no number of a version."""
    digits = version.removeprefix("v")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else -1  # noqa: PLR2004


def _record_files(run: WandbRun) -> Iterator[File]:
    holders = [one for one in run.logged if one.type == RECORDS_TYPE]
    newest = max(holders, key=lambda one: number_of(one.version), default=None)
    yield from newest.files if newest is not None else ()


def owned(record: Record, told: Provenance, experiment: str) -> Record:
    """The record with the id that its experiment has here."""
    return replace(record, owner=experiment) if experiment and record.owner == told.experiment_id else record
