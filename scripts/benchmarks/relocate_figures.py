"""The figures of a server's artifacts that move to S3: the switch itself, and a second copy with nothing new."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import s3server
from benchmarks.figures import Shop, costs, say
from benchmarks.measure import Cost
from benchmarks.stores import Shape
from benchmarks.table import Row
from benchmarks.tools import database, mlmigrate


def relocate(shop: Shop) -> list[Row]:
    """20,000 artifacts of a database from a folder to S3: the time of the transaction, and of a copy of nothing new."""
    with s3server.running(_folder(shop)) as s3:
        return _moved(shop, shop.sizes.artifacts, s3)


def _folder(shop: Shop) -> Path:
    folder: Path = shop.place("s3")
    folder.mkdir(parents=True)
    return folder


def _moved(shop: Shop, shape: Shape, s3: s3server.S3Server) -> list[Row]:
    file = _store(shop, shape)
    to = f"s3://{s3.bucket()}/mlflow"
    given = ["--to", to, "--ledger", str(shop.place("relocate.ledger")), "--json"]
    again = mlmigrate("relocate", database(file), *given, "--copy-only", **s3.env)
    second = mlmigrate("relocate", database(file), *given, "--copy-only", **s3.env)
    switch = mlmigrate("relocate", database(file), *given, **s3.env)
    _check(file, shape, s3, to)
    passes, seconds = _told(again)["pass_seconds"], _told(switch)["switch_seconds"]
    told = costs(first=again, second=second, switch=switch)
    n = f"{shape.runs * shape.files:,} artifacts of {shape.size // 1024} KiB in {shape.runs:,} runs"
    rows = [Row("relocate, the switch", n, f"{seconds:.2f} s", "", seconds, 2, at_most=True, unit=" s", detail=told)]
    for name, left, first in (
        ("the second pass", passes[-1], passes[0]),
        ("the same command again", second.wall, again.wall),
    ):
        share, right = 100 * left / first, f"{first:.2f} s for the first"
        rows.append(Row(f"relocate, {name}", n, f"{left:.2f} s", right, share, 5, at_most=True, unit=" %", detail=told))
    return rows


def _store(shop: Shop, shape: Shape) -> Path:
    """A database whose artifacts lie in a folder beside it, named by their paths."""
    made = shop.store(shape).parent
    folder = shop.place("relocated")
    shutil.copytree(made, folder)
    root, file = folder / "mlartifacts", folder / "mlflow.db"
    with closing(sqlite3.connect(file)) as store, store:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            store.execute(f"update {table} set {column} = replace({column}, 'mlflow-artifacts:', ?)", (str(root),))
    return file


def _check(file: Path, shape: Shape, s3: s3server.S3Server, to: str) -> None:
    """Every address is the new one, and every object is there: by raw SQL and boto3, whatever relocate says."""
    with closing(sqlite3.connect(file)) as store:
        (moved,) = store.execute("select count(*) from runs where artifact_uri like ? || '/%'", (to,)).fetchone()
    bucket = to.removeprefix("s3://").partition("/")[0]
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="mlflow/")
    objects = sum(one["Size"] == shape.size for page in pages for one in page.get("Contents", ()))
    if (moved, objects) != (shape.runs, shape.runs * shape.files):
        raise RuntimeError(f"{moved} of {shape.runs} runs and {objects} of {shape.runs * shape.files} objects moved")


def _told(cost: Cost) -> dict[str, Any]:
    """What the command says of itself at its end."""
    for line in cost.log.splitlines():
        told: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        if told.get("message_type") == "relocated":
            return told
    say(cost.log[-2000:])
    raise RuntimeError("the command does not say how it ended")
