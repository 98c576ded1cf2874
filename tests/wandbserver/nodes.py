"""What GraphQL sees: one small class over each thing of the store, in the schema's own words."""
# ruff: noqa: N802, N803, N815  names are those of the schema

from __future__ import annotations

import fnmatch
import json
import mimetypes
from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from . import filters as filtered
from . import histories
from .store import (
    ENTITY,
    ORG_ENTITY,
    ORGANIZATION,
    OTHER_ENTITY,
    USER,
    Artifact,
    Collection,
    File,
    Membership,
    Project,
    Refused,
    Run,
    Store,
    Sweep,
    View,
    decode,
    encode,
    loads,
    plain,
)
from .uploads import Slot, Uploads


class World:
    """What every node needs: the store, and where bytes are put and fetched."""

    def __init__(self, store: Store, uploads: Uploads) -> None:
        self.store = store
        self.uploads = uploads


class Node:
    """A thing of the store: what has no method here is the thing's own field, `names` tells of those called else."""

    names: ClassVar[dict[str, str]] = {}

    def __init__(self, world: World, it: Any) -> None:
        self.world = world
        self.it = it

    def __getattr__(self, name: str) -> Any:
        return getattr(self.it, self.names.get(name, name))


def connection(items: Sequence[Any], node: Any, after: str | None, first: int | None) -> dict[str, Any]:
    """A page of these: `node` makes one of an item."""
    try:
        start = int(decode(after).removeprefix("cursor:")) if after else 0
    except ValueError:
        raise Refused(f"invalid cursor {after!r}") from None
    end = min(start + (len(items) if first is None else max(first, 0)), len(items))
    edges = [{"node": node(items[n]), "cursor": _cursor(n + 1)} for n in range(start, end)]
    page = {"endCursor": _cursor(end) if edges else None, "hasNextPage": end < len(items)}
    return {"edges": edges, "pageInfo": page, "totalCount": len(items)}


def _cursor(n: int) -> str:
    return encode(f"cursor:{n}")


def plain_edges(nodes: Sequence[Any]) -> dict[str, Any]:
    """A connection that is not paged."""
    return {"edges": [{"node": node} for node in nodes], "pageInfo": {"endCursor": None, "hasNextPage": False}}


class UserNode(Node):
    """The one user: whose key it is."""

    id = encode(f"User:{USER}")
    name = username = USER
    email = f"{USER}@example.com"
    admin = False
    flags = '{"code_saving_enabled": false}'
    entity = ENTITY
    deletedAt = photoUrl = None
    apiKeys = {"edges": [{"node": {"id": encode("ApiKey:1"), "name": "key", "description": None}}]}  # noqa: RUF012

    def teams(self, info: Any) -> dict[str, Any]:
        return plain_edges([EntityNode(self.world, name) for name in (ENTITY, OTHER_ENTITY)])

    def organizations(self, info: Any) -> list[Any]:
        return [OrganizationNode(self.world, ORGANIZATION)]


class OrganizationNode(Node):
    id = encode(f"Organization:{ORGANIZATION}")
    name = ORGANIZATION
    coreWeaveOrganizationId = None
    featureFlags: tuple[Any, ...] = ()
    advancedRegistryFeatures = {"advancedSearch": False}  # noqa: RUF012

    def orgEntity(self, info: Any) -> EntityNode:
        return EntityNode(self.world, ORG_ENTITY)


