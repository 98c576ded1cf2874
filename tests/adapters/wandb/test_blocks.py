"""JSON lines and parquet exports become Blocks, and Blocks lines and points. Expectations are read by json alone."""

import json
import math
import struct

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmigrate.adapters.wandb import blocks, moments
from mlmigrate.adapters.wandb.shape import Other
from mlmigrate.errors import BadData

HARD = [0.0, -0.0, 5e-324, 1e-320, 1.7976931348623157e308, math.nan, math.inf, -math.inf, 0.1 + 0.2, 1e22]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(HARD) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "é/ü .x", "_step", "_timestamp"]) | st.text(), JSON), max_size=10
)
QUICKLY = settings(max_examples=80, deadline=None)


def line(row):
    return json.dumps(row).encode()


def numbers(block):
    """(row, key, value) of each number, values told apart to the bit."""
    entries = zip(block.row.to_pylist(), block.key.to_pylist(), block.value.to_pylist(), strict=True)
    return [(row, block.keys[key], bits(value)) for row, key, value in entries]


def bits(value):
    return "nan" if math.isnan(value) else struct.pack("d", value)


def whole(block):
    times = [[None if v is None else bits(v) for v in c.to_pylist()] for c in (block.time, block.runtime)]
    others = sorted((row, key, exact(json.loads(text))) for row, key, text in block.others)
    return block.step.to_pylist(), times, sorted(numbers(block), key=str), others


def exact(value):
    """As text that tells all apart."""
    return json.dumps(value, sort_keys=True)


def expected(rows):
    """What a Block of these rows should hold, one value after another."""
    step, time = [], []
    found, others = [], []
    for number, row in enumerate(rows):
        for name, column, fits in (("_step", step, is_step), ("_timestamp", time, is_time)):
            value = row.get(name)
            column.append((int if name == "_step" else float)(value) if fits(value) else None)
            if name in row and column[-1] is None:
                others.append((number, name, exact(value)))
        for key, value in row.items():
            if key not in ("_step", "_timestamp"):
                one(number, key, value, found, others)
    return (
        step,
        [[None if v is None else bits(v) for v in time], [None] * len(rows)],
        sorted(found, key=str),
        sorted(others),
    )


def is_step(value):
    return is_number(value) and math.isfinite(as_float(value)) and value == int(value) and -(2**63) <= value < 2**63


def is_time(value):
    return is_number(value) and math.isfinite(as_float(value))


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_float(value):
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def one(number, key, value, found, others):
    if isinstance(value, dict) and value and "_type" not in value:
        for name, inner in value.items():
            one(number, f"{key}.{name}", inner, found, others)
    elif isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        found.append((number, key, bits(float(value))))
    elif is_number(value):
        found.append((number, key, bits(as_float(value))))
        if isinstance(value, int) and as_float(value) != value:
            others.append((number, key, exact(value)))
    else:
        others.append((number, key, exact(value)))


