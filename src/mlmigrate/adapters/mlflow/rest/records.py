"""Things of a server that belong to no run: models, versions, prompts, logged models, traces.

Each becomes a Record whose body is the server's own JSON; the files of logged models and traces come
as artifacts of "@model/<id>" and "@trace/<id>".  One ref stands for all things of a kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec

from mlmigrate.adapters.mlflow.rest.client import Client, Params
from mlmigrate.adapters.mlflow.rest.server import Server
from mlmigrate.errors import BadData, MigrateError, Unavailable
from mlmigrate.model import Loss, Record, RunRef

PREFIX = "mlflow.rest."
STAMPED = 1000  # things; more are taken again each time
TOGETHER = 50  # experiments that are searched at once
PROMPTS = "tags.`mlflow.prompt.is_prompt` = 'true'"  # which a search leaves out unless it asks for them
SPANS_SINCE = (3, 4)
_LOCATION_TAG = "mlflow.artifactLocation"


class _Experiment(msgspec.Struct, frozen=True):
    experiment_id: str = ""


class _Location(msgspec.Struct, frozen=True):
    mlflow_experiment: _Experiment = _Experiment()


class _Named(msgspec.Struct, frozen=True):
    """What tells one thing from another, in any of the kinds."""

    name: str = ""
    version: str | int = ""
    trace_id: str = ""
    request_id: str = ""
    experiment_id: str = ""
    model_id: str = ""
    run_id: str = ""
    source_run_id: str = ""
    artifact_uri: str = ""
    tags: object = None
    trace_location: _Location = _Location()

    @property
    def owner(self) -> str:
        """The run or the experiment that the thing belongs to, or ""."""
        return (
            self.run_id
            or self.source_run_id
            or self.experiment_id
            or self.trace_location.mlflow_experiment.experiment_id
        )


class _Wrapped(msgspec.Struct, frozen=True):
    info: _Named = _Named()


@dataclass(frozen=True, slots=True)
class Kind:
    """How the things of one kind are listed. `owner` begins the owner of their files, "" for none."""

    name: str
    since: tuple[int, int]
    until: tuple[int, int]
    path: str
    field: str
    by_experiment: str = ""  # "": all at once; "body", "location" or "query": how experiments are named
    owner: str = ""

    @property
    def record(self) -> str:
        return PREFIX + self.name.removesuffix("s")


NEVER = (1000, 0)
KINDS = (
    Kind("registered_models", (1, 0), NEVER, "api/2.0/mlflow/registered-models/search", "registered_models"),
    Kind("model_versions", (1, 0), NEVER, "api/2.0/mlflow/model-versions/search", "model_versions"),
    Kind("logged_models", (3, 0), NEVER, "api/2.0/mlflow/logged-models/search", "models", "body", "@model/"),
    Kind("traces", (3, 0), NEVER, "api/3.0/mlflow/traces/search", "traces", "location", "@trace/"),
    Kind("traces", (2, 14), (3, 0), "api/2.0/mlflow/traces", "traces", "query", "@trace/"),
)


class Things:
    """All that a server has beside runs."""

    def __init__(self, client: Client, server: Server) -> None:
        self._client, self._server = client, server

    def refs(self, experiments: Sequence[str], losses: list[Loss]) -> Iterator[RunRef]:
        """A ref for each kind of which there is at least one; kinds that the server keeps to itself are losses."""
        for kind in self._kinds():
            try:
                ref = self._ref(kind, experiments)
            except Unavailable:
                raise
            except MigrateError as error:
                losses.append(Loss("", kind.name.replace("_", " "), error.message))
            else:
                yield from [ref] if ref is not None else []

    def _ref(self, kind: Kind, experiments: Sequence[str]) -> RunRef | None:
        digest, n = hashlib.blake2b(digest_size=16), 0
        for item in islice(self._all(kind, experiments), STAMPED + 1):
            digest.update(bytes(item))
            n += 1
        if n == 0:
            return None
        stamp = "" if n > STAMPED else digest.hexdigest()
        place = hashlib.blake2b(self._client.login.base.encode(), digest_size=8).hexdigest()
        return RunRef("", f"@{kind.name}", kind.name, f"mlflow:@{kind.name}:{place}", stamp, kind="records")

    def records(self, ref: RunRef, experiments: Sequence[str], losses: list[Loss]) -> Iterator[Record]:
        """Every thing of a kind, whole."""
        kind = self._kind(ref)
        for item in self._all(kind, experiments):
            named = _named(item)
            yield Record(kind.record, _id(named), named.owner, self._body(kind, item, named, losses))

    def roots(self, ref: RunRef, experiments: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(owner, artifact URI) of every thing of a kind that has files."""
        kind = self._kind(ref)
        if not kind.owner:
            return
        for item in self._all(kind, experiments):
            named = _named(item)
            uri = named.artifact_uri or _tag(named.tags, _LOCATION_TAG)
            if uri:
                yield kind.owner + _id(named), uri

    def any_models(self, experiment: str) -> bool:
        """Whether an experiment has logged models: only then may its runs have model inputs."""
        kind = next((kind for kind in self._kinds() if kind.name == "logged_models"), None)
        return kind is not None and next(iter(self._all(kind, [experiment])), None) is not None

    def _kinds(self) -> list[Kind]:
        return [kind for kind in KINDS if kind.since <= self._server.version < kind.until]

    def _kind(self, ref: RunRef) -> Kind:
        return next(kind for kind in self._kinds() if kind.name == ref.id.removeprefix("@"))

    def _body(self, kind: Kind, item: msgspec.Raw, named: _Named, losses: list[Loss]) -> str:
        """The thing as it is listed; a trace with its spans, where the server keeps them."""
        if kind.name == "traces" and self._server.version >= SPANS_SINCE:
            try:
                whole = self._client.get(
                    "api/3.0/mlflow/traces/get", dict[str, msgspec.Raw], {"trace_id": named.trace_id}
                )
                return bytes(whole["trace"]).decode()
            except Unavailable:
                raise
            except (MigrateError, KeyError) as error:
                losses.append(
                    Loss("", f"spans of trace {named.trace_id}", f"the server does not give them out ({error})")
                )
        return bytes(item).decode()

    def _all(self, kind: Kind, experiments: Sequence[str]) -> Iterator[msgspec.Raw]:
        if not kind.by_experiment:
            yield from self._pages(kind, {})
            yield from self._pages(kind, {"filter": PROMPTS}, quiet=True)
            return
        for start in range(0, len(experiments), TOGETHER):
            yield from self._pages(kind, _of_experiments(kind, experiments[start : start + TOGETHER]))

    def _pages(self, kind: Kind, ask: Mapping[str, object], *, quiet: bool = False) -> Iterator[msgspec.Raw]:
        token, seen = "", set()
        while True:
            try:
                page = self._page(kind, {**ask, "page_token": token} if token else ask)
            except Unavailable:
                raise
            except MigrateError:
                if quiet:  # servers that know no prompts know no such filter
                    return
                raise
            yield from msgspec.json.decode(page[kind.field], type=list[msgspec.Raw]) if kind.field in page else ()
            token = msgspec.json.decode(page["next_page_token"], type=str) if "next_page_token" in page else ""
            if not token:
                return
            if token in seen:
                raise BadData(f"The server goes round in circles over its {kind.name}.")
            seen.add(token)

    def _page(self, kind: Kind, ask: Mapping[str, object]) -> dict[str, msgspec.Raw]:
        if kind.by_experiment in ("", "query"):
            params: Params = {"max_results": 200, **ask}  # type: ignore[dict-item]  # strings and numbers alone
            return self._client.get(kind.path, dict[str, msgspec.Raw], params)
        most = 50 if kind.by_experiment == "body" else 500
        return self._client.post(kind.path, dict[str, msgspec.Raw], {"max_results": most, **ask})


def _of_experiments(kind: Kind, experiments: Sequence[str]) -> dict[str, object]:
    if kind.by_experiment == "location":
        named = [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": one}} for one in experiments]
        return {"locations": named}
    return {"experiment_ids": list(experiments)}


def _named(item: msgspec.Raw) -> _Named:
    wrapped = msgspec.json.decode(item, type=_Wrapped)
    return wrapped.info if wrapped.info.model_id else msgspec.json.decode(item, type=_Named)


def _id(named: _Named) -> str:
    known = named.trace_id or named.request_id or named.model_id
    return known or (f"{named.name}/{named.version}" if named.version != "" else named.name)


def _tag(tags: object, name: str) -> str:
    """Tags are pairs in some answers and an object in others."""
    if isinstance(tags, dict):
        return str(tags.get(name, ""))
    found = [one.get("value", "") for one in tags if one.get("key") == name] if isinstance(tags, list) else []
    return str(found[0]) if found else ""
