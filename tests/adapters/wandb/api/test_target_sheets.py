"""Single runs delivered to the contract server: what no sample of MLflow's has."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mlmigrate.adapters.base import Context
from mlmigrate.adapters.wandb.api import proving
from mlmigrate.adapters.wandb.api.target import open_target
from mlmigrate.adapters.wandb.provenance import KEY, Provenance, as_config
from mlmigrate.adapters.wandb.shape import Block, Collection, File, Linked, Sheet, Version, WandbRun
from mlmigrate.address import parse
from mlmigrate.errors import Damaged, MigrateError
from wandbtarget import use

pytestmark = pytest.mark.slow
KEYS = ("loss", "accuracy")


@pytest.fixture
def server(running, monkeypatch):
    running.reset()
    running.switch(strict_steps=True)
    use(running, monkeypatch)
    return running


@pytest.fixture
def sending(server):
    target = open_target(parse("wandb:team"), Context("target"))
    yield target.sending.for_a_pack()
    target.close()


def block(first: int, rows: int) -> Block:
    steps = np.arange(first, first + rows)
    return Block(
        pa.array(steps),
        pa.array(1.6e9 + steps / 3),
        pa.array(steps / 3),
        KEYS,
        pa.array(np.repeat(np.arange(rows), len(KEYS)).astype(np.int32)),
        pa.array(np.tile(np.arange(len(KEYS)), rows).astype(np.int32)),
        pa.array(np.repeat(steps, len(KEYS)) / 7),
    )


def sheet(name: str, rows: int = 3, events: int = 0, **fields: object) -> Sheet:
    origin = f"wandb:team/p/{name}"
    told = as_config(Provenance(origin=origin, native=True))
    run = WandbRun(id=name, project="p", name=name, config={"lr": 0.1, KEY: told}, summary={"loss": 0.5}, **fields)  # type: ignore[arg-type]
    return Sheet(
        run,
        origin,
        "stamp",
        rows,
        lambda start: iter([block(start, rows - start)]),
        events,
        lambda start: iter([block(start, events - start)]),
    )


def file(path: str, data: bytes) -> File:
    return File(path, lambda: io.BytesIO(data), len(data))


def version(name: str, *files: File, **fields: object) -> Version:
    return Version(name, "dataset", files=files, **fields)  # type: ignore[arg-type]


def test_system_metrics_and_the_console_are_streams_of_their_own(server, sending):
    console = "".join(f"line {n}\n" for n in range(50)).encode() + b"the end"
    sending.deliver([sheet("a", events=4, files=(file("output.log", console),))])
    run = server.state()["runs"]["team/p/a"]
    events = [json.loads(line) for line in run["events"]]
    assert [row["system.loss"] for row in events] == [n / 7 for n in range(4)]
    assert [row["_timestamp"] for row in events] == [1.6e9 + n / 3 for n in range(4)]
    assert run["output"] == console.decode().split("\n")
    assert server.blob(run["files"]["output.log"]["md5"]) == console


def test_files_of_the_run_page_keep_their_bytes_however_many(server, sending):
    files = tuple(file(f"media/{n}.txt", b"%d" % n) for n in range(230))
    own = file("config.yaml", b"theirs")
    sending.deliver([sheet("a", files=(*files, own))])
    there = server.state()["runs"]["team/p/a"]["files"]
    assert [server.blob(there[f"media/{n}.txt"]["md5"]) for n in range(230)] == [b"%d" % n for n in range(230)]
    assert server.blob(there["config.yaml"]["md5"]) == b"theirs"


def test_who_reads_an_artifact_is_its_consumer_whatever_the_order(server, sending):
    made = version("data", file("x.bin", b"x"), aliases=("latest", "best"), metadata={"rows": 3})
    reader = sheet("reader", used=(Version("data", "dataset", version="v0"),))
    sending.deliver([reader, sheet("maker", logged=(made,))])
    artifact = server.state()["artifacts"]["team/p/data:v0"]
    assert (artifact["producer"], artifact["consumers"]) == ("team/p/maker", ["team/p/reader"])
    assert (sorted(artifact["aliases"]), artifact["metadata"]) == (["best", "latest"], {"rows": 3})


def test_a_use_of_what_comes_later_is_told_when_it_is_there(server, monkeypatch):
    target = open_target(parse("wandb:team"), Context("target"))
    target.sending.deliver([sheet("reader", used=(Version("data", "dataset", version="v0"),))])
    target.sending.deliver([sheet("maker", logged=(version("data", file("x.bin", b"x")),))])
    assert list(target.finish((), {})) == []
    assert server.state()["artifacts"]["team/p/data:v0"]["consumers"] == ["team/p/reader"]
    target.close()


def test_versions_of_one_collection_keep_their_order_and_equal_bytes_go_once(server, sending):
    versions = tuple(version("data", file("same.bin", b"same"), file("n", b"%d" % n)) for n in range(3))
    server.forget()
    sending.deliver([sheet("a", logged=versions)])
    artifacts = server.state()["artifacts"]
    assert [server.blob(artifacts[f"team/p/data:v{n}"]["manifest"]["n"]["digest"]) for n in range(3)] == [
        b"0",
        b"1",
        b"2",
    ]
    assert sum(name.endswith("same.bin") for _, name in server.requests()) == 1


def test_references_are_kept_and_send_nothing(server, sending):
    ref = File("far", ref="s3://bucket/far", digest="etag", size=7)
    sending.deliver([sheet("a", logged=(version("data", ref),))])
    entry = server.state()["artifacts"]["team/p/data:v0"]["manifest"]["far"]
    assert (entry["ref"], entry["digest"], entry["size"]) == ("s3://bucket/far", "etag", 7)


def test_bytes_that_are_gone_or_others_than_told_are_errors_that_name_the_file(sending):
    gone = File("x.bin", size=3, gone="the store lost it")
    other = replace(file("y.bin", b"other"), md5="1B2M2Y8AsgTpgAmY7PhCfg==")
    for bad, said in ((gone, "x.bin.*the store lost it"), (other, "y.bin")):
        with pytest.raises(Damaged, match=said):
            sending.deliver([sheet("a", logged=(version("data", bad),)), sheet("b")])


def test_one_bad_run_does_not_stop_the_others(server, sending):
    bad = sheet("bad", logged=(version("data", File("x", gone="lost")),))
    with pytest.raises(Damaged):
        sending.deliver([bad, *(sheet(f"good {n}") for n in range(40))])
    runs = server.state()["runs"].values()
    assert {one["name"] for one in runs if "stamp" in one["config"][KEY]} == {f"good {n}" for n in range(40)}


def test_a_run_whose_system_metrics_are_others_than_ours_is_left_for_another_generation(server, sending):
    server.fail("RunsWritten", 400, times=10)
    with pytest.raises(MigrateError):
        sending.deliver([sheet("a", events=3)])
    server.heal()
    other = replace(sheet("a", events=3), events=lambda start: iter([block(start + 5, 3 - start)]))
    assert sending.deliver([other]) == {"wandb:team/p/a": "a-2"}
    runs = server.state()["runs"]
    assert list(runs) == ["team/p/a-2"]  # the spoiled one, which never was whole, is deleted
    assert [json.loads(line)["system.loss"] for line in runs["team/p/a-2"]["events"]] == [5 / 7, 6 / 7, 1.0]
    assert runs["team/p/a-2"]["config"][KEY]["generation"] == 2


def test_registered_models_are_collections_of_links(server, sending):
    model = Version("net", "model", files=(file("w", b"w"),))
    sending.deliver([sheet("a", logged=(model,))])
    collection = Collection("nets", "", (Linked("net", "a", "1", ("champion",)), Linked("lost", "a", "2")))
    (loss,) = sending.link([collection])
    assert "version 2" in loss.what
    assert server.state()["artifacts"]["team/p/net:v0"]["links"] == ["team/p/nets"]


def test_a_server_that_gives_fewer_rows_than_asked_is_asked_for_less(server, sending, monkeypatch):
    asked = []
    graphql = sending.client.graphql

    def sampling(operation, variables=None, **more):
        answer = graphql(operation, variables, **more)
        if "HistoryPage" in operation:
            asked.append(variables["pageSize"])
            rows = answer["project"]["run"]["history"]
            answer["project"]["run"]["history"] = rows[:: 1 + len(rows) // 1000]
        return answer

    monkeypatch.setattr(sending.client, "graphql", sampling)
    monkeypatch.setattr("mlmigrate.adapters.wandb.api.sending.KEPT", 0)
    sending.deliver([sheet("a", rows=6000)])
    assert max(asked) > 6000
    assert min(asked) < 1100


@pytest.mark.parametrize(
    ("sent", "got", "equal"),
    [
        (0.1 + 0.2, 0.30000000000000004, True),
        (0.1, 0.10000000000000002, False),
        (0.0, -0.0, False),
        (float("nan"), "NaN", True),
        (float("-inf"), "-Infinity", True),
        (3.0, 3, True),
        (1, True, False),
        (2**53 + 1, 2**53 + 1, True),
        (2**53 + 1, float(2**53), False),
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, True),
        ("NaN", "NaN", True),
        ("1", 1, False),
    ],
)
def test_values_are_compared_bit_by_bit(sent, got, equal):
    assert proving.same(sent, got) is equal
