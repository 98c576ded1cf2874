"""A copy that is killed at any system call, or meets a full disk, or itself, is whole after the same command again.

The store is written by hand, what arrived is read by hand: nothing is lost and nothing is there twice.
MLMIGRATE_TEST_SIZE says how many kills there are, MLMIGRATE_TEST_SEED which.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mlmigrate import ledger
from mlmigrate.errors import NotFound

pytestmark = pytest.mark.slow

KILLS = 6  # of each sweep, times MLMIGRATE_TEST_SIZE
WRITING = (
    "write,pwrite64,pwritev,fsync,fdatasync,ftruncate,rename,renameat,renameat2,"
    "unlink,unlinkat,link,linkat,mkdir,mkdirat,rmdir,chmod,fchmod"
)
CALL = re.compile(r"^(\d+) +(\w+)\(")
ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
START = 1_700_000_000_000
RUNS = {
    f"{number:032x}": {
        "experiment": "1" if number % 2 else "2",
        "deleted": number == 3,
        "params": {"lr": f"0.{number}", "note": "two\nlines"},
        "tags": {"mlflow.runName": f"run {number}", "who": "Zoë"},
        "points": [(key, step, START + step, step / (number + 1)) for key in ("acc", "loss") for step in range(40)],
        "files": {"model/weights.bin": bytes([number]) * 5000, "shared.txt": b"the same in every run"},
    }
    for number in range(6)
}


def command(*arguments):
    return [sys.executable, "-m", "mlmigrate", *map(str, arguments)]


def run(*arguments, cwd):
    return subprocess.run(command(*arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def well(*arguments, cwd):
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
    return done


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A file store, written by hand."""
    return write_store(tmp_path_factory.mktemp("store") / "mlruns")


def write_store(root):
    for number in ("1", "2"):
        place = root / number
        place.mkdir(parents=True)
        (place / "meta.yaml").write_text(
            f"artifact_location: {place}\nexperiment_id: '{number}'\nlifecycle_stage: active\nname: team {number}\n"
            f"creation_time: {START}\nlast_update_time: {START}\n"
        )
    for name, what in RUNS.items():
        write_run(root / what["experiment"] / name, name, what)
    return root


def write_run(place, name, what):
    for folder in ("metrics", "params", "tags", "artifacts/model"):
        (place / folder).mkdir(parents=True)
    (place / "meta.yaml").write_text(
        f"artifact_uri: {place}/artifacts\nrun_id: {name}\nrun_uuid: {name}\nexperiment_id: '{what['experiment']}'\n"
        f"run_name: {what['tags']['mlflow.runName']}\nlifecycle_stage: {'deleted' if what['deleted'] else 'active'}\n"
        f"start_time: {START}\nend_time: {START + 1000}\nstatus: 3\nuser_id: ann\nsource_type: 4\nsource_name: ''\n"
        f"source_version: ''\nentry_point_name: ''\ntags: []\n"
    )
    for part in ("params", "tags"):
        for key, value in what[part].items():
            (place / part / key).write_text(value)
    for key, step, at, value in what["points"]:
        with (place / "metrics" / key).open("a") as file:
            file.write(f"{at} {value!r} {step}\n")
    for path, data in what["files"].items():
        (place / "artifacts" / path).write_bytes(data)


@pytest.fixture(scope="session")
def archive(store, tmp_path_factory):
    """The store, exported without any mishap."""
    folder = tmp_path_factory.mktemp("archive")
    well("export", f"mlflow:{store}", "archive", cwd=folder)
    assert archived(folder / "archive") == RUNS
    return folder / "archive"


@pytest.fixture(scope="session")
def empty(tmp_path_factory):
    """An empty database, made by mlflow."""
    pytest.importorskip("mlflow")
    file = tmp_path_factory.mktemp("empty") / "empty.db"
    make = "import sys; from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as S; S(*sys.argv[1:])"
    subprocess.run(
        [sys.executable, "-c", make, f"sqlite:///{file}", str(file.with_name("unused"))],
        check=True,
        capture_output=True,
    )
    return file


def archived(folder):
    """All runs of an archive, by its commits and their Parquet files. A run in two packs would be there twice."""
    found = {}
    for commit in sorted((folder / "packs").glob("*.json")):
        body = json.loads(commit.read_text())["commit"]
        tables = {}
        for file in body["files"]:
            place = commit.with_suffix("") / file["name"]
            assert hashlib.sha256(place.read_bytes()).hexdigest() == file["sha256"]
            tables[place.stem] = pq.read_table(place).to_pylist()
        for row in tables.get("runs", ()):
            assert row["id"] not in found, f"{row['id']} is there twice"
            found[row["id"]] = archived_run(folder, row, tables)
    return found


