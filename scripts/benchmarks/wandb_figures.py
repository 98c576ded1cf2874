"""The figures of Weights & Biases, against the contract server of the tests on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import wandbserver
from benchmarks import stores
from benchmarks.figures import HUGE, Shop, costs, say
from benchmarks.measure import Cost, run
from benchmarks.stores import Shape
from benchmarks.table import Row
from benchmarks.tools import REPOSITORY, database, mlmigrate

RUNS = Shape(runs=200, keys=10, steps=100, params=20, tags=10, files=0, experiments=1)
ROWS, KEYS = 100_000, 10

# What a person would write today: one run after another through the SDK, with the points' own times.
LOOP = """
import random, sys, wandb
runs, keys, steps = map(int, sys.argv[1:4])
for number in range(runs):
    chance = random.Random(number).random
    config = {f"param_{n}": number * n for n in range(20)}
    with wandb.init(project="loop", id=f"loop-{number}", name=f"run {number}", config=config) as run:
        for step in range(steps):
            row = {f"metric_{key}": chance() for key in range(keys)}
            run.log({**row, "_timestamp": 1_700_000_000 + number * 60 + step / 100}, step=step)
"""

LOG = """
import sys, time
from pathlib import Path
import numpy as np
import pyarrow as pa
from mlmigrate.adapters.wandb.datalog.reader import Log
from mlmigrate.adapters.wandb.datalog.writer import LogWriter
from mlmigrate.adapters.wandb.shape import Block, WandbRun
what, file, rows, keys = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
size, chance = 10_000, np.random.default_rng(1)
def block(first):
    n = min(size, rows - first)
    steps = np.arange(first, first + n)
    return Block(
        step=pa.array(steps, pa.int64()),
        time=pa.array(1_700_000_000 + steps / 100, pa.float64()),
        runtime=pa.array(steps / 100, pa.float64()),
        keys=[f"metric_{key}" for key in range(keys)],
        row=pa.array(np.repeat(np.arange(n), keys), pa.int32()),
        key=pa.array(np.tile(np.arange(keys), n), pa.int32()),
        value=pa.array(chance.random(n * keys), pa.float64()),
    )
blocks = [block(first) for first in range(0, rows, size)]
start = time.process_time()
if what == "write":
    with LogWriter(file) as log:
        log.run(WandbRun("r", project="p"))
        for one in blocks:
            log.history(one)
        log.exit(0)
    seen = rows * keys
else:
    seen = sum(len(one.value) for one in Log(file).history())
taken = time.process_time() - start
assert seen == rows * keys, seen
print(f"TOOK {taken}")
"""


def wandb_write(shop: Shop) -> list[Row]:
    """An MLflow database into W&B, beside a loop of init, log and finish through its SDK; with latency and without."""
    shape = Shape(runs=6, keys=3, steps=20, files=0, experiments=1) if shop.sizes.repeats == 1 else RUNS
    file = shop.store(shape)
    rows = []
    for name, latency, goal in (("100 ms a request", 0.1, 15), ("loopback", 0.0, 8)):
        theirs = _loop(shop, shape, latency)
        ours = shop.repeated(lambda latency=latency: _ours(shop, file, shape, latency))  # type: ignore[misc]
        told = costs(ours=ours, loop=theirs)
        left, right = f"{ours.wall:.2f} s", f"{theirs.wall:.2f} s"
        ratio = theirs.wall / ours.wall
        rows.append(Row(f"wandb-write, {name}", str(shape), left, right, ratio, goal, detail=told))
    return rows


def wandb_log(shop: Shop) -> list[Row]:
    """Writing and reading the log of an offline run: values a second of processor time."""
    file = shop.place("log") / "run-r.wandb"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = max(1_000, ROWS // 100) if shop.sizes.repeats == 1 else ROWS
    found = []
    for what in ("write", "read"):
        best_of = [_log(what, file, rows) for _ in range(shop.sizes.repeats)]
        rate = rows * KEYS / min(best_of)
        text = f"{rows:,} rows x {KEYS} keys"
        found.append(
            Row(f"wandb-log, {what}", text, f"{min(best_of):.2f} s of CPU", "", rate, 300_000, unit=" values/s")
        )
    return found


def wandb_memory(shop: Shop) -> list[Row]:
    """The peak of memory on one huge run: into an offline folder, out of it, and to a server."""
    shape = Shape(runs=1, keys=2, steps=5_000, files=0, experiments=1) if shop.sizes.repeats == 1 else HUGE
    file = shop.store(shape)
    folder = shop.place("offline")
    runs = {"into an offline folder": mlmigrate("copy", database(file), f"wandb:{folder}", "--ledger", _ledger(shop))}
    archive = shop.place("wandb-archive")
    runs["out of it"] = mlmigrate("export", f"wandb:{folder}", str(archive), "--ledger", _ledger(shop))
    runs["to a server"] = _ours(shop, file, shape, 0.0)
    text = f"{shape.points:,} points in one run"
    rows = []
    for name, cost in runs.items():
        took, told = f"{cost.peak:.0f} MiB, {cost.wall:.0f} s", costs(ours=cost)
        rows.append(Row(f"wandb-memory, {name}", text, took, "", cost.peak, 400, True, " MiB", told))
    return rows


ALL: dict[str, Callable[[Shop], list[Row]]] = {
    "wandb-write": wandb_write,
    "wandb-log": wandb_log,
    "wandb-memory": wandb_memory,
}


def _ours(shop: Shop, file: Path, shape: Shape, latency: float) -> Cost:
    with wandbserver.running(latency=latency) as server:
        target = f"wandb:{server.entity}"
        cost = mlmigrate("copy", database(file), target, "--ledger", _ledger(shop), **server.env)
        wanted = {stores.run_id(n) for n in range(shape.runs)}
        found = [held for held in server.state()["runs"].values() if held["name"] in wanted]
        lines = sum(len(held["history"]) for held in found)
        assert (len(found), lines) == (shape.runs, shape.runs * shape.steps), (len(found), lines)
    say(f"  ours {cost.wall:.2f} s, {cost.cpu:.2f} s of CPU, {cost.peak:.0f} MiB")
    return cost


def _loop(shop: Shop, shape: Shape, latency: float) -> Cost:
    folder = shop.place("sdk")
    folder.mkdir(parents=True)
    own = {
        name: str(folder / name.lower())
        for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
    }
    for place in own.values():
        Path(place).mkdir()
    with wandbserver.running(latency=latency) as server:
        env = {
            **server.env,
            **own,
            "WANDB_ENTITY": server.entity,
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
        }
        cost = run([sys.executable, "-c", LOOP, *map(str, (shape.runs, shape.keys, shape.steps))], env=env)
        lines = sum(len(held["history"]) for held in server.state()["runs"].values())
        assert lines == shape.runs * shape.steps, lines
    say(f"  SDK's loop {cost.wall:.2f} s, {cost.cpu:.2f} s of CPU")
    return cost


def _log(what: str, file: Path, rows: int) -> float:
    env = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY / "scripts")])}
    log = run([sys.executable, "-c", LOG, what, str(file), str(rows), str(KEYS)], env=env).log
    return float(log.rpartition("TOOK ")[2])


def _ledger(shop: Shop) -> str:
    """One that is not there yet."""
    return str(shop.place("wandb.ledger"))