class EntityNode(Node):
    xxhashDigestsEnabled = True

    @property
    def id(self) -> str:
        return encode(f"Entity:v1:{self.it}")

    @property
    def name(self) -> str:
        return str(self.it)

    @property
    def isTeam(self) -> bool:
        return bool(self.it != USER)

    @property
    def entityType(self) -> str:
        return "organization" if self.it == ORG_ENTITY else "team" if self.isTeam else "user"

    def user(self, info: Any) -> UserNode | None:
        return None if self.isTeam else UserNode(self.world, None)

    def organization(self, info: Any) -> OrganizationNode:
        return OrganizationNode(self.world, ORGANIZATION)

    def project(self, info: Any, name: str | None = None) -> ProjectNode | None:
        found = self.world.store.project(self.it, name)
        return ProjectNode(self.world, found) if found else None

    def _projects(self, wanted: str | None) -> list[Project]:
        return [one for one in self.world.store.entities[self.it].values() if _named(one.name, wanted)]

    def projects(
        self, info: Any, filters: str | None = None, after: str | None = None, first: int | None = None, order: str = ""
    ) -> dict[str, Any]:
        return connection(self._projects(filters), lambda one: ProjectNode(self.world, one), after, first)

    def artifactCollections(
        self,
        info: Any,
        projectFilters: str | None = None,
        filters: str | None = None,
        collectionTypes: list[str] | None = None,
        after: str | None = None,
        first: int | None = None,
        order: str = "",
    ) -> dict[str, Any]:
        kinds = collectionTypes or ["SEQUENCE", "PORTFOLIO"]
        found = [
            one
            for project in self._projects(projectFilters)
            for one in project.collections.values()
            if ("PORTFOLIO" if one.portfolio else "SEQUENCE") in kinds and _named(one.name, filters)
        ]
        return connection(found, lambda one: collection_node(self.world, one), after, first)

    def artifactMemberships(
        self,
        info: Any,
        projectFilters: str | None = None,
        collectionFilters: str | None = None,
        filters: str | None = None,
        after: str | None = None,
        first: int | None = None,
        order: str = "",
    ) -> dict[str, Any]:
        found = [
            member
            for project in self._projects(projectFilters)
            for one in project.collections.values()
            if _named(one.name, collectionFilters)
            for member in one.members
        ]
        return connection(found, lambda one: MembershipNode(self.world, one), after, first)


def _named(name: str, wanted: str | None) -> bool:
    """Whether a filter on names takes this one."""
    test = json.loads(wanted or "{}").get("name")
    if isinstance(test, dict):
        return any(fnmatch.fnmatch(name, str(one).strip("^$").replace(".*", "*")) for one in test.values())
    return test is None or test == name


class ProjectNode(Node):
    names: ClassVar = {
        "entityName": "entity",
        "createdAt": "created",
        "allowAllArtifactTypesInRegistry": "any_type",
    }
    isBenchmark = readOnly = False
    views = updatedAt = None

    @property
    def internalId(self) -> str:
        return encode(f"ProjectInternalId:{self.it.number}")

    @property
    def entity(self) -> EntityNode:
        return EntityNode(self.world, self.it.entity)

    def user(self, info: Any) -> UserNode:
        return UserNode(self.world, None)

    def run(self, info: Any, name: str) -> RunNode | None:
        found = self.it.runs.get(name)
        return RunNode(self.world, found) if found else None

    def bucket(self, info: Any, name: str, missingOk: bool = False) -> RunNode | None:
        if name not in self.it.runs and not missingOk:
            raise Refused(f"run {self.it.path}/{name} not found", 404)
        return self.run(info, name)

    def runs(
        self,
        info: Any,
        filters: str | None = None,
        after: str | None = None,
        first: int | None = None,
        order: str | None = None,
    ) -> dict[str, Any]:
        found = filtered.runs(list(self.it.runs.values()), filters, order)
        return connection(found, lambda one: RunNode(self.world, one), after, first)

    def runCount(self, info: Any, filters: str | None = None) -> int:
        return len(filtered.runs(list(self.it.runs.values()), filters, None))

    def sweep(self, info: Any, sweepName: str) -> SweepNode | None:
        found = self.it.sweeps.get(sweepName)
        return SweepNode(self.world, found) if found else None

    def sweeps(
        self, info: Any, after: str | None = None, first: int | None = None, filters: str | None = None
    ) -> dict[str, Any]:
        return connection(list(self.it.sweeps.values()), lambda one: SweepNode(self.world, one), after, first)

    def totalSweeps(self, info: Any) -> int:
        return len(self.it.sweeps)

    def allViews(
        self,
        info: Any,
        viewType: str | None = None,
        viewName: str | None = None,
        after: str | None = None,
        first: int | None = None,
    ) -> dict[str, Any]:
        found = [one for one in self.it.views if one.type == (viewType or "runs") and viewName in (None, one.name)]
        return connection(found, lambda one: view_node(self.world, one), after, first)

    def artifact(self, info: Any, name: str) -> ArtifactNode | None:
        member = _member(self.it, name)
        return ArtifactNode(self.world, member.artifact) if member else None

    def artifactType(self, info: Any, name: str) -> TypeNode | None:
        return TypeNode(self.world, (self.it, name)) if name in self.it.types else None

    def artifactTypes(
        self, info: Any, after: str | None = None, first: int | None = None, includeAll: bool = False
    ) -> dict[str, Any]:
        return connection(list(self.it.types), lambda name: TypeNode(self.world, (self.it, name)), after, first)

    def artifactCollection(self, info: Any, name: str) -> CollectionNode | None:
        found = self.it.collections.get(name)
        return collection_node(self.world, found) if found else None

    def artifactCollections(
        self,
        info: Any,
        after: str | None = None,
        first: int | None = None,
        filters: str | None = None,
        order: str | None = None,
    ) -> dict[str, Any]:
        found = [one for one in self.it.collections.values() if _named(one.name, filters)]
        return connection(found, lambda one: collection_node(self.world, one), after, first)

    def artifactCollectionMembership(self, info: Any, name: str) -> MembershipNode | None:
        member = _member(self.it, name)
        return MembershipNode(self.world, member) if member else None


