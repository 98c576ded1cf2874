"""A mover that is killed leaves no half file under any name; another run goes on and leaves nothing behind."""

import os
import random
import subprocess
import sys
import time

import pytest

import s3faults
import s3server
from mlmigrate.storage.folder import PARTS, FolderObjects
from mlmigrate.storage.moving import Moved, Mover, Task
from mlmigrate.storage.objects import open_objects

pytestmark = pytest.mark.slow
SEEDS = 5
MOVE = """
import os, sys
from mlmigrate.storage.folder import FolderObjects
from mlmigrate.storage.moving import Mover, Task
from mlmigrate.storage.objects import open_objects

class Elsewhere(FolderObjects):
    store = "elsewhere"

source = FolderObjects.of(sys.argv[1])
target = open_objects(sys.argv[2], os.environ) if "://" in sys.argv[2] else Elsewhere.of(sys.argv[2])
print("ready", flush=True)
for _ in Mover(target).move(Task(source, one.key, one.size, one.version, "new/" + one.key) for one in source.list()):
    pass
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for n in range(300):
        file = root / f"d{n % 9}" / f"f{n}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(random.Random(n).randbytes(1000 + n))
    for n in range(2):
        (root / f"large{n}").write_bytes(random.Random(n).randbytes((34 << 20) + n))
    return FolderObjects.of(str(root))


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3server.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


def meant(source):
    return {f"new/{one.relative_to(source.root)}": one.read_bytes() for one in source.root.rglob("*") if one.is_file()}


def killed(source, to, env, after):
    command = [sys.executable, "-c", MOVE, str(source.root), to]
    with subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(after)
        process.kill()


def finished(source, target):
    listed = (Task(source, one.key, one.size, one.version, "new/" + one.key) for one in source.list())
    return all(isinstance(one, Moved) for one in Mover(target).move(listed))


@pytest.mark.parametrize("n", range(SEEDS))
def test_into_a_folder(source, tmp_path, seed, n):
    killed(source, str(tmp_path / "to"), {}, random.Random(seed + n).uniform(0, 0.8))
    target, whole = FolderObjects.of(str(tmp_path / "to")), meant(source)
    for one in target.list():
        assert (target.root / one.key).read_bytes() == whole[one.key]
    assert finished(source, target)
    found = {str(one.relative_to(target.root)): one for one in target.root.rglob("*") if one.is_file()}
    assert {key: one.read_bytes() for key, one in found.items() if not key.startswith(PARTS)} == whole


@pytest.mark.parametrize("n", range(SEEDS))
def test_into_a_bucket(source, s3, seed, n):
    bucket, whole = s3.bucket(), meant(source)
    with s3faults.faulty(s3) as proxy:
        killed(source, f"s3://{bucket}/p", proxy.env, random.Random(seed + n).uniform(0, 2.5))
        proxy.settled()  # what was on its way is there now, or never will be
    found = s3.objects(bucket, "p")
    assert found == {key: whole[key] for key in found}
    assert finished(source, open_objects(f"s3://{bucket}/p", s3.env))
    assert s3.objects(bucket, "p") == whole
    assert s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    s3.client().delete_bucket(Bucket=bucket)
