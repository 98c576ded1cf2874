"""Every store and every backend database under a folder, for a team whose scripts left them everywhere."""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH100

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from mlmigrate.adapters.mlflow.files import disk, homes
from mlmigrate.adapters.mlflow.files.source import is_sqlite
from mlmigrate.errors import MigrateError, NotFound

DEEPEST = 32
_SKIPPED = frozenset(("node_modules", "site-packages", "__pycache__", "proc", "sys", "dev"))
_ENDINGS = (".db", ".sqlite", ".sqlite3")


def stores_under(folder: str | Path) -> list[Path]:
    """Every file store at or under a folder, sorted. Links are not followed, and no store is looked into."""
    return sorted(place for place, _ in _places(Path(folder), into_stores=False) if homes.is_store(str(place)))


def databases_under(folder: str | Path) -> list[Path]:
    """Every SQLite file at or under a folder that is an MLflow backend, sorted."""
    found = []
    for _, entries in _places(Path(folder), into_stores=False):
        found += [
            Path(entry.path)
            for entry in entries
            if entry.name.endswith(_ENDINGS) and entry.is_file(follow_symlinks=False) and _is_backend(entry.path)
        ]
    return sorted(found)


def _places(folder: Path, *, into_stores: bool) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Every folder at or under one, with what lies in it."""
    if not folder.is_dir():
        raise NotFound(f"{disk.shown(str(folder))} is no folder.", "--scan takes a folder to look for stores in")
    waiting = [(str(folder), 0)]
    while waiting:
        place, depth = waiting.pop()
        try:
            entries = disk.entries(place)
        except MigrateError:  # not ours to read: what lies there is nobody's loss that asked
            continue
        yield Path(place), entries
        if depth < DEEPEST and (into_stores or not homes.is_store(place)):
            waiting += [(entry.path, depth + 1) for entry in entries if _worth_a_look(entry)]


def _worth_a_look(entry: os.DirEntry[str]) -> bool:
    return disk.is_folder(entry) and entry.name not in _SKIPPED and not entry.name.startswith(".")


def _is_backend(path: str) -> bool:
    """Whether a file is a SQLite database with MLflow's tables. Opened for reading only."""
    if not is_sqlite(path):
        return False
    try:
        with closing(sqlite3.connect(f"file:{quote(os.path.abspath(path))}?mode=ro", uri=True, timeout=1)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            return {"alembic_version", "experiments"} <= tables
    except sqlite3.Error:
        return False
