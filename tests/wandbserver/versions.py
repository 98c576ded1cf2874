"""Mutations of artifacts: made, filled, committed, used, linked, named.

A version gets its number when it is committed. A commit is refused while bytes are missing, and where the manifest
does not have the digest that was told at the start.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import xxhash

from .mutations import Mutation
from .nodes import ArtifactNode, MembershipNode, World, collection_node, tag_node
from .store import Artifact, Collection, File, Membership, Project, Refused, Run, encode, now, strict_json
from .uploads import Multipart, Slot

_NAME = re.compile(r"[\w.-]{1,128}")
_TYPE = re.compile(r"[^/:]{1,128}")
_TAG = re.compile(r"[-\w]+( +[-\w]+)*")
_VERSION = re.compile(r"v\d+")
_MD5 = re.compile(r"[A-Za-z0-9+/]{22}==")
METADATA_KEYS = 100
MD5 = "MANIFEST_MD5"
OLD_REGISTRY = "model-registry"


def create_artifact(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """A version to be filled; the one that is there already where it has this digest."""
    project, run = _where(world, given)
    names = [given.get("artifactCollectionName"), *(given.get("artifactCollectionNames") or [])]
    sequence = _sequence(world, project, next((name for name in names if name), None), given)
    _check(given)
    twin = next((one.artifact for one in sequence.members if one.artifact.digest == given["digest"]), None)
    if twin is not None and given.get("enableDigestDeduplication"):
        for alias in _aliases(given):
            _point(sequence, _member(twin, sequence), alias)
        _register(world, given, twin)
        return {"artifact": ArtifactNode(world, twin)}
    begun = world.store.clients.get(given.get("clientID"))
    if begun is not None and begun.state == "PENDING" and (begun.sequence, begun.digest) == (sequence, given["digest"]):
        return {"artifact": ArtifactNode(world, begun)}  # asked for again: an answer was lost, or its maker was killed
    artifact = Artifact(sequence, next(world.store.numbers), given["digest"], now(), run=run)
    artifact.algorithm = given.get("digestAlgorithm") or MD5
    if any(one.artifact.algorithm != artifact.algorithm for one in sequence.members):
        raise Refused(f"digest algorithm {artifact.algorithm} is not that of {sequence.name}")
    _fill(artifact, given)
    world.store.artifacts[artifact.id] = artifact
    _register(world, given, artifact)
    return {"artifact": ArtifactNode(world, artifact)}


def _where(world: World, given: dict[str, Any]) -> tuple[Project, Run | None]:
    project = world.store.project(given["entityName"], given["projectName"])
    if project is None:
        raise Refused(f"project {given['entityName']}/{given['projectName']} not found", 404)
    name = given.get("runName")
    return project, world.store.the_run(project.entity, project.name, name) if name else None


def _sequence(world: World, project: Project, name: str | None, given: dict[str, Any]) -> Collection:
    kind = given["artifactTypeName"]
    client = given.get("sequenceClientID")
    if name is None and client in world.store.sequence_clients:
        return world.store.sequence_clients[client]
    if client in world.store.sequence_clients and world.store.sequence_clients[client].name != name:
        raise Refused(f"sequence client id {client} is another artifact's", 409)
    if name is None or not _NAME.fullmatch(name):
        raise Refused(f"invalid artifact name {name!r}")
    found = _collection(world, project, name, kind, portfolio=False)
    if client:
        world.store.sequence_clients[client] = found
    return found


def _collection(world: World, project: Project, name: str, kind: str, *, portfolio: bool) -> Collection:
    """The collection of that name, made now if it is not there."""
    if not _TYPE.fullmatch(kind):
        raise Refused(f"invalid artifact type {kind!r}")
    found = project.collections.get(name)
    if found is None:
        project.types.setdefault(kind, now())
        found = Collection(project, name, kind, next(world.store.numbers), portfolio, now())
        project.collections[name] = world.store.collections[found.id] = found
    if found.type != kind:
        raise Refused(f"artifact {name} already exists with type {found.type}; cannot create it with type {kind}", 409)
    if found.portfolio != portfolio:
        raise Refused(f"{name} is a {'portfolio' if found.portfolio else 'sequence'}", 409)
    return found


def _check(given: dict[str, Any]) -> None:
    for alias in _aliases(given):
        _alias(alias)
    for tag in given.get("tags") or []:
        _tag(tag["tagName"])
    _metadata(given.get("metadata"))


def _metadata(text: str | None) -> None:
    held = strict_json(text, "metadata") if text is not None else {}
    if not isinstance(held, dict) or len(held) > METADATA_KEYS:
        raise Refused(f"artifact metadata must be an object with at most {METADATA_KEYS} keys")


def _alias(alias: str) -> None:
    if not alias or len(alias) > 128 or any(c in alias for c in "/:") or _VERSION.fullmatch(alias):
        raise Refused(f"invalid alias {alias!r}")


def _tag(tag: str) -> None:
    if len(tag) > 128 or not _TAG.fullmatch(tag):
        raise Refused(f"invalid tag {tag!r}")


def _aliases(given: dict[str, Any]) -> list[str]:
    return [one["alias"] for one in given.get("aliases") or []]


def _fill(artifact: Artifact, given: dict[str, Any]) -> None:
    artifact.description, artifact.metadata = given.get("description"), given.get("metadata")
    artifact.ttl, artifact.history_step = given.get("ttlDurationSeconds"), given.get("historyStep")
    artifact.tags = [one["tagName"] for one in given.get("tags") or []]
    artifact.wanted = _aliases(given)
    if artifact.run:
        artifact.run.logged.append(artifact)


def _register(world: World, given: dict[str, Any], artifact: Artifact) -> None:
    """Client ids are made up by clients, and each names one version for ever."""
    if given.get("clientID"):
        if world.store.clients.get(given["clientID"], artifact) is not artifact:
            raise Refused(f"client id {given['clientID']} is another artifact's", 409)
        artifact.client = given["clientID"]
        world.store.clients[given["clientID"]] = artifact


def create_manifest(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """Where the manifest of a pending version is put."""
    artifact = _pending(world, given["artifactID"])
    number = next(world.store.numbers)

    def put(md5: str, size: int) -> None:
        artifact.manifests[number] = File(given["name"], md5, size, now())

    headers = {"Content-MD5": given["digest"]} if given["digest"] else {}
    slot = Slot("manifest", given["name"], put, given["digest"], headers)
    return _manifest(world, slot, encode(f"ArtifactManifest:{artifact.number}:{number}"))


def _manifest(world: World, slot: Slot, id: str) -> dict[str, Any]:
    headers = [f"{name}:{value}" for name, value in slot.headers.items()]
    file = {"id": encode(f"File:{id}"), "uploadUrl": lambda info: world.uploads.url(slot), "uploadHeaders": headers}
    return {"artifactManifest": {"id": id, "file": file}}


def update_manifest(world: World, given: dict[str, Any]) -> dict[str, Any]:
    raise Refused("incremental artifacts are not supported here", 501)


def _pending(world: World, id: str) -> Artifact:
    artifact = world.store.artifact(id)
    if artifact.state != "PENDING":
        raise Refused(f"artifact {artifact.name} is {artifact.state.lower()}", 409)
    return artifact


def create_files(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """Where bytes are put; no URL for those that a version of this artifact has already."""
    nodes = [_file(world, spec) for spec in given["artifactFiles"]]
    return {"files": {"edges": [{"node": node} for node in nodes]}}


def _file(world: World, spec: dict[str, Any]) -> dict[str, Any]:
    artifact, md5 = _pending(world, spec["artifactID"]), spec["md5"]
    if not _MD5.fullmatch(md5):
        raise Refused(f"invalid md5 {md5!r} of {spec['name']}")
    birth = artifact.sequence.birth.get(md5)
    path = f"wandb_artifacts/{artifact.number}/{base64.b64decode(md5).hex()}"
    node = {"id": encode(path), "name": spec["name"], "storagePath": path, "sizeBytes": 0, "directUrl": ""}
    if birth is not None:
        return {**node, "uploadUrl": None, "uploadHeaders": None, "artifact": ArtifactNode(world, birth)}
    headers = {"Content-MD5": md5, "Content-Type": spec.get("mimetype") or "application/octet-stream"}
    told = [f"{name}:{value}" for name, value in headers.items()]
    slot = Slot("artifact", spec["name"], _born(world, artifact), md5, headers)
    node |= {"uploadUrl": world.uploads.url(slot), "uploadHeaders": told, "artifact": ArtifactNode(world, artifact)}
    if spec.get("uploadPartsInput"):
        node["uploadMultipartUrls"] = _parts(world, spec, path)
    return node


def _born(world: World, artifact: Artifact) -> Any:
    def put(md5: str, size: int) -> None:
        artifact.sequence.birth.setdefault(md5, artifact)
        if artifact.algorithm != MD5:  # files are put by their MD5 all the same; the manifest names the other digest
            data = world.store.blobs[md5]
            digest = base64.b64encode(xxhash.xxh128(data).digest()).decode()
            world.store.blobs[digest] = data
            artifact.sequence.birth.setdefault(digest, artifact)

    return put


def _parts(world: World, spec: dict[str, Any], path: str) -> dict[str, Any]:
    upload = encode(f"{path}:{next(world.store.numbers)}")
    numbers = [part["partNumber"] for part in spec["uploadPartsInput"]]
    whole = Multipart(path, spec["artifactID"], spec["md5"], numbers)
    world.uploads.multiparts[upload] = whole

    def slot(number: int, hex_md5: str) -> Slot:
        md5 = base64.b64encode(bytes.fromhex(hex_md5)).decode()
        return Slot("part", spec["name"], lambda md5, size: whole.parts.__setitem__(number, md5), md5)

    urls = [
        {"partNumber": part["partNumber"], "uploadUrl": world.uploads.url(slot(part["partNumber"], part["hexMD5"]))}
        for part in spec["uploadPartsInput"]
    ]
    return {"uploadID": upload, "uploadUrlParts": urls}


def complete_multipart(world: World, given: dict[str, Any]) -> dict[str, Any]:
    artifact = _pending(world, given["artifactID"])
    parts = [(part["partNumber"], part["hexMD5"]) for part in given["completedParts"]]
    digest = world.uploads.complete(given["uploadID"], given["storagePath"], parts)
    _born(world, artifact)(digest, 0)
    return {"digest": digest}


def commit(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """The version counts from now on: it has a number, its aliases and "latest"."""
    artifact = world.store.artifact(given["artifactID"])
    if artifact.state == "COMMITTED":
        return {"artifact": ArtifactNode(world, artifact)}
    artifact = _pending(world, given["artifactID"])
    artifact.manifest, artifact.contents = _whole(world, artifact)
    sequence = artifact.sequence
    artifact.index, artifact.state, artifact.updated = sequence.versions, "COMMITTED", now()
    sequence.versions += 1
    member = _member(artifact, sequence)
    for alias in dict.fromkeys([*artifact.wanted, "latest"]):
        _point(sequence, member, alias)
    return {"artifact": ArtifactNode(world, artifact)}


def _whole(world: World, artifact: Artifact) -> tuple[File, dict[str, dict[str, Any]]]:
    """The manifest and its entries, when all bytes are there."""
    if not artifact.manifests:
        raise Refused(f"artifact {artifact.name} has no manifest")
    file = artifact.manifests[max(artifact.manifests)]
    told = json.loads(world.store.blobs[file.md5])
    contents: dict[str, dict[str, Any]] = told["contents"]
    if told.get("storagePolicyConfig", {}).get("storageLayout") != "V2":
        raise Refused(f"artifact {artifact.name}: storage layout must be V2")
    digest = digest_of(contents, artifact.algorithm)
    if digest != artifact.digest:
        raise Refused(f"artifact {artifact.name}: its manifest has digest {digest}, not {artifact.digest}")
    for name, entry in contents.items():
        if entry.get("ref"):
            continue
        if entry.get("extra", {}).get("alg", "MD5") != artifact.algorithm.removeprefix("MANIFEST_"):
            raise Refused(f"artifact {artifact.name}: {name} has a digest of another kind")
        if entry["digest"] not in artifact.sequence.birth:
            raise Refused(f"artifact {artifact.name}: {name} was not uploaded")
        size = len(world.store.blobs[entry["digest"]])
        if entry.get("size", size) != size:
            raise Refused(f"artifact {artifact.name}: {name} has {size} bytes, not {entry['size']}")
    return file, contents


def digest_of(contents: dict[str, dict[str, Any]], algorithm: str = MD5) -> str:
    """The digest of a version with this manifest."""
    whole = (hashlib.md5 if algorithm == MD5 else xxhash.xxh128)(b"wandb-artifact-manifest-v1\n")
    for name, entry in sorted(contents.items()):
        whole.update(f"{name}:{entry['digest']}\n".encode())
    return whole.hexdigest()


def _member(artifact: Artifact, collection: Collection) -> Membership:
    """The version's place in the collection, made now if it is not there."""
    found = next((one for one in artifact.members if one.collection is collection), None)
    if found is None:
        index = artifact.index if collection is artifact.sequence else collection.versions
        if collection is not artifact.sequence:
            collection.versions += 1
        found = Membership(collection, artifact, index or 0, now())
        artifact.members.append(found)
        collection.members.append(found)
    return found


