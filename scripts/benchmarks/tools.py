"""The commands that are compared: ours, and those of the peers in an environment of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import CommandFailed, Cost, run

PEER = "databricks-mlflow-export-import==1.2.1"
PEER_MLFLOW = "mlflow==3.17.2"
REPOSITORY = Path(__file__).resolve().parents[2]
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def mlmigrate(*arguments: str, codes: tuple[int, ...] = (0,), **env: str) -> Cost:
    """One mlmigrate command, as a person starts it from a script."""
    return run([sys.executable, "-m", "mlmigrate", *arguments], env={**QUIET, **env}, codes=codes)


def database(file: Path) -> str:
    return f"mlflow:sqlite:///{file}"


def emptied(*places: Path) -> None:
    for place in places:
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


@dataclass(frozen=True)
class Peers:
    """mlflow-export-import and mlflow beside it."""

    environment: Path

    @classmethod
    def found(cls) -> Peers:
        """In MLMIGRATE_TEST_ENVS/mei, or made under .cache/envs/mei."""
        given = os.environ.get("MLMIGRATE_TEST_ENVS")
        if given and (Path(given) / "mei" / "bin" / "export-all").exists():
            return cls(Path(given) / "mei")
        place = REPOSITORY / ".cache" / "envs" / "mei"
        if not (place / "bin" / "export-all").exists():
            print(f"making {place} ...", file=sys.stderr)
            uv = [sys.executable, "-m", "uv"]
            subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place)], check=True)
            packages = [*uv, "pip", "install", "--quiet", "--python", str(place / "bin" / "python"), PEER, PEER_MLFLOW]
            subprocess.run(packages, check=True)
        return cls(place)

    @property
    def mlflow(self) -> Path:
        return self.environment / "bin" / "mlflow"

    def export_all(self, url: str, folder: Path, runs: int) -> Cost:
        """Its quickest way: with threads. It ends with 0 whatever it lost, so what it wrote is counted."""
        cost = self._run("export-all", url, "--output-dir", str(folder), "--use-threads", "True")
        wrote = len(list(folder.glob("experiments/*/runs/*/run.json")))
        if wrote != runs:
            raise CommandFailed(f"export-all wrote {wrote} of {runs} runs:\n{cost.log[-3000:]}")
        return cost

    def import_all(self, url: str, folder: Path) -> Cost:
        return self._run("import-all", url, "--input-dir", str(folder), "--use-threads", "True")

    def migrate_filestore(self, store: Path, file: Path) -> Cost:
        """It may refuse a store that mlflow itself wrote; the cost then says with which code."""
        source = store.parent if store.name == "mlruns" else store
        argv = [str(self.mlflow), "migrate-filestore", "--source", str(source), "--target", f"sqlite:///{file}"]
        return run([*argv, "--no-progress"], env=QUIET, codes=(0, 1))

    def _run(self, command: str, url: str, *arguments: str) -> Cost:
        env = {**QUIET, "MLFLOW_TRACKING_URI": url}
        return run([str(self.environment / "bin" / command), *arguments], env=env)
