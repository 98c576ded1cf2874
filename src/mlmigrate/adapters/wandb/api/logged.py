"""Versions of artifacts made on a server, as its SDK makes them.

    CreateArtifact                  state COMMITTED: the collection has these bytes already
    CreateArtifactManifest          a place for the manifest
    CreateArtifactFiles, PUT        the bytes; no URL: they are there already
    CreateArtifactManifest, PUT     the manifest
    CommitArtifact                  only now the version is there

Made again after a kill, it begins anew with the same digest, and sends no byte that is there.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlmigrate.adapters.wandb import clients, digests
from mlmigrate.adapters.wandb.api.answers import Unsupported
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.named import named_by, where_is
from mlmigrate.adapters.wandb.api.pages import all_pages, nodes
from mlmigrate.adapters.wandb.api.stream import Where
from mlmigrate.adapters.wandb.api.uploads import Bytes, base64_of, measured, of_data, part_of, put, send
from mlmigrate.adapters.wandb.api.writes import (
    ADD_ALIASES,
    ARTIFACT_STATE,
    COMMIT_ARTIFACT,
    COMPLETE_MULTIPART,
    CREATE_ARTIFACT,
    CREATE_ARTIFACT_FILES,
    CREATE_ARTIFACT_MANIFEST,
    LINK_ARTIFACT,
    USE_ARTIFACT,
    VERSIONS,
)
from mlmigrate.adapters.wandb.shape import Version
from mlmigrate.errors import Conflict, MigrateError, Unavailable

FILES_PER_CALL = 200
MULTIPART = 2 << 30  # bytes from which on a file goes in parts
PART = 100 << 20
PARTS = 10_000
COMMITS = 3
VERSIONS_PER_PAGE = 200
NONE: Mapping[str, Any] = {"edges": []}
HOME, TAGS = "the home of an artifact that is used", "tags of versions"  # what servers of some age do not know
LATEST = "latest"
_NUMBER = re.compile(r"v\d+")  # aliases that W&B gives itself


@dataclass(frozen=True, slots=True)
class Made:
    """A version on the server.

    there     it was there already, by an earlier try of the run, or by another run
    lent      another run made it: this one is told to have used it
    untagged  the server has no tags for versions
    unnamed   how many of the ids by which values name it mean another version there, or nobody says which
    """

    id: str
    name: str
    digest: str
    there: bool = False
    lent: bool = False
    untagged: bool = False
    unnamed: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a version, or what it refers to (`bytes` None)."""

    path: str
    digest: str
    size: int
    ref: str = ""
    bytes: Bytes | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A version to be made: by the run `run`, or, where that is None, by nobody. All in one project."""

    where: Where
    run: str | None
    version: Version
    entries: tuple[Entry, ...]

    @property
    def shown(self) -> str:
        """For messages."""
        return f"the artifact {self.version.name!r} of {self.where.shown}"

    @property
    def digest(self) -> str:
        """As the SDK computes it."""
        return digests.of_manifest((entry.path, entry.digest) for entry in self.entries)


def draft(where: Where, run: str | None, version: Version) -> Draft:
    """What the version consists of; its files are read through where their md5 is not known. Raises Damaged."""
    shown = f"the artifact {version.name!r} of {where.shown}"
    entries = []
    for file in version.files:
        if file.ref:
            entries.append(Entry(file.path, file.digest or file.ref, file.size or 0, file.ref))
        else:
            found = measured(file, shown)
            entries.append(Entry(file.path, found.md5, found.size, bytes=found))
    return Draft(where, run, version, tuple(entries))


@dataclass
class Artifacts:
    """The artifacts of a target. Calls may come from many threads; those of one collection take turns."""

    client: Client
    multipart: int = MULTIPART
    part: int = PART
    made: dict[tuple[str, str, str], str] = field(default_factory=dict)  # project, collection, digest -> id
    lacks: set[str] = field(default_factory=set)  # what this server turned out not to know
    _turns: dict[tuple[str, str], threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def log(self, given: Draft) -> Made:
        """The version, made or found. Raises errors that name it."""
        key = (given.where.project, given.version.name)
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:
            digest = given.digest
            (called, *others), unnamed = self._clients(given, digest)
            try:
                artifact = self._create(given, digest, *called)
            except Conflict:  # somebody has just taken its id, or the collection's is another's
                artifact = self._create(given, digest, *self._own(given, digest))
                unnamed += 1
            there = artifact["state"] == "COMMITTED"
            if not there:
                self._fill(given, artifact)
                self._commit(given, artifact["id"])
            for also in others:  # it was logged more than once
                unnamed += not self._also(given, digest, artifact["id"], also)
            self._settle_aliases(given, artifact["id"])
        self.made[given.where.project, given.version.name, digest] = artifact["id"]
        untagged = bool(given.version.tags) and TAGS in self.lacks
        return Made(artifact["id"], given.version.name, digest, there, untagged=untagged, unnamed=unnamed)

    def use(self, where: Where, artifact: str) -> None:
        """The run has read this version."""
        there = {"entityName": where.entity, "projectName": where.project}
        given = {**there, "runName": where.id, "artifactID": artifact}
        home = {"artifactEntityName": where.entity, "artifactProjectName": where.project}
        self._ask(USE_ARTIFACT, given, HOME, home)

    def _ask(self, operation: str, given: Mapping[str, Any], name: str, newer: Mapping[str, Any]) -> dict[str, Any]:
        """Asks with what only newer servers know; without it where this one does not."""
        if newer and name not in self.lacks:
            try:
                return self.client.graphql(operation, {"input": {**given, **newer}})
            except Unsupported:
                found = self.client.graphql(operation, {"input": given})
                self.lacks.add(name)
                return found
        return self.client.graphql(operation, {"input": given})

    def link(self, where: Where, artifact: str, collection: str, aliases: Sequence[str]) -> None:
        """The version is one of this collection of another kind (a registered model)."""
        named = [{"artifactCollectionName": collection, "alias": alias} for alias in aliases]
        given = {"artifactPortfolioName": collection, "entityName": where.entity, "projectName": where.project}
        self.client.graphql(LINK_ARTIFACT, {**given, "aliases": named, "artifactId": artifact})

    def find(self, where: Where, version: Version) -> str | None:
        """The id of a version that somebody made: of this digest, else of this number, else the latest."""
        known = self.made.get((where.project, version.name, version.digest))
        if known is not None:
            return known
        latest: str | None = None
        for number, node in self._versions(where, version):
            if node["state"] != "COMMITTED":
                continue
            wanted = node["digest"] == version.digest if version.digest else number == version.version
            if wanted:
                self.made[where.project, version.name, node["digest"]] = node["id"]
                return str(node["id"])
            latest = latest or node["id"]
        return None if version.digest or version.version else latest

    def _versions(self, where: Where, version: Version) -> Iterator[tuple[str, Mapping[str, Any]]]:
        given: dict[str, Any] = {"entity": where.entity, "project": where.project, "perPage": VERSIONS_PER_PAGE}
        given |= {"type": version.type, "collection": version.name}

        def ask(cursor: str | None) -> Mapping[str, Any] | None:
            data = self.client.graphql(VERSIONS, {**given, "cursor": cursor})
            found = ((data.get("project") or {}).get("artifactType") or {}).get("artifactCollection")
            return NONE if found is None else found.get("artifacts")

        for page in all_pages(ask, f"the versions of {version.name} of {where.entity}/{where.project}"):
            for node in nodes(page):
                yield f"v{node.get('versionIndex')}", node

    def _clients(self, given: Draft, digest: str) -> tuple[list[tuple[str, str]], int]:
        """The ids of the version and of its collection, as often as it was logged, and how many ids others have.

        Those that values name it by, where they are free; else ones of ours, always the same.
        """
        own, wanted = self._own(given, digest), clients.sound(given.version.clients)
        if not wanted:
            return [own], 0
        taken, untold = named_by(self.client, [client for client, _ in wanted])
        here = (given.where.entity, given.where.project, given.version.name, digest)
        mine = {id_ for id_ in set(taken.values()) if where_is(self.client, id_) == here}
        whole = [(client, sequence or own[1]) for client, sequence in wanted]
        known = [pair for pair in whole if taken.get(pair[0]) in mine]
        free = [pair for pair in whole if pair[0] not in taken and pair[0] not in untold]
        return [*known[:1], *free] or [own], len(wanted) - len(known) - len(free)

    def _own(self, given: Draft, digest: str) -> tuple[str, str]:
        version, home = given.version, (given.where.entity, given.where.project)
        own = _client_id(*home, given.run or "", version.type, version.name, digest)
        return own, _client_id(*home, version.type, version.name)

    def _also(self, given: Draft, digest: str, id: str, ids: tuple[str, str]) -> bool:
        """Whether the version has these ids now, too."""
        try:
            return bool(self._create(given, digest, *ids)["id"] == id)
        except Conflict:
            return False

    def _create(self, given: Draft, digest: str, id_: str, sequence: str) -> dict[str, Any]:
        version, where = given.version, given.where
        aliases = [one for one in version.aliases if not _NUMBER.fullmatch(one)]
        sent: dict[str, Any] = {
            "entityName": where.entity,
            "projectName": where.project,
            "artifactTypeName": version.type,
            "artifactCollectionName": version.name,
            "runName": given.run,
            "digest": digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "description": version.description or None,
            "aliases": [{"artifactCollectionName": version.name, "alias": alias} for alias in aliases],
            "metadata": json.dumps(dict(version.metadata)) if version.metadata else None,
            "ttlDurationSeconds": version.ttl,
            "enableDigestDeduplication": True,
            "clientID": id_,
            "sequenceClientID": sequence,
        }
        tags = {"tags": [{"tagName": tag} for tag in version.tags]} if version.tags else {}
        made = (self._ask(CREATE_ARTIFACT, sent, TAGS, tags).get("createArtifact") or {}).get("artifact")
        if not made or not made.get("id"):
            raise MigrateError(
                f"W&B did not make {given.shown}, and does not say why.", "The same command again tries it"
            )
        if made["state"] not in ("COMMITTED", "PENDING", "DELETED"):
            raise MigrateError(f"W&B says that {given.shown} is {made['state']!r}, which we do not know.")
        return dict(made)

    def _fill(self, given: Draft, artifact: Mapping[str, Any]) -> None:
        latest = (artifact.get("artifactSequence") or {}).get("latestArtifact") or {}
        place = self._manifest(given, artifact["id"], latest.get("id"), "", upload=False)
        births = self._send(given, artifact["id"], place["id"])
        manifest = of_data("wandb_manifest.json", _manifest_of(given, births))
        file = self._manifest(given, artifact["id"], latest.get("id"), manifest.md5, upload=True).get("file") or {}
        if not file.get("uploadUrl"):
            raise MigrateError(f"W&B gives no URL for the manifest of {given.shown}.")
        send(self.client, manifest, file["uploadUrl"], file.get("uploadHeaders") or (), given.shown)

    def _manifest(self, given: Draft, id: str, base: str | None, digest: str, *, upload: bool) -> dict[str, Any]:
        sent = {
            "artifactID": id,
            "baseArtifactID": base,
            "name": "wandb_manifest.json",
            "digest": digest,
            "entityName": given.where.entity,
            "projectName": given.where.project,
            "runName": given.where.id,
            "manifestType": "FULL",
            "includeUpload": upload,
        }
        data = self.client.graphql(CREATE_ARTIFACT_MANIFEST, sent)
        made = (data.get("createArtifactManifest") or {}).get("artifactManifest")
        if not made:
            raise MigrateError(f"W&B makes no manifest of {given.shown}.", "The same command again tries it")
        return dict(made)

    def _send(self, given: Draft, id: str, manifest: str) -> dict[str, str]:
        """The bytes; gives path -> id of the version that had them first."""
        births: dict[str, str] = {}
        entries = [entry for entry in given.entries if entry.bytes is not None]
        for first in range(0, len(entries), FILES_PER_CALL):
            some = entries[first : first + FILES_PER_CALL]
            parts = [self._parts(entry) for entry in some]
            places = self._places(given, id, manifest, some, parts)
            for entry, told, node in zip(some, parts, places, strict=True):
                births[entry.path] = (node.get("artifact") or {}).get("id") or id
                self._send_one(given, entry, told, node, births[entry.path])
        return births

    def _places(
        self, given: Draft, id: str, manifest: str, some: Sequence[Entry], parts: Sequence[list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        specs: list[dict[str, Any]] = []
        for entry, told in zip(some, parts, strict=True):
            spec = {"artifactID": id, "name": entry.path, "md5": entry.digest, "artifactManifestID": manifest}
            specs.append({**spec, "uploadPartsInput": told} if told else spec)
        data = self.client.graphql(CREATE_ARTIFACT_FILES, {"input": {"artifactFiles": specs, "storageLayout": "V2"}})
        places = nodes((data.get("createArtifactFiles") or {}).get("files"))
        if len(places) != len(some):
            raise MigrateError(f"W&B gives {len(places)} places for {len(some)} files of {given.shown}.")
        return places

    def _send_one(
        self, given: Draft, entry: Entry, told: list[dict[str, Any]], node: Mapping[str, Any], birth: str
    ) -> None:
        several, headers = node.get("uploadMultipartUrls"), node.get("uploadHeaders") or ()
        if entry.bytes is None:
            return
        if several and told:
            self._send_parts(given, entry.bytes, told, node, birth)
        elif node.get("uploadUrl"):
            send(self.client, entry.bytes, node["uploadUrl"], headers, given.shown)

    def _parts(self, entry: Entry) -> list[dict[str, Any]]:
        """Number and md5 of each part of a large file; [] for one that goes as a whole."""
        if entry.bytes is None or entry.size < self.multipart:
            return []
        size = self._part_size(entry.size)
        told = []
        with entry.bytes.open() as data:
            for number in range(1, -(-entry.size // size) + 1):
                digest, left = hashlib.md5(usedforsecurity=False), size
                while left and (piece := data.read(min(left, 1 << 20))):
                    digest.update(piece)
                    left -= len(piece)
                told.append({"partNumber": number, "hexMD5": digest.hexdigest()})
        return told

    def _part_size(self, size: int) -> int:
        if size < self.part * PARTS:
            return self.part
        least = -(-size // PARTS)
        return -(-least // 4096) * 4096

    def _send_parts(
        self, given: Draft, file: Bytes, told: list[dict[str, Any]], node: Mapping[str, Any], birth: str
    ) -> None:
        size, several = self._part_size(file.size), node["uploadMultipartUrls"]
        urls = {one["partNumber"]: one["uploadUrl"] for one in several["uploadUrlParts"]}
        kind = next(
            (line.partition(":")[2] for line in node.get("uploadHeaders") or () if line[:13] == "Content-Type:"), ""
        )
        done = []
        for part in told:
            number, start = part["partNumber"], (part["partNumber"] - 1) * size
            length = min(size, file.size - start)
            headers = {"Content-MD5": base64_of(bytes.fromhex(part["hexMD5"])), "Content-Type": kind}
            what = f"part {number} of {file.path!r} of {given.shown}"
            answer = put(self.client, urls[number], part_of(file, start, length), length, headers, what)
            etag = next((value for name, value in answer.items() if name.lower() == "etag"), "")
            if not etag:
                raise MigrateError(f"The store gave no ETag for {what}.")
            done.append({"partNumber": number, "hexMD5": etag})
        ends = {"completeMultipartAction": "Complete", "completedParts": done, "artifactID": birth}
        ends |= {"storagePath": node["storagePath"], "uploadID": several["uploadID"]}
        self.client.graphql(COMPLETE_MULTIPART, ends)

    def _commit(self, given: Draft, id: str) -> None:
        """Commits; after a lost answer the state is asked for. Raises MigrateError when it comes to no end."""
        for n in range(COMMITS):
            try:
                self.client.graphql(COMMIT_ARTIFACT, {"artifactID": id}, repeat=False)
            except Unavailable as error:
                if self._state(id).get("state") == "COMMITTED":
                    return
                if n == COMMITS - 1:
                    raise MigrateError(  # the server answers else, so it is not away
                        f"W&B does not commit {given.shown}: {error.message}",
                        "Its files are there; the same command again commits it",
                    ) from error
                time.sleep(min(0.2 * 2**n, 2.0))
            else:
                return

    def _state(self, id: str) -> dict[str, Any]:
        return dict(self.client.graphql(ARTIFACT_STATE, {"id": id}).get("artifact") or {})

    def hand_over(self, where: Where, collection: str, from_: Sequence[str], to: str) -> bool:
        """The alias "latest" goes from whichever of these versions has it to that one; False where it did not go.

        Where another has it, somebody gave it to that: it stays.
        """
        if LATEST in self._aliases(where, collection, to):
            return True
        if not any(LATEST in self._aliases(where, collection, one) for one in reversed(from_)):
            return True
        self._add_aliases(where, collection, to, [LATEST])
        return LATEST in self._aliases(where, collection, to)

    def _settle_aliases(self, given: Draft, id: str) -> None:
        """Aliases that the version has not got yet: one that was there already keeps those it had."""
        wanted = [one for one in given.version.aliases if not _NUMBER.fullmatch(one)]
        if not wanted:
            return
        there = self._aliases(given.where, given.version.name, id)
        missing = [alias for alias in wanted if alias not in there]
        if missing:
            self._add_aliases(given.where, given.version.name, id, missing)

    def _aliases(self, where: Where, collection: str, id: str) -> set[str]:
        """Those that the version has in its own collection; others that it is linked into have theirs."""
        found = set()
        for one in self._state(id).get("aliases") or ():
            home = one.get("artifactCollection") or {}
            project = (home.get("project") or {}).get("name")
            if home.get("name") in (None, collection) and project in (None, where.project):
                found.add(str(one["alias"]))
        return found

    def _add_aliases(self, where: Where, collection: str, id: str, aliases: Sequence[str]) -> None:
        home = {"entityName": where.entity, "projectName": where.project, "artifactCollectionName": collection}
        given = {"artifactID": id, "aliases": [{**home, "alias": alias} for alias in aliases]}
        self.client.graphql(ADD_ALIASES, {"input": given})


def _manifest_of(given: Draft, births: Mapping[str, str]) -> bytes:
    contents: dict[str, dict[str, Any]] = {}
    for entry in given.entries:
        told: dict[str, Any] = {"digest": entry.digest, "size": entry.size}
        if entry.ref:
            told["ref"] = entry.ref
        else:
            told["birthArtifactID"] = births[entry.path]
        contents[entry.path] = told
    manifest = {
        "version": 1,
        "storagePolicy": "wandb-storage-policy-v1",
        "storagePolicyConfig": {"storageLayout": "V2"},
        "contents": contents,
    }
    return json.dumps(manifest, separators=(",", ":")).encode()


def _client_id(*parts: str) -> str:
    """128 letters and digits, as the SDK's are; the same for the same thing."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=64)
    return digest.hexdigest()
