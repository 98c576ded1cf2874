"""Runs read through the seam between W&B and us: an Opened goes in, a Reading comes out. No server, no log: doubles."""

import io
import json
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlmigrate.adapters.wandb import blocks, index, restored
from mlmigrate.adapters.wandb.catalogue import ref_of, stamp_of
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.provenance import KEY, as_config
from mlmigrate.adapters.wandb.reading import WandbReading
from mlmigrate.adapters.wandb.shape import File, Version, WandbRun
from mlmigrate.adapters.wandb.writing import Homes, WandbPlace
from mlmigrate.errors import NotFound, Unavailable
from mlmigrate.fingerprint import Sums
from mlmigrate.model import Experiment, Loss
from mlmigrate.testing.samples import hard_samples, place_of, samples

LINES = [
    {"_step": 0, "_timestamp": 1.5e9, "_runtime": 1, "loss": 0.5, "ok": True, "note": "first"},
    {"_step": 3, "_timestamp": 1.5e9 + 1.25, "_runtime": 2.25, "loss": "NaN", "eval": {"f1": 1}, "big": 2**60 + 1},
    {
        "_step": 7,
        "_timestamp": 1.5e9 + 2,
        "_runtime": 3,
        "ok": False,
        "img": {"_type": "image-file", "path": "media/x.png"},
    },
]
EVENTS = [{"_timestamp": 1.5e9 + n, "_runtime": n, "system.cpu": 10.5 * n} for n in range(2)]


def opener(data):
    return lambda: io.BytesIO(data)


NATIVE = WandbRun(
    "3kx9",
    "team",
    "vision",
    "sunny-sky-1",
    started=1_500_000_000_000,
    runtime=3.5,
    config={"lr": 0.1, "model": {"depth": 3}},
    summary={"loss": "NaN", "best": 0.25, "verdict": "good", "_step": 7},
    files=(File("output.log", opener(b"hello\n"), 6), File("media/x.png", opener(b"png"))),
    logged=(
        Version(
            "net",
            "model",
            "v2",
            "team",
            "vision",
            "d2",
            metadata={"layers": 3},
            aliases=("best",),
            run="3kx9",
            files=(File("w.bin", opener(b"\0" * 10), 10), File("far.csv", ref="s3://b/far.csv")),
        ),
    ),
)


@dataclass
class Double:
    """Opened, over lines as W&B has them."""

    run: WandbRun
    lines: list = field(default_factory=list)
    system: list = field(default_factory=list)
    losses: list = field(default_factory=list)
    torn: bool = False

    def history(self):
        for first in range(0, len(self.lines), 2):
            yield blocks.from_lines([json.dumps(line).encode() for line in self.lines[first : first + 2]])
        if self.torn:
            self.losses.append(Loss(self.run.id, "history", "torn at byte 7"))

    def events(self):
        yield blocks.from_lines([json.dumps(line).encode() for line in self.system], "system.")

    def called(self, named):
        return self.run.logged


def ref(run, **fields):
    return replace(ref_of(run, "stamp", 0, 0, "team/vision"), **fields)


def reading(opened, options=Options(), **fields):  # noqa: B008
    return WandbReading([ref(opened.run, **fields)], lambda one: opened, options)


def native():
    return Double(NATIVE, LINES, EVENTS)


def rows(reading):
    found = [row for batch in reading.points() for row in batch.to_pylist()]
    return [(row["key"], row["step"], row["timestamp"], row["timestamp_micro"], repr(row["value"])) for row in found]


def files(reading):
    found = {}
    for artifact in reading.artifacts():
        with artifact.open() as stream:
            found[artifact.owner, artifact.path] = stream.read()
    return found


