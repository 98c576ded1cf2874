"""A log made by the SDK's own classes, of now and of years ago, is told as it is."""

import json
import math
import os
import time

import pytest

import wandblogs
from mlmigrate.adapters.wandb.datalog import columns, state
from mlmigrate.adapters.wandb.datalog.reader import Log
from mlmigrate.adapters.wandb.datalog.scan import Unusual
from mlmigrate.adapters.wandb.shape import Other


@pytest.fixture(params=["all at once", "one by one"])
def way(request, monkeypatch):
    """Rows are found by scanning, or by protobuf's classes where something is unusual: both tell the same."""

    def unusual(*_):
        raise Unusual

    if request.param == "one by one":
        monkeypatch.setattr(columns, "scan", unusual)
        monkeypatch.setattr(state, "scan", unusual)


def entries(blocks):
    """(row, key, value) of all numbers, and the others."""
    numbers, others, before = [], [], 0
    for block in blocks:
        names = [block.keys[key] for key in block.key.to_pylist()]
        rows = [before + row for row in block.row.to_pylist()]
        numbers += list(zip(rows, names, block.value.to_pylist(), strict=True))
        others += [Other(before + one.row, one.key, one.text) for one in block.others]
        before += block.rows
    return numbers, others


def item(row, path, text):
    row.history.item.add(nested_key=path, value_json=text)


def test_rows_of_a_current_sdk(plain, tmp_path, way):
    row = plain.pb.Record(num=3)
    for path, text in [
        (["loss"], "0.25"),
        (["_timestamp"], "1.7952615354043837e+09"),
        (["a.b"], "3"),
        (["n", "x"], "NaN"),
        (["n", "y.z"], "-Infinity"),
        (["_runtime"], "0.5"),
        (["_step"], "7"),
        (["s"], '"text"'),
        (["flag"], "true"),
        (["none"], "null"),
        (["list"], "[1, NaN]"),
        (["big"], str(2**60 + 1)),
        (["even"], str(2**60)),
    ]:
        item(row, path, text)
    row.history.step.num = 7
    (block,) = Log(plain.write(tmp_path / "run-a.wandb", row)).history()
    numbers, others = entries([block])
    assert {key: value for _, key, value in numbers if not math.isnan(value)} == {
        "loss": 0.25,
        "a.b": 3.0,
        "n.y.z": -math.inf,
        "big": float(2**60),
        "even": float(2**60),
    }
    assert [key for _, key, value in numbers if math.isnan(value)] == ["n.x"]
    assert (block.step.to_pylist(), block.time.to_pylist(), block.runtime.to_pylist()) == (
        [7],
        [1795261535.4043837],
        [0.5],
    )
    assert sorted(others) == sorted(
        [
            Other(0, "s", '"text"'),
            Other(0, "flag", "true"),
            Other(0, "none", "null"),
            Other(0, "list", "[1, NaN]"),
            Other(0, "big", str(2**60 + 1)),
        ]
    )


def test_media_split_into_their_leaves_are_one_value_again(plain, tmp_path, way):
    row = plain.pb.Record()
    item(row, ["img", "size"], "30")
    item(row, ["img", "_type"], '"image-file"')
    item(row, ["deep", "h", "_type"], '"histogram"')
    item(row, ["deep", "h", "boxes", "a"], "[1,2]")
    item(row, ["deep", "x"], "1.5")
    numbers, others = entries(Log(plain.write(tmp_path / "run-a.wandb", row)).history())
    assert numbers == [(0, "deep.x", 1.5)]
    assert [(one.key, json.loads(one.text)) for one in others] == [
        ("img", {"size": 30, "_type": "image-file"}),
        ("deep.h", {"_type": "histogram", "boxes": {"a": [1, 2]}}),
    ]


