"""Whatever is written is read again, by plain protobuf and by Log; whatever is torn is read up to there."""

import json
import math
import random
import struct
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlmigrate.adapters.wandb.datalog import columns
from mlmigrate.adapters.wandb.datalog.reader import Log
from mlmigrate.adapters.wandb.datalog.scan import Unusual
from mlmigrate.adapters.wandb.datalog.state import Entry
from mlmigrate.adapters.wandb.datalog.writer import LogWriter
from mlmigrate.adapters.wandb.shape import Block, Other, Version, WandbRun

OWN = ("_step", "_timestamp", "_runtime")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KEYS = TEXT.filter(lambda key: key not in (*OWN, ""))
NUMBERS = st.floats(width=64) | st.integers(-(2**53), 2**53).map(float)
TIMES = st.none() | st.floats(-1e12, 1e12)
PLAIN = st.recursive(
    st.none() | st.booleans() | TEXT | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3),
).filter(lambda value: isinstance(value, bool) or not isinstance(value, int | float))
MEDIA = st.dictionaries(KEYS, PLAIN, max_size=3).map(lambda value: {**value, "_type": "image-file"})
HUGE = st.integers(2**53 + 1, 2**80).filter(lambda number: int(float(number)) != number)


@st.composite
def rows(draw):
    """Rows: step, time, runtime, [(key, number)], {key: what is no number}, {key: an integer too large}."""
    keys = draw(st.lists(KEYS, unique=True, min_size=1, max_size=6))
    told = []
    for _ in range(draw(st.integers(0, 6))):
        numbers = draw(st.lists(st.tuples(st.sampled_from(keys), NUMBERS), max_size=6))
        free = [key for key in keys if key not in dict(numbers)]
        others = draw(st.dictionaries(st.sampled_from(free), PLAIN | MEDIA, max_size=3)) if free else {}
        free = [key for key in free if key not in others]
        huge = draw(st.dictionaries(st.sampled_from(free), HUGE, max_size=2)) if free else {}
        step = draw(st.none() | st.integers(-(2**63), 2**63 - 1))
        told.append((step, draw(TIMES), draw(TIMES), numbers, others, huge))
    return told


def block_of(told):
    keys = sorted({key for row in told for key in [*dict(row[3]), *row[5]]})
    numbers = [
        (n, keys.index(key), float(value)) for n, row in enumerate(told) for key, value in [*row[3], *row[5].items()]
    ]
    others = [
        Other(n, key, json.dumps(value)) for n, row in enumerate(told) for key, value in (row[4] | row[5]).items()
    ]
    columns_ = [pa.array([row[n] for row in told], kind) for n, kind in enumerate([pa.int64(), *[pa.float64()] * 2])]
    number, key, value = zip(*numbers, strict=True) if numbers else ((), (), ())
    return Block(
        *columns_, keys, pa.array(number, pa.int32()), pa.array(key, pa.int32()), pa.array(value, pa.float64()), others
    )


def bits(value):
    return "nan" if math.isnan(value) else struct.pack("<d", value)


def numbers_of(block):
    names = [block.keys[key] for key in block.key.to_pylist()]
    return [
        (row, key, bits(value))
        for row, key, value in zip(block.row.to_pylist(), names, block.value.to_pylist(), strict=True)
    ]