def archived_run(folder, row, tables):
    mine = {
        name: [one for one in rows if row["id"] in (one.get("run"), one.get("owner"))] for name, rows in tables.items()
    }
    values = {
        role: {one["name"]: one["value"] for one in mine["attributes"] if one["role"] == role}
        for role in ("param", "tag")
    }
    return {
        "experiment": row["experiment"],
        "deleted": row["deleted"],
        "params": values["param"],
        "tags": values["tag"],
        "points": sorted((one["key"], one["step"], one["timestamp"], one["value"]) for one in mine["points"]),
        "files": {one["path"]: blob(folder, one["sha256"]) for one in mine["artifacts"]},
    }


def blob(folder, sha256):
    data = (folder / "blobs" / sha256[:2] / sha256).read_bytes()
    assert hashlib.sha256(data).hexdigest() == sha256
    return data


def stored(file):
    """All runs of a database, and the artifacts that its server would serve from the folder beside it."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        runs = db.execute("select run_uuid, experiment_id, lifecycle_stage, artifact_uri from runs").fetchall()
        found = {name: stored_run(db, file.parent / "artifacts", name, *rest) for name, *rest in runs}
        latest = sorted(db.execute("select run_uuid, key, value, step from latest_metrics"))
    db.close()
    last = {(name, key): (value, step) for name, what in RUNS.items() for key, step, _, value in what["points"]}
    assert latest == sorted((name, key, value, step) for (name, key), (value, step) in last.items())
    return found


def stored_run(db, artifacts, run, experiment, stage, uri):
    rows = db.execute("select key, step, timestamp, value from metrics where run_uuid = ?", (run,))
    values = {
        table: dict(
            db.execute(f"select key, value from {table} where run_uuid = ? and key not like 'mlmigrate.%'", (run,))
        )
        for table in ("params", "tags")
    }
    folder = artifacts / uri.removeprefix("mlflow-artifacts:/")
    return {
        "experiment": str(experiment),
        "deleted": stage == "deleted",
        **values,
        "points": sorted(rows),
        "files": {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()},
    }


def expected_in(file):
    """What a database shall hold: ids of experiments may be others, for an empty database has number 0 already."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
        names = {name: str(number) for number, name in db.execute("select experiment_id, name from experiments")}
    db.close()
    return {run: {**what, "experiment": names[f"team {what['experiment']}"]} for run, what in RUNS.items()}


def strace(*arguments):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    return ["strace", "-f", "-qq", *arguments]


