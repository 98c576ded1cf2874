"""The least that anyone could do: `python -m benchmarks.bare scan|insert_sqlite|insert_adbc|walk|log_batch ...`"""

# ruff: noqa: PLC0415  each pays for what it imports alone

from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

ORDER = ("experiments", "runs", "params", "tags", "metrics", "latest_metrics")


def scan(store: str, out: str) -> None:
    """Every point of a database into one Parquet file, as ADBC gives it."""
    import adbc_driver_sqlite.dbapi
    import pyarrow.parquet as pq

    with adbc_driver_sqlite.dbapi.connect(store) as link, link.cursor() as cursor:
        cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": "65536"})
        cursor.execute("select run_uuid, key, step, timestamp, value, is_nan from metrics")
        reader = cursor.fetch_record_batch()
        with pq.ParquetWriter(out, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)


def insert_sqlite(columns: str, store: str) -> None:
    """The same rows into the same indexed tables, by executemany in one transaction."""
    import pyarrow.parquet as pq

    link = sqlite3.connect(store)
    for table in ORDER:
        for batch in pq.ParquetFile(Path(columns) / f"{table}.parquet").iter_batches():
            names, marks = ", ".join(batch.schema.names), ", ".join("?" * batch.num_columns)
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            link.executemany(f"insert into {table} ({names}) values ({marks})", rows)
    link.commit()
    link.close()


def insert_adbc(columns: str, uri: str) -> None:
    """The same rows into the same indexed tables, by ADBC's own ingestion (COPY, for PostgreSQL) in one transaction."""
    import pyarrow.parquet as pq

    if uri.startswith("postgresql"):
        from adbc_driver_postgresql import dbapi
    else:
        from adbc_driver_sqlite import dbapi
    with dbapi.connect(uri) as link:
        for table in ORDER:
            rows = pq.ParquetFile(Path(columns) / f"{table}.parquet")
            with link.cursor() as cursor:
                cursor.adbc_ingest(table, _reader(rows), mode="append")
        link.commit()


def _reader(rows):  # type: ignore[no-untyped-def]
    import pyarrow as pa

    return pa.RecordBatchReader.from_batches(rows.schema_arrow, rows.iter_batches())


def walk(folder: str) -> None:
    """Every byte of every file."""
    for top, _, names in os.walk(folder):
        for name in names:
            with Path(top, name).open("rb", 0) as opened:
                while opened.read(1 << 20):
                    pass


class Client:
    """One kept-alive connection that acknowledges at once, so that no answer waits for it."""

    def __init__(self, url: str) -> None:
        self.link = http.client.HTTPConnection(urlsplit(url).netloc)
        self.link.connect()
        self.link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, path: str, body: object) -> dict[str, object]:
        self.link.request("POST", f"/api/2.0/mlflow/{path}", json.dumps(body), {"Content-Type": "application/json"})
        if hasattr(socket, "TCP_QUICKACK"):
            self.link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        answer = self.link.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {text[:300]!r}")
        return json.loads(text)  # type: ignore[no-any-return]


def log_batch(columns: str, url: str, threads: str) -> None:
    """The points alone, 1,000 a call, sorted, several runs at once. The bodies are made on the way, as anyone must."""
    import pyarrow.parquet as pq

    table = pq.read_table(Path(columns) / "metrics.parquet", columns=["run_uuid", "key", "step", "timestamp", "value"])
    table = table.sort_by(
        [("run_uuid", "ascending"), ("key", "ascending"), ("timestamp", "ascending"), ("step", "ascending")]
    )
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    runs = [list(points) for _, points in groupby(rows, key=lambda row: row[0])]
    experiment = Client(url).post("experiments/create", {"name": f"bare {os.getpid()}"})["experiment_id"]
    with ThreadPoolExecutor(int(threads)) as pool:
        list(pool.map(lambda points: _log(url, experiment, points), runs))


def _log(url: str, experiment: object, points: list[tuple[str, str, int, int, float]]) -> None:
    client = Client(url)
    made = client.post("runs/create", {"experiment_id": experiment, "start_time": points[0][3]})
    run = made["run"]["info"]["run_id"]  # type: ignore[index]
    for first in range(0, len(points), 1000):
        metrics = [
            {"key": key, "value": value, "timestamp": timestamp, "step": step}
            for _, key, step, timestamp, value in points[first : first + 1000]
        ]
        client.post("runs/log-batch", {"run_id": run, "metrics": metrics})
    client.link.close()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