class TestLinesAreRead:
    @QUICKLY
    @given(rows=ROWS.filter(lambda rows: not any("_runtime" in row for row in rows)))
    def test_each_value_has_its_place(self, rows):
        assert whole(blocks.from_lines([line(row) for row in rows])) == expected(rows)

    @QUICKLY
    @given(row=st.dictionaries(st.sampled_from("abcd"), JSON, min_size=1), many=st.integers(8, 12))
    def test_lines_of_one_shape_are_read_as_they_are_one_by_one(self, row, many):
        rows = [{"_step": i, **row} for i in range(many)]
        assert whole(blocks.from_lines([line(row) for row in rows])) == expected(rows)

    def test_a_row_with_everything(self):
        text = b"""{"_step": 3, "_timestamp": 1.5, "_runtime": 0.25, "loss": NaN, "up": Infinity, "down": -Infinity,
            "said": "NaN", "minus": -0, "nested": {"f1": 1, "deep": {"x": 2e3}}, "none": null, "on": true, "empty": {},
            "image": {"_type": "image-file", "size": 1}, "list": [1, NaN], "big": 9007199254740993, "text": "NaN "}"""
        block = blocks.from_lines([text])
        assert (block.step.to_pylist(), block.time.to_pylist(), block.runtime.to_pylist()) == ([3], [1.5], [0.25])
        assert numbers(block) == [
            (0, key, bits(value))
            for key, value in [
                ("loss", math.nan),
                ("up", math.inf),
                ("down", -math.inf),
                ("said", math.nan),
                ("minus", -0.0),
                ("nested.f1", 1.0),
                ("nested.deep.x", 2000.0),
                ("big", 9007199254740992.0),
            ]
        ]
        assert block.others == [
            Other(0, "none", "null"),
            Other(0, "on", "true"),
            Other(0, "empty", "{}"),
            Other(0, "image", '{"_type":"image-file","size":1}'),
            Other(0, "list", "[1,NaN]"),
            Other(0, "big", "9007199254740993"),
            Other(0, "text", '"NaN "'),
        ]

    @pytest.mark.parametrize("many", [1, 20])
    def test_a_lone_surrogate_becomes_the_escape_that_it_came_as(self, many):
        block = blocks.from_lines([b'{"\\ud800": 1, "text": "\\udfff"}'] * many)
        assert block.keys == ["\\ud800"]
        assert block.others[0] == Other(0, "text", '"\\udfff"')
        blocks.points(block, "r", restored=False, first_row=0).validate(full=True)
        assert json.loads(blocks.lines(block)[0]) == {"\\ud800": 1.0, "text": "\udfff"}

    def test_numbers_that_are_too_large_and_too_many_digits_are_infinite(self):
        block = blocks.from_lines([b'{"a": 1e999, "b": -1' + b"0" * 5000 + b"}"])
        assert block.value.to_pylist() == [math.inf, -math.inf]

    def test_nesting_without_end_is_json_or_refused_and_no_crash(self):
        deep = b'{"a":' * 200 + b"1" + b"}" * 200
        assert [other.key for other in blocks.from_lines([deep]).others] == [".".join("a" * 51)]
        with pytest.raises(BadData):
            blocks.from_lines([b'{"a":' + b"[" * 100_000])

    @pytest.mark.parametrize("bad", [b"", b"[1]", b"3", b'{"a": 1', b'{"a": 1} {"b": 2}', b"\xff"])
    def test_what_is_no_object_is_refused_with_the_line(self, bad):
        with pytest.raises(BadData, match="no JSON object"):
            blocks.from_lines([b'{"a": 1}', bad])

    def test_lines_that_hold_other_lines_are_not_counted_twice(self):
        with pytest.raises(BadData):
            blocks.from_lines([b'{"a": 1}\n{"b": 2}', b""])
        assert blocks.from_lines([b'{"a":\n 1}', b'{"a": 2}\n']).value.to_pylist() == [1.0, 2.0]

    def test_a_prefix_is_taken_from_the_keys_that_have_it(self):
        block = blocks.from_lines(
            [b'{"system.cpu": 1, "_timestamp": 2, "gpu": 3, "system": {"x": 4}, "_wandb": true}'], "system."
        )
        assert block.keys == ["cpu", "gpu", "x"]
        assert block.others == [Other(0, "_wandb", "true")]

    def test_nothing_is_a_block_of_no_rows(self):
        block = blocks.from_lines([])
        assert (block.rows, blocks.lines(block)) == (0, [])
        assert len(blocks.points(block, "r", restored=True, first_row=0)) == 0


