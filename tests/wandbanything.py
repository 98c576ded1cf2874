"""Logs of runs that hold whatever a log may hold, by chance: for tests of all that comes after."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from pathlib import Path
from random import Random
from typing import Any

import wandblogs

KEYS = [
    *(
        "loss",
        "acc",
        "val/loss",
        "val.loss",
        "a",
        "b",
        "_x",
        "step",
        "_runtime2",
        "",
        "é ü",
        'with"quote',
        "x\ny",
        "k" * 300,
    ),
    *("mlflow/step", "mlflow/key/loss", "system/cpu", "system.cpu", "mlmigrate"),  # these mean something to us
]
NUMBERS = [1e-320, 1e308, 0.1 + 0.2, -0.0, 0.0, 2**53 + 1, -(2**60) - 1, 10**30, 3.0, 7]
WORDS = ["NaN", "Infinity", "-Infinity", "-0", "1E5", "1e400", "-1e-5", "1.50", "true", "false", "null"]
TEXTS = ["text", "", "NaN", "Infinity", "é\u2028", "1", "true", "x" * 2000, "a\nb\0c", "half \ud800"]
LATER = 4_102_444_800  # the year 2100
MEDIA = [
    {"_type": "image-file", "path": "media/x.png", "size": 3, "nested": {"a": 1}},
    {"_type": "histogram", "values": [1, math.inf, math.nan], "packed": -0.0},
]


def folder(root: Path, seed: int, runs: int) -> Path:
    """So many runs, the same for the same seed."""
    chance = Random(seed)
    made: list[Any] = []
    for number in range(runs):
        here = root / f"offline-run-20200913_122640-r{number}"
        records = _run(chance, f"r{number}")
        records[2:2] = _artifacts(chance, records[1].run, root / "bytes" / str(number), made)
        log = wandblogs.write(here / f"run-r{number}.wandb", records)
        os.utime(log, (LATER, LATER))  # one without an end goes on, and is not taken for crashed while a test is slow
        for name in chance.sample(
            ["files/model.bin", "files/media/x.png", "files/we ird/é#%.txt"], chance.randrange(3)
        ):
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_bytes(chance.randbytes(chance.randrange(200)))
    return root


def _run(chance: Random, id_: str) -> list[Any]:
    record = wandblogs.run(id_, chance.choice(["p", "q", "Ünï", "a b"]), chance.choice([0, 1_600_000_000]))
    told = {
        "display_name": id_,
        "notes": "two\nlines",
        "run_group": "g",
        "job_type": "train",
        "sweep_id": "s",
        "host": "h",
    }
    for name in chance.sample(sorted(told), chance.randrange(len(told))):
        setattr(record.run, name, told[name])
    record.run.tags.extend(chance.sample(["t1", "größe", "x" * 64, "a b"], chance.randrange(3)))
    for _ in range(chance.randrange(6)):
        _item(chance, record.run.config.update, chance.choice([*KEYS, "lr", "model", "a.b"]), _value(chance))
    records = [wandblogs.header(), record, *_rows(chance)]
    if chance.random() < 0.6:
        records.append(_summary(chance))
    return [*records, wandblogs.exit_(chance.choice([0, 1]), 50)] if chance.random() < 0.7 else records


def _artifacts(chance: Random, run: Any, folder: Path, made: list[Any]) -> list[Any]:
    """What a run logs, and what it uses of those before it."""
    records = []
    for kind in chance.sample(["model", "dataset", "files"], chance.choice([0, 0, 1, 2])):
        entries = {}
        for name in chance.sample(["a.bin", "deep/b.txt", "we ird/é#%.txt"], chance.randrange(1, 3)):
            file, data = folder / kind / name, chance.randbytes(chance.randrange(300))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            entries[name] = (base64.b64encode(hashlib.md5(data).digest()).decode(), len(data), str(file))
        told = "".join(f"{name}:{md5}\n" for name, (md5, _, _) in sorted(entries.items()))
        digest = hashlib.md5(f"wandb-artifact-manifest-v1\n{told}".encode()).hexdigest()
        aliases = chance.sample(["best", "prod", "v0ther"], chance.randrange(3))
        home = {"run_id": run.run_id, "project": run.project, "digest": digest}
        one = wandblogs.artifact(f"my-{kind}", kind, entries, **home, aliases=aliases, description="of chance")
        records.append(one)
        made.append(one)
    for one in chance.sample(made, min(len(made), chance.choice([0, 0, 1]))):
        if one not in records and one.artifact.project == run.project:
            use = wandblogs.pb.Record()
            use.CopyFrom(one)
            use.artifact.run_id, use.artifact.user_created, use.artifact.use_after_commit = run.run_id, True, True
            records.append(use)
    return records


def _rows(chance: Random) -> list[Any]:
    records: list[Any] = []
    most = chance.choice([(1, 1), (1, 1000), (0, 1), (-2, 3)])  # how far a step may go on
    step, time, steps = 0, 1_600_000_000.0, chance.random() < 0.8
    for _ in range(chance.choice([0, 1, 3, 20])):
        history = wandblogs.pb.Record()
        for key in chance.sample(KEYS, chance.randrange(1, 6)):
            _item(chance, history.history.item, key, _value(chance))
        step += chance.randint(*most)
        time += chance.choice([0, 0.000001, 0.25, 1, chance.random() * 100, min(most[0], 0)])
        own = {"_step": step, "_timestamp": time, "_runtime": time - 1_600_000_000}
        for name, value in own.items():
            if chance.random() < 0.95 and (steps or name != "_step"):
                _item(chance, history.history.item, name, json.dumps(value))
        history.history.step.num = max(step, 0)
        records += [history, *([_stats(chance, time)] if chance.random() < 0.2 else [])]
    return records


def _stats(chance: Random, time: float) -> Any:
    record = wandblogs.pb.Record()
    record.stats.timestamp.seconds, record.stats.timestamp.nanos = int(time), chance.randrange(10**9)
    for key in chance.sample(["cpu", "gpu.0.temp", "memory", "é"], 2):
        item = record.stats.item.add()
        item.key, item.value_json = key, chance.choice(["1", "2.5", "NaN", "-0.0", "12345678901234567", "true", "null"])
    return record


def _summary(chance: Random) -> Any:
    record = wandblogs.pb.Record()
    for key in chance.sample(KEYS, 3):
        _item(chance, record.summary.update, key, _value(chance))
    return record


def _item(chance: Random, items: Any, key: str, text: str) -> None:
    item = items.add()
    if key and chance.random() < 0.5:
        item.nested_key.extend(key.split(".") if chance.random() < 0.3 else [key])
    else:
        item.key = key
    item.value_json = text


def _value(chance: Random, depth: int = 0) -> str:
    """JSON, or nearly: what W&B's core writes."""
    kind = chance.randrange(8)
    if kind == 0:
        return chance.choice(WORDS)
    if kind == 1:
        return json.dumps(chance.choice(TEXTS))
    if kind == 2:
        return json.dumps(chance.choice([*MEDIA, [1, 2], [], ["a", None]]))
    if kind == 3 and depth < 2:
        inner = {chance.choice(KEYS): _value(chance, depth + 1) for _ in range(chance.randrange(3))}
        return "{" + ",".join(f"{json.dumps(key)}:{text}" for key, text in inner.items()) + "}"
    return json.dumps(chance.choice([*NUMBERS, chance.random() * 10 ** chance.randint(-3, 6)]))