def test_rows_of_an_old_sdk_have_the_step_beside_them_and_dicts_as_one(plain, tmp_path, way):
    row = plain.history(
        12, **{"train.loss": 1.5, "n": {"x": 1, "m": {"y": float("nan")}, "e": {}}, "i": {"_type": "image", "w": 1}}
    )
    row.history.item.add(key="_timestamp", value_json="1649245524")
    row.history.item.add(key="_runtime", value_json="3")
    (block,) = Log(plain.write(tmp_path / "run-a.wandb", row, plain.history(40, x=1))).history()
    numbers, others = entries([block])
    assert [(row, key) for row, key, _ in numbers] == [(0, "train.loss"), (0, "n.x"), (0, "n.m.y"), (1, "x")]
    assert math.isnan(numbers[2][2])
    assert others == [Other(0, "n.e", "{}"), Other(0, "i", '{"_type": "image", "w": 1}')]
    assert (block.step.to_pylist(), block.time.to_pylist()) == ([12, 40], [1649245524.0, None])


def test_values_with_their_types_are_read_without_json(plain, tmp_path):
    if "value" not in plain.pb.HistoryItem.DESCRIPTOR.oneofs_by_name:
        pytest.skip("this SDK writes none")
    record = plain.pb.Record()
    for key, name, value in [
        ("f", "number", 0.1),
        ("nan", "number", math.nan),
        ("i", "integer", -(2**62) - 1),
        ("b", "boolean", False),
        ("t", "text", 'a "word"'),
        ("j", "json", "[1]"),
        ("0", "none", 0),
    ]:
        record.history.item.add(key=key, **{name: value})
    numbers, others = entries(Log(plain.write(tmp_path / "run-a.wandb", record)).history())
    assert [(key, value) for _, key, value in numbers if not math.isnan(value)] == [("f", 0.1), ("i", -float(2**62))]
    assert sorted(others) == [
        Other(0, "0", "null"),
        Other(0, "b", "false"),
        Other(0, "i", str(-(2**62) - 1)),
        Other(0, "j", "[1]"),
        Other(0, "t", '"a \\"word\\""'),
    ]


def test_steps_of_any_size_are_exact(plain, tmp_path, way):
    told = [0, -3, 2**53 + 1, 2**63 - 1, 1_700_000_000_000_000_001]
    rows = [plain.history(step, _step=step, x=1) for step in told]
    (block,) = Log(plain.write(tmp_path / "run-a.wandb", *rows)).history()
    assert block.step.to_pylist() == told
    only_beside = [plain.history(step, x=1) for step in told]
    (block,) = Log(plain.write(tmp_path / "run-a.wandb", *only_beside)).history()
    assert block.step.to_pylist() == told


def test_a_row_without_values_is_a_row(plain, tmp_path, way):
    path = plain.write(tmp_path / "run-a.wandb", plain.history(1), plain.history(2, x=5))
    (block,) = Log(path).history()
    assert block.step.to_pylist() == [1, 2]
    assert entries([block]) == ([(1, "x", 5.0)], [])


def test_a_value_that_is_no_json_is_left_out_and_told(plain, tmp_path, way):
    row = plain.history(1, good=1)
    for text in ["-", "1,2", "[1", '{"a":', "nope", "1 2", ""]:
        row.history.item.add(key=f"bad {text}", value_json=text)
    row.history.item.add(value_json="1")
    log = Log(plain.write(tmp_path / "run-a.wandb", row))
    assert entries(log.history()) == ([(0, "good", 1.0)], [])
    told = [loss.because for loss in log.losses if loss.what == "rows of run-a.wandb"]
    assert "a value has no key" in told
    assert len(told) == 8


def test_a_leaf_beside_media_that_only_looks_like_a_number_is_left_out_and_told(plain, tmp_path, way):
    row = plain.pb.Record()
    for path, text in [
        (("img", "_type"), '"image-file"'),
        (("n", "a"), "1"),
        (("n", "b"), "-abc"),
        (("n", "c"), "\u0131"),
    ]:
        row.history.item.add(nested_key=path, value_json=text)
    log = Log(plain.write(tmp_path / "run-a.wandb", row))
    assert entries(log.history()) == ([(0, "n.a", 1.0)], [Other(0, "img", '{"_type":"image-file"}')])
    told = [loss.because for loss in log.losses if loss.what == "rows of run-a.wandb"]
    assert told == ["'n.c' has a value that is no JSON", "'n.b' has a value that is no JSON"]