class TestLinesAreWritten:
    @QUICKLY
    @given(rows=ROWS.filter(lambda rows: not any("_runtime" in row for row in rows)))
    def test_lines_are_read_as_the_block_that_they_are_of(self, rows):
        block = blocks.from_lines([line(row) for row in rows])
        assert whole(blocks.from_lines(blocks.lines(block))) == whole(block)

    def test_they_are_the_json_that_wandb_writes(self):
        written = blocks.lines(blocks.from_lines([b'{"_step": 1, "a\\"b": NaN, "i": 9007199254740993, "s": "x"}']))
        assert written == [b'{"_step":1,"a\\"b":NaN,"i":9007199254740993,"s":"x"}']

    def test_a_prefix_is_put_before_all_but_the_words_of_wandb(self):
        block = blocks.from_lines([b'{"system.cpu": 1, "_timestamp": 2, "_wandb": true}'], "system.")
        assert blocks.lines(block, "system.") == [b'{"_timestamp":2.0,"system.cpu":1.0,"_wandb":true}']

    def test_a_text_with_line_ends_stays_in_its_line(self):
        block = blocks.from_lines([b'{"a": 1}'])
        told = blocks.lines(
            type(block)(
                block.step,
                block.time,
                block.runtime,
                block.keys,
                block.row,
                block.key,
                block.value,
                [Other(0, "x", "[1,\n2]")],
            )
        )
        assert [json.loads(one) for one in told] == [{"a": 1.0, "x": [1, 2]}]


class TestPoints:
    def test_native_ones_have_the_step_of_wandb_or_the_number_of_their_row(self):
        block = blocks.from_lines(
            [b'{"_step": 9, "_timestamp": 1.5000001, "a": 1, "on": true}', b'{"a": -0.0, "on": null}']
        )
        found = blocks.points(block, "r", restored=False, first_row=100).to_pylist()
        told = [(p["run"], p["key"], p["step"], p["timestamp"], p["timestamp_micro"], bits(p["value"])) for p in found]
        assert told == [
            ("r", "a", 9, 1500, None, bits(1.0)),
            ("r", "on", 9, 1500, None, bits(1.0)),
            ("r", "a", 101, None, None, bits(-0.0)),
        ]

    def test_system_metrics_have_the_number_of_their_row(self):
        block = blocks.from_lines([b'{"cpu": 1, "_wandb": true}', b'{"cpu": 2, "_timestamp": 2.000003}'])
        found = blocks.event_points(block, "r", restored=False, first_row=5).to_pylist()
        assert [(p["key"], p["step"], p["timestamp"], p["timestamp_micro"]) for p in found] == [
            ("system/cpu", 5, None, None),
            ("system/cpu", 6, 2000, 3),
        ]

    def test_restored_ones_have_what_our_columns_tell(self):
        near = b'"_timestamp": 1.0, "mlflow/step": 1.5, "mlflow/key/_step": 3, "mlflow/dataset_name": "NaN"'
        far = b'"_timestamp": 9e15, "mlflow/step": "9007199254740993+7", "mlflow/time": "-9", "mlflow/model": "m"'
        lines = [b'{%s, "a": 1}' % near, b'{%s, "a": 1}' % far, b'{"a": 1}']
        found = blocks.points(blocks.from_lines(lines), "r", restored=True, first_row=0).to_pylist()
        names = ("key", "step", "step_micro", "timestamp", "dataset_name", "model")
        assert [tuple(point[name] for name in names) for point in found] == [
            ("_step", 1, 500_000, 1000, "NaN", None),
            ("a", 1, 500_000, 1000, "NaN", None),
            ("a", 9007199254740993, 7, -9, None, "m"),
            ("a", None, None, None, None, None),
        ]

    @pytest.mark.parametrize("text", ['"x"', "3", "[]", '"99999999999999999999"', '""', '"1+99999999999"'])
    def test_a_column_of_ours_that_says_nonsense_says_nothing(self, text):
        block = blocks.from_lines([b'{"a": 1, "mlflow/time": %s}' % text.encode()])
        point = blocks.points(block, "r", restored=True, first_row=0).to_pylist()[0]
        assert (point["timestamp"], point["timestamp_micro"]) == (None, None)


