"""An estate whose files lie in a bucket: made by MLflow's own client and raw boto3, and looked at in the same way."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from mlmigrate.adapters.base import Settings
from mlmigrate.address import parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import transfer
from mlmigrate.verify import verify

BIG = 17 << 20  # bytes: more than one part
MLMODEL = "artifact_path: {place}\nflavors: {{}}\nmodel_id: {model}\n"


@dataclass
class Estate:
    """`files`: key in the bucket -> bytes, below `prefix` and without it."""

    database: Path
    experiment: str
    runs: list[str]
    model: str
    files: dict[str, bytes]

    @property
    def place(self) -> str:
        return f"mlflow:sqlite:///{self.database}"

    @property
    def plain(self) -> dict[str, bytes]:
        """All but the file that names its own place."""
        return without_mlmodel(self.files)


def without_mlmodel(files):
    return {key: data for key, data in files.items() if not key.endswith("/MLmodel")}


def filled(folder, put, root, runs=2, files=12):
    """An estate at `root`; put(key below the experiment's place, bytes) lays a file there."""
    from mlflow import MlflowClient

    folder.mkdir(exist_ok=True)
    database = folder / "mlflow.db"
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.create_experiment("vision", artifact_location=root)
    estate = Estate(database, experiment, [], "", {})

    def lay(key, data):
        put(key, data)
        estate.files[key] = data

    for number in range(runs):
        run = client.create_run(experiment).info.run_id
        client.log_metric(run, "loss", 0.5)
        estate.runs.append(run)
        for n in range(files):
            lay(f"{run}/artifacts/d{n % 3}/f{n} ü%2F#?.txt", f"{run} {n}\n".encode() * 200)
        lay(f"{run}/artifacts/empty", b"")
        lay(f"{run}/artifacts/big.bin", os.urandom(BIG) if not number else b"small")
        client.set_terminated(run)
    model = client.create_logged_model(experiment, name="forest", source_run_id=estate.runs[0])
    client.finalize_logged_model(model.model_id, "READY")
    estate.model = model.model_id
    text = MLMODEL.format(place=model.artifact_location, model=model.model_id)
    lay(f"models/{model.model_id}/artifacts/MLmodel", text.encode())
    lay(f"models/{model.model_id}/artifacts/weights", b"weights" * 999)
    return estate


def in_bucket(folder, s3, bucket, prefix="team/vision", **how):
    """An estate in a bucket, written by boto3."""
    client = s3.client()

    def put(key, data):
        client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=data)

    return filled(folder, put, f"s3://{bucket}/{prefix}", **how)


def on_disk(folder, **how):
    """An estate in a folder."""
    root = folder / "files"

    def put(key, data):
        file = root / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    return filled(folder, put, str(root), **how)


def job_of(source, target, **settings):
    chosen = Settings(**settings)
    return Job(parse(source), parse(str(target)), source_settings=chosen, target_settings=chosen)


def carry(job, folder):
    ledger = Ledger.open(folder / "ledger.sqlite", job.source, job.target)
    try:
        return transfer(job, ledger, Silent(), workers=2)
    finally:
        ledger.close()


def compared(job, **how):
    return verify(job, Silent(), workers=2, **how)


def rows(database, sql):
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def sha256s(files):
    return {hashlib.sha256(data).hexdigest() for data in files.values()}