def _point(collection: Collection, member: Membership, alias: str) -> None:
    """An alias names one version: it is taken from the one that had it."""
    _alias(alias)
    for one in collection.members:
        if alias in one.aliases and one is not member:
            one.aliases.remove(alias)
    if alias not in member.aliases:
        member.aliases.append(alias)


def use(world: World, given: dict[str, Any]) -> dict[str, Any]:
    run = world.store.the_run(given["entityName"], given["projectName"], given["runName"])
    artifact = _committed(world.store.artifact(given["artifactID"]))
    if artifact not in run.used:
        run.used.append(artifact)
        artifact.consumers.append(run)
    return {"artifact": ArtifactNode(world, artifact)}


def _committed(artifact: Artifact) -> Artifact:
    if artifact.state != "COMMITTED":
        raise Refused(f"artifact {artifact.name} is {artifact.state.lower()}", 409)
    return artifact


def update(world: World, given: dict[str, Any]) -> dict[str, Any]:
    artifact = world.store.artifact(given["artifactID"])
    _check(given)
    for name, field in (("description", "description"), ("metadata", "metadata"), ("ttlDurationSeconds", "ttl")):
        if given.get(name) is not None:
            setattr(artifact, field, given[name])
    if given.get("aliases") is not None:
        _rename(artifact, given["aliases"])
    added = [one["tagName"] for one in given.get("tagsToAdd") or []]
    gone = {one["tagName"] for one in given.get("tagsToDelete") or []}
    for tag in added:
        _tag(tag)
    artifact.tags = [tag for tag in dict.fromkeys([*artifact.tags, *added]) if tag not in gone]
    artifact.updated = now()
    return {"artifact": ArtifactNode(world, artifact)}


