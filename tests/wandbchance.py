"""Runs made by chance: what the real SDK logs online, and what its own reader then says that there is.

    wandbsdk.run(version, LOG, server, folder, {"SEED": "1", "RUNS": "12"})
    told(wandbsdk.run(version, READ, server, folder, {"ENTITY": "team"}))     {project: {id: {...}}}

Both are scripts for the SDK's own environment, which has neither numpy nor mlmigrate.
"""

from __future__ import annotations

import json
from typing import Any

from wandbsdk import Done

LOG = """
import math, os, pathlib, random, time, wandb

chance = random.Random(int(os.environ["SEED"]))
words = ["adam", "größe", "a b", "x/y", "", "True", "1e5", "none", "two\\nlines", "“quoted”", "\\U0001f680"]
logged = []  # artifacts with an alias of their own

def number():
    return chance.choice([
        chance.random(), chance.uniform(-1e9, 1e9), chance.randint(-5, 5), 0.1 + 0.2, 5e-324, -0.0, 1e308,
        2**53, 123456789012345678, 1 / 3,
    ])

def leaf():
    return chance.choice([number(), number(), chance.choice(words), True, False, None, [], {}, [1, "a", [2.5, None]]])

def tree(depth):
    known = ["lr", "opt", "n", "a.b", "betas", "x y", "größe", "k-1", "_hidden", "c/d"]
    names = chance.sample(known, chance.randint(1, 6))
    return {name: tree(depth - 1) if depth and chance.random() < 0.35 else leaf() for name in names}

def rich(key):
    what = chance.randrange(5)
    if what == 0:
        rows = [[chance.random(), chance.choice(words)] for _ in range(chance.randint(0, 4))]
        return wandb.Table(columns=["a", "b"], data=rows)
    if what == 1:
        return wandb.Histogram(np_histogram=([chance.randint(0, 9) for _ in range(3)], [0.0, 0.5, 1.0, 2.0]))
    if what == 2:
        return wandb.Html(f"<b>{chance.random()}</b>", inject=False)
    if what == 3:
        pathlib.Path("sound.wav").write_bytes(chance.randbytes(50))
        return wandb.Audio("sound.wav", caption=chance.choice(words))
    return [wandb.Html(f"<i>{n}</i>", inject=False) for n in range(2)]

def row():
    values = {
        "loss": number(), "acc": number(), "val/loss": number(), "val/acc": number(), "epoch": chance.randint(0, 9),
        "nan": chance.choice([math.nan, math.inf, -math.inf, 1.0]), "ok": chance.random() < 0.5,
        "word": chance.choice(words), "train": {"acc": number(), "deep": {"x": number(), "word": "w"}},
        "mixed": chance.choice([1, "one", True, 2.5, None]), "list": [chance.randint(0, 3), 2.5], "a b-c.d": number(),
        "empty": {}, "Größe": number(),
    }
    keys = chance.sample(sorted(values), chance.randint(0, len(values)))
    found = {key: values[key] for key in keys}
    if chance.random() < 0.08:
        found[chance.choice(["media/one", "two"])] = rich("rich")
    return found

def log_rows(run, most):
    step = run.step
    for _ in range(chance.randint(0, most)):
        how = chance.randrange(4)
        if how == 0:
            step += chance.randint(1, 50)
            run.log(row(), step=step)
        elif how == 1:
            run.log(row(), commit=False)
        else:
            run.log(row())
        step = max(step, run.step)

def log_artifact(run, n):
    kind, name = chance.choice([("dataset", "data"), ("dataset", "more-data"), ("model", "net"), ("odd", "thing.x")])
    told = {"description": chance.choice(words), "metadata": chance.choice([{}, {"k": {"n": [1]}}])}
    one = wandb.Artifact(name, type=kind, **told)
    for k in range(chance.randint(0, 3)):
        with one.new_file(f"d{k}/" * k + f"f {k}.bin", mode="wb") as file:
            file.write(chance.randbytes(chance.choice([0, 1, 1000])) + bytes([n]))
    if chance.random() < 0.4:
        one.add_reference(f"https://example.invalid/{n}", name="refs/there", checksum=False)
    run.log_artifact(one, aliases=chance.choice([[f"alias{n}"], [f"alias{n}", "best"]])).wait()
    logged.append(f"{run.project}/{name}:{chance.choice([f'alias{n}', one.version])}")

def use(run):
    for name in chance.sample(logged, min(len(logged), chance.randint(0, 3))):
        run.use_artifact(f"team/{name}")

def save(run, n):
    for k in range(chance.randint(0, 3)):
        path = pathlib.Path("saved", str(n), chance.choice(["a", "b c", "ü"]), f"{k}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.choice([0, 10, 5000])))
        run.save(str(path), base_path=f"saved/{n}", policy=chance.choice(["now", "end"]))

def about(n):
    given = {
        "name": f"run {n}", "notes": chance.choice(words), "group": f"g{n % 2}",
        "job_type": chance.choice(["train", "é"]),
        "tags": chance.sample(["t1", "größe", "a b", "x=y", "z" * 64], chance.randint(0, 4)),
    }
    return {name: given[name] for name in chance.sample(sorted(given), chance.randint(0, len(given)))}

def define(run):
    known = [
        ("val/*", {"step_metric": "epoch"}), ("loss", {"summary": "min"}), ("acc", {"summary": "max,mean,last"}),
        ("two", {"step_metric": "loss", "overwrite": True}), ("train.*", {"step_metric": "epoch", "step_sync": True}),
        ("word", {"hidden": True}), ("nan", {"summary": "none"}), ("ok", {"summary": "copy"}),
    ]
    for name, how in known:
        if chance.random() < 0.4:
            run.define_metric(name, **how)

def one(n, **how):
    settings = wandb.Settings(x_stats_sampling_interval=0.1 if n == 0 else 15)
    with wandb.init(project=f"p{n % 2}", id=f"r{n}", config=tree(3), settings=settings, **about(n), **how) as run:
        define(run)
        use(run)
        log_rows(run, 25)
        print(f"line {n} of ü", chance.random())
        for _ in range(chance.choice([0, 1, 1, 2])):
            log_artifact(run, n)
        save(run, n)
        if chance.random() < 0.5:
            run.config.update({"late": leaf(), "nested": {"late": number()}}, allow_val_change=True)
        if chance.random() < 0.5:
            run.summary["best"] = number()
            run.summary.update({"loss": number(), "own": {"a": number(), "b": "text"}, "verdict": "good", "flag": True})
        log_rows(run, 5)
        if n == 0:
            time.sleep(2.1)  # it is resumed later, and its rows count whole seconds of its first part
        if n % 5 == 3:
            raise RuntimeError(f"run {n} fails")

for n in range(int(os.environ["RUNS"])):
    try:
        one(n)
    except RuntimeError:
        pass
with wandb.init(project="p0", id="r0", resume="must") as run:
    log_rows(run, 9)
    run.log({"loss": 77, "resumed": True})
    log_artifact(run, 99)
"""

