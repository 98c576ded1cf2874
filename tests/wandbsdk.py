"""The real wandb SDK, in environments of its own: each version made once and kept.

The environments lie in MLMIGRATE_TEST_ENVS (as those of servers.py). Scripts run with everything in a temporary
folder, against a server that the test started; nothing of the user's own settings reaches them, and they reach
nobody else.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from servers import ENVS

RECIPES = {
    "0.30.0": ("wandb==0.30.0",),
    "0.31.0": ("wandb==0.31.0",),
}
VERSIONS = tuple(RECIPES)
PATIENCE = 150  # seconds; the longest script takes 4 on a quiet machine, and 70 on a very busy one


class HungError(AssertionError):
    """A script, or a command of the SDK, that did not end."""


class Server(Protocol):
    """What a script needs to know of a server."""

    @property
    def env(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Done:
    """How a script ended."""

    code: int
    out: str
    err: str


def environment(version: str) -> Path:
    """The folder of executables of this version, made now if it is not there."""
    home = ENVS / f"wandb-{version}"
    ENVS.mkdir(parents=True, exist_ok=True)
    with (ENVS / f"wandb-{version}.lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(version, home)


def _made(version: str, home: Path) -> Path:
    if (home / "bin" / "wandb").exists():
        return home / "bin"
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        raise RuntimeError(f"uv is needed to make an environment of wandb {version}: pip install uv")
    python = home / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, home], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *RECIPES[version]], check=True)
    return home / "bin"


def env(folder: Path, server: Server) -> dict[str, str]:
    """The environment of a script: all that the SDK keeps lies in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "PYTHON"))}
    places = {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    for place in places.values():
        Path(place).mkdir(exist_ok=True)
    return {
        **kept,
        **places,
        "HOME": str(folder),
        "WANDB_DIR": str(folder),
        "WANDB_SILENT": "true",
        "WANDB_X_GRAPHQL_RETRY_MAX": "1",
        "WANDB_X_FILE_STREAM_RETRY_MAX": "1",
        "WANDB_X_FILE_TRANSFER_RETRY_MAX": "1",
        **server.env,
        "NO_PROXY": "127.0.0.1",
    }


def run(
    version: str, script: str, server: Server, folder: Path, more: Mapping[str, str] | None = None, check: bool = True
) -> Done:
    """Runs a Python script with that SDK, in `folder`; one that fails is told with all it printed."""
    return _done(_script(version, script), {**env(folder, server), **(more or {})}, folder, check)


def ask(version: str, script: str, server: Server, folder: Path, more: Mapping[str, str] | None = None) -> Done:
    """As `run`, for a script that only reads: one that does not end is begun once more, with a warning.

    The SDK sets no limit to most of what it asks of its own helper process, wandb-core, and on a busy machine has been
    seen to wait for ever.
    """
    try:
        return run(version, script, server, folder, more)
    except HungError as error:
        warnings.warn(f"the SDK {version} hung and was asked again: {error}", stacklevel=2)
    return run(version, script, server, folder, more)


def sync(version: str, folder: Path, server: Server, *runs: Path, check: bool = True) -> Done:
    """`wandb sync` of these run folders, or of all offline runs in `folder`."""
    found = runs or tuple(sorted((folder / "wandb").glob("offline-run-*")))
    loud = {"WANDB_SILENT": "false"}
    command: list[Path | str] = [environment(version) / "wandb", "sync", *found]
    return _done(command, {**env(folder, server), **loud}, folder, check)


def _script(version: str, script: str) -> list[Path | str]:
    return [environment(version) / "python", "-X", "faulthandler", "-c", script]


def _done(command: list[Path | str], env: dict[str, str], folder: Path, check: bool) -> Done:
    with subprocess.Popen(
        list(map(str, command)), cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # a script then prints where each of its threads stands
            out, err = process.communicate(timeout=PATIENCE)
            raise HungError(f"no end after {PATIENCE} s\n{out[-4000:]}\n{err[-8000:]}") from None
    if check and process.returncode:
        raise AssertionError(f"exit code {process.returncode}\n{out[-4000:]}\n{err[-8000:]}")
    return Done(process.returncode, out, err)
