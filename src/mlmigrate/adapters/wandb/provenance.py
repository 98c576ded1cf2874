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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

KEY = "mlmigrate"  # of the config
STEP, TIME = "mlflow/step", "mlflow/time"  # columns of rows: a point's own step; its time in ms where seconds lose it
DATASET_NAME, DATASET_DIGEST, MODEL = "mlflow/dataset_name", "mlflow/dataset_digest", "mlflow/model"
OWN_COLUMNS = (STEP, TIME, DATASET_NAME, DATASET_DIGEST, MODEL)
SYSTEM = "system/"  # metric keys that begin so are system metrics
FOLDER = "wandb"
RUN_JSON, HISTORY_JSONL = f"{FOLDER}/run.json", f"{FOLDER}/history.jsonl"
FILES, ARTIFACTS = f"{FOLDER}/files/", f"{FOLDER}/artifacts/"
FILES_TYPE = "mlflow-artifacts"  # of the W&B artifact that holds a run's plain artifact tree
MODEL_TYPE, DATASET_TYPE = "model", "dataset"
RECORDS_TYPE = "mlmigrate-records"


@dataclass(frozen=True, slots=True)
class Provenance:
    """The config's `mlmigrate` of a run that we wrote. What can be told from the run itself is not repeated.

    kind        "run", "experiment" or "records"
    origin      what names the run wherever it came from; `stamp` set last of all
    generation  1; more where a run of that id was deleted, or its history spoiled
    native      the run was W&B's before: its config, steps and rows are its own
    name        the name in the source, where the display name is another
    params      those that reading the config would not give as they were: their text, or None: not a param
    order       names of params where they are not as the config has them: config key -> name in the source
    tags        all of them
    experiment  name of the experiment; `experiment_id` in the source
    trees       names of W&B artifacts that it logged -> the folder of the run's artifacts that they hold ("": all)
    files       paths of artifacts that are files of the run page, under the same path
    rows, events  how many lines were written
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
    params: Mapping[str, str | None] = field(default_factory=dict)
    order: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    system: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Mapping[str, Any], ...] = ()
    trees: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    rows: int = 0
    events: int = 0
    estate: Mapping[str, Any] = field(default_factory=dict)