class TestARunOfWandbs:
    def test_every_number_is_a_point_with_its_step_and_time(self):
        with reading(native()) as one:
            assert rows(one) == [
                ("loss", 0, 1_500_000_000_000, None, "0.5"),
                ("ok", 0, 1_500_000_000_000, None, "1.0"),
                ("loss", 3, 1_500_000_001_250, None, "nan"),
                ("eval.f1", 3, 1_500_000_001_250, None, "1.0"),
                ("big", 3, 1_500_000_001_250, None, repr(float(2**60 + 1))),
                ("ok", 7, 1_500_000_002_000, None, "0.0"),
                ("system/cpu", 0, 1_500_000_000_000, None, "0.0"),
                ("system/cpu", 1, 1_500_000_001_000, None, "10.5"),
                ("best", 7, 1_500_000_003_500, None, "0.25"),
            ]
            assert one.losses == []

    def test_what_is_no_number_lies_beside_whoever_took_the_points(self):
        told = [
            (0, 1.5e9, 1.0, "ok", True),
            (0, 1.5e9, 1.0, "note", "first"),
            (3, 1.5e9 + 1.25, 2.25, "big", 2**60 + 1),
            (7, 1.5e9 + 2, 3.0, "ok", False),
            (7, 1.5e9 + 2, 3.0, "img", {"_type": "image-file", "path": "media/x.png"}),
        ]
        for take in (True, False):
            with reading(native()) as one:
                if take:
                    rows(one)
                lines = files(one)["3kx9", "wandb/history.jsonl"].splitlines()
            assert [tuple(json.loads(line).values()) for line in lines] == told

    def test_points_that_were_begun_and_left_lose_nothing(self):
        with reading(native()) as one:
            next(one.points())
            assert len(files(one)["3kx9", "wandb/history.jsonl"].splitlines()) == 5

    def test_its_files_and_its_artifacts_are_artifacts_and_an_index_tells_of_them(self):
        with reading(native()) as one:
            found = files(one)
        assert {path for _, path in found} == {
            "wandb/files/output.log",
            "wandb/files/media/x.png",
            "wandb/artifacts/net/v2/w.bin",
            "wandb/history.jsonl",
            "wandb/run.json",
        }
        assert found["3kx9", "wandb/files/output.log"] == b"hello\n"
        told = index.parse(found["3kx9", "wandb/run.json"], lambda at: opener(found["3kx9", at]))
        assert told == replace(NATIVE, alone=("best",))
        assert told.logged[0].files[0].open().read() == b"\0" * 10

    def test_what_was_made_of_its_values_says_so(self):
        with reading(native()) as one:
            made = {artifact.path for artifact in one.artifacts() if artifact.values}
        assert made == {"wandb/run.json", "wandb/history.jsonl"}

    def test_a_history_of_numbers_alone_has_nothing_beside(self):
        with reading(Double(NATIVE, [{"_step": 0, "_timestamp": 1.5e9, "a": 1}])) as one:
            assert ("3kx9", "wandb/history.jsonl") not in files(one)

    def test_it_has_the_id_experiment_origin_and_stamp_of_its_ref(self):
        with reading(native(), id="3kx9-ff", experiment="e", origin="o", stamp="s") as one:
            run = one.runs[0]
            assert (run.id, run.experiment, run.origin, run.stamp) == ("3kx9-ff", "e", "o", "s")
            assert {batch["run"][0].as_py() for batch in one.points()} == {"3kx9-ff"}
            assert {artifact.owner for artifact in one.artifacts()} == {"3kx9-ff"}

    def test_what_opening_lost_is_passed_on_once_with_its_run_and_experiment(self):
        torn = replace_double(native(), torn=True, losses=[Loss("x", "the exit", "there is none")])
        with reading(torn) as one:
            rows(one)
            files(one)
            list(one.records())
        assert [(loss.run, loss.experiment, loss.what) for loss in one.losses] == [
            ("3kx9", "team/vision", "the exit"),
            ("3kx9", "team/vision", "history"),
        ]

    def test_a_run_that_is_gone_is_left_out_with_a_loss(self):
        with WandbReading([ref(NATIVE)], lambda one: None, Options()) as one:
            assert (list(one.runs), list(one.points()), list(one.artifacts())) == ([], [], [])
        assert [(loss.run, loss.what) for loss in one.losses] == [("3kx9", "the run")]

    def test_temporary_files_go_with_the_reading(self):
        with reading(native()) as one:
            rows(one)
            path = one._all[0].spool
            assert path.exists()
        assert not path.exists()

    def test_a_config_that_says_it_is_ours_and_is_not_is_told(self):
        run = replace(NATIVE, config={**NATIVE.config, KEY: {"origin": 5}})
        with reading(Double(run)) as one:
            assert one.runs[0].params == {"lr": 0.1, "model.depth": 3}
        assert [loss.what for loss in one.losses] == ["config 'mlmigrate'"]


def replace_double(double, **fields):
    return replace(double, **fields)


