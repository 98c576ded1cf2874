"""What a person typed -> a Job: places parsed and merged, the selection, the mapping, the settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mlmigrate import address, mapping
from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context, Settings, Side
from mlmigrate.address import Address
from mlmigrate.cli.light import leave_pandas_out
from mlmigrate.cli.options import PARTS, Chosen
from mlmigrate.errors import NotFound, UsageError
from mlmigrate.selection import PARTS as ALL_PARTS
from mlmigrate.selection import Selection
from mlmigrate.transfer import Job

_DATABASE = re.compile(r"(sqlite|postgres|postgresql|mysql|mariadb|mssql)(\+\w+)?://")


def job_of(places: Sequence[str], chosen: Chosen) -> Job:
    """The job that SOURCE... TARGET and the options describe. Raises UsageError, NotFound.

    From database to database, artifacts stay where they are.
    """
    leave_pandas_out()
    *sources, target = _split(places, chosen)
    source = address.merge(tuple(sources))
    if source.text == target.text:
        raise UsageError(f"SOURCE and TARGET are the same place: {source.shown}")
    rules = mapping.load(chosen.mapping)
    settings = Settings(
        artifacts_to=chosen.artifacts_to or ("keep" if is_database(source) and is_database(target) else ""),
        artifacts_at=chosen.artifacts_at,
        allow_artifacts=chosen.allow_artifacts,
        on_conflict=chosen.on_conflict,
        bwlimit=chosen.bwlimit,
        tpslimit=chosen.tpslimit,
        part_size=chosen.part_size,
        options=rules.choices,
    )
    return Job(
        source,
        target,
        selection=selection_of(chosen),
        mapping=rules,
        source_settings=settings,
        target_settings=settings,
        tries=chosen.retries,
    )


def _split(places: Sequence[str], chosen: Chosen) -> list[Address]:
    """All sources, then the target."""
    found = [one for folder in chosen.scan for one in scanned(folder)]
    *named, target = places or ("",)
    if not target or not (named or found):
        wanted = "TARGET" if chosen.scan else "SOURCE and TARGET"
        raise UsageError(f"{wanted} must be named.", "For example: mlmigrate copy mlflow:./mlruns ./archive")
    sources = [place_of(text, "source") for text in named]
    known = {one.text for one in sources}
    return [*sources, *(one for one in found if one.text not in known), place_of(target, "target")]


def place_of(text: str, side: Side) -> Address:
    """The place that `text` names, with what the environment of that side says of it."""
    return registry.whole(address.parse(text), Context(side).env)


def scanned(folder: Path) -> list[Address]:
    """Every store under `folder`, whichever adapter knows it."""
    places = registry.places_under(folder)
    if not places:
        raise NotFound(f"There is no store under {folder}.", "A store is an mlruns folder or a database of MLflow.")
    return places


def is_database(place: Address) -> bool:
    """Whether this is an MLflow backend database (or several of them)."""
    if place.many:
        return all(is_database(one) for one in place.many)
    return place.kind == "mlflow" and _DATABASE.match(place.place) is not None


def selection_of(chosen: Chosen) -> Selection:
    """Which runs, and which parts of them."""
    wanted = {PARTS[name] for name in chosen.only} or set(ALL_PARTS)
    parts = frozenset(wanted - {PARTS[name] for name in chosen.skip})
    return Selection(
        experiments=chosen.experiment,
        runs=chosen.run,
        since=chosen.since,
        until=chosen.until,
        statuses=chosen.status,
        parts=parts,
        deleted=chosen.deleted,
        max_artifact_size=chosen.max_artifact_size,
        include=chosen.include,
        exclude=chosen.exclude,
    )


def must_be_archive(place: Address, name: str) -> None:
    """Raises UsageError for a place of another kind."""
    if place.kind != "archive":
        raise UsageError(
            f"{place.shown} is not an archive, and {name} must be one.",
            "From any place into any other: mlmigrate copy SOURCE TARGET",
        )


def whole_file(file: Path, text: str) -> None:
    """Writes a file, whole or not at all. Raises UsageError when it cannot be written."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        part.replace(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", "Name another with --report.") from error
