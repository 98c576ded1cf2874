"""What an MLflow server says, as msgspec structs with only the fields that we use.

Every field has a default: servers leave out what is empty, and which fields they know depends on
their version.  Numbers may come as strings (int64 in some gateways, "NaN" everywhere).
"""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Pair(msgspec.Struct, frozen=True):
    """A param or a tag."""

    key: str = ""
    value: str = ""


class Latest(msgspec.Struct, frozen=True):
    """The last point of a metric."""

    key: str = ""
    value: float = 0.0
    timestamp: int = 0
    step: int = 0


class Point(msgspec.Struct, frozen=True, gc=False):
    """One point of one run's metric."""

    value: float = 0.0
    timestamp: int = 0
    step: int = 0


class RunPoint(msgspec.Struct, frozen=True, gc=False):
    """One point of a metric of many runs."""

    run_id: str = ""
    value: float = 0.0
    timestamp: int = 0
    step: int = 0


class History(msgspec.Struct, frozen=True):
    """One page of the points of one run's metric."""

    metrics: list[Point] = []
    next_page_token: str = ""


class BulkHistory(msgspec.Struct, frozen=True):
    """The points of one metric in many runs; cut off without a word at the server's own bound."""

    metrics: list[RunPoint] = []


class ExperimentInfo(msgspec.Struct, frozen=True):
    """An experiment."""

    experiment_id: str = ""
    name: str = ""
    artifact_location: str = ""
    lifecycle_stage: str = "active"
    creation_time: int | None = None
    last_update_time: int | None = None
    tags: list[Pair] = []


class Experiments(msgspec.Struct, frozen=True):
    """One page of experiments."""

    experiments: list[ExperimentInfo] = []
    next_page_token: str = ""


class OneExperiment(msgspec.Struct, frozen=True):
    """The experiment that was asked for."""

    experiment: ExperimentInfo = ExperimentInfo()


class RunInfo(msgspec.Struct, frozen=True):
    """The fields of a run. Old servers say run_uuid."""

    run_id: str = ""
    run_uuid: str = ""
    run_name: str = ""
    experiment_id: str = ""
    user_id: str = ""
    status: str = "RUNNING"
    start_time: int | None = None
    end_time: int | None = None
    artifact_uri: str = ""
    lifecycle_stage: str = "active"


class RunData(msgspec.Struct, frozen=True):
    """The contents of a run, with the last point of each metric."""

    metrics: list[Latest] = []
    params: list[Pair] = []
    tags: list[Pair] = []


class Dataset(msgspec.Struct, frozen=True):
    """A dataset."""

    name: str = ""
    digest: str = ""
    source_type: str = ""
    source: str = ""
    schema: str | None = None
    profile: str | None = None


class DatasetInput(msgspec.Struct, frozen=True):
    """A dataset that a run read, with the tags of that reading."""

    tags: list[Pair] = []
    dataset: Dataset = Dataset()


class ModelLink(msgspec.Struct, frozen=True):
    """A logged model that a run read or made; made at a step."""

    model_id: str = ""
    step: int = 0


class Inputs(msgspec.Struct, frozen=True):
    """What a run read. A listing of runs leaves `model_inputs` out."""

    dataset_inputs: list[DatasetInput] = []
    model_inputs: list[ModelLink] = []


class Outputs(msgspec.Struct, frozen=True):
    """The models that a run made."""

    model_outputs: list[ModelLink] = []


class Location(msgspec.Struct, frozen=True):
    """Where the files of a model version lie."""

    artifact_uri: str = ""


class WireRun(msgspec.Struct, frozen=True):
    """A run."""

    info: RunInfo = RunInfo()
    data: RunData = RunData()
    inputs: Inputs = Inputs()
    outputs: Outputs = Outputs()

    @property
    def id(self) -> str:
        return self.info.run_id or self.info.run_uuid

    @property
    def tags(self) -> dict[str, str]:
        """All tags, also those that are ours."""
        return {tag.key: tag.value for tag in self.data.tags}


class Runs(msgspec.Struct, frozen=True):
    """One page of runs."""

    runs: list[WireRun] = []
    next_page_token: str = ""


class OneRun(msgspec.Struct, frozen=True):
    """The run that was asked for, or made."""

    run: WireRun = WireRun()


class FileInfo(msgspec.Struct, frozen=True):
    """`file_size` is left out for empty files as well as for unknown sizes."""

    path: str = ""
    is_dir: bool = False
    file_size: int | None = None


class Files(msgspec.Struct, frozen=True):
    """What lies in one folder."""

    files: list[FileInfo] = []
    next_page_token: str = ""


class ServerInfo(msgspec.Struct, frozen=True):
    """What a server says of itself (3.9 and later; of files in parts, 3.11 and later)."""

    store_type: str = ""
    workspaces_enabled: bool = False
    multipart_uploads_enabled: bool | None = None
    multipart_downloads_enabled: bool | None = None


class Link(msgspec.Struct, frozen=True):
    """A URL by which a store gives a file."""

    url: str = ""
    headers: dict[str, str] = {}
    file_size: int | None = None


class PartLink(msgspec.Struct, frozen=True):
    """A URL by which a store takes a part of a file."""

    url: str = ""
    part_number: int = 0
    headers: dict[str, str] = {}


class PartLinks(msgspec.Struct, frozen=True):
    """An upload in parts that was begun. Azure's have no id."""

    upload_id: str = ""
    credentials: list[PartLink] = []


class Anything(msgspec.Struct, frozen=True):
    """An answer that says no more than that it was done."""


class Made(msgspec.Struct, frozen=True):
    """The experiment that was made."""

    experiment_id: str = ""


class Problem(msgspec.Struct, frozen=True):
    """How a server says no."""

    error_code: str | int = ""
    message: str = ""


def decode(body: bytes, kind: type[T]) -> T:
    """`body` as `kind`. Raises ValueError when it is not that.

    get-history-bulk writes the bare tokens NaN and Infinity, which are not JSON: such an answer is
    read by the standard library, which is slower and takes them.
    """
    try:
        return msgspec.json.decode(body, type=kind, strict=False)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if b"NaN" not in body and b"Infinity" not in body:
            raise
    return msgspec.convert(_lenient(body), kind, strict=False)


def _lenient(body: bytes) -> object:
    try:
        return json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def encode(value: object) -> bytes:
    """`value` as JSON. Numbers that JSON does not know must have been made strings before."""
    return msgspec.json.encode(value)
