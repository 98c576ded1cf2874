"""What goes into an archive comes out of it, exactly."""

import math
import string
import struct
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlmigrate.archive import values
from mlmigrate.archive.reader import ArchiveSource
from mlmigrate.archive.writer import ArchiveTarget
from mlmigrate.errors import BadData, Conflict, Damaged
from mlmigrate.model import NAMES, POINTS, DatasetInput, Experiment, Record, Run, RunRef, points
from mlmigrate.storage import LocalStorage

LONE = b"caf\xe9".decode("utf-8", "surrogateescape")
STRANGE = [LONE, "␛", "␛241b", "␛dce9", "a\0b", "", " ", "naïve 模型 🚀\u202e", "a\r\nb\u2028", "\ufffe\uffff", '"\\']
INPUT = DatasetInput("train", "d1", "local", "{}", None, '{"rows": 3}', {"context": LONE, "": ""})
VALUES = {
    "true": True,
    "false": False,
    "one": 1,
    "large": 2**80 + 1,
    "huge": -(10**6000),
    "half": 0.5,
    "tenth": 0.1,
    "minus zero": -0.0,
    "inf": math.inf,
    "tiny": 5e-324,
    "none": None,
    "empty": "",
    "text": "1",
    "long": "é" * 10_000,
    "set": frozenset({"b", "a", LONE, ""}),
    "no set": frozenset(),
    "naive": datetime(2024, 2, 29, 1, 2, 3, 4),  # noqa: DTZ001  a tracker may know no zone
    "utc": datetime(1, 1, 1, tzinfo=UTC),
    "zone": datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))),
}


def rich(run_id="r1"):
    return Run(
        run_id,
        "1",
        "näme",
        "mlflow:" + run_id,
        "stamp 1",
        "FAILED",
        "crashed",
        -5,
        2**62,
        LONE,
        deleted=True,
        deleted_at=7,
        params=VALUES | {name: name for name in STRANGE},
        tags={name: name for name in STRANGE},
        system={"source_name": LONE, "entry_point_name": ""},
        inputs=(INPUT, DatasetInput("", "", schema="{}"), INPUT),
        records=(Record("mlflow.sql.spans", LONE, run_id, '{"a": "\\u0000"}'), Record("x", "", "", "")),
        artifact_uri="file:///x/␛",
    )


def test_a_rich_run_comes_back_equal_with_types_and_order(tmp_path, kit):
    kit.write(tmp_path / "a", [rich()])
    (found,) = kit.read(tmp_path / "a").runs
    assert found == rich()
    assert [(name, type(value)) for name, value in found.params.items()] == [
        (name, type(value)) for name, value in rich().params.items()
    ]
    assert math.copysign(1, found.params["minus zero"]) == -1
    assert found.params["zone"].utcoffset() == timedelta(hours=5, minutes=30)


def test_a_nan_param_stays_one(tmp_path, kit):
    kit.write(tmp_path / "a", [kit.run("r", params={"nan": math.nan})])
    assert math.isnan(kit.read(tmp_path / "a").runs[0].params["nan"])


def test_experiments_come_back_equal(tmp_path, kit):
    given = [
        Experiment("0", "Default"),
        Experiment(LONE, "␛241b", {LONE: "a\0", "": ""}, -1, 2**62, deleted=True, artifact_root="s3://x/" + LONE),
    ]
    kit.write(tmp_path / "a", [], experiments=given)
    assert kit.read(tmp_path / "a").experiments == given


def test_points_come_back_bit_for_bit_in_log_order(tmp_path, kit):
    nan_with_payload = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000123))[0]
    columns = {
        "run": ["r1"] * 8,
        "key": ["loss", "loss", "␛", "", "␛241b", "loss", "naïve\0", "loss"],
        "step": [2**53 + 1, -(2**53) - 1, None, 2**63 - 1, -(2**63), 1, 1, 1],
        "step_micro": [None, 500_000, None, 0, 1, 1, 1, 1],
        "timestamp": [0, None, -(2**63), 2**63 - 1, 1, 1, 1, 1],
        "timestamp_micro": [None, 999, 0, 1, 1, 1, 1, 1],
        "value": [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1, nan_with_payload, 0.1],
        "dataset_name": [None, "d", "␛", None, None, None, None, None],
        "dataset_digest": [None, "x", None, None, None, None, None, None],
        "model": [None, None, "m", None, None, None, None, None],
    }
    kit.write(tmp_path / "a", [kit.run("r1")], [points(columns)])
    found = kit.read(tmp_path / "a").points
    assert found.schema == POINTS
    for name in POINTS.names:
        if name != "value":
            assert found[name].to_pylist() == columns[name]
    bits = [struct.pack("<d", value) for value in found["value"].to_pylist()]
    assert bits == [struct.pack("<d", value) for value in columns["value"]]


