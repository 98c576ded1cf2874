"""What a command costs in time, in processor time and in memory, and what the processes of a server cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")

# A small process of its own starts the command: Linux counts the memory of whoever starts a command
# as a peak of that command, and this one has pyarrow and mlflow loaded.
LAUNCHER = """
import json, os, sys, time
out, log, argv = sys.argv[1], sys.argv[2], sys.argv[3:]
start = time.perf_counter()
pid = os.fork()
if not pid:
    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(to, 1)
    os.dup2(to, 2)
    os.execvp(argv[0], argv)
_, status, used = os.wait4(pid, 0)
wall = time.perf_counter() - start
code = os.waitstatus_to_exitcode(status)
json.dump([wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, code], open(out, "w"))
"""


@dataclass(frozen=True)
class Cost:
    """Seconds of wall and of processor, peak memory of the largest process in MiB."""

    wall: float
    cpu: float
    peak: float
    code: int
    log: str


class CommandFailed(Exception):
    pass


def run(
    argv: list[str], env: dict[str, str] | None = None, cwd: Path | None = None, codes: tuple[int, ...] = (0,)
) -> Cost:
    """Runs a command to its end. Raises CommandFailed, with the end of its output, at another exit code."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "cost.json", Path(folder) / "log"
        launch = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(out), str(log), *argv]
        subprocess.run(launch, check=True, env={**os.environ, **(env or {})}, cwd=cwd)
        wall, cpu, peak, code = json.loads(out.read_text())
        text = log.read_text("utf-8", "replace")
    if code not in codes:
        raise CommandFailed(f"{' '.join(argv)} ended with {code}:\n{text[-3000:]}")
    return Cost(wall, cpu, peak, code, text)


def best(costs: list[Cost]) -> Cost:
    """The quickest: what slows a repeat down is the machine, not the program."""
    return min(costs, key=lambda cost: cost.wall)


def group_cpu(session: int) -> float:
    """Seconds of processor that the living processes of a session, and their children that ended, have used."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if int(fields[3]) == session:
            total += sum(int(ticks) for ticks in fields[11:15])
    return total / TICKS