def moments(arguments, cwd):
    """Every writing system call of one undisturbed run, in order: its name and its number in its thread."""
    log = cwd / "strace.log"
    done = subprocess.run(
        strace("-e", f"trace={marked()}", "-o", str(log), *command(*arguments)),
        cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    counted, found = Counter(), []
    for line in log.read_text().splitlines():
        if call := CALL.match(line):
            counted[call.groups()] += 1
            found.append((call[2], counted[call.groups()]))
    return list(dict.fromkeys(found))


def marked():
    return ",".join(f"?{name}" for name in WRITING.split(","))


def chosen(found, how_many, seed):
    """Moments from all over the run: one from each of so many stretches of it."""
    choice, edges = random.Random(seed), [len(found) * n // how_many for n in range(how_many + 1)]
    return [choice.choice(found[start:end]) for start, end in pairwise(edges) if end > start]


def killed(arguments, fresh, call, number):
    """Runs the command in a folder of its own, killed at that moment. Gives the folder, and whether it was killed.

    Threads may take another turn this time, and none of them come so far: then it is killed sooner.
    """
    while number:
        folder = fresh(f"{call}-{number}")
        if died(arguments(folder), folder, call, number):
            return folder, True
        number //= 2
    return folder, False


def died(arguments, cwd, call, number):
    inject = f"inject={call}:signal=SIGKILL:when={number}"
    done = subprocess.run(
        strace("-e", f"trace={call}", "-e", inject, "-o", "/dev/null", *command(*arguments)),
        cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), (call, number, done.stdout, done.stderr)
    return done.returncode != 0


def new_folder(place, name):
    """A folder that nothing was done in yet, whose name begins so."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place))


def readable(file):
    """What the ledger says; None when the kill came before it said anything."""
    try:
        return ledger.state(file)
    except NotFound:
        return None


class TestKills:
    def test_an_export_killed_anywhere_is_whole_after_the_same_command_again(self, store, tmp_path, size, seed):
        arguments = ("export", f"mlflow:{store}", "archive", "--ledger", "copy.ledger")
        folder = tmp_path / "plain"
        folder.mkdir()
        sweep = chosen(moments(arguments, folder), KILLS * size, seed)
        kills = 0
        for call, number in sweep:
            folder, was = killed(lambda _: arguments, partial(new_folder, tmp_path), call, number)
            kills += was
            readable(folder / "copy.ledger")
            well(*arguments, cwd=folder)
            assert archived(folder / "archive") == RUNS, (call, number)
            assert readable(folder / "copy.ledger").failed == 0
            well("status", "copy.ledger", cwd=folder)
        assert kills > len(sweep) // 2

    def test_an_import_killed_anywhere_is_whole_after_the_same_command_again(
        self, archive, empty, tmp_path, size, seed
    ):
        def arguments(folder):
            target = f"mlflow:sqlite:///{folder}/mlflow.db"
            return ("import", archive, target, "--ledger", "copy.ledger", "--artifacts-to", folder / "artifacts")

        def fresh(name):
            folder = new_folder(tmp_path, name)
            shutil.copy(empty, folder / "mlflow.db")
            return folder

        folder = fresh("plain")
        sweep = chosen(moments(arguments(folder), folder), KILLS * size, seed)
        assert stored(folder / "mlflow.db") == expected_in(folder / "mlflow.db")
        kills = 0
        for call, number in sweep:
            folder, was = killed(arguments, fresh, call, number)
            kills += was
            readable(folder / "copy.ledger")
            well(*arguments(folder), cwd=folder)
            assert stored(folder / "mlflow.db") == expected_in(folder / "mlflow.db"), (call, number)
            assert readable(folder / "copy.ledger").failed == 0
            well("status", "copy.ledger", cwd=folder)
        assert kills > len(sweep) // 2


FULL = """
set -e
mount -t tmpfs -o size="$1"k tmpfs disk
set +e
shift
"$@" >first.out 2>first.err
echo $? >first.code
mount -o remount,size=100m disk
"$@" >second.out 2>second.err
echo $? >second.code
cp -r disk copied
"""


class TestFullDisk:
    @pytest.mark.parametrize("kilobytes", [8, 24, 48, 64, 80, 96])
    def test_an_export_onto_a_full_disk_says_so_and_goes_on_once_there_is_space(self, store, tmp_path, kilobytes):
        (tmp_path / "disk").mkdir()
        inside = command("export", f"mlflow:{store}", "disk/archive", "--ledger", "disk/copy.ledger")
        shell = ["unshare", "-m", "sh", "-c", FULL, "sh", str(kilobytes), *inside]
        if shutil.which("unshare") is None or os.geteuid() != 0:
            pytest.skip("a small disk is made with unshare and mount, as root")
        done = subprocess.run(shell, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no small disk can be made here: {done.stderr.strip()}")
        said = {
            name: (tmp_path / name).read_text() for name in ("first.code", "first.err", "second.code", "second.err")
        }
        assert said["first.code"].strip() == "3", said
        assert "No space" in said["first.err"] or "no space" in said["first.err"], said
        assert "Traceback" not in said["first.err"], said
        assert said["second.code"].strip() == "0", said
        assert archived(tmp_path / "copied" / "archive") == RUNS


class TestTwoAtOnce:
    def test_the_second_of_two_is_refused_and_the_first_completes(self, store, tmp_path):
        arguments = ("export", f"mlflow:{store}", "archive", "--ledger", "copy.ledger")
        first = self.stopped_at_its_first_pack(arguments, tmp_path)
        try:
            second = run(*arguments, cwd=tmp_path)
            assert (second.returncode, "Traceback" in second.stderr) == (11, False), second.stderr
        finally:
            first.send_signal(signal.SIGCONT)
        out, err = first.communicate(timeout=300)
        assert first.returncode == 0, (out, err)
        assert archived(tmp_path / "archive") == RUNS

    @staticmethod
    def stopped_at_its_first_pack(arguments, folder):
        """The command, stopped when the folder of packs appears: the ledger is held then, and work is left."""
        for _ in range(10):
            shutil.rmtree(folder / "archive", ignore_errors=True)
            (folder / "copy.ledger").unlink(missing_ok=True)
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            first = subprocess.Popen(command(*arguments), cwd=folder, env=ENVIRONMENT, **pipes)
            while first.poll() is None and not (folder / "copy.ledger").exists():
                time.sleep(0.001)
            first.send_signal(signal.SIGSTOP)
            if first.poll() is None and not list((folder / "archive").glob("packs/*.json")):
                return first
            first.send_signal(signal.SIGCONT)
            first.communicate()
        pytest.skip("this machine is too quick or too busy to stop a copy half-way")