def test_a_null_value_stays_null(tmp_path, kit):
    kit.write(tmp_path / "a", [kit.run("r")], [points({"run": ["r"], "key": ["k"], "value": [None]})])
    assert kit.read(tmp_path / "a").points["value"].to_pylist() == [None]


def test_a_long_series_in_many_batches_and_dictionaries_stays_whole(tmp_path, kit):
    batches = [kit.series("r1", np.random.default_rng(n).random(10_000), key=f"k{n % 7}") for n in range(60)]
    kit.write(tmp_path / "a", [kit.run("r1")], batches)
    found = kit.read(tmp_path / "a")
    plain = pa.schema([field.with_type(pa.utf8()) if field.type == NAMES else field for field in POINTS])
    assert found.points.cast(plain).equals(pa.Table.from_batches(batches, POINTS).cast(plain))
    assert found.refs[0].points == 600_000


def test_some_runs_of_a_pack_are_read_alone(tmp_path, kit):
    runs = [kit.run(f"r{n}", params={"n": n}) for n in range(9)]
    batches = [kit.series(one.id, np.arange(50_000) + n) for n, one in enumerate(runs)]
    files = [kit.artifact(one.id, "f", one.id.encode()) for one in runs]
    kit.write(tmp_path / "a", runs, batches, files)
    found = kit.read(tmp_path / "a", {"r2", "r7"})
    assert [one.params["n"] for one in found.runs] == [2, 7]
    assert found.points["value"].to_pylist() == [*(np.arange(50_000) + 2), *(np.arange(50_000) + 7)]
    assert found.files == {("r2", "f"): b"r2", ("r7", "f"): b"r7"}


def test_runs_in_turns_are_counted_and_read_alone(tmp_path, kit):
    turns = points({"run": ["a", "b"] * 5000, "key": ["k"] * 10_000, "value": np.arange(10_000.0)})
    kit.write(tmp_path / "a", [kit.run("a"), kit.run("b")], [turns])
    found = kit.read(tmp_path / "a", {"b"})
    assert found.points["value"].to_pylist() == list(range(1, 10_000, 2))
    assert [one.points for one in found.refs] == [5000]


def test_refs_know_points_and_bytes_exactly_and_keep_stamp_and_origin(tmp_path, kit):
    one = kit.run("r", status="KILLED", start=5, deleted=True)
    files = [kit.artifact("r", "x/y", b"12345"), kit.artifact("r", LONE, b"")]
    given = kit.replace(kit.ref(one), stamp="stamp␛" + LONE, origin="mlflow:r")
    kit.write(tmp_path / "a", [one], [kit.series("r", [1.0, 2.0])], files, refs=[given])
    expected = RunRef("1", "r", one.name, "mlflow:r", given.stamp, "KILLED", 5, deleted=True, points=2, size=5)
    found = kit.read(tmp_path / "a")
    assert found.refs == [expected]
    assert found.runs[0].stamp == given.stamp
    arrived = ArchiveTarget(LocalStorage(tmp_path / "a")).arrived()
    assert (arrived["mlflow:r"].id, arrived["mlflow:r"].stamp) == ("r", given.stamp)


def test_records_arrive_and_come_back_with_their_files(tmp_path, kit):
    records = [Record("mlflow.file.model", f"m{n}", "", f"[{n}]") for n in range(25_000)]
    held = RunRef("1", "@models", "the models", "mlflow:@models", "s9", kind="records")
    ids = kit.write(
        tmp_path / "a", [], (), [kit.artifact("@models/m1", "MLmodel", b"m")], records, refs=[held], experiments=[]
    )
    assert ids == {"mlflow:@models": "@models"}
    found = kit.read(tmp_path / "a")
    assert found.records == records
    assert found.refs == [kit.replace(held, size=1)]
    assert found.runs == []
    assert found.files == {("@models/m1", "MLmodel"): b"m"}
    assert ArchiveTarget(LocalStorage(tmp_path / "a")).arrived()["mlflow:@models"].stamp == "s9"


def test_parents_come_before_their_children(tmp_path, kit):
    child = kit.run("child", tags={"mlflow.parentRunId": "parent"})
    loop = [kit.run("x", tags={"mlflow.parentRunId": "y"}), kit.run("y", tags={"mlflow.parentRunId": "x"})]
    kit.write(tmp_path / "a", [child, *loop, kit.run("parent")])
    ids = [one.id for one in kit.read(tmp_path / "a").refs]
    assert ids.index("parent") < ids.index("child")
    assert sorted(ids) == ["child", "parent", "x", "y"]