def test_system_metrics_have_their_times_and_no_steps(plain, tmp_path):
    run = plain.pb.Record(run={"run_id": "a"})
    run.run.start_time.FromMilliseconds(1_600_000_000_500)
    stats = plain.pb.Record()
    stats.stats.timestamp.seconds, stats.stats.timestamp.nanos = 1_600_000_010, 250_000_000
    stats.stats.item.add(key="gpu.0.temp", value_json="35.5")
    stats.stats.item.add(key="network", value_json='{"sent": 3, "recv": 4.5}')
    log = Log(plain.write(tmp_path / "run-a.wandb", run, stats))
    (block,) = log.events()
    assert entries([block])[0] == [(0, "gpu.0.temp", 35.5), (0, "network.sent", 3.0), (0, "network.recv", 4.5)]
    assert (block.step.to_pylist(), block.time.to_pylist(), block.runtime.to_pylist()) == (
        [None],
        [1_600_000_010.25],
        [9.75],
    )


def test_console_text_of_old_and_new_sdks_is_one_text(plain, tmp_path):
    pb = plain.pb
    records = [
        pb.Record(output={"line": "old\n"}),
        pb.Record(output_raw={"line": "hal"}, uuid="u"),
        pb.Record(output_raw={"line": "f\n"}),
        pb.Record(output_logger={"line": "logged"}),
    ]
    assert "".join(Log(plain.write(tmp_path / "run-a.wandb", *records)).console()) == "old\nhalf\nlogged\n"


def test_the_last_word_on_a_run_wins(plain, tmp_path):
    pb = plain.pb
    first = pb.Record(run={"run_id": "abc", "project": "p", "entity": "e", "tags": ["a", "b"], "display_name": "one"})
    first.run.start_time.FromMilliseconds(1_600_000_000_123)
    first.run.config.update.add(key="lr", value_json="0.1")
    first.run.config.update.add(key="n", value_json='{"x": 1, "y": [1, {}]}')
    first.run.config.update.add(key="_wandb", value_json='{"code_path": "c.py"}')
    first.run.telemetry.cli_version = "0.10.20"
    second = pb.Record(run={"run_id": "abc", "project": "p", "tags": ["c"], "display_name": "two", "notes": "words"})
    change = pb.Record()
    change.config.update.add(nested_key=["n", "x"], value_json="2")
    change.config.update.add(key="n", value_json='{"z": null}')
    change.config.update.add(key="gone", value_json="1")
    change.config.remove.add(key="gone")
    change.config.remove.add(nested_key=["n", "nothing", "here"])
    run = Log(plain.write(tmp_path / "run-abc.wandb", first, second, change, pb.Record(exit={"exit_code": 0}))).run
    assert (run.id, run.entity, run.project, run.name, run.notes, run.tags) == (
        "abc",
        "e",
        "p",
        "two",
        "words",
        ("c",),
    )
    assert run.config == {"lr": 0.1, "n": {"x": 2, "y": [1, {}], "z": None}}
    assert run.internal == {"code_path": "c.py", "cli_version": "0.10.20"}
    assert (run.started, run.state, run.exit_code) == (1_600_000_000_123, "finished", 0)


def test_the_summary_is_what_its_updates_make(plain, tmp_path, way):
    updates = [
        [("update", ["loss"], "1"), ("update", ["_wandb", "runtime"], "10"), ("update", ["q"], '{"w": 1, "e": 2}')],
        [("update", ["loss"], '{"min": 0.5}'), ("update", ["q", "w"], "5"), ("update", ["gone"], "1")],
        [("remove", ["gone"], ""), ("remove", ["q", "e"], ""), ("update", ["nan"], "NaN")],
        [("update", ["_wandb", "runtime"], "12.5"), ("update", ["bad"], "{")],
    ]
    records = []
    for update in updates:
        record = plain.pb.Record()
        for what, path, text in update:
            getattr(record.summary, what).add(nested_key=path, value_json=text)
        records.append(record)
    key = plain.pb.Record()
    key.summary.update.add(key="_runtime", value_json="12")
    log = Log(plain.write(tmp_path / "run-a.wandb", *records[:2], key, *records[2:]))
    summary = dict(log.run.summary)
    assert math.isnan(summary.pop("nan"))
    assert summary == {"loss": {"min": 0.5}, "q": {"w": 5}, "_wandb": {"runtime": 12.5}, "_runtime": 12}
    assert log.run.runtime == 12.5
    assert "summary 'bad' of run-a.wandb" in [loss.what for loss in log.losses]