class TestBytesThatAreGone:
    def gone(self, error):
        def open_():
            raise error

        run = replace(NATIVE, files=(File("a.txt", open_), *NATIVE.files, File("b.txt", gone="deleted")), logged=())
        return Double(run)

    @pytest.mark.parametrize("error", [NotFound("404"), FileNotFoundError("no such file")])
    def test_they_are_a_loss_and_all_else_comes(self, error):
        with reading(self.gone(error)) as one:
            found = files(one)
        assert {path for _, path in found} >= {"wandb/files/output.log", "wandb/files/media/x.png", "wandb/run.json"}
        assert [loss.what for loss in one.losses] == ["artifact 'wandb/files/a.txt'", "artifact 'wandb/files/b.txt'"]
        told = json.loads(found["3kx9", "wandb/run.json"])["run"]["files"]
        assert ["gone" in file for file in told] == [True, False, False, True]

    def test_a_server_that_is_away_is_no_loss(self):
        with reading(self.gone(Unavailable("503"))) as one, pytest.raises(Unavailable):
            files(one)

    def test_a_file_is_opened_once_for_looking_and_reading(self):
        opened = []

        @contextmanager
        def open_():
            opened.append("open")
            yield io.BytesIO(b"x")
            opened.append("close")

        run = replace(NATIVE, files=(File("a", open_), File("b", open_)), logged=())
        with reading(Double(run)) as one:
            listed = one.artifacts()
            first = next(listed)
            with first.open() as stream:
                assert stream.read() == b"x"
            assert opened == ["open", "close"]
            with first.open() as stream:  # again from the start
                assert stream.read() == b"x"
            assert opened == ["open", "close"] * 2
            list(listed)
        assert opened == ["open", "close"] * 3  # one that nobody reads is closed again


class Desk:
    """A Delivery that keeps what it is given as W&B would: lines of JSON, bytes, and the stamp last."""

    needs_levels = True

    def __init__(self):
        self.held, self.losses = {}, []

    def deliver(self, sheets):
        return {sheet.origin: self._take(sheet) for sheet in sheets}

    def _take(self, sheet):
        history = [json.loads(line) for block in sheet.history(0) for line in blocks.lines(block)]
        events = [json.loads(line) for block in sheet.events(0) for line in blocks.lines(block, "system.")]
        told = restored.provenance_of(sheet.run)
        config = {**sheet.run.config, KEY: as_config(replace(told, stamp=sheet.stamp))}
        kept = replace(
            sheet.run,
            config=json.loads(json.dumps(config)),
            files=tuple(map(_kept, sheet.run.files)),
            logged=tuple(replace(one, version="v0", files=tuple(map(_kept, one.files))) for one in sheet.run.logged),
        )
        assert (len(history), len(events)) == (sheet.rows, sheet.event_rows)
        self.held[kept.id] = Double(kept, history, events)
        return kept.id

    def reading(self, refs):
        return WandbReading(refs, lambda one: self.held[one.id], Options())

    def refs(self):
        found = [ref_of(double.run, stamp_of("x"), 0, 0, "e") for double in self.held.values()]
        return [one for one in found if one is not None]


def _kept(file):
    if file.ref:
        return file
    with file.open() as stream:
        return replace(file, open=opener(stream.read()))


def written(source, folder, options=Options()):  # noqa: B008
    """All runs of a source, written by the one writer there is, to a desk."""
    desk, homes = Desk(), Homes("team")
    homes.add(source.experiments())
    for number, one in enumerate(source.refs()):
        with source.read([one]) as found:
            place = WandbPlace(desk, folder / str(number), [one], homes, options)
            place.begin(found.runs)
            for batch in found.points():
                place.points(batch)
            for record in found.records():
                place.keep(record)
            for artifact in found.artifacts():
                place.put(artifact)
            place.commit()
    return desk


def whole(reading):
    """All that a reading tells, in values that can be compared."""
    sums = Sums()
    for batch in reading.points():
        sums.add(batch)
    found = files(reading)
    return {run.id: run for run in reading.runs}, sums.of, found


HELD = [*samples(), *(held for held in hard_samples() if held.run.name not in ("long values", "many points"))]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    memory = place_of(HELD)
    return memory, written(memory, tmp_path_factory.mktemp("pack"))