def test_artifacts_come_back_and_equal_bytes_lie_there_once(tmp_path, kit):
    large = bytes(range(256)) * 10_000
    given = {("r", "a/b.bin"): large, ("r", "a/c.bin"): large, ("r", "empty"): b"", ("r", LONE + "\0"): b"x"}
    kit.write(tmp_path / "a", [kit.run("r")], (), [kit.artifact(*key, data) for key, data in given.items()])
    found = kit.read(tmp_path / "a")
    assert found.files == given
    assert found.refs[0].size == 2 * len(large) + 1
    blobs = [file for file in (tmp_path / "a" / "blobs").rglob("*") if file.is_file()]
    assert sorted(file.stat().st_size for file in blobs) == [0, 1, len(large)]


def test_bytes_other_than_the_source_announced_are_refused(tmp_path, kit):
    wrong = kit.artifact("r", "x", b"data", sha256="0" * 64)
    with pytest.raises(Damaged, match="announced"):
        kit.write(tmp_path / "a", [kit.run("r")], (), [wrong])
    assert kit.read(tmp_path / "a").runs == []


def test_distinct_is_remembered(tmp_path, kit):
    kit.write(tmp_path / "a", [kit.run("r")], distinct=True)
    assert kit.read(tmp_path / "a").distinct is True
    kit.write(tmp_path / "a", [kit.run("q")], pack="q")
    assert kit.read(tmp_path / "a").distinct is False


def test_what_belongs_to_no_run_of_the_pack_is_refused(tmp_path, kit):
    with pytest.raises(BadData, match="'other'"):
        kit.write(tmp_path / "a", [kit.run("r")], [kit.series("other", [1.0])])
    with pytest.raises(BadData, match="'other'"):
        kit.write(tmp_path / "a", [kit.run("r")], (), [kit.artifact("other", "x", b"")])
    with pytest.raises(Conflict, match="same id"):
        kit.write(tmp_path / "a", [kit.run("r"), kit.run("r", origin="mlflow:other")])
    with pytest.raises(BadData, match="start"):
        kit.write(tmp_path / "a", [kit.run("r", start=2**70)])


def test_a_run_that_is_gone_is_a_loss(tmp_path, kit):
    kit.write(tmp_path / "a", [kit.run("r")])
    with ArchiveSource(LocalStorage(tmp_path / "a")).read([kit.ref(kit.run("gone"))]) as reading:
        assert (list(reading.runs), [loss.run for loss in reading.losses]) == ([], ["gone"])


TEXT = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(STRANGE)
PARAM = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | TEXT
    | st.datetimes(timezones=st.none() | st.just(UTC))
    | st.frozensets(TEXT, max_size=3)
)
INT64 = st.integers(-(2**63), 2**63 - 1)
NAME = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
POINT = st.tuples(NAME, st.none() | INT64, st.none() | INT64, st.floats(allow_nan=False), st.none() | NAME)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.dictionaries(TEXT, PARAM, max_size=5),
    st.dictionaries(TEXT, TEXT, max_size=5),
    st.lists(POINT, max_size=20),
    st.dictionaries(TEXT, st.binary(max_size=30), max_size=3),
    st.text(string.ascii_letters + "␛", min_size=1, max_size=5),
)
def test_any_run_comes_back_equal(tmp_path_factory, kit, params, tags, rows, files, run_id):
    folder = tmp_path_factory.mktemp("any") / "a"
    one = kit.run(run_id, params=params, tags=tags, experiment="␛" + LONE)
    names = ("key", "step", "timestamp", "value", "model")
    columns = {name: [row[n] for row in rows] for n, name in enumerate(names)}
    batch = points({"run": [run_id] * len(rows), **columns})
    kit.write(folder, [one], [batch], [kit.artifact(run_id, path, data) for path, data in files.items()])
    found = kit.read(folder)
    assert found.runs == [one]
    assert {name: found.points[name].to_pylist() for name in names} == columns
    assert found.files == {(run_id, path): data for path, data in files.items()}


@given(TEXT)
def test_escaping_is_undone_exactly_and_gives_unicode(text):
    assert values.unescape(values.escape(text)) == text
    values.escape(text).encode()


def test_names_in_points_without_an_escape_are_not_copied():
    batch = points({"run": ["r"], "key": ["k"], "value": [1.0]})
    assert values.unescaped_points(batch) is batch
    assert batch.schema.field("run").type == NAMES
