"""A log that is written holds what was given, as the SDK's own classes read it."""

import json
import math

import pyarrow as pa
import pytest

from mlmigrate.adapters.wandb.datalog.state import Entry
from mlmigrate.adapters.wandb.datalog.writer import LogWriter, manifest_digest
from mlmigrate.adapters.wandb.shape import Block, Other, Version, WandbRun
from mlmigrate.errors import BadData

RUN = WandbRun(
    id="abc",
    entity="team",
    project="proj",
    name="a name",
    notes="words",
    tags=("t1", "t 2"),
    group="grp",
    job_type="train",
    sweep="sw",
    host="node",
    program="train.py",
    args=("--lr", "1"),
    git_remote="git@h:r.git",
    git_commit="c0ffee",
    started=1_600_000_000_123,
    config={"lr": 0.1, "n": {"x": [1, None]}, "a.b": "text", "ü": True, "nan": math.nan},
    internal={"code_path": "c.py", "m": [{"1": "x"}], "e": {}, "cli_version": "0.12.1", "python_version": "3.8"},
    metrics=({"glob_name": "*", "step_metric": "mlflow/step", "options": {"defined": True}, "later": 1},),
    metadata={
        "os": "Linux",
        "memory": {"total": "1234"},
        "disk": 5,
        "unknown": {},
        "startedAt": "2020-09-13T12:26:40Z",
    },
)


