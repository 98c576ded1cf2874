"""What managed MLflow services do otherwise than a plain server, as published; one table, with its sources.

The rest of this package speaks plain MLflow.  What a service wants otherwise is turned here, request
by request and answer by answer, so that nobody else knows of it:

    page sizes      no more is asked for than a service gives
    log-batch       cut into calls that a service takes
    filters, order  what a service does not know is left out of the request, and done to the answer
    paths           Unity Catalog keeps its registry elsewhere
    rates           no more calls a second than a service takes

None of these services was reached when this was written: docs/managed.md says what that means.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mlmigrate.adapters.base import Holding, Limits
from mlmigrate.adapters.mlflow.rest.wire import Runs, WireRun
from mlmigrate.errors import MigrateError
from mlmigrate.model import ORIGIN_TAG, OURS

MEGABYTE = 1_000_000
RUNS_SEARCH, EXPERIMENTS_SEARCH = "mlflow/runs/search", "mlflow/experiments/search"
LOG_BATCH = "mlflow/runs/log-batch"
NEWEST = (99, 0)


@dataclass(frozen=True, slots=True)
class Service:
    """What one service does otherwise. The empty one is a plain server.

    name            as its vendor calls it; "" for a plain server
    package         what a person installs so that MLflow knows its addresses
    version         what of MLflow's interface it speaks, when it does not tell
    narrower        fields of Limits that are smaller than those of a server of that version
    objects         kinds of record that it takes by published calls; None for all of its version
    pages           end of a path -> the most results that it gives
    rates           end of a path -> calls a second; "" for all others
    metrics         points in one log-batch
    bytes           of one log-batch
    order           how runs are sorted; () for the order that plain servers know
    tag_filters     whether runs can be searched for by `tags.x != ''`
    steady          whether the tokens of pages belong to one size of page
    tells           whether /version is worth asking for
    unity_catalog   whether the registry is kept in Unity Catalog
    """

    name: str = ""
    package: str = ""
    version: tuple[int, int] | None = None
    narrower: Mapping[str, Any] = field(default_factory=dict)
    objects: tuple[str, ...] | None = None
    pages: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    metrics: int | None = None
    bytes: int | None = None
    order: tuple[str, ...] = ()
    tag_filters: bool = True
    steady: bool = True
    tells: bool = True
    unity_catalog: bool = False

    @property
    def databricks(self) -> bool:
        return self.name.startswith("Databricks")

    def narrowed(self, limits: Limits) -> Limits:
        """The limits of a plain server, made those of this service."""
        taken = self.objects
        if taken is None:
            return replace(limits, **self.narrower)
        because = f"nothing is published of how {self.name} takes it"
        return replace(
            limits,
            records=tuple(kind for kind in limits.records if kind in taken),
            holdings=tuple(
                one if one.how == "lost" or one.kind in taken else Holding(one.kind, "lost", because)
                for one in limits.holdings
            ),
            owned_artifacts=limits.owned_artifacts and "mlflow.logged_model" in taken,
            **self.narrower,
        )


PLAIN = Service(steady=False)
OTHER = Service("a server of an MLflow plugin")

# Sources:
#  [1] Databricks, "Resource limits": 1,600 params and 1,600 tags a run, 1,000,000 metric steps a run, 500,000 runs
#      and 1,000 tags an experiment. Those are counted, not cut: the service refuses what is beyond.
#  [2] Databricks, "MLflow API": rate limits in four groups: listing, updating, deleting and restoring experiments
#      7 a second, searching runs 7, log-batch 47, all others 127; beyond them status 429.
#  [3] Databricks SDK for Python 0.156, databricks/sdk/service/ml.py: one log-batch has 1 MB, 1,000 metrics, 100 params
#      and 100 tags at most; max_results of experiments 3,000, of runs 50,000, of logged models 50, of registered
#      models 1,000, of model versions 10,000; tags up to 5,000 bytes. Its 250 and 500 characters for params are
#      older than MLflow's own 6,000, which users report to work.
#  [4] mlflow/mlflow issue 8269: "An experiment name must be an absolute path within the Databricks workspace".
#  [5] MLflow 3.17, protos/databricks_uc_registry_service.proto: the paths of the registry in Unity Catalog.
DATABRICKS = Service(
    "Databricks",
    version=NEWEST,
    narrower={"tag_length": 5000, "experiment_tag_length": 5000, "experiment_folder": "/Shared"},
    objects=("mlflow.registered_model", "mlflow.logged_model"),
    pages={
        EXPERIMENTS_SEARCH: 1000,
        RUNS_SEARCH: 50_000,
        "mlflow/logged-models/search": 50,
        "mlflow/registered-models/search": 1000,
        "mlflow/model-versions/search": 10_000,
    },
    rates={
        RUNS_SEARCH: 7,
        EXPERIMENTS_SEARCH: 7,
        "mlflow/experiments/update": 7,
        "mlflow/experiments/delete": 7,
        "mlflow/experiments/restore": 7,
        LOG_BATCH: 47,
        "": 127,
    },
    bytes=MEGABYTE,
    tells=False,
)
DATABRICKS_UC = replace(DATABRICKS, name="Databricks with Unity Catalog", unity_catalog=True)

# Sources:
#  [6] Microsoft, "Service limits in Azure Machine Learning": experiments' names 256, their tags' values 1,000;
#      runs' tags: 50, keys of 100, values of 1,000; 50 metric names a run, 1,000,000 rows each, 250 rows a batch.
#      The counts are not cut: the service refuses what is beyond.
#  [7] Microsoft, "Query and compare experiments and runs with MLflow", support matrix: runs are ordered by their
#      fields alone; `!=` is not supported for tags; experiments cannot be renamed.
#  [8] Galileo-Galilei/kedro-mlflow issue 551: params are refused above 500.
#  [9] azureml-mlflow 1.62, _store/azureml_reststore.py: the interface is that of MLflow 2; of version 3 nothing.
AZURE_ML = Service(
    "Azure Machine Learning",
    package="azureml-mlflow",
    version=(2, 3),
    narrower={
        "key_length": 100,
        "param_length": 500,
        "tag_length": 1000,
        "experiment_tag_length": 1000,
        "experiment_name_length": 256,
    },
    objects=("mlflow.registered_model",),
    pages={EXPERIMENTS_SEARCH: 1000, RUNS_SEARCH: 1000},
    metrics=250,
    order=("start_time ASC",),
    tag_filters=False,
    tells=False,
)

# Sources:
#  [10] sagemaker-mlflow 0.5: a server of MLflow 2 or 3 behind SigV4; its artifacts lie in s3:.
#  [11] Amazon, CreateMlflowTrackingServer: `MlflowVersion` is chosen by who makes the server.
# Nothing is published of limits that differ from those of the server's version.
SAGEMAKER = Service("Amazon SageMaker", package="sagemaker-mlflow", version=(2, 13))


def service_of(place: str) -> Service:
    """The service that an address which is no http address names."""
    if place.startswith(("databricks-uc", "uc:")):
        return DATABRICKS_UC
    if place.startswith("databricks"):
        return DATABRICKS
    scheme = urlsplit(place).scheme
    return {"arn": SAGEMAKER, "azureml": AZURE_ML}.get(scheme, OTHER)


class TooLong(MigrateError):
    """A value is longer than a server takes, and the server says how long it may be."""

    def __init__(self, message: str, hint: str = "", most: int = 0, unit: str = "characters") -> None:
        super().__init__(message, hint)
        self.most, self.unit = most, unit


_TOO_LONG = re.compile(
    r"(?:exceed\w*|longer than|length limit|maximum (?:allowed )?(?:length|size))\D{0,60}?([\d,]*\d)\W{0,3}(\w*)",
    re.IGNORECASE,
)


def too_long(said: str) -> tuple[int, str] | None:
    """How long a value may be, and counted in what, when a server's reason is that one is longer."""
    if not re.search(r"length|long|characters|bytes", said, re.IGNORECASE):
        return None
    # the reason may quote the value, which may say anything: what stands last is the server's own
    found = [match for match in _TOO_LONG.finditer(said[-2000:]) if int(match[1].replace(",", "")) > 0]
    if not found:
        return None
    return int(found[-1][1].replace(",", "")), "bytes" if found[-1][2].lower().startswith("byte") else "characters"