def _member(project: Project, name: str) -> Membership | None:
    """What `collection:alias` means there."""
    collection, _, alias = name.partition(":")
    found = project.collections.get(collection)
    return member_of(found, alias or "latest") if found else None


def member_of(collection: Collection, alias: str) -> Membership | None:
    """What goes by this alias, or version, or digest."""
    for member in collection.members:
        if alias in (f"v{member.index}", member.artifact.digest) or alias in member.aliases:
            return member
    return None


class RunNode(Node):
    """A run; what it holds is asked for as the schema names it."""

    readOnly = shouldStop = False

    names: ClassVar = {
        "displayName": "display",
        "sweepName": "sweep",
        "jobType": "job_type",
        "createdAt": "created",
        "heartbeatAt": "heartbeat",
    }

    @property
    def projectId(self) -> str:
        return str(self.it.project.number)

    @property
    def project(self) -> ProjectNode:
        return ProjectNode(self.world, self.it.project)

    @property
    def user(self) -> UserNode:
        return UserNode(self.world, None)

    @property
    def running(self) -> bool:
        return bool(self.it.state == "running")

    @property
    def failed(self) -> bool:
        return bool(self.it.state == "failed")

    def wandbConfig(self, info: Any, keys: list[str] | None = None) -> str | None:
        held = json.loads(self.it.config).get("_wandb", {}).get("value", {})
        return json.dumps({key: held[key] for key in keys or held if key in held}) if held else None

    def summaryMetrics(self, info: Any) -> str:
        return plain(self.it.summary)

    def systemMetrics(self, info: Any) -> str:
        last = loads(plain(self.it.events[-1])) if self.it.events else {}
        return json.dumps({key: value for key, value in last.items() if not key.startswith("_")})

    def historyLineCount(self, info: Any) -> int:
        return len(self.it.history)

    def eventsLineCount(self, info: Any) -> int:
        return len(self.it.events)

    def logLineCount(self, info: Any) -> int:
        return len(self.it.output)

    def historyTail(self, info: Any) -> str:
        return json.dumps([plain(line) for line in self.it.history[-1:]])

    def eventsTail(self, info: Any) -> str:
        return json.dumps([plain(line) for line in self.it.events[-1:]])

    def historyKeys(self, info: Any) -> dict[str, Any] | None:
        return histories.keys(self.it)

    def history(
        self, info: Any, minStep: int | None = None, maxStep: int | None = None, samples: int | None = None
    ) -> list[str]:
        return histories.page(self.it, minStep, maxStep, samples, self._first(minStep))

    def _first(self, step: int | None) -> int:
        """The first line that pages tell: once lines are exported, those that are not."""
        return 0 if step is None or self.world.store.whole_pages else sum(self.it.exported)

    def events(self, info: Any, samples: int | None = None) -> list[str]:
        return [plain(line) for line in histories.sampled(self.it.events, samples)]

    def sampledHistory(self, info: Any, specs: list[str]) -> list[Any]:
        told = [json.loads(spec) for spec in specs]
        return [histories.columns(self.it, spec, self._first(spec.get("minStep"))) for spec in told]

    def parquetHistory(self, info: Any, liveKeys: list[str]) -> dict[str, Any]:
        urls = [self.world.uploads.direct(md5, f"{n}.parquet") for n, md5 in enumerate(self.it.exports)]
        return {"parquetUrls": urls, "liveData": histories.live(self.it, liveKeys)}

    def logLines(
        self,
        info: Any,
        first: int | None = None,
        last: int | None = None,
        after: str | None = None,
        useImprovedPagination: bool = False,
    ) -> dict[str, Any]:
        rows = list(enumerate(self.it.output))
        if last is not None:
            rows = rows[-last:] if last else []
        return connection(rows, lambda row: log_line(*row), after, first)

    def _files(self) -> dict[str, File]:
        files = dict(self.it.files)
        if self.it.output and "output.log" not in files:
            text = "".join(log_line(n, line)["line"] + "\n" for n, line in enumerate(self.it.output)).encode()
            files["output.log"] = File("output.log", self.world.store.keep(text), len(text), self.it.heartbeat)
        return files

    def fileCount(self, info: Any) -> int:
        return len(self._files())

    def files(
        self,
        info: Any,
        names: list[str] | None = None,
        after: str | None = None,
        first: int | None = None,
        pattern: str | None = None,
    ) -> dict[str, Any]:
        files = [file for name, file in sorted(self._files().items()) if not names or name in names]
        if pattern:
            wanted = pattern.replace("%", "*").replace("_", "?")
            files = [file for file in files if fnmatch.fnmatchcase(file.name, wanted)]
        return connection(files, lambda file: run_file(self.world, self.it, file), after, first)

    def outputArtifacts(self, info: Any, after: str | None = None, first: int | None = None) -> dict[str, Any]:
        return _artifacts(self.world, self.it.logged, after, first)

    def inputArtifacts(self, info: Any, after: str | None = None, first: int | None = None) -> dict[str, Any]:
        return _artifacts(self.world, self.it.used, after, first)


