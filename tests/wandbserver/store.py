"""What the contract server holds: entities, projects, runs, artifacts, blobs. No HTTP, no GraphQL."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

ENTITY, OTHER_ENTITY, FORBIDDEN_ENTITY = "team", "other", "forbidden"
USER, ORGANIZATION, ORG_ENTITY = "tester", "acme", "acme-org"
FEATURES = (
    "LARGE_FILENAMES",
    "ARTIFACT_TAGS",
    "CLIENT_IDS",
    "ARTIFACT_REGISTRY_SEARCH",
    "STRUCTURED_CONSOLE_LOGS",
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILES",
    "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION",
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP",
    "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
    "ARTIFACT_COLLECTIONS_FILTERING_SORTING",
    "ARTIFACT_V2_DOWNLOAD_HANDLER_SUPPORTS_ARTIFACT_ID",
    "MARK_RUN_FILES_UPLOADED",
    "SWEEPS_QUERY_FILTERING",
    "ARTIFACT_DIGEST_ALGORITHM",
    "INCLUDE_ARTIFACT_TYPES_IN_REGISTRY_CREATION",
)


class Refused(Exception):
    """What the server does not do: the message and the HTTP status that W&B's server answers with."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class _Step(msgspec.Struct):
    step: int = msgspec.field(name="_step")


_STEP = msgspec.json.Decoder(_Step)
_ANY = msgspec.json.Decoder()
_LOOSE = (
    "NaN",
    "Infinity",
    "\\ud",
)  # lines that only some parsers read, half a surrogate pair among them: Go's reads it


@dataclass(slots=True)
class File:
    """Bytes under a name: `md5` in base64 names them among the blobs."""

    name: str
    md5: str
    size: int
    updated: str


@dataclass(slots=True)
class Run:
    project: Project
    name: str
    number: int
    display: str
    config: str = "{}"
    summary: str = "{}"
    notes: str | None = None
    description: str | None = None
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    job_type: str | None = None
    sweep: str | None = None
    state: str = "running"
    exitcode: int | None = None
    host: str | None = None
    program: str | None = None
    repo: str | None = None
    commit: str | None = None
    user: str = USER
    created: str = ""
    heartbeat: str = ""
    stopped: bool = False
    complete: bool = False
    history: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    files: dict[str, File] = field(default_factory=dict)
    uploaded: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    exported: list[int] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)
    logged: list[Artifact] = field(default_factory=list)
    used: list[Artifact] = field(default_factory=list)
    ordered: bool = True
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    counted: int = 0

    @property
    def id(self) -> str:
        return encode(f"Run:v1:{self.name}:{self.project.name}:{self.project.entity}")

    @property
    def path(self) -> str:
        return f"{self.project.path}/{self.name}"


@dataclass(slots=True)
class Sweep:
    project: Project
    name: str
    config: str
    state: str
    display: str | None
    description: str | None
    created: str
    updated: str

    @property
    def id(self) -> str:
        return encode(f"Sweep:v1:{self.name}:{self.project.name}:{self.project.entity}")


@dataclass(slots=True)
class View:
    """A report."""

    number: int
    name: str
    display: str
    description: str
    spec: str
    type: str
    created: str
    updated: str


@dataclass(slots=True)
class Project:
    entity: str
    name: str
    number: int
    created: str
    description: str | None = None
    access: str | None = None
    any_type: bool = False
    runs: dict[str, Run] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return encode(f"Project:v1:{self.name}:{self.entity}")

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.name}"


@dataclass(slots=True)
class Collection:
    """A sequence holds the versions that were logged; a portfolio those that were linked."""

    project: Project
    name: str
    type: str
    number: int
    portfolio: bool
    created: str
    description: str | None = None
    updated: str | None = None
    tags: list[str] = field(default_factory=list)
    members: list[Membership] = field(default_factory=list)
    versions: int = 0
    birth: dict[str, Artifact] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return encode(f"ArtifactCollection:{self.number}")


@dataclass(slots=True)
class Membership:
    collection: Collection
    artifact: Artifact
    index: int
    created: str
    aliases: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        return encode(f"ArtifactCollectionMembership:{self.collection.number}:{self.index}")


@dataclass(slots=True)
class Artifact:
    sequence: Collection
    number: int
    digest: str
    created: str
    algorithm: str = "MANIFEST_MD5"
    state: str = "PENDING"
    index: int | None = None
    description: str | None = None
    metadata: str | None = None
    ttl: int | None = None
    history_step: int | None = None
    tags: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    updated: str | None = None
    run: Run | None = None
    client: str | None = None
    consumers: list[Run] = field(default_factory=list)
    members: list[Membership] = field(default_factory=list)
    manifests: dict[int, File] = field(default_factory=dict)
    manifest: File | None = None
    contents: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return encode(f"Artifact:{self.number}")

    @property
    def name(self) -> str:
        return f"{self.sequence.name}:v{self.index}" if self.index is not None else self.sequence.name


