"""The figures of object stores, against a real S3 server on this machine."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import s3faults
import s3server
from benchmarks import stores
from benchmarks.figures import Shop, costs, say
from benchmarks.loads import MIB, Load
from benchmarks.measure import Cost, best, run
from benchmarks.table import Row
from benchmarks.tools import REPOSITORY

PARTS = 64  # MiB of each part where memory is measured: 4 files of 4 parts are in flight


def s3_upload(shop: Shop) -> list[Row]:
    """Small and large files from disk to S3, beside s5cmd and rclone copy."""
    rows = []
    with _server(shop) as s3:
        for load in shop.sizes.uploads:
            found = _raced(shop, s3, load)
            rows += _rows(load, found["ours"], found["s5cmd"], found["rclone"])
    return rows


def s3_copy(shop: Shop) -> list[Row]:
    """The same from a bucket to another of the same server: how many bytes of payload pass through us."""
    rows = []
    with _server(shop) as s3, s3faults.faulty(s3) as proxy:
        for load in shop.sizes.uploads:
            source, target = s3.bucket(), s3.bucket()
            move(f"{_folder(shop, load)}", f"s3://{source}/from", s3.env)
            cost = move(f"s3://{source}/from", f"s3://{target}/to", proxy.env)
            _check(s3, target, "to", load)
            passed = proxy.up + proxy.down
            told = costs(ours=cost) | {"requests": len(proxy.seen)}
            text = f"{passed:,} B through us in {cost.wall:.2f} s"
            rows.append(Row("s3-copy", str(load), text, "", passed, 0, at_most=True, unit=" B", detail=told))
            _dropped(s3, source, target)
    return rows


def s3_memory(shop: Shop) -> list[Row]:
    """The peak of memory with 16 parts of 64 MiB in flight."""
    load = shop.sizes.uploads[1]
    with _server(shop) as s3:
        bucket = s3.bucket()
        cost = move(str(_folder(shop, load)), f"s3://{bucket}/p", s3.env, PARTS)
        _check(s3, bucket, "p", load)
    text = f"{cost.peak:.0f} MiB"
    name = f"{load} in parts of {PARTS} MiB, 16 at once"
    return [Row("s3-memory", name, text, "", cost.peak, 400, at_most=True, unit=" MiB", detail=costs(ours=cost))]


ALL: dict[str, Callable[[Shop], list[Row]]] = {"s3-upload": s3_upload, "s3-copy": s3_copy, "s3-memory": s3_memory}


def move(source: str, target: str, env: dict[str, str], part: int = 0) -> Cost:
    """Ours: a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.move", source, target, str(part)]
    return run(argv, env={**env, "PYTHONPATH": str(REPOSITORY / "scripts")})


def s5cmd(folder: Path, bucket: str, prefix: str, s3: s3server.S3Server) -> Cost:
    argv = [s3server.program("s5cmd"), "--log", "error", "--endpoint-url", s3.url, "cp", f"{folder}/*"]
    return run([*argv, f"s3://{bucket}/{prefix}/"], env=s3.env)


def rclone(folder: Path, bucket: str, prefix: str, s3: s3server.S3Server) -> Cost:
    """With as many transfers as we have threads: its own 4 take twice as long."""
    argv = [s3server.program("rclone"), "copy", "--config", os.devnull, "--transfers", "32", "--s3-env-auth"]
    argv += ["--s3-provider", "Other", "--s3-endpoint", s3.url, "--s3-force-path-style", "--s3-no-check-bucket"]
    return run([*argv, str(folder), f":s3:{bucket}/{prefix}"], env=s3.env)


def _raced(shop: Shop, s3: s3server.S3Server, load: Load) -> dict[str, Cost]:
    """Everybody's best of several rounds; another begins with each, and each writes into a bucket of its own."""
    folder = _folder(shop, load)
    runners: dict[str, Callable[[str], Cost]] = {
        "ours": lambda bucket: move(str(folder), f"s3://{bucket}/p", s3.env),
        "s5cmd": lambda bucket: s5cmd(folder, bucket, "p", s3),
        "rclone": lambda bucket: rclone(folder, bucket, "p", s3),
    }
    took: dict[str, list[Cost]] = {name: [] for name in runners}
    names = list(runners)
    for turn in range(shop.sizes.repeats):
        for name in names[turn % 3 :] + names[: turn % 3]:
            bucket = s3.bucket()
            took[name].append(runners[name](bucket))
            say(f"  {load}: {name} {took[name][-1].wall:.2f} s, {took[name][-1].cpu:.2f} s of CPU")
            _check(s3, bucket, "p", load)
            _dropped(s3, bucket)
    return {name: best(list_) for name, list_ in took.items()}


def _rows(load: Load, ours: Cost, s5: Cost, rc: Cost) -> list[Row]:
    name, told = str(load), costs(ours=ours, s5cmd=s5, rclone=rc)
    wall, cpu = f"{ours.wall:.2f} s", f"{ours.cpu:.2f} s of CPU"
    more = {"at_most": True, "detail": told}
    return [
        Row("s3-upload, beside s5cmd", name, wall, f"{s5.wall:.2f} s", ours.wall / s5.wall, 1.1, **more),
        Row("s3-upload, beside rclone copy", name, wall, f"{rc.wall:.2f} s", ours.wall / rc.wall, 1.1, **more),
        Row("s3-upload, CPU beside s5cmd", name, cpu, f"{s5.cpu:.2f} s of CPU", ours.cpu / s5.cpu, 1.0, **more),
    ]


def _folder(shop: Shop, load: Load) -> Path:
    """The files, made once, of bytes that nobody can make smaller; read once, so that the disk is warm."""
    folder = shop.folder / "uploads" / f"{load.files}-{load.size}"
    if not folder.exists():
        chance = random.Random(load.files)
        for n in range(load.files):
            file = folder / f"run{n // 50}" / f"file{n}"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                for at in range(0, load.size, MIB):
                    out.write(chance.randbytes(min(MIB, load.size - at)))
    stores.warm(folder)
    return folder


@contextmanager
def _server(shop: Shop) -> Iterator[s3server.S3Server]:
    place = shop.place("s3")
    place.mkdir()
    with s3server.running(place, volumes=400) as s3:
        yield s3


def _check(s3: s3server.S3Server, bucket: str, prefix: str, load: Load) -> None:
    """As many objects and bytes as there are files."""
    sizes = [
        one["Size"]
        for page in s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for one in page.get("Contents", ())
    ]
    if (len(sizes), sum(sizes)) != (load.files, load.bytes):
        raise RuntimeError(f"{len(sizes)} objects of {sum(sizes):,} bytes arrived of {load}")


def _dropped(s3: s3server.S3Server, *buckets: str) -> None:
    """The server gives the volumes of a bucket back when the bucket goes."""
    for bucket in buckets:
        s3.client().delete_bucket(Bucket=bucket)