class Cuts:
    """What a server turned out to take no longer than it said. Filled by several threads."""

    def __init__(self) -> None:
        self._most: dict[tuple[str, str], tuple[int, str]] = {}  # (end of a path, role) -> the most
        self._done: dict[tuple[str, str, str], tuple[int, int, str]] = {}
        self._lock = threading.Lock()

    def learn(self, path: str, body: object, error: TooLong) -> bool:
        """Whether the next try is shorter than `body`."""
        told = error.message.lower()
        roles = [role for role in ("param", "tag") if role in told] or ["param", "tag"]
        with self._lock:
            for role in roles:
                # where no value has more characters than that, bytes are meant
                fits = all(len(value) <= error.most for value in _values(body, role))
                self._most[path, role] = (error.most, "bytes" if fits else error.unit)
        return self.fitted(path, body) != body

    def fitted(self, path: str, body: object) -> object:
        """The body with values of the lengths that were learned. Our own marks are never cut."""
        if not self._most or not isinstance(body, dict):
            return body
        fitted = dict(body)
        for field_, role in (("params", "param"), ("tags", "tag")):
            if isinstance(body.get(field_), list | tuple) and (path, role) in self._most:
                fitted[field_] = [self._pair(body, pair, role, self._most[path, role]) for pair in body[field_]]
        if "key" in body and "value" in body and (path, "tag") in self._most:
            fitted |= self._pair(body, {"key": body["key"], "value": body["value"]}, "tag", self._most[path, "tag"])
        return fitted

    def _pair(
        self, body: Mapping[str, Any], pair: Mapping[str, str], role: str, most: tuple[int, str]
    ) -> Mapping[str, str]:
        value, n, unit = pair["value"], *most
        short = value[:n] if unit == "characters" else value.encode()[:n].decode(errors="ignore")
        if short == value or pair["key"].startswith(OURS):
            return pair
        with self._lock:
            self._done[_whose(body), role, pair["key"]] = (len(value), n, unit)
        return {**pair, "value": short}

    def of(self, *names: str) -> list[tuple[str, str]]:
        """(what, because) of everything that was cut of a run: of its id here, and of its origin while it had none."""
        with self._lock:
            gone = [at for at in self._done if at[0] in names]
            done = {at[1:]: self._done.pop(at) for at in gone}
        return [
            (f"{role} {key!r}", f"cut from {_lengths(was, n, unit)}: the server takes no longer ones")
            for (role, key), (was, n, unit) in done.items()
        ]