@pytest.mark.parametrize(
    ("end", "state_", "code"),
    [
        ({"exit": {"exit_code": 0, "runtime": 7}}, "finished", 0),
        ({"exit": {"exit_code": 3}}, "failed", 3),
        ({"exit": {"not_complete": True}}, "running", None),
        ({"preempting": {}}, "preempting", None),
    ],
)
def test_how_a_run_ended(end, state_, code, plain, tmp_path):
    run = Log(plain.write(tmp_path / "run-a.wandb", plain.pb.Record(run={"run_id": "a"}), plain.pb.Record(**end))).run
    assert (run.state, run.exit_code, run.runtime) == (state_, code, 7 if code == 0 else None)


def test_a_run_without_an_end_goes_on_while_its_log_is_fresh_and_is_crashed_after(plain, tmp_path):
    path = plain.write(tmp_path / "run-a.wandb", plain.pb.Record(run={"run_id": "a"}))
    assert Log(path).run.state == "running"
    assert [loss.what for loss in Log(path).losses] == ["end of run-a.wandb"]
    os.utime(path, (time.time() - 3600, time.time() - 3600))
    assert Log(path).run.state == "crashed"


@pytest.mark.parametrize("last", ["row", "stats", "output", "output_raw", "none"])
def test_a_run_that_tells_no_runtime_ended_when_its_last_record_was_made(last, plain, tmp_path):
    pb, stamp = plain.pb, {"seconds": 1_600_000_050, "nanos": 250_000_000}
    made = {
        "row": [plain.history(0, _timestamp=1_600_000_010.0), plain.history(1, _timestamp=1_600_000_050.25)],
        "stats": [pb.Record(stats={"timestamp": stamp}), plain.history(1, _timestamp=1_600_000_050.125)],
        "output": [plain.history(1, _timestamp=1_700_000_000_000), pb.Record(output={"timestamp": stamp})],
        "output_raw": [plain.history(1, _timestamp="soon"), pb.Record(output_raw={"timestamp": stamp})],
        "none": [plain.history(1, _timestamp=1_500_000_000.0), plain.history(2, _timestamp=math.nan)],
    }[last]
    begin = pb.Record(run={"run_id": "a", "start_time": {"seconds": 1_600_000_000}})
    path = plain.write(tmp_path / "run-a.wandb", begin, *made)
    assert (Log(path).run.state, Log(path).run.ended) == ("running", None)
    os.utime(path, (time.time() - 3600, time.time() - 3600))
    ended = None if last == "none" else 1_600_000_050_250
    assert (Log(path).run.state, Log(path).run.ended) == ("crashed", ended)
    plain.write(path, begin, *made, pb.Record(exit={"exit_code": 1}))
    assert (Log(path).run.state, Log(path).run.ended) == ("failed", ended)
    plain.write(path, begin, *made, pb.Record(exit={"runtime": 7}))
    assert Log(path).run.ended == 1_600_000_007_000


def test_a_start_beyond_all_calendars_is_none(plain, tmp_path):
    for seconds in (2**62, -(2**62), 253_402_300_800):
        begin = plain.pb.Record(run={"run_id": "a", "start_time": {"seconds": seconds}})
        run = Log(plain.write(tmp_path / "run-a.wandb", begin, plain.pb.Record(exit={"runtime": 7}))).run
        assert (run.started, run.ended) == (None, None)