class TestThereAndBack:
    """What the writer makes of a run is told again as the run."""

    @pytest.mark.parametrize("held", HELD, ids=lambda held: held.run.name)
    def test_a_run_is_what_it_was(self, both, held):
        memory, desk = both
        with memory.read([held.ref]) as meant:
            runs, sums, bytes_ = whole(meant)
        there = next(one for one in desk.refs() if one.origin == held.run.origin)
        with desk.reading([there]) as found:
            again, found_sums, found_bytes = whole(found)
        assert found.losses == []
        run = runs[held.run.id]
        assert again[run.id] == replace(run, experiment="e", stamp=there.stamp)
        assert found_sums == sums
        assert found_bytes == bytes_

    @pytest.mark.parametrize("separator", [".", "/"])
    def test_a_run_of_wandbs_ends_as_it_was_and_is_told_as_it_was(self, tmp_path, separator):
        source = One(native(), Options(separator=separator))
        desk = written(source, tmp_path, Options(separator=separator))
        kept = desk.held["3kx9"]
        assert alike(kept.lines) == alike(flat(line) for line in LINES)
        assert alike(kept.system) == alike(EVENTS)
        own = {name: value for name, value in kept.run.config.items() if name != KEY}
        assert (own, kept.run.summary["verdict"]) == (NATIVE.config, "good")
        assert {one.name for one in kept.run.logged} >= {"net"}
        with source.read([ref(NATIVE)]) as meant:
            runs, sums, bytes_ = whole(meant)
        with desk.reading(desk.refs()) as found:
            again, found_sums, found_bytes = whole(found)
        assert again["3kx9"] == replace(runs["3kx9"], experiment="e", stamp=again["3kx9"].stamp)
        assert found_sums == sums
        assert found_bytes == bytes_
        assert found.losses == []


NAMES = st.text(max_size=5) | st.sampled_from(
    ["a", "a.b", "b", "loss", "ü/ b", "_own", "mlflow/step", "mlflow/model", "system/mine", "mlflow/key/system/x"]
)
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=4) | st.just("NaN"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=5,
)
ROWS = st.lists(
    st.tuples(st.integers(1, 5), st.floats(0, 2**31), st.dictionaries(NAMES, CELLS, max_size=4)), max_size=6
)
CONFIGS = st.dictionaries(NAMES, CELLS, max_size=4)


@settings(max_examples=60, deadline=None)
@given(ROWS, CONFIGS, CONFIGS, st.sampled_from(["finished", "crashed", "killed", "running", "odd"]))
@example(given_rows=[(1, 1.6875, {"said": None})], config={}, summary={"best": 1.0}, state="running")
@example(given_rows=[(1, 1.0, {"a": 1}), (1, 1.6875, {"b": True})], config={}, summary={"c": 1}, state="running")
@example(given_rows=[(1, 1.0, {"a": 1, "b": "x"}), (1, 2e16, {"b": "y"})], config={}, summary={"c": 1}, state="odd")
def test_any_run_of_wandbs_is_told_again_as_it_was(tmp_path_factory, given_rows, config, summary, state):
    lines, step = [], 0
    for more, time, cells in given_rows:
        step += more
        lines.append({**cells, "_step": step, "_timestamp": time, "_runtime": 1.0})
    config.pop(KEY, None)
    run = replace(NATIVE, config=config, summary=summary, state=state)
    source = One(Double(run, lines), Options())
    with source.read([ref(run)]) as meant:
        runs, sums, bytes_ = whole(meant)
        losses = [loss for loss in meant.losses if "called" not in loss.because]
    assert losses == []
    desk = written(source, tmp_path_factory.mktemp("pack"))
    with desk.reading(desk.refs()) as found:
        again, found_sums, found_bytes = whole(found)
    wanted = replace(runs["3kx9"], experiment="e", stamp=again["3kx9"].stamp)
    assert repr(sorted(again["3kx9"].params.items())) == repr(sorted(wanted.params.items()))
    assert replace(again["3kx9"], params={}) == replace(wanted, params={})
    assert found_bytes == bytes_
    assert found_sums == sums
    assert found.losses == []


def flat(line):
    """A row as W&B shows it: nested names joined."""
    found = {}
    for key, value in line.items():
        if isinstance(value, dict) and "_type" not in value:
            found |= {f"{key}.{name}": one for name, one in value.items()}
        else:
            found[key] = float("nan") if value == "NaN" else value
    return found


def alike(lines):
    """Rows to compare: NaN equals itself, 1.0 is 1, the order of keys is nobody's."""
    plain = [{key: float(value) if isinstance(value, int) else value for key, value in line.items()} for line in lines]
    return [{key: repr(value) for key, value in line.items()} for line in plain]


class One:
    """A source of one run of W&B's."""

    def __init__(self, opened, options):
        self._opened, self._options = opened, options

    def experiments(self):
        return [Experiment("team/vision", "vision")]

    def refs(self):
        return [ref(self._opened.run)]

    def read(self, refs):
        return WandbReading(refs, lambda one: self._opened, self._options)
