"""A copy into a folder that is killed at any moment leaves whole runs only, and the same command again ends it."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

import wandblogs
from mlmigrate import demo
from sizes import SIZE

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("MLMIGRATE_TEST_SEED", "20261121"))
KILLS = 8 if SIZE <= 1 else 50


def copy(store, out):
    argv = [sys.executable, "-m", "mlmigrate", "copy", f"mlflow:{store}", f"wandb:{out}"]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def visible(out):
    """The logs that `wandb sync` would take in this folder."""
    return sorted(out.glob("*/*.wandb"))


def test_killed_at_any_moment_it_goes_on_and_ends_whole(tmp_path):
    store, out, chance = demo.make(tmp_path), tmp_path / "out", random.Random(SEED)
    started = time.monotonic()
    whole = copy(store, tmp_path / "whole")
    assert whole.wait() == 0
    took = time.monotonic() - started
    before = {}
    for _ in range(KILLS):
        process = copy(store, out)
        time.sleep(chance.uniform(0.4, 1.0) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for log in visible(out):
            assert [record.WhichOneof("record_type") for record in wandblogs.read(log)][-1] == "exit"
            assert before.setdefault(log, log.stat().st_mtime_ns) == log.stat().st_mtime_ns  # never written again
    last = copy(store, out)
    assert last.wait() == 0, last.stderr.read()
    assert [log.name for log in visible(out)] == [log.name for log in visible(tmp_path / "whole")]
    for log, meant in zip(visible(out), visible(tmp_path / "whole"), strict=True):
        assert wandblogs.rows(log) == wandblogs.rows(meant)
    argv = [sys.executable, "-m", "mlmigrate", "verify", f"mlflow:{store}", f"wandb:{out}"]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "All 12 runs are equal" in told