def test_environment_metrics_files_and_artifacts_are_told(plain, tmp_path):
    pb = plain.pb
    environment = pb.Record(
        environment={
            "os": "Linux",
            "program": "train.py",
            "args": ["--lr", "1"],
            "host": "node",
            "username": "ann",
            "writer_id": "w1",
            "cpu_count": 4,
            "git": {"remote_url": "git@h:r.git", "commit": "c0ffee"},
            "memory": {"total": 2**40},
        }
    )
    environment.environment.started_at.FromJsonString("2020-09-13T12:26:40.5Z")
    other = pb.Record(environment={"os": "Another", "writer_id": "w2"})
    more = pb.Record(environment={"python": "3.9", "writer_id": "w1"})
    metric = {"glob_name": "v/*", "step_metric": "epoch", "options": {"defined": True}, "goal": "GOAL_MINIMIZE"}
    made = {"name": "v/1", "expanded_from_glob": True}
    artifact = {
        "run_id": "a",
        "project": "p",
        "entity": "e",
        "type": "model",
        "name": "net",
        "digest": "d1",
        "description": "words",
        "metadata": '{"k": 1}',
        "aliases": ["best"],
        "tags": ["t"],
        "ttl_duration_seconds": 60,
        "manifest": {
            "contents": [
                {"path": "w.bin", "digest": "abc=", "size": 3, "local_path": "/x/../w"},
                {"path": "r", "digest": "e", "ref": "s3://b/k", "extra": [{"key": "etag", "value_json": '"q"'}]},
            ]
        },
    }
    used = {"type": "dataset", "name": "data", "user_created": True, "use_after_commit": True}
    path = plain.write(
        tmp_path / "run-a.wandb",
        pb.Record(run={"run_id": "a"}),
        environment,
        other,
        more,
        pb.Record(metric=metric),
        pb.Record(metric=made),
        pb.Record(files={"files": [{"path": "a/b.txt"}, {"path": "../up"}]}),
        pb.Record(files={"files": [{"path": "a/b.txt"}]}),
        pb.Record(artifact=artifact),
        pb.Record(artifact=used),
        pb.Record(use_artifact={"id": "x", "type": "dataset", "name": "raw:v3"}),
        pb.Record(alert={"title": "help", "text": "me"}),
        pb.Record(exit={}),
    )
    log = Log(path)
    run = log.run
    assert run.metadata == {
        "os": "Linux",
        "python": "3.9",
        "program": "train.py",
        "args": ["--lr", "1"],
        "host": "node",
        "username": "ann",
        "cpu_count": 4,
        "git": {"remote": "git@h:r.git", "commit": "c0ffee"},
        "memory": {"total": str(2**40)},
        "startedAt": "2020-09-13T12:26:40.500Z",
    }
    assert (run.host, run.program, run.args, run.user) == ("node", "train.py", ("--lr", "1"), "ann")
    assert (run.git_remote, run.git_commit, run.started) == ("git@h:r.git", "c0ffee", 1_600_000_000_500)
    assert run.metrics == (metric,)
    assert log.files == ("a/b.txt", "../up")
    (net,) = run.logged
    assert (net.name, net.type, net.digest, net.metadata, net.aliases, net.tags, net.ttl, net.run) == (
        "net",
        "model",
        "d1",
        {"k": 1},
        ("best",),
        ("t",),
        60,
        "a",
    )
    assert [(one.name, one.version) for one in run.used] == [("data", ""), ("raw", "v3")]
    entries_ = log.artifacts[0].entries
    assert [(one.path, one.digest, one.size, one.local_path, one.ref, one.extra) for one in entries_] == [
        ("w.bin", "abc=", 3, "/x/../w", "", {}),
        ("r", "e", None, "", "s3://b/k", {"etag": "q"}),
    ]
    assert [loss.what for loss in log.losses] == ["alert 'help' of run-a.wandb"]