class Store:
    """All of it, and what finds things in it."""

    def __init__(self) -> None:
        self.entities: dict[str, dict[str, Project]] = {ENTITY: {}, OTHER_ENTITY: {}, USER: {}, ORG_ENTITY: {}}
        self.entities[FORBIDDEN_ENTITY] = {}
        self.blobs: dict[str, bytes] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.clients: dict[str, Artifact] = {}
        self.collections: dict[str, Collection] = {}
        self.sequence_clients: dict[str, Collection] = {}
        self.numbers = itertools.count(1)
        self.features = dict.fromkeys(FEATURES, True)
        self.strict_steps = True
        self.whole_pages = False

    def project(self, entity: str | None, name: str | None) -> Project | None:
        """None where there is no such, or none that this key may see."""
        if entity == FORBIDDEN_ENTITY:
            raise Refused("permission denied", 403)
        return self.entities.get(entity or ENTITY, {}).get(name or "uncategorized")

    def run(self, entity: str | None, project: str | None, name: str) -> Run | None:
        found = self.project(entity, project)
        return found.runs.get(name) if found else None

    def the_run(self, entity: str | None, project: str | None, name: str) -> Run:
        run = self.run(entity, project, name)
        if run is None:
            raise Refused(f"run {entity}/{project}/{name} not found", 404)
        return run

    def run_by_id(self, id: str) -> Run:
        try:
            kind, _, name, project, entity = decode(id).split(":", 4)
        except ValueError:
            kind = name = project = entity = ""
        if kind != "Run":
            raise Refused(f"invalid run id {id!r}")
        return self.the_run(entity, project, name)

    def made_project(self, entity: str | None, name: str | None, what: str) -> Project:
        """The project of that name, made now if it is not there."""
        entity, name = entity or ENTITY, name or "uncategorized"
        if entity == FORBIDDEN_ENTITY:
            raise Refused("permission denied", 403)
        if entity not in self.entities:
            raise Refused(f"entity {entity} not found during {what}", 404)
        if name not in self.entities[entity]:
            if not 0 < len(name) <= 128 or any(c in name for c in "/\\#?%:"):
                raise Refused(f"invalid project name {name!r}")
            self.entities[entity][name] = Project(entity, name, next(self.numbers), now())
        return self.entities[entity][name]

    def artifact(self, id: str) -> Artifact:
        if id not in self.artifacts:
            raise Refused(f"artifact {id} not found", 404)
        return self.artifacts[id]

    def keep(self, data: bytes) -> str:
        """These bytes among the blobs: their md5 in base64."""
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        self.blobs[md5] = data
        return md5


def now() -> str:
    """The server's clock, as W&B writes it."""
    return datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def decode(text: str) -> str:
    """Raises ValueError for what is no base64 of text."""
    return base64.b64decode(text, validate=True).decode()


def step_of(line: str) -> int:
    """The `_step` of a line of history. Raises Refused for a line that has none that counts."""
    try:
        step: Any = _STEP.decode(line).step
    except msgspec.ValidationError as error:
        raise Refused(f"history line without a proper _step: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):  # the SDK sends NaN and the like, and W&B takes them
        step = loads(line).get("_step")
    if type(step) is not int or step < 0:
        raise Refused(f"history line with _step {step!r}")
    return step


def loads(line: str) -> dict[str, Any]:
    """An object in extended JSON."""
    try:
        value = _ANY.decode(line) if all(word not in line for word in _LOOSE) else json.loads(line)
    except ValueError as error:
        raise Refused(f"invalid JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused("a line must be a JSON object")
    return value


def plain(line: str) -> str:
    """The line as the API tells it: NaN and the infinities as strings."""
    if "NaN" not in line and "Infinity" not in line:
        return line
    return json.dumps(worded(json.loads(line)))


def worded(value: Any) -> Any:
    """The value with NaN and the infinities as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: worded(one) for key, one in value.items()}
    return [worded(one) for one in value] if isinstance(value, list) else value


def strict_json(text: str, what: str) -> Any:
    """JSON without NaN and Infinity."""

    def refuse(word: str) -> None:
        raise Refused(f"invalid {what}: {word} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:
        raise Refused(f"invalid {what}: {error}") from None