@given(rows())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_rows_are_read_as_they_were_written(plain, tmp_path_factory, told):
    path = tmp_path_factory.mktemp("log") / "run-a.wandb"
    with LogWriter(path) as log:
        log.run(WandbRun("a"))
        log.history(block_of(told))
    for (step, time, runtime, numbers, others, huge), row in zip(told, plain.rows(path), strict=True):
        own = {key: value for key, value in zip(OWN, (step, time, runtime), strict=True) if value is not None}
        assert {key: value for key, value in row if key in OWN} == own
        found = [(key, value) for key, value in row if key not in OWN and key not in others and key not in huge]
        assert [(key, bits(value)) for key, value in found] == [(key, bits(value)) for key, value in numbers]
        assert {key: value for key, value in row if key in others or key in huge} == others | huge
    blocks = list(Log(path).history())
    if not told:
        assert blocks == []
        return
    (block,) = blocks
    assert block.step.to_pylist() == [row[0] for row in told]
    assert block.time.to_pylist() == [row[1] for row in told]
    assert block.runtime.to_pylist() == [row[2] for row in told]
    wanted = block_of(told)
    assert sorted(numbers_of(block), key=str) == sorted(numbers_of(wanted), key=str)
    assert sorted((one.row, one.key, one.text) for one in block.others) == sorted(
        (one.row, one.key, one.text) for one in wanted.others
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(
    config=st.dictionaries(TEXT.filter(lambda key: key != "_wandb"), JSON, max_size=4),
    summary=st.dictionaries(KEYS.filter(lambda key: key != "_wandb"), JSON, max_size=4),
    texts=st.lists(TEXT, min_size=9, max_size=9),
    tags=st.lists(TEXT, max_size=3),
    started=st.none() | st.integers(0, 4 * 10**12),
    code=st.none() | st.integers(-(2**31), 2**31 - 1),
    runtime=st.none() | st.floats(0, 1e6),
    console=st.lists(TEXT, max_size=3),
    files=st.lists(TEXT, max_size=3, unique=True),
)
@settings(max_examples=100, deadline=None)
def test_what_is_told_of_a_run_is_read_again(
    plain, tmp_path_factory, config, summary, texts, tags, started, code, runtime, console, files
):
    path = tmp_path_factory.mktemp("log") / "run-a.wandb"
    names = ("entity", "project", "name", "notes", "group", "job_type", "sweep", "host", "program")
    run = WandbRun("a", **dict(zip(names, texts, strict=True)), tags=tuple(tags), started=started, config=config)
    entries = [Entry(name, "d", 1, "/l") for name in files]
    with LogWriter(path) as log:
        log.run(run)
        for text in console:
            log.console(text)
        log.files(files)
        log.artifact(Version("n", "t", metadata=config), entries)
        log.summary(summary | ({} if runtime is None else {"_wandb": {"runtime": runtime}}))
        log.exit(code, runtime)
    (record,) = plain.read(path, "run")
    assert {item.key: json.loads(item.value_json) for item in record.config.update} == config
    log = Log(path)
    read = log.run
    assert {name: getattr(read, name) for name in names} == dict(zip(names, texts, strict=True))
    assert (read.tags, read.config, read.started) == (tuple(tags), config, started)
    assert {name: value for name, value in read.summary.items() if name != "_wandb"} == summary
    assert (read.exit_code, read.runtime) == (code, runtime)
    assert read.state == ("running" if code is None else "failed" if code else "finished")
    assert ("".join(log.console()), list(log.files)) == ("".join(console), files)
    (artifact,) = log.artifacts
    assert artifact.version.metadata == config
    assert sorted(artifact.entries, key=lambda entry: entry.path) == sorted(entries, key=lambda entry: entry.path)
    assert log.losses == []


PATHS = st.lists(st.sampled_from(["a", "b", "_type", "x.y", ""]), min_size=1, max_size=3)
VALUES = JSON.map(json.dumps) | st.sampled_from(["NaN", "-Infinity", "", "{", "1e400", "-0", "01", str(2**70)])


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(PATHS, VALUES, st.booleans()), max_size=4), st.none() | st.integers(-9, 9)),
        max_size=4,
    )
)
@settings(max_examples=300, deadline=None)
def test_records_read_at_once_and_one_by_one_tell_the_same(plain, told):
    """The quick way is right where it is taken: protobuf's own classes are the measure."""
    records = []
    for items, step in told:
        record = plain.pb.Record(num=len(records) * 100)
        record.history.SetInParent()
        for path, text, by_key in items:
            record.history.item.add(**({"key": path[0]} if by_key else {"nested_key": path}), value_json=text)
        if step is not None:
            record.history.step.num = step
        records.append(record.SerializeToString())
    bad, worse = [], []
    quick = columns.history(records, bad.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "scan", _unusual)
        slow = columns.history(records, worse.append)
    assert (quick.rows, quick.step, quick.time) == (slow.rows, slow.step, slow.time)
    assert sorted(numbers_of(quick), key=str) == sorted(numbers_of(slow), key=str)
    assert sorted(quick.others) == sorted(slow.others)
    assert sorted(bad) == sorted(worse)


def _unusual(*_):
    raise Unusual


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A log of a bit of everything, with a record over two blocks."""
    path = tmp_path_factory.mktemp("small") / "run-a.wandb"
    told = [(n, 1.6e9 + n, n / 2, [("loss", 1 / (n + 1)), ("acc", float(n))], {"s": "t"}, {}) for n in range(4)]
    with LogWriter(path) as log:
        log.run(WandbRun("a", "e", "p", started=1_600_000_000_000, config={"lr": 1, "n": {"x": 2}}))
        log.history(block_of(told[:2]))
        log.console("hello\n")
        log.history(block_of(told[2:]))
        log.summary({"loss": 0.25})
        log.exit(0)
    return path


def told_by(log):
    return (
        [
            entry
            for block in log.history()
            for entry in zip(block.step.to_pylist(), block.time.to_pylist(), strict=True)
        ],
        [(bits_, key) for block in log.history() for _, key, bits_ in numbers_of(block)],
        "".join(log.console()),
    )


def test_a_log_cut_at_any_byte_tells_what_was_before_the_cut(small, tmp_path):
    data = small.read_bytes()
    path = tmp_path / "run-a.wandb"
    whole = told_by(Log(small))
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        log = Log(path)
        for part, all_ in zip(told_by(log), whole, strict=True):
            assert part == all_[: len(part)]
        assert log.run.config in ({}, {"lr": 1, "n": {"x": 2}})
        assert log.run.summary in ({}, {"loss": 0.25})
        assert (log.run.state == "finished") == (size == len(data)) == (log.losses == [])


def test_a_log_with_a_wrong_byte_tells_nothing_that_was_not_there(small, tmp_path):
    data = small.read_bytes()
    path = tmp_path / "run-a.wandb"
    rows_, values, console = told_by(Log(small))
    for at in range(7, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        log = Log(path)
        some_rows, some_values, some_console = told_by(log)
        assert set(some_rows) <= set(rows_)
        assert set(some_values) <= set(values)
        assert some_console in ("", console)
        assert log.losses


def test_records_of_random_bytes_end_nothing(plain, tmp_path):
    chance = random.Random(8)
    seeds = [record.SerializeToString() for record in [plain.history(3, x=1.5, y={"z": 1}), plain.pb.Record(stats={})]]
    for _ in range(300):
        records = []
        for _ in range(chance.randrange(1, 6)):
            data = bytearray(chance.choice(seeds) if chance.random() < 0.8 else chance.randbytes(chance.randrange(40)))
            for _ in range(chance.randrange(4)):
                if data:
                    data[chance.randrange(len(data))] = chance.randrange(256)
            records.append(bytes(data))
        log = Log(plain.write(tmp_path / "run-a.wandb", *records))
        assert sum(log.counts.values()) == len(records)
        told_by(log)
        list(log.events())
        assert Path(log.path).exists()