def test_what_was_logged_again_is_one_version_with_all_its_names(tmp_path):
    def logged(aliases, client, metadata="", name="net", digest="d"):
        told = {"metadata": metadata, "aliases": aliases, "client_id": client, "sequence_client_id": f"s{client}"}
        return wandblogs.artifact(name, "model", {"w": ("abc=", 3, f"/x/{client}")}, run_id="a", digest=digest, **told)

    used = logged([], "u")
    used.artifact.user_created = used.artifact.use_after_commit = True
    records = [
        logged(["one"], "1"),
        logged(["two"], "2"),
        logged(["one", "latest"], "3"),
        logged([], "4", metadata='{"k": 1}'),
        logged([], "5", name="other"),
        logged([], "6", digest="e"),
        used,
    ]
    wandblogs.write(tmp_path / "run-a.wandb", [wandblogs.header(), wandblogs.run("a"), *records, wandblogs.exit_()])
    run = Log(tmp_path / "run-a.wandb").run
    assert [(one.aliases, one.clients) for one in run.logged] == [
        (("one", "two", "latest"), (("1", "s1"), ("2", "s2"), ("3", "s3"))),
        ((), (("4", "s4"),)),
        ((), (("5", "s5"),)),
        ((), (("6", "s6"),)),
    ]
    assert [one.clients for one in run.used] == [()]


def test_an_alias_is_of_the_version_that_was_logged_with_it_last(tmp_path):
    def logged(digest, *aliases):
        return wandblogs.artifact("net", "model", {}, run_id="a", digest=digest, aliases=aliases)

    records = [logged("d", "best", "latest"), logged("e", "good", "latest"), logged("d", "latest")]
    wandblogs.write(tmp_path / "run-a.wandb", [wandblogs.header(), wandblogs.run("a"), *records, wandblogs.exit_()])
    run = Log(tmp_path / "run-a.wandb").run
    assert [(one.digest, one.aliases) for one in run.logged] == [("d", ("best", "latest")), ("e", ("good",))]


def test_references_have_the_sizes_that_they_were_logged_with(tmp_path):
    made = wandblogs.artifact("net", "model", {"known": ("d", 5, ""), "unknown": ("e", 0, "")}, run_id="a")
    for entry in made.artifact.manifest.contents:
        entry.ref = f"s3://bucket/{entry.path}"
    wandblogs.write(tmp_path / "run-a.wandb", [wandblogs.header(), wandblogs.run("a"), made, wandblogs.exit_()])
    (net,) = Log(tmp_path / "run-a.wandb").artifacts
    assert {one.path: one.size for one in net.entries} == {"known": 5, "unknown": None}


def test_an_alias_belongs_to_what_was_logged_with_it_last(tmp_path):
    records = [
        wandblogs.artifact("net", "model", {}, run_id="a", digest=digest, aliases=aliases)
        for digest, aliases in [("d", ["latest"]), ("e", ["latest", "best"]), ("d", ["best", "latest"]), ("f", ["x"])]
    ]
    wandblogs.write(tmp_path / "run-a.wandb", [wandblogs.header(), wandblogs.run("a"), *records, wandblogs.exit_()])
    logged = Log(tmp_path / "run-a.wandb").run.logged
    assert {one.digest: set(one.aliases) for one in logged} == {"d": {"latest", "best"}, "e": set(), "f": {"x"}}


@pytest.mark.parametrize(("of", "what"), [("other", "history until _step=3"), ("a", "rewound to _step=3")])
def test_a_run_that_goes_on_from_a_point_of_another_says_so(tmp_path, of, what):
    begun = wandblogs.run("a")
    point = begun.run.branch_point
    point.run, point.metric, point.value = of, "_step", 3
    wandblogs.write(tmp_path / "run-a.wandb", [wandblogs.header(), begun, wandblogs.exit_()])
    assert [loss.what.removesuffix(" of run-a.wandb") for loss in Log(tmp_path / "run-a.wandb").losses] == [what]


def test_an_empty_file_tells_nothing_and_says_so(tmp_path):
    path = tmp_path / "run-abc.wandb"
    path.write_bytes(b"")
    log = Log(path)
    assert (log.run.id, log.counts, list(log.history()), list(log.console())) == ("abc", {}, [], [])
    assert [(loss.run, loss.what, loss.because) for loss in log.losses] == [
        ("abc", "byte 0 of run-abc.wandb", "the file is empty")
    ]