def block(rows, others=(), columns=None):
    """A Block of rows of [(key, value)]."""
    keys = sorted({key for row in rows for key, _ in row})
    step, time, runtime = columns or ([None] * len(rows),) * 3
    return Block(
        pa.array(step, pa.int64()),
        pa.array(time, pa.float64()),
        pa.array(runtime, pa.float64()),
        keys,
        pa.array([n for n, row in enumerate(rows) for _ in row], pa.int32()),
        pa.array([keys.index(key) for row in rows for key, _ in row], pa.int32()),
        pa.array([value for row in rows for _, value in row], pa.float64()),
        others,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run-abc.wandb"


def test_the_run_is_told_as_the_sdk_tells_it(path, plain):
    with LogWriter(path) as log:
        log.run(RUN)
    header, first, environment, metric = plain.read(path)
    assert [record.num for record in plain.read(path)] == [1, 2, 3, 4]
    assert header.header.version_info.producer
    run = first.run
    assert (run.run_id, run.entity, run.project, run.display_name, run.notes, list(run.tags)) == (
        "abc",
        "team",
        "proj",
        "a name",
        "words",
        ["t1", "t 2"],
    )
    assert (run.run_group, run.job_type, run.sweep_id, run.host) == ("grp", "train", "sw", "node")
    assert (run.git.remote_url, run.git.commit) == ("git@h:r.git", "c0ffee")
    assert (run.telemetry.cli_version, run.telemetry.python_version) == ("0.12.1", "3.8")
    assert run.start_time.ToMilliseconds() == RUN.started
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert math.isnan(config.pop("nan"))
    assert config == {
        "lr": 0.1,
        "n": {"x": [1, None]},
        "a.b": "text",
        "ü": True,
        "_wandb": {"code_path": "c.py"},
    }
    told = environment.environment
    assert (told.os, told.host, told.program, list(told.args), told.memory.total) == (
        "Linux",
        "node",
        "train.py",
        ["--lr", "1"],
        1234,
    )
    assert told.started_at.ToSeconds() == 1_600_000_000
    assert (metric.metric.glob_name, metric.metric.step_metric, metric.metric.options.defined) == (
        "*",
        "mlflow/step",
        True,
    )


def test_a_definition_that_is_none_is_refused(path):
    with LogWriter(path) as log, pytest.raises(BadData, match="definition of a metric"):
        log.run(WandbRun("a", metrics=({"name": 5},)))


def test_rows_have_their_values_times_and_steps(path, plain):
    others = [Other(0, "t", '"hi"'), Other(1, "big", str(2**60 + 1)), Other(1, "img", '{"_type":"image-file"}')]
    rows = [[("a.b", 1.0), ("nan", math.nan)], [("big", float(2**60)), ("loss", 0.1 + 0.2)], []]
    with LogWriter(path) as log:
        log.run(RUN)
        log.history(block(rows, others, ([5, None, 0], [1.6e9 + 0.25, None, 1.5], [0.25, 0.5, None])))
    first, second, third = plain.read(path, "history")
    assert [item.nested_key for item in first.item][:2] == [["a.b"], ["nan"]]  # a key with a dot is one key
    told = [dict(row) for row in plain.rows(path)]
    assert math.isnan(told[0].pop("nan"))
    assert told == [
        {"a.b": 1, "t": "hi", "_step": 5, "_timestamp": 1.6e9 + 0.25, "_runtime": 0.25},
        {"loss": 0.1 + 0.2, "big": 2**60 + 1, "img": {"_type": "image-file"}, "_runtime": 0.5},
        {"_step": 0, "_timestamp": 1.5},
    ]
    assert (first.step.num, second.HasField("step"), third.HasField("step"), third.step.num) == (5, False, True, 0)


def test_a_number_keeps_its_bits_and_its_sign(path, plain):
    values = [-0.0, 0.0, 5e-324, 1e-320, 1.7976931348623157e308, 1e17, 1e22, 2.0**53, 1 / 3, -1.5, 123456789.0]
    with LogWriter(path) as log:
        log.run(RUN)
        log.history(block([[("x", value)] for value in values]))
    texts = [row.item[0].value_json for row in plain.read(path, "history")]
    assert [float(text).hex() for text in texts] == [value.hex() for value in values]
    assert texts[0] == "-0.0"  # not "-0", an integer, which has no sign


def test_system_metrics_have_their_own_times(path, plain):
    with LogWriter(path) as log:
        log.run(RUN)
        log.events(
            block(
                [[("cpu", 1.5), ("gpu.0.temp", 60.0)], [("cpu", math.inf)]],
                (),
                ([None] * 2, [1.6e9 + 0.75, None], [None, 2.5]),
            )
        )
    first, second = plain.read(path, "stats")
    assert [(item.key, item.value_json) for item in first.item] == [("cpu", "1.5"), ("gpu.0.temp", "60")]
    assert [(item.key, item.value_json) for item in second.item] == [("cpu", "Infinity")]
    assert first.timestamp.ToMilliseconds() == 1_600_000_000_750
    assert second.timestamp.ToMilliseconds() == RUN.started + 2500


def test_console_files_summary_and_end(path, plain):
    summary = {"a.b": 1, "_wandb": {"runtime": 77.5}, "n": {"x": math.inf}, "_step": 2}
    with LogWriter(path) as log:
        log.run(RUN)
        log.console("x" * 100_000 + "\n")
        log.console("oops\n", stderr=True, time=1.6e9 + 1)
        log.files(["a/b.txt", "c[1].txt"])
        log.files([])
        log.summary(summary)
        log.summary({})
        log.exit(3, 77.5)
    output = plain.read(path, "output_raw")
    assert "".join(record.line for record in output) == "x" * 100_000 + "\noops\n"
    assert [record.output_type for record in output] == [1, 1, 0]
    assert (output[0].timestamp.ToMilliseconds(), output[2].timestamp.ToSeconds()) == (RUN.started, 1_600_000_001)
    assert [[(item.path, item.policy) for item in record.files] for record in plain.read(path, "files")] == [
        [("a/b.txt", 0), ("c[1].txt", 0)]
    ]
    (told,) = plain.read(path, "summary")
    assert [(list(item.nested_key), json.loads(item.value_json)) for item in told.update] == [
        (["a.b"], 1),
        (["_wandb", "runtime"], 77.5),
        (["n"], {"x": math.inf}),
        (["_step"], 2),
    ]
    (end,) = plain.read(path, "exit")
    assert (end.exit_code, end.runtime, end.not_complete) == (3, 78, False)


def test_a_run_that_goes_on_has_an_end_that_says_so(path, plain):
    with LogWriter(path) as log:
        log.run(RUN)
        log.exit(None)
    (end,) = plain.read(path, "exit")
    assert (end.not_complete, end.exit_code) == (True, 0)


def test_artifacts_have_their_manifests(path, plain):
    entries = [Entry("b", "ZZ==", 0, "/l/b"), Entry("a", "etag", None, "", "s3://x/y", {"etag": "q"})]
    made = Version("net", "model", description="d", metadata={"k": [1]}, aliases=("best",), tags=("t",), ttl=60)
    with LogWriter(path) as log:
        log.run(RUN)
        log.artifact(made, entries)
        log.use(Version("data", "dataset", entity="other", project="p2", digest="d0", run="maker"), entries[:1])
    net, data = plain.read(path, "artifact")
    assert (net.run_id, net.entity, net.project, net.name, net.type, net.description) == (
        "abc",
        "team",
        "proj",
        "net",
        "model",
        "d",
    )
    assert (json.loads(net.metadata), list(net.aliases), list(net.tags), net.ttl_duration_seconds) == (
        {"k": [1]},
        ["best"],
        ["t"],
        60,
    )
    assert (net.user_created, net.use_after_commit, net.finalize) == (False, False, True)
    lines = [(one.path, one.digest, one.size, one.local_path, one.ref) for one in net.manifest.contents]
    assert lines == [("a", "etag", 0, "", "s3://x/y"), ("b", "ZZ==", 0, "/l/b", "")]
    assert [(one.key, one.value_json) for one in net.manifest.contents[0].extra] == [("etag", '"q"')]
    # md5 of "wandb-artifact-manifest-v1\na:etag\nb:ZZ==\n", by md5sum
    assert net.digest == manifest_digest(entries) == "b39bb6211f712c32aa8174e6b2106cbd"
    # a server looks for the run that reads in the project that is named beside it
    assert (data.run_id, data.entity, data.project) == ("abc", "team", "proj")
    assert (data.digest, data.user_created, data.use_after_commit) == ("d0", True, True)
    assert len({net.client_id, data.client_id, net.sequence_client_id, data.sequence_client_id}) == 4
    assert {len(net.client_id), len(net.sequence_client_id)} == {128}


def test_two_versions_of_one_artifact_are_two_to_a_server_and_one_artifact(path, plain):
    with LogWriter(path) as log:
        log.run(RUN)
        for digest in ("d0", "d1"):
            log.artifact(Version("net", "model", digest=digest), [Entry("a", digest)])
    first, second = plain.read(path, "artifact")
    assert first.client_id != second.client_id
    assert first.sequence_client_id == second.sequence_client_id


def test_a_log_has_its_name_only_when_it_is_whole(path):
    def torn():
        with LogWriter(path) as log:
            log.run(RUN)
            assert not path.exists()
            raise InterruptedError

    with pytest.raises(InterruptedError):
        torn()
    assert list(path.parent.iterdir()) == []
    with LogWriter(path) as log:
        log.run(RUN)
    assert list(path.parent.iterdir()) == [path]


def test_the_same_run_makes_the_same_bytes(path):
    def written():
        with LogWriter(path) as log:
            log.run(RUN)
            log.history(block([[("x", 1.0)]] * 1000))
            log.artifact(Version("net", "model"), [Entry("a", "b")])
            log.exit(0)
        return path.read_bytes()

    assert written() == written()


def test_text_that_no_utf8_can_hold_is_written_with_a_question_mark(path, plain):
    with LogWriter(path) as log:
        log.run(WandbRun("a", name="x\ud800", tags=("\udfff",), config={"k\ud800": 1}))
        log.history(block([[]], [Other(0, "t", '"\ud800"')]))
        log.console("\ud800")
        log.summary({"s\ud800": 1})
    (run,) = plain.read(path, "run")
    assert (run.display_name, list(run.tags), run.config.update[0].key) == ("x?", ["?"], "k?")
    assert plain.rows(path) == [[("t", "?")]]


def test_a_block_without_rows_writes_nothing(path, plain):
    with LogWriter(path) as log:
        log.run(WandbRun("a"))
        log.history(block([]))
        log.events(block([]))
    assert [record.WhichOneof("record_type") for record in plain.read(path)] == ["header", "run", "environment"]
