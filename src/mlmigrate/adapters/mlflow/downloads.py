"""Files downloaded as everybody downloads them: through MLflow's own client, in a process of its own.

That process sees one side's environment alone, and opens no store: MLflow's classes upgrade a database
that they merely look at.  What it is asked and what it answers are lines of JSON:

    {"number": 7, "uri": "s3://bucket/1/abc/artifacts/model.pkl", "to": "/tmp/x/7"}
    {"number": 7, "run": "abc", "path": "model.pkl", "to": "/tmp/x/7"}      through a server
    {"number": 7, "file": "/tmp/x/7/model.pkl"}    or    {"number": 7, "error": "..."}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from mlmigrate.errors import MigrateError, NotFound, Unavailable, UsageError

AT_ONCE = 8


class Downloads:
    """MLflow's client, asked for files by any number of threads."""

    def __init__(self, env: Mapping[str, str], server: str = "") -> None:
        if find_spec("mlflow") is None:
            raise UsageError("MLflow is not installed here.", 'pip install "mlmigrate[mlflow]"')
        quiet = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(  # noqa: S603  ourselves
            [sys.executable, "-m", __name__, server],
            env={**env, **quiet, "MLFLOW_TRACKING_URI": server or "file:///dev/null/none"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self._asked: dict[int, Future[Path]] = {}
        self._number = 0
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="downloads", daemon=True)
        self._reader.start()

    def of_uri(self, uri: str, to: Path) -> Path:
        """The file at an artifact's address, downloaded below `to`."""
        return self._ask({"uri": uri}, to)

    def of_run(self, run: str, path: str, to: Path) -> Path:
        """A file of a run, through the server."""
        return self._ask({"run": run, "path": path}, to)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None  # noqa: S101  it was asked for
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, what: dict[str, str], to: Path) -> Path:
        future: Future[Path] = Future()
        with self._lock:
            self._number += 1
            number = self._number
            self._asked[number] = future
            self._write({"number": number, **what, "to": str(to)})
        return future.result()

    def _write(self, question: dict[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101  it was asked for
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise Unavailable("MLflow's client ended before it was asked.") from error

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  it was asked for
        for line in self._process.stdout:
            answer = _answer(line)
            future = self._asked.pop(answer.get("number", 0), None)
            if future is None:
                continue
            if "file" in answer:
                future.set_result(Path(answer["file"]))
            else:
                future.set_exception(_error(answer))
        for future in list(self._asked.values()):
            if not future.done():
                future.set_exception(Unavailable("MLflow's client ended before it answered."))


def _answer(line: str) -> dict[str, Any]:
    """An answer; what a library wrote to stdout is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _error(answer: Mapping[str, Any]) -> MigrateError:
    said = str(answer.get("error", ""))
    if said.startswith(("ModuleNotFoundError", "ImportError")):
        return UsageError(f"MLflow lacks a package for that store: {said}")
    kind = NotFound if answer.get("missing") else MigrateError
    return kind(f"MLflow could not download it: {said}")


def serve(questions: IO[str], answers: IO[str], server: str) -> None:
    """Downloads what is asked for, some at once, until there are no more questions."""
    import mlflow  # noqa: PLC0415  in the process of its own alone

    client = mlflow.MlflowClient(server) if server else None
    lock = threading.Lock()

    def one(question: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"number": question["number"]}
        try:
            Path(question["to"]).mkdir(parents=True, exist_ok=True)
            if client is not None and "run" in question:
                answer["file"] = client.download_artifacts(question["run"], question["path"], question["to"])
            else:
                answer["file"] = mlflow.artifacts.download_artifacts(
                    artifact_uri=question["uri"], dst_path=question["to"]
                )
        except Exception as error:  # noqa: BLE001  whatever it is, the other process tells of it
            text = f"{type(error).__name__}: {error}"
            answer["error"] = text.splitlines()[0][:500]
            answer["missing"] = "does not exist" in text or "404" in text or "No such" in text
        with lock:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for line in questions:
            pool.submit(one, json.loads(line))


if __name__ == "__main__":
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes nowhere
    serve(sys.stdin, _answers, sys.argv[1] if len(sys.argv) > 1 else "")