@pytest.mark.parametrize("head", [b":W&B\xe1\xbe\x05", b"XXXXXXX"])
def test_a_log_with_a_damaged_header_is_read_all_the_same(head, plain, tmp_path):
    path = plain.write(tmp_path / "run-a.wandb", plain.pb.Record(run={"run_id": "a"}), plain.pb.Record(exit={}))
    path.write_bytes(head + path.read_bytes()[7:])
    log = Log(path)
    assert log.counts == {"run": 1, "exit": 1}
    assert [loss.what for loss in log.losses] == ["byte 0 of run-a.wandb"]


def test_records_that_nobody_knows_are_counted_and_told(plain, tmp_path):
    later = b"\xfa\x07\x02\x08\x01"  # field 127
    path = plain.write(tmp_path / "run-a.wandb", plain.pb.Record(run={"run_id": "a"}), later, b"\xff\xff", b"")
    log = Log(path)
    assert log.counts == {"run": 1, "unknown": 3}
    because = [loss.because for loss in log.losses]
    assert because[0] == "a record is of a kind that this version does not know"
    assert because[1] == "a record is no protobuf"


def test_a_row_that_is_no_protobuf_is_left_out_and_told(plain, tmp_path):
    rows = [plain.history(1, x=1).SerializeToString(), b"\x12\x7f\x0a\x05", plain.history(3, x=3).SerializeToString()]
    log = Log(plain.write(tmp_path / "run-a.wandb", *rows))
    assert entries(log.history())[0] == [(0, "x", 1.0), (1, "x", 3.0)]
    assert "a record of kind history is no protobuf" in [loss.because for loss in log.losses]


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "9" * 10_000, '"\\ud800"', '{"\\ud800": 1}']
)
def test_hostile_values_end_nothing(text, plain, tmp_path):
    record = plain.pb.Record(run={"run_id": "a"})
    record.run.config.update.add(key="k", value_json=text)
    record.run.summary.update.add(key="k", value_json=text)
    row = plain.pb.Record()
    row.history.item.add(key="k", value_json=text)
    row.history.item.add(nested_key=["k"] * 3000, value_json="1")
    row.history.item.add(key="good", value_json="2")
    log = Log(plain.write(tmp_path / "run-a.wandb", record, row))
    numbers, others = entries(log.history())
    assert (0, "good", 2.0) in numbers
    "".join([one.text + one.key for one in others] + [key for _, key, _ in numbers]).encode()
    json.dumps([log.run.config, log.run.summary], ensure_ascii=False).encode()


def test_rows_beyond_one_block_come_in_several(plain, tmp_path):
    path = plain.write(tmp_path / "run-a.wandb", *[plain.history(n, x=n) for n in range(10_000)])
    blocks = list(Log(path).history())
    assert len(blocks) > 1
    assert [value for _, _, value in entries(blocks)[0]] == [float(n) for n in range(10_000)]
    assert [step for block in blocks for step in block.step.to_pylist()] == list(range(10_000))


def test_what_is_wrong_in_many_places_is_told_in_few_words(plain, tmp_path):
    row = plain.history(1)
    for n in range(3000):
        row.history.item.add(key=f"k{n}", value_json="nope")
    again = plain.history(2)
    again.history.item.add(key="k7", value_json="nope")
    damaged = [plain.history(n, x="y" * 30_000) for n in range(50)]
    path = plain.write(tmp_path / "run-a.wandb", plain.pb.Record(run={"run_id": "a"}), row, again, *damaged)
    data = bytearray(path.read_bytes())
    for block in range(5, 45):
        data[block * 32768 + 20_000] ^= 1
    path.write_bytes(data)
    log = Log(path)
    list(log.history())
    once = log.losses
    list(log.history())
    assert log.losses == once
    because = [loss.because for loss in once]
    assert "'k7' has a value that is no JSON, 2 times" in because
    assert "more values cannot be read, 2000 times" in because
    assert len([one for one in once if one.what.startswith("byte")]) < 70
    assert any("more places" in one for one in because)


def test_nothing_is_read_of_a_block_that_has_no_rows(plain, tmp_path):
    log = Log(plain.write(tmp_path / "run-a.wandb", plain.pb.Record(run={"run_id": "a"}), plain.pb.Record(exit={})))
    assert (list(log.history()), list(log.events()), list(log.console()), log.losses) == ([], [], [], [])