def log_line(number: int, line: str) -> dict[str, Any]:
    """A console line; where it came as JSON it tells its time and level."""
    try:
        told = loads(line) if line.startswith("{") else {}
    except Refused:
        told = {}
    if "content" not in told:
        return {"number": number, "timestamp": None, "level": None, "label": None, "line": line}
    given = {"timestamp": told.get("ts"), "level": told.get("level"), "label": told.get("label")}
    return {"number": number, "line": str(told["content"]), **given}


def _artifacts(world: World, held: list[Artifact], after: str | None, first: int | None) -> dict[str, Any]:
    there = [one for one in held if one.state == "COMMITTED"]
    return connection(there, lambda one: ArtifactNode(world, one), after, first)


def run_file(world: World, run: Run, file: File) -> dict[str, Any]:
    def url(info: Any, upload: bool = False) -> str:
        if upload:
            return upload_url(world, run, file.name)
        return f"{world.uploads.server}/files/{quote(run.path)}/{quote(file.name)}"

    return {
        "id": encode(f"File:{run.path}/{file.name}"),
        "url": url,
        "directUrl": lambda info: world.uploads.direct(file.md5, file.name),
        **_told(file),
    }


def _told(file: File) -> dict[str, Any]:
    return {
        "name": file.name,
        "displayName": file.name,
        "sizeBytes": file.size,
        "mimetype": mimetypes.guess_type(file.name)[0] or "",
        "updatedAt": file.updated,
        "md5": file.md5,
        "digest": file.md5,
    }


def upload_url(world: World, run: Run, name: str) -> str:
    """Where the bytes of this file of the run are put."""

    def put(md5: str, size: int) -> None:
        run.files[name] = File(name, md5, size, run.heartbeat)

    return world.uploads.url(Slot("file", name, put))


class SweepNode(Node):
    bestLoss = controller = scheduler = runCountExpected = controllerRunName = heartbeatAt = None
    earlyStopJobRunning = False

    names: ClassVar = {"displayName": "display", "createdAt": "created", "updatedAt": "updated"}

    @property
    def project(self) -> ProjectNode:
        return ProjectNode(self.world, self.it.project)

    @property
    def method(self) -> str | None:
        found = [line for line in self.it.config.splitlines() if line.startswith("method:")]
        return found[0].partition(":")[2].strip() if found else None

    def _runs(self) -> list[Run]:
        return [run for run in self.it.project.runs.values() if run.sweep == self.it.name]

    def runCount(self, info: Any) -> int:
        return len(self._runs())

    def runs(self, info: Any, first: int | None = None, after: str | None = None) -> dict[str, Any]:
        return connection(self._runs(), lambda one: RunNode(self.world, one), after, first)


