"""What a SQLite database of MLflow holds, asked by raw SQL alone: for tests that trust no reader of ours."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

Row = tuple[tuple[str, Any], ...]
OURS = "mlmigrate.%"  # tags that we set beside what was carried


def ask(file: Path, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query, nothing written."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as link:
        return link.execute(sql).fetchall()


def tables(file: Path) -> list[str]:
    return [name for (name,) in ask(file, "select name from sqlite_master where type = 'table' order by name")]


def columns(file: Path, table: str) -> list[str]:
    return [row[1] for row in ask(file, f'pragma table_info("{table}")')]


def rows(file: Path, table: str, without: Collection[str] = ()) -> Counter[Row]:
    """How often each row is there, but for some columns and for our own tags."""
    names = [name for name in columns(file, table) if name not in without]
    chosen = ", ".join(f'"{name}"' for name in names)
    found = ask(file, f'select {chosen} from "{table}" where {_theirs(file, table)}')
    return Counter(tuple(zip(names, row, strict=True)) for row in found)


def counts(file: Path) -> dict[str, int]:
    """How many rows each table has that has any."""
    found = {
        name: ask(file, f'select count(*) from "{name}" where {_theirs(file, name)}')[0][0] for name in tables(file)
    }
    return {name: count for name, count in found.items() if count}


def differences(source: Path, copy: Path, lawful: Mapping[str, Collection[str]]) -> dict[str, tuple[list[Row], ...]]:
    """Table -> (some rows only in the source, some only in the copy); `lawful`: columns that may be others."""
    found = {}
    for table in sorted({*tables(source), *tables(copy)}):
        without = lawful.get(table, ())
        here, there = (rows(file, table, without) if table in tables(file) else Counter() for file in (source, copy))
        if here != there:
            found[table] = (list((here - there).elements())[:3], list((there - here).elements())[:3])
    return found


def _theirs(file: Path, table: str) -> str:
    keys = [name for name in columns(file, table) if name in ("key", "tag_key")]
    return " and ".join(f"{key} not like '{OURS}'" for key in keys) or "1 = 1"