def _rename(artifact: Artifact, aliases: Iterable[dict[str, Any]]) -> None:
    """These are all its aliases, in every collection."""
    for member in artifact.members:
        wanted = [one["alias"] for one in aliases if one["artifactCollectionName"] == member.collection.name]
        member.aliases = [alias for alias in member.aliases if alias in wanted]
        for alias in wanted:
            _point(member.collection, member, alias)


def delete(world: World, given: dict[str, Any]) -> dict[str, Any]:
    artifact = world.store.artifact(given["artifactID"])
    if any(member.aliases for member in artifact.members) and not given.get("deleteAliases"):
        raise Refused(f"cannot delete artifact {artifact.name} that has aliases")
    for member in artifact.members:
        member.collection.members.remove(member)
    artifact.members, artifact.state = [], "DELETED"
    return {"artifact": ArtifactNode(world, artifact)}


def add_aliases(world: World, given: dict[str, Any]) -> dict[str, Any]:
    for one in given["aliases"]:
        collection, member = _named(world, given["artifactID"], one)
        _point(collection, member, one["alias"])
    return {"success": True}


def delete_aliases(world: World, given: dict[str, Any]) -> dict[str, Any]:
    for one in given["aliases"]:
        _, member = _named(world, given["artifactID"], one)
        if one["alias"] in member.aliases:
            member.aliases.remove(one["alias"])
    return {"success": True}


