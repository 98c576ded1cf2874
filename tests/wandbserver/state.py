"""All that the server holds, as plain JSON: what tests expect is told by this, never by the code under test."""

from __future__ import annotations

import json
from typing import Any

from .store import Artifact, Collection, File, Project, Run, Store


def told(store: Store) -> dict[str, Any]:
    """Runs, artifacts and collections by their paths, and by their client ids; blobs by md5 with their size."""
    projects = [project for held in store.entities.values() for project in held.values()]
    return {
        "projects": {project.path: _project(project) for project in projects},
        "runs": {run.path: _run(run) for project in projects for run in project.runs.values()},
        "artifacts": {_path(one): _artifact(one) for one in store.artifacts.values() if one.state == "COMMITTED"},
        "pending": {one.id: _artifact(one) for one in store.artifacts.values() if one.state == "PENDING"},
        "collections": {_at(one): _collection(one) for one in store.collections.values()},
        "clients": {client: _path(one) for client, one in store.clients.items() if one.state == "COMMITTED"},
        "sequences": {client: _at(one) for client, one in store.sequence_clients.items()},
        "blobs": {md5: len(data) for md5, data in store.blobs.items()},
    }


def _project(project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "entity": project.entity,
        "name": project.name,
        "created": project.created,
        "description": project.description,
        "runs": list(project.runs),
        "deleted": sorted(project.deleted),
        "types": list(project.types),
        "collections": list(project.collections),
        "sweeps": {one.name: {"config": one.config, "state": one.state} for one in project.sweeps.values()},
        "reports": [{"title": one.display, "description": one.description, "spec": one.spec} for one in project.views],
    }


def _run(run: Run) -> dict[str, Any]:
    config = json.loads(run.config)
    plain = ("name", "display", "notes", "tags", "group", "job_type", "sweep", "state", "exitcode", "host", "program")
    more = ("repo", "commit", "user", "created", "heartbeat", "history", "steps", "events", "output", "uploaded")
    return {
        "id": run.id,
        "entity": run.project.entity,
        "project": run.project.name,
        **{name: getattr(run, name) for name in (*plain, *more, "marked", "complete", "exported")},
        "config": {key: entry["value"] for key, entry in config.items()},
        "summary": run.summary,
        "files": {name: _file(file) for name, file in run.files.items()},
        "logged": [_path(one) for one in run.logged if one.state == "COMMITTED"],
        "used": [_path(one) for one in run.used],
    }


def _file(file: File) -> dict[str, Any]:
    return {"md5": file.md5, "size": file.size}


def _at(collection: Collection) -> str:
    return f"{collection.project.path}/{collection.name}"


def _path(artifact: Artifact) -> str:
    return f"{artifact.sequence.project.path}/{artifact.name}"


def _artifact(artifact: Artifact) -> dict[str, Any]:
    mine = [member for member in artifact.members if member.collection is artifact.sequence]
    plain = ("id", "state", "digest", "description", "ttl", "tags", "created", "history_step")
    return {
        **{name: getattr(artifact, name) for name in plain},
        "collection": _at(artifact.sequence),
        "type": artifact.sequence.type,
        "version": artifact.index,
        "metadata": json.loads(artifact.metadata or "{}"),
        "aliases": [alias for member in mine for alias in member.aliases],
        "producer": artifact.run.path if artifact.run else None,
        "consumers": [run.path for run in artifact.consumers],
        "links": [_at(member.collection) for member in artifact.members if member not in mine],
        "manifest": artifact.contents,
    }


def _collection(collection: Collection) -> dict[str, Any]:
    members = {
        f"v{member.index}": {"artifact": _path(member.artifact), "aliases": member.aliases}
        for member in collection.members
    }
    return {
        "type": collection.type,
        "portfolio": collection.portfolio,
        "description": collection.description,
        "tags": collection.tags,
        "members": members,
    }
