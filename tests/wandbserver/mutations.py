"""Mutations: what changes runs, projects and sweeps. Those of artifacts are in versions.py."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from .nodes import ProjectNode, RunNode, World, sweep_of, upload_url
from .store import Project, Refused, Run, Sweep, decode, now, strict_json

CONFIG_BYTES = 10 * 2**20  # W&B's guidance; here a bound
STATES = ("pending", "running", "finished", "failed", "crashed", "killed", "preempting", "preempted")
_TEXTS = {  # of UpsertBucketInput: what sets which field of a run
    "displayName": "display",
    "notes": "notes",
    "description": "description",
    "groupName": "group",
    "jobType": "job_type",
    "sweep": "sweep",
    "host": "host",
    "jobProgram": "program",
    "jobRepo": "repo",
    "commit": "commit",
}
Mutation = Callable[[World, dict[str, Any]], Any]


def upsert_bucket(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """Makes a run or changes one. What is null stays as it is; a config takes the place of the whole old one."""
    changes = _changes(given)
    run, inserted = _found_or_made(world, given)
    for name, value in changes.items():
        setattr(run, name, value)
    run.heartbeat = now()
    return {"bucket": RunNode(world, run), "inserted": inserted}


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    changes = {field: given[name] for name, field in _TEXTS.items() if given.get(name) is not None}
    if given.get("config") is not None:
        _config(given["config"])
        changes["config"] = given["config"]
    if given.get("summaryMetrics") is not None:
        if not isinstance(strict_json(given["summaryMetrics"], "summaryMetrics"), dict):
            raise Refused("invalid summaryMetrics: not an object")
        changes["summary"] = given["summaryMetrics"]
    if given.get("tags") is not None:
        wrong = next((tag for tag in given["tags"] if not 0 < len(tag) <= 64), None)
        if wrong is not None:
            raise Refused(f"invalid tag {wrong!r}: must be between 1 and 64 characters")
        changes["tags"] = list(dict.fromkeys(given["tags"]))
    if given.get("state") is not None:
        changes["state"] = _state(given["state"])
    return changes


def _config(text: str) -> None:
    if len(text) > CONFIG_BYTES:
        raise Refused(f"config of {len(text)} bytes is too large", 413)
    config = strict_json(text, "config")
    if not isinstance(config, dict):
        raise Refused("invalid config: not an object")
    for key, entry in config.items():
        if not isinstance(entry, dict) or "value" not in entry:
            raise Refused(f'invalid config: {key!r} is no {{"value": ...}}')


def _state(state: str) -> str:
    if state not in STATES:
        raise Refused(f"invalid state {state!r}")
    return state


def _found_or_made(world: World, given: dict[str, Any]) -> tuple[Run, bool]:
    if given.get("id"):
        return world.store.run_by_id(given["id"]), False
    name = given.get("name") or secrets.token_hex(4)
    if len(name) > 128 or any(c in name for c in "/\\#?%:") or name != name.strip():
        raise Refused(f"invalid run name {name!r}")
    project = world.store.made_project(given.get("entityName"), given.get("modelName"), "upsertBucket")
    if name in project.deleted:
        raise Refused(f"run {project.path}/{name} was previously created and deleted; try a new run name", 409)
    if name in project.runs:
        return project.runs[name], False
    number = next(world.store.numbers)
    run = Run(project, name, number, f"misty-sky-{number}", created=now())
    project.runs[name] = run
    return run, True


def delete_run(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """The id of a run that was deleted is never free again."""
    run = world.store.run_by_id(given["id"])
    del run.project.runs[run.name]
    run.project.deleted.add(run.name)
    return {"clientMutationId": None}


def update_run_state(world: World, given: dict[str, Any]) -> dict[str, Any]:
    run = world.store.run_by_id(given["id"])
    if given["state"] not in ("pending", "failed"):
        raise Refused(f"a run cannot be set to {given['state']!r}")
    run.state = given["state"]
    return {"success": True}


def stop_run(world: World, given: dict[str, Any]) -> dict[str, Any]:
    world.store.run_by_id(given["id"]).stopped = True
    return {"success": True}


def upsert_model(world: World, given: dict[str, Any]) -> dict[str, Any]:
    name = given.get("name")
    there = world.store.project(given.get("entityName"), name)
    project = there or world.store.made_project(given.get("entityName"), name, "upsertModel")
    _fill(project, given)
    node = ProjectNode(world, project)
    return {"project": node, "model": node, "inserted": there is None}


def _fill(project: Project, given: dict[str, Any]) -> None:
    for name, field in (("description", "description"), ("access", "access")):
        if given.get(name) is not None:
            setattr(project, field, given[name])
    if given.get("allowAllArtifactTypesInRegistry") is not None:
        project.any_type = given["allowAllArtifactTypesInRegistry"]
    for kind in given.get("artifactTypes") or []:
        project.types.setdefault(kind["name"], now())


def upsert_sweep(world: World, given: dict[str, Any]) -> dict[str, Any]:
    project = world.store.made_project(given.get("entityName"), given.get("projectName"), "upsertSweep")
    name = given.get("id") or secrets.token_hex(4)
    sweep = next((one for one in project.sweeps.values() if name in (one.name, one.id)), None)
    if sweep is None:
        sweep = Sweep(project, name, given.get("config") or "", "PENDING", None, None, now(), now())
        project.sweeps[name] = sweep
    for key, field in (("config", "config"), ("state", "state"), ("displayName", "display")):
        if given.get(key) is not None:
            setattr(sweep, field, given[key])
    sweep.updated = now()
    return {"sweep": sweep_of(world, sweep), "configValidationWarnings": []}


def create_run_files(world: World, given: dict[str, Any]) -> dict[str, Any]:
    run = world.store.the_run(given["entityName"], given["projectName"], given["runName"])
    for name in given["files"]:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise Refused(f"invalid file name {name!r}")
    files = [{"name": name, "uploadUrl": upload_url(world, run, name)} for name in given["files"]]
    return {"runID": run.id, "uploadHeaders": [], "files": files}


def mark_run_files_uploaded(world: World, given: dict[str, Any]) -> dict[str, Any]:
    run = world.store.the_run(given["entityName"], given["projectName"], given["runName"])
    run.marked += given["files"]
    return {"success": True}


def delete_files(world: World, given: dict[str, Any]) -> dict[str, Any]:
    for one in given["files"]:
        entity, project, run, name = decode(one).removeprefix("File:").split("/", 3)
        world.store.the_run(entity, project, run).files.pop(name, None)
    return {"success": True}


def alert(world: World, given: dict[str, Any]) -> dict[str, Any]:
    world.store.the_run(given["entityName"], given["projectName"], given["runName"])
    if len(given["title"]) > 64:
        raise Refused("alert title is too long")
    return {"success": True}


RUNS: dict[str, Mutation] = {
    "upsertBucket": upsert_bucket,
    "deleteRun": delete_run,
    "updateRunState": update_run_state,
    "stopRun": stop_run,
    "upsertModel": upsert_model,
    "upsertSweep": upsert_sweep,
    "createRunFiles": create_run_files,
    "markRunFilesUploaded": mark_run_files_uploaded,
    "deleteFiles": delete_files,
    "notifyScriptableRunAlert": alert,
}