def _named(world: World, id: str, one: dict[str, Any]) -> tuple[Collection, Membership]:
    collection = _known(world, one)
    member = next((member for member in collection.members if member.artifact.id == id), None)
    if member is None:
        raise Refused(f"artifact {id} is not in {collection.name}", 404)
    return collection, member


def _known(world: World, one: dict[str, Any]) -> Collection:
    project = world.store.project(one["entityName"], one["projectName"])
    found = project.collections.get(one["artifactCollectionName"]) if project else None
    if found is None:
        raise Refused(f"collection {one['artifactCollectionName']} not found", 404)
    return found


def link(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """A version joins a portfolio, which is made where it is not there."""
    artifact = world.store.clients.get(given.get("clientID") or "") or world.store.artifact(
        given.get("artifactID") or ""
    )
    _committed(artifact)
    project = _linked(world, given.get("entityName"), given.get("projectName"))
    name = given.get("artifactPortfolioName") or ""
    if not _NAME.fullmatch(name):
        raise Refused(f"invalid portfolio name {name!r}")
    portfolio = _collection(world, project, name, artifact.sequence.type, portfolio=True)
    member = _member(artifact, portfolio)
    for alias in dict.fromkeys([*_aliases(given), "latest"]):
        _point(portfolio, member, alias)
    return {"versionIndex": member.index, "artifactMembership": MembershipNode(world, member)}


def _linked(world: World, entity: str | None, name: str | None) -> Project:
    """Where it is linked into: the old model registry is there when it is first used."""
    if name == OLD_REGISTRY:
        return world.store.made_project(entity, name, "linkArtifact")
    project = world.store.project(entity, name)
    if project is None:
        raise Refused(f"project {entity}/{name} not found", 404)
    return project


def unlink(world: World, given: dict[str, Any]) -> dict[str, Any]:
    portfolio = _by_id(world, given["artifactPortfolioID"], portfolio=True)
    artifact = world.store.artifact(given["artifactID"])
    portfolio.members = [one for one in portfolio.members if one.artifact is not artifact]
    artifact.members = [one for one in artifact.members if one.collection is not portfolio]
    return {"success": True}


def _by_id(world: World, id: str, *, portfolio: bool) -> Collection:
    found = world.store.collections.get(id)
    if found is None or found.portfolio != portfolio:
        raise Refused(f"collection {id} not found", 404)
    return found


def delete_collection(world: World, given: dict[str, Any]) -> dict[str, Any]:
    portfolio = "artifactPortfolioID" in given
    found = _by_id(world, given["artifactPortfolioID" if portfolio else "artifactSequenceID"], portfolio=portfolio)
    for member in list(found.members):
        member.artifact.members.remove(member)
        if not portfolio:
            member.artifact.state = "DELETED"
    found.members = []
    del found.project.collections[found.name], world.store.collections[found.id]
    return {"artifactCollection": collection_node(world, found)}


def update_collection(world: World, given: dict[str, Any]) -> dict[str, Any]:
    portfolio = "artifactPortfolioID" in given
    found = _by_id(world, given["artifactPortfolioID" if portfolio else "artifactSequenceID"], portfolio=portfolio)
    if given.get("description") is not None:
        found.description = given["description"]
    if given.get("name"):
        if not _NAME.fullmatch(given["name"]):
            raise Refused(f"invalid artifact name {given['name']!r}")
        del found.project.collections[found.name]
        found.name = given["name"]
        found.project.collections[found.name] = found
    found.updated = now()
    return {"artifactCollection": collection_node(world, found)}


def move(world: World, given: dict[str, Any]) -> dict[str, Any]:
    found = _by_id(world, given["artifactSequenceID"], portfolio=False)
    found.type = given["destinationArtifactTypeName"]
    found.project.types.setdefault(found.type, now())
    return {"artifactCollection": collection_node(world, found)}


def add_tags(world: World, given: dict[str, Any]) -> dict[str, Any]:
    found = _known(world, given)
    for one in given["tags"]:
        _tag(one["tagName"])
    found.tags = list(dict.fromkeys([*found.tags, *(one["tagName"] for one in given["tags"])]))
    return {"tags": [tag_node(tag) for tag in found.tags]}


def delete_tags(world: World, given: dict[str, Any]) -> dict[str, Any]:
    found = _known(world, given)
    gone = {one["tagName"] for one in given["tags"]}
    found.tags = [tag for tag in found.tags if tag not in gone]
    return {"success": True}


ARTIFACTS: dict[str, Mutation] = {
    "createArtifact": create_artifact,
    "createArtifactManifest": create_manifest,
    "updateArtifactManifest": update_manifest,
    "createArtifactFiles": create_files,
    "completeMultipartUploadArtifact": complete_multipart,
    "commitArtifact": commit,
    "useArtifact": use,
    "updateArtifact": update,
    "deleteArtifact": delete,
    "addAliases": add_aliases,
    "deleteAliases": delete_aliases,
    "linkArtifact": link,
    "unlinkArtifact": unlink,
    "deleteArtifactSequence": delete_collection,
    "deleteArtifactPortfolio": delete_collection,
    "updateArtifactSequence": update_collection,
    "updateArtifactPortfolio": update_collection,
    "moveArtifactSequence": move,
    "createArtifactCollectionTagAssignments": add_tags,
    "deleteArtifactCollectionTagAssignments": delete_tags,
}
