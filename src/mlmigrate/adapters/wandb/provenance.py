"""What we write beside a run so that it can be told again exactly, and found again without a ledger.

In W&B: the config key `mlmigrate` of each run (Provenance); a run besides for each experiment (kind "experiment"), and
one for each ref of kind "records", whose artifact of type RECORDS_TYPE holds records.jsonl (lines of {"kind", "id",
"owner", "body"}) and files/<owner>/<path>.  Without `stamp` a run is not whole.

Out of W&B, in any other tracker: the files wandb/ among a run's artifacts:

    wandb/run.json                          Index: all that was told of the run, as JSON
    wandb/history.jsonl                     values in rows that are no numbers, a line each:
                                            {"_step", "_timestamp", "_runtime", "key", "value"}
    wandb/files/<path>                      files of the run page, output.log among them, media too
    wandb/artifacts/<name>/<version>/<path> files of the artifacts that the run logged
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import msgspec

KEY = "mlmigrate"  # of the config
# Columns of rows: a point's own step; its time, as moments.text, where W&B's seconds are not it.
STEP, TIME = "mlflow/step", "mlflow/time"
DATASET_NAME, DATASET_DIGEST, MODEL = "mlflow/dataset_name", "mlflow/dataset_digest", "mlflow/model"
OWN_COLUMNS = (STEP, TIME, DATASET_NAME, DATASET_DIGEST, MODEL)
EVENT = "system."  # stands before the keys of system metrics in W&B's own lines
SYSTEM = "system/"  # metric keys that begin so are system metrics
FOLDER = "wandb"
RUN_JSON, HISTORY_JSONL = f"{FOLDER}/run.json", f"{FOLDER}/history.jsonl"
FILES, ARTIFACTS = f"{FOLDER}/files/", f"{FOLDER}/artifacts/"
FILES_TYPE = "mlflow-artifacts"  # of the W&B artifact that holds a run's plain artifact tree
MODEL_TYPE, DATASET_TYPE = "model", "dataset"
RECORDS_TYPE = "mlmigrate-records"
RECORDS_JSONL, RECORD_FILES = "records.jsonl", "files/"  # in an artifact of that type
MADE = "input"  # under KEY in the metadata of an artifact that stands for a dataset input of runs: no run logs it


@dataclass(frozen=True, slots=True)
class Provenance:
    """The config's `mlmigrate` of a run that we wrote. What can be told from the run itself is not repeated.

    kind        "run", "experiment" or "records"
    origin      what names the run wherever it came from; `stamp` set last of all
    generation  1; more where a run of that id was deleted, or its history spoiled
    native      the run was W&B's before: its config, steps and rows are its own
    name        the name in the source, where the display name is another
    typed       params are of the types that the config has; else each is the text of what the config has
    params      those that reading the config would not give as they were: their text, or None: not a param
    types       of params whose type is not as `typed` says: "text", "int", "float", "bool", "datetime", "set", "null"
    view        the key of the config under which params stand once more: what is in it is no param
    order       names of params where they are not as the config has them: config key -> name in the source
    tags        all of them
    experiment  name of the experiment; `experiment_id` in the source
    trees       names of W&B artifacts that it logged -> the folder of the run's artifacts that they hold ("": all);
                "name:digest" where it logged several versions of one name (digest: that of the manifest)
    files       paths of artifacts that are files of the run page, under the same path; those in wandb/files/ of a
                native run lie there without that folder
    rows, events  how many lines were written
    heads       collections of artifacts of which it made the version "latest" -> [that version's id, when in ms]
    overtook    collections -> id of its version, to which W&B gave "latest" though another had it, until that is undone
    unmade      versions that it read and nobody had made yet: {"name", "type", "version", "project", "digest"}
    missing     those of them of which was told that they are not there; they may still come
    estate      of kind "experiment": its {id, name, tags, created, updated, deleted, artifact_root, origin}
    """

    version: int = 1
    kind: Literal["run", "experiment", "records"] = "run"
    origin: str = ""
    stamp: str = ""
    generation: int = 1
    native: bool = False
    id: str = ""
    name: str | None = None
    experiment: str = ""
    experiment_id: str = ""
    status: str = "FINISHED"
    status_word: str = ""
    start: int | None = None
    end: int | None = None
    user: str = ""
    deleted: bool = False
    deleted_at: int | None = None
    artifact_uri: str = ""
    typed: bool = False
    params: Mapping[str, str | None] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    view: str = ""
    order: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    system: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Mapping[str, Any], ...] = ()
    trees: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    rows: int = 0
    events: int = 0
    heads: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    overtook: Mapping[str, str] = field(default_factory=dict)
    unmade: tuple[Mapping[str, str], ...] = ()
    missing: tuple[Mapping[str, str], ...] = ()
    estate: Mapping[str, Any] = field(default_factory=dict)


_HARD = "$base64:"  # how a text begins that is unsafe; the rest is its bytes
UNSAFE = re.compile("[\ud800-\udfff\0]")  # what JSON, or a database behind it, cannot hold


def as_config(provenance: Provenance) -> dict[str, Any]:
    """What stands in the config: what is as always is left out, and every text is one that JSON can hold."""
    told, default = _safely(provenance), _safely(Provenance())
    kept = ("version", "kind", "origin", "generation")
    return {name: value for name, value in told.items() if name in kept or value != default[name]}


def _safely(provenance: Provenance) -> dict[str, Any]:
    told: dict[str, Any] = _each({one.name: getattr(provenance, one.name) for one in fields(provenance)}, _safe)
    return told


def of_config(told: object) -> Provenance | None:
    """The reverse; None for what is no provenance of ours. Names of a later version are passed over."""
    if not isinstance(told, Mapping):
        return None
    known = {one.name for one in fields(Provenance)}
    plain = {name: value for name, value in _each(told, _unsafe).items() if name in known}
    try:
        return msgspec.convert(plain, Provenance)
    except msgspec.ValidationError:
        return None


def _each(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401  any JSON
    """The value with every text in it changed; tuples become lists."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _each(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_each(one, change) for one in value]
    return value


def _safe(text: str) -> str:
    if not text.startswith(_HARD) and not UNSAFE.search(text):
        return text
    return _HARD + base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


def _unsafe(text: str) -> str:
    if not text.startswith(_HARD):
        return text
    try:
        return base64.b64decode(text.removeprefix(_HARD), validate=True).decode("utf-8", "surrogatepass")
    except ValueError:  # nobody of ours wrote it
        return text