def sweep_of(world: World, sweep: Sweep) -> SweepNode:
    return SweepNode(world, sweep)


def view_node(world: World, view: View) -> dict[str, Any]:
    return {
        "id": encode(f"View:{view.number}"),
        "name": view.name,
        "displayName": view.display,
        "description": view.description,
        "user": UserNode(world, None),
        "spec": view.spec,
        "createdAt": view.created,
        "updatedAt": view.updated,
    }


class TypeNode(Node):
    """An artifact type of a project."""

    @property
    def id(self) -> str:
        return encode(f"ArtifactType:{self.it[0].number}:{self.it[1]}")

    @property
    def name(self) -> str:
        return self.it[1]  # type: ignore[no-any-return]

    description = None

    @property
    def createdAt(self) -> str:
        return self.it[0].types[self.it[1]]  # type: ignore[no-any-return]

    def artifactCollection(self, info: Any, name: str) -> CollectionNode | None:
        found = self.it[0].collections.get(name)
        return collection_node(self.world, found) if found and found.type == self.name else None

    def artifactCollections(
        self,
        info: Any,
        after: str | None = None,
        first: int | None = None,
        filters: str | None = None,
        order: str | None = None,
    ) -> dict[str, Any]:
        held = self.it[0].collections.values()
        found = [one for one in held if one.type == self.name and _named(one.name, filters)]
        return connection(found, lambda one: collection_node(self.world, one), after, first)


class CollectionNode(Node):
    state = "READY"

    names: ClassVar = {"createdAt": "created", "updatedAt": "updated"}

    @property
    def project(self) -> ProjectNode:
        return ProjectNode(self.world, self.it.project)

    @property
    def defaultArtifactType(self) -> TypeNode:
        return TypeNode(self.world, (self.it.project, self.it.type))

    @property
    def tags(self) -> dict[str, Any]:
        return {"edges": [{"node": tag_node(tag)} for tag in self.it.tags]}

    def aliases(self, info: Any, after: str | None = None, first: int | None = None) -> dict[str, Any]:
        held = [(member, alias) for member in self.it.members for alias in member.aliases]
        return connection(held, lambda one: alias_node(self.world, *one), after, first)

    def artifacts(
        self,
        info: Any,
        after: str | None = None,
        first: int | None = None,
        order: str | None = None,
        filters: str | None = None,
    ) -> dict[str, Any]:
        held = [one for one in self.it.members if one.artifact.state == "COMMITTED"]
        held = held if (order or "").startswith("+") else held[::-1]
        page = connection(held, lambda one: ArtifactNode(self.world, one.artifact), after, first)
        version = {id(one.artifact): f"v{one.index}" for one in held}
        for edge in page["edges"]:
            edge["version"] = version[id(edge["node"].it)]
        return page

    def artifactMembership(self, info: Any, aliasName: str) -> MembershipNode | None:
        member = member_of(self.it, aliasName)
        return MembershipNode(self.world, member) if member else None


class SequenceNode(CollectionNode):
    __typename = "ArtifactSequence"

    @property
    def digestAlgorithm(self) -> str:
        return self.it.members[0].artifact.algorithm if self.it.members else "MANIFEST_MD5"

    def latestArtifact(self, info: Any) -> ArtifactNode | None:
        member = member_of(self.it, "latest")
        return ArtifactNode(self.world, member.artifact) if member else None


class PortfolioNode(CollectionNode):
    """What versions are linked into."""


def collection_node(world: World, collection: Collection) -> CollectionNode:
    return (PortfolioNode if collection.portfolio else SequenceNode)(world, collection)


def tag_node(tag: str) -> dict[str, Any]:
    return {"id": encode(f"Tag:{tag}"), "name": tag}


