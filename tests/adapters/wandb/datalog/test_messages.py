"""The SDK's classes are borrowed, the SDK itself is not run."""

import subprocess
import sys

ALONE = """
import sys
write = sys.stdout.write
from mlmigrate.adapters.wandb.datalog.messages import pb, producer
assert sys.stdout.write == write
assert not [name for name in sys.modules if name.split(".")[0] == "wandb"], "the SDK was run"
assert producer()
"""
LATER = """
record = pb.Record(num=5, run={"run_id": "a"})
from wandb.proto import wandb_internal_pb2 as theirs
import wandb
assert wandb.Settings and wandb.Artifact
assert theirs.Record.FromString(record.SerializeToString()).run.run_id == "a"
assert pb.Record.FromString(theirs.Record(num=6).SerializeToString()).num == 6
"""
FIRST = """
import wandb
from wandb.proto import wandb_internal_pb2 as theirs
from mlmigrate.adapters.wandb.datalog.messages import pb
assert pb is theirs and sys.modules["wandb"] is wandb
"""
MISSING = """
import sys
sys.modules["wandb"] = None
from mlmigrate.errors import UsageError
try:
    import mlmigrate.adapters.wandb.datalog.reader
except UsageError as error:
    assert "mlmigrate[wandb]" in error.hint
else:
    raise AssertionError
"""


def run(code):
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_reading_a_log_does_not_import_the_sdk():
    run(ALONE)


def test_the_sdk_can_be_imported_afterwards():
    run(ALONE + LATER)


def test_an_sdk_that_is_there_already_is_used():
    run("import sys" + FIRST)


def test_without_the_sdk_it_is_said_what_to_install():
    run(MISSING)