READ = """
import hashlib, json, os, pathlib, shutil, wandb

api, entity, root = wandb.Api(), os.environ["ENTITY"], pathlib.Path("downloaded")

def content(folder):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}

def downloaded(run):
    shutil.rmtree(root, ignore_errors=True)
    for file in run.files():
        file.download(root=str(root), replace=True)
    return content(root)

def version(one):
    folder = pathlib.Path(one.download(str(root / "artifact"), skip_cache=True, allow_missing_references=True))
    maker = one.logged_by()
    told = {
        "type": one.type, "name": one.source_name, "project": one.source_project, "digest": one.digest,
        "tags": one.tags,
        "aliases": sorted(one.aliases), "metadata": one.metadata, "description": one.description, "state": one.state,
        "logged_by": maker and maker.id, "used_by": sorted(run.id for run in one.used_by()), "files": content(folder),
        "entries": {name: [entry.digest, entry.size, entry.ref] for name, entry in one.manifest.entries.items()},
    }
    shutil.rmtree(folder, ignore_errors=True)
    return told

def told(run):
    run.load(force=True)
    return {
        "name": run.name, "notes": run.notes, "tags": run.tags, "group": run.group, "job_type": run.job_type,
        "state": run.state, "user": run.user.username, "created": run.created_at, "config": run.config,
        "summary": run.summary._json_dict, "metrics": run.rawconfig.get("_wandb", {}).get("m"),
        "rows": list(run.scan_history(use_cache=False)),
        "events": run.history(stream="system", pandas=False, samples=9999),
        "files": {file.name: [file.size, file.md5] for file in run.files()}, "bytes": downloaded(run),
        "logged": {one.source_name: version(one) for one in run.logged_artifacts()},
        "used": sorted([one.source_project, one.source_name, one.type, one.digest] for one in run.used_artifacts()),
        "metadata": run.metadata,
    }

found = {
    project.name: {run.id: told(run) for run in api.runs(f"{entity}/{project.name}", lazy=False)}
    for project in api.projects(entity)
}
print("told " + json.dumps(found))
"""


def told(done: Done) -> Any:
    """What a script printed after "told ", with words for what JSON has none."""
    line = next(line for line in done.out.splitlines() if line.startswith("told "))
    return json.loads(line.removeprefix("told "), parse_constant=str)