def alias_node(world: World, member: Membership, alias: str) -> dict[str, Any]:
    return {
        "id": encode(f"ArtifactAlias:{member.collection.number}:{alias}"),
        "alias": alias,
        "artifactCollection": collection_node(world, member.collection),
    }


class MembershipNode(Node):
    names: ClassVar = {"versionIndex": "index", "createdAt": "created"}

    @property
    def aliases(self) -> list[Any]:
        return [alias_node(self.world, self.it, alias) for alias in self.it.aliases]

    @property
    def artifactCollection(self) -> CollectionNode:
        return collection_node(self.world, self.it.collection)

    @property
    def artifact(self) -> ArtifactNode:
        return ArtifactNode(self.world, self.it.artifact)

    def files(
        self, info: Any, names: list[str] | None = None, after: str | None = None, first: int | None = None
    ) -> dict[str, Any]:
        return self.artifact.files(info, names, after, first)


class ArtifactNode(Node):
    commitHash = None

    names: ClassVar = {
        "versionIndex": "index",
        "historyStep": "history_step",
        "createdAt": "created",
        "updatedAt": "updated",
        "digestAlgorithm": "algorithm",
    }

    @property
    def ttlDurationSeconds(self) -> int:
        return -1 if self.it.ttl is None else self.it.ttl  # -1: as its project has it

    @property
    def ttlIsInherited(self) -> bool:
        return self.it.ttl in (None, -1)

    @property
    def artifactSequence(self) -> SequenceNode:
        return SequenceNode(self.world, self.it.sequence)

    @property
    def artifactType(self) -> TypeNode:
        return TypeNode(self.world, (self.it.sequence.project, self.it.sequence.type))

    @property
    def tags(self) -> list[Any]:
        return [tag_node(tag) for tag in self.it.tags]

    @property
    def size(self) -> int:
        return sum(entry.get("size", 0) for entry in self.it.contents.values())

    @property
    def fileCount(self) -> int:
        return len(self.it.contents)

    @property
    def aliases(self) -> list[Any]:
        return [alias_node(self.world, member, alias) for member in self.it.members for alias in member.aliases]

    def artifactMemberships(self, info: Any) -> dict[str, Any]:
        return plain_edges([MembershipNode(self.world, member) for member in self.it.members])

    def currentManifest(self, info: Any) -> dict[str, Any] | None:
        file = self.it.manifest
        if file is None:
            return None
        return {"id": encode(f"ArtifactManifest:{self.it.number}"), "file": _blob_file(self.world, file)}

    def createdBy(self, info: Any) -> RunNode | None:
        return RunNode(self.world, self.it.run) if self.it.run else None

    def usedBy(self, info: Any) -> dict[str, Any]:
        return connection(self.it.consumers, lambda run: RunNode(self.world, run), None, None)

    def _stored(self, name: str, entry: dict[str, Any]) -> dict[str, Any]:
        return _blob_file(self.world, File(name, entry["digest"], entry.get("size", 0), self.it.created))

    def files(
        self, info: Any, names: list[str] | None = None, after: str | None = None, first: int | None = None
    ) -> dict[str, Any]:
        held = [
            (name, entry)
            for name, entry in sorted(self.it.contents.items())
            if not entry.get("ref") and (names is None or name in names)
        ]
        return connection(held, lambda one: self._stored(*one), after, first)

    def filesByManifestEntries(
        self,
        info: Any,
        storageLayout: str,
        manifestVersion: str,
        entries: list[dict[str, Any]] | None = None,
        storageRegion: str | None = None,
    ) -> dict[str, Any]:
        wanted = entries or []
        for entry in wanted:
            if self.it.contents.get(entry["name"], {}).get("digest") != entry["digest"]:
                raise Refused(f"artifact {self.it.name} has no entry {entry['name']!r} with that digest", 404)
        return connection(wanted, lambda one: self._stored(one["name"], self.it.contents[one["name"]]), None, None)


def _blob_file(world: World, file: File) -> dict[str, Any]:
    return {
        "id": encode(f"File:{file.md5}:{file.name}"),
        "url": lambda info, upload=False: world.uploads.direct(file.md5, file.name),
        "directUrl": lambda info: world.uploads.direct(file.md5, file.name),
        "storagePath": f"wandb_artifacts/{file.md5}",
        **_told(file),
    }
