"""Real MLflow servers for tests: each version in an environment of its own, made once and kept.

The environments lie in MLMIGRATE_TEST_ENVS (default: .cache/envs in the repository), one folder a
version; the current version runs from the environment of the tests.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVS = Path(os.environ.get("MLMIGRATE_TEST_ENVS", ROOT / ".cache" / "envs"))
CURRENT = "current"
# what each version needs to run today: newer releases of these broke it
RECIPES = {
    "1.30.0": ("mlflow==1.30.0", "setuptools<70"),
    "2.9.2": ("mlflow==2.9.2", "sqlalchemy<2.1", "setuptools<70"),
    "3.5.1": ("mlflow==3.5.1", "sqlalchemy<2.1"),
    "2.22.4": ("mlflow==2.22.4", "sqlalchemy<2.1", "opentelemetry-sdk<1.34", "opentelemetry-api<1.34"),
}
PATIENCE = 240  # seconds; a server starts in 5 on a quiet machine
PORTS = Path(tempfile.gettempdir()) / f"mlmigrate-ports-{os.getuid()}"
_claims: list[int] = []  # descriptors, locked as long as this process lives


@dataclass
class Server:
    """A running server. `database` is its SQLite file, `files` where its proxy keeps artifacts."""

    version: str
    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    @property
    def files(self) -> Path:
        return self.folder / "artifacts"

    def stop(self) -> None:
        """Ends the server and all its workers."""
        _kill(self.process)


def environment(version: str) -> Path:
    """The folder of executables of this version, made now if it is not there."""
    if version == CURRENT:
        return Path(sys.executable).parent
    home = ENVS / version
    ENVS.mkdir(parents=True, exist_ok=True)
    with (ENVS / f"{version}.lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(version, home)


def _made(version: str, home: Path) -> Path:
    if (home / "bin" / "mlflow").exists():
        return home / "bin"
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        raise RuntimeError(f"uv is needed to make an environment of MLflow {version}: pip install uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, home], check=True)
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", home / "bin" / "python", *RECIPES[version]], check=True
    )
    return home / "bin"


def start(version: str, folder: Path, *more: str, workers: int = 1, artifacts: bool = True) -> Server:
    """A server of this version over a new SQLite database in `folder`, ready to answer."""
    bin_ = environment(version)
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [bin_ / "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    if artifacts:
        command += ["--artifacts-destination", folder / "artifacts"]
        command += ["--serve-artifacts"] if version.startswith("1.") else []
    else:
        command += ["--no-serve-artifacts", "--default-artifact-root", folder / "artifacts"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, command), *more],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_env(bin_),
        )
    server = Server(version, f"http://127.0.0.1:{port}", folder, process)
    try:
        _await(server)
    except BaseException:
        server.stop()
        raise
    return server


def free_port() -> int:
    """A port that is this process's own: no other process of tests is given it, and no client gets it by chance.

    A server binds it only seconds later, so that a port of those which the system gives to anybody may be gone by then.
    """
    PORTS.mkdir(exist_ok=True)
    for port in random.SystemRandom().sample(range(10_000, _first_of_anybody()), 1000):
        claim = os.open(PORTS / str(port), os.O_WRONLY | os.O_CREAT, 0o600)
        if _locked(claim) and _unbound(port):
            _claims.append(claim)
            return port
        os.close(claim)
    raise RuntimeError(f"no free port is found; {PORTS} holds those that are taken")


def _first_of_anybody() -> int:
    """The first of the ports that the system gives to clients."""
    said = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(said.read_text().split()[0]) if said.exists() else 32768
    return first if first > 12_000 else 32768  # where it gives nearly all, nothing is certain


def _locked(claim: int) -> bool:
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unbound(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections are no hindrance
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _env(bin_: Path) -> dict[str, str]:
    """Old servers start gunicorn from PATH; nothing of the tests' own settings reaches them.

    No test gives a server jobs to do, for which MLflow 3 would start eight more processes.
    """
    given = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
    return {**kept, "PATH": f"{bin_}{os.pathsep}{os.environ.get('PATH', '')}", **given}


def _await(server: Server) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if server.process.poll() is not None:
            break
        try:
            urllib.request.urlopen(server.url + "/health", timeout=20).read()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"MLflow {server.version} did not start:\n{(server.folder / 'log').read_text()[-2000:]}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The whole process group: gunicorn's workers outlive their parent."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(5 if sign == signal.SIGTERM else 10)
        except subprocess.TimeoutExpired:
            continue