class TestMoments:
    @QUICKLY
    @given(ms=st.integers(-4 * 10**15, 4 * 10**15))
    def test_each_millisecond_within_4e15_is_told_by_seconds_alone(self, ms):
        told = moments.seconds(*cells(ms, moments.NO_MICRO))
        assert told[0] == ms / 1000
        assert [one.tolist() for one in moments.moments(told)] == [[ms], [moments.NO_MICRO]]

    @QUICKLY
    @given(us=st.integers(-(2**33) * 10**6 + 10**6, 2**33 * 10**6 - 10**6))
    def test_each_microsecond_until_the_year_2242_is_told_by_seconds_alone(self, us):
        ms, micro = divmod(us, 1000)
        told = moments.seconds(*cells(ms, micro or moments.NO_MICRO))
        assert told[0] == us / 1_000_000
        assert [one.tolist() for one in moments.moments(told)] == [[ms], [micro or moments.NO_MICRO]]

    @QUICKLY
    @given(time=st.floats())
    def test_any_float_is_a_time_or_none(self, time):
        (ms,), (micro,) = (one.tolist() for one in moments.moments(pa.array([time]).to_numpy()))
        if math.isfinite(time) and abs(time) < 9e15:
            told = ms * 1000 + (micro if micro > moments.NO_MICRO else 0)
            assert abs(told - round(time * 1e6)) <= (1 if abs(time) < 2**33 else 500 + abs(time) * 1e6 * 2**-52)
        elif not math.isfinite(time):
            assert (ms, micro) == (moments.WHOLE_OF_NOTHING, moments.NOTHING)


def cells(whole, micro):
    return pa.array([whole]).to_numpy(), pa.array([micro]).to_numpy()


class TestTables:
    def test_each_column_is_a_key_and_null_is_no_value(self):
        table = pa.table(
            {
                "_step": pa.array([0, 5, None], pa.uint64()),
                "_timestamp": pa.array([1.5, None, 3.0]),
                "_runtime": pa.array([1, 2, None], pa.int32()),
                "loss": pa.array([math.nan, None, -0.0]),
                "count": pa.array([1, 2**53 + 1, None]),
                "on": pa.array([True, None, False]),
                "said": pa.array(["NaN", "x", None]).dictionary_encode(),
                "list": pa.array([[1.0, math.nan], None, []]),
                "nested": pa.array([{"a": 1, "b": None}, None, {"a": None, "b": {"c": 2.5}}]),
                "image": pa.array([{"_type": "image-file", "w": 1, "x": None}, None, {"_type": None, "w": 3, "x": 2}]),
                "gone": pa.nulls(3),
            }
        )
        block = blocks.from_table(table)
        assert [c.to_pylist() for c in (block.step, block.time, block.runtime)] == [
            [0, 5, None],
            [1.5, None, 3.0],
            [1.0, 2.0, None],
        ]
        assert sorted(numbers(block), key=str) == sorted(
            [
                (0, "loss", bits(math.nan)),
                (0, "count", bits(1.0)),
                (0, "said", bits(math.nan)),
                (0, "nested.a", bits(1.0)),
                (1, "count", bits(2.0**53)),
                (2, "loss", bits(-0.0)),
                (2, "nested.b.c", bits(2.5)),
                (2, "image.w", bits(3.0)),
                (2, "image.x", bits(2.0)),
            ],
            key=str,
        )
        assert sorted(block.others) == [
            Other(0, "image", '{"_type":"image-file","w":1}'),
            Other(0, "list", "[1.0,NaN]"),
            Other(0, "on", "true"),
            Other(1, "count", "9007199254740993"),
            Other(1, "said", '"x"'),
            Other(2, "list", "[]"),
            Other(2, "on", "false"),
        ]

    def test_chunks_and_no_rows_are_read_too(self):
        table = pa.table({"_step": [0], "a": [1.0]})
        assert blocks.from_table(pa.concat_tables([table, table])).value.to_pylist() == [1.0, 1.0]
        assert blocks.from_table(table.slice(0, 0)).rows == 0

    @QUICKLY
    @given(
        columns=st.fixed_dictionaries(
            {
                "a": st.lists(st.none() | st.floats(), min_size=5, max_size=5),
                "b": st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=5, max_size=5),
            }
        )
    )
    def test_a_table_is_read_as_its_lines_are(self, columns):
        table = pa.table({"a": pa.array(columns["a"], pa.float64()), "b": pa.array(columns["b"], pa.int64())})
        rows = [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]
        assert whole(blocks.from_table(table)) == expected(rows)