def _lengths(was: int, most: int, unit: str) -> str:
    return f"{was} to {most} characters" if unit == "characters" else f"{was} characters to {most} {unit}"


def _values(body: object, role: str) -> list[str]:
    if not isinstance(body, dict):
        return []
    pairs = body.get(role + "s") or ()
    return [pair["value"] for pair in pairs] + ([body["value"]] if "value" in body else [])


def _whose(body: Mapping[str, Any]) -> str:
    origin = [pair["value"] for pair in body.get("tags") or () if pair["key"] == ORIGIN_TAG]
    return str(body.get("run_id") or (origin[0] if origin else ""))


def asked_path(service: Service, path: str) -> str:
    """Where a service keeps what is asked for."""
    if not service.unity_catalog:
        return path
    return re.sub(r"mlflow/(registered-models|model-versions)/", r"mlflow/unity-catalog/\1/", path)


def asked(service: Service, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body or the query of a request, as the service takes it."""
    known = dict(body)
    most = _by_end(service.pages, path)
    if most is not None and isinstance(known.get("max_results"), int):
        known["max_results"] = min(known["max_results"], most)
    if path.endswith(RUNS_SEARCH):
        if service.order and known.get("order_by"):
            known["order_by"] = list(service.order)
        if keeps(service, body) is not None:
            del known["filter"]
    return known


def unasked(service: Service, path: str, body: object) -> bytes | None:
    """The answer that needs no asking; None where the service is to be asked.

    Unity Catalog finds models by nothing, and versions by the name of their model alone. Raises MigrateError for what
    it would refuse.
    """
    if not service.unity_catalog:
        return None
    if path.endswith("registered-models/search") and _filter(body):
        raise MigrateError("Unity Catalog cannot be searched for tags.")
    return b"{}" if path.endswith("model-versions/search") and "name = " not in _filter(body) else None


def parent(service: Service, path: str, body: object) -> str:
    """The folder that must be there before an experiment of this name is made, or ""."""
    if not (service.databricks and path.endswith("mlflow/experiments/create") and isinstance(body, dict)):
        return ""
    return str(body.get("name", "")).rpartition("/")[0]


_TERM = re.compile(r"""tags\.`([^`]+)` (!?=) (?:'([^']*)'|"([^"]*)")|attributes\.start_time (>=|<=) (-?\d+)""")


def keeps(service: Service, body: object) -> Callable[[WireRun], bool] | None:
    """What the service does not do with a filter of ours over runs' tags; None where it does all."""
    text = _filter(body)
    if service.tag_filters or "tags." not in text:
        return None
    terms = list(_TERM.finditer(text))
    if " and ".join(term[0] for term in terms) != text:
        return None

    def kept(run: WireRun) -> bool:
        return all(_holds(term, run) for term in terms)

    return kept


def _filter(body: object) -> str:
    return str(body.get("filter") or "") if isinstance(body, dict) else ""


def _holds(term: re.Match[str], run: WireRun) -> bool:
    key, sign, single, double, bound, when = term.groups()
    if key is not None:
        means = single if single is not None else double
        has = run.tags.get(key)
        return has is not None and (has == means) == (sign == "=")
    start = run.info.start_time or 0
    return start >= int(when) if bound == ">=" else start <= int(when)


def answered(service: Service, body: object, answer: object) -> object:
    """The answer, with what the service did not do to it."""
    kept = keeps(service, body)
    if kept is None or not isinstance(answer, Runs):
        return answer
    return msgspec.structs.replace(answer, runs=[run for run in answer.runs if kept(run)])


def pieces(service: Service, path: str, body: object) -> Iterator[object]:
    """A log-batch in as many calls as the service wants; anything else as it is."""
    if not (path.endswith(LOG_BATCH) and isinstance(body, dict) and (service.metrics or service.bytes)):
        yield body
        return
    values = [(field_, one) for field_ in ("params", "tags", "metrics") for one in body.get(field_) or ()]
    piece: dict[str, list[Any]] = {"params": [], "tags": [], "metrics": []}
    size = 0
    for field_, one in values:
        n = len(msgspec.json.encode(one)) + 1 if service.bytes else 0
        full = service.metrics is not None and len(piece["metrics"]) >= service.metrics
        if any(piece.values()) and (full or (service.bytes is not None and size + n > service.bytes - 10_000)):
            yield body | piece
            piece, size = {"params": [], "tags": [], "metrics": []}, 0
        piece[field_].append(one)
        size += n
    yield body | piece


def without_nulls(data: bytes) -> bytes:
    """An answer whose empty fields are left out, as MLflow's own servers leave them out."""
    return msgspec.json.encode(_without_nulls(msgspec.json.decode(data)))


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def rate_of(service: Service, path: str) -> tuple[str, float] | None:
    """The group of calls that a path belongs to, and how many of these there may be in a second."""
    if not service.rates:
        return None
    end = next((end for end in service.rates if end and path.endswith(end)), "")
    return (end, service.rates[end]) if end in service.rates else None


def _by_end(table: Mapping[str, int], path: str) -> int | None:
    return next((most for end, most in table.items() if path.endswith(end)), None)
