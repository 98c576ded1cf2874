import json
import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmigrate.adapters.wandb import natives
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.shape import Block, Other, Version, WandbRun
from mlmigrate.model import DatasetInput, Loss

RUN = WandbRun(
    "3kx9",
    entity="team",
    project="vision",
    name="sunny-sky-1",
    notes="# why\nnot",
    tags=("baseline", "größe"),
    group="ablation",
    job_type="train",
    sweep="sw1",
    state="crashed",
    user="ada",
    host="node7",
    program="train.py",
    git_remote="https://host/repo.git",
    git_commit="abc",
    created=1_600_000_009_000,
    started=1_600_000_000_500,
    runtime=2.25,
    config={"lr": 0.1, "model": {"depth": 3, "name": "vgg"}},
)

NAMES = st.text(max_size=6) | st.sampled_from(["a", "b", "a.b", "a.b.c", "b.c", "", ".", "_type"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
CONFIGS = st.dictionaries(NAMES, VALUES, max_size=6)


def leaves(config, way=()):
    """The values of a config by the way to each: an own reading of the rule."""
    found = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, (*way, name))
        else:
            found[(*way, name)] = value
    return found


def plainly(value):
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def same(a, b):
    return repr(a) == repr(b)


class TestConfigBecomesParams:
    def test_nested_names_are_joined_and_values_keep_their_types(self):
        config = {"lr": 0.1, "n": 3, "on": True, "model": {"depth": {"max": 2}}, "none": None, "text": "3"}
        params, renamed = natives.params_of(config)
        assert params == {"lr": 0.1, "n": 3, "on": True, "model.depth.max": 2, "none": None, "text": "3"}
        assert type(params["on"]) is bool
        assert renamed == {}

    def test_lists_are_json_and_empty_mappings_braces(self):
        params, _ = natives.params_of({"betas": [0.9, {"ü": [None, True]}], "e": {}, "d": {"e": {}}, "l": []})
        assert params == {"betas": '[0.9, {"ü": [null, true]}]', "e": "{}", "d.e": "{}", "l": "[]"}

    def test_another_separator_may_be_chosen(self):
        assert natives.params_of({"a": {"b": 1}, "a.b": 2}, "/") == ({"a/b": 1, "a.b": 2}, {})

    def test_our_own_key_is_no_param_but_a_nested_one_of_that_name_is(self):
        assert natives.params_of({"mlmigrate": {"origin": "x"}, "a": {"mlmigrate": 1}})[0] == {"a.mlmigrate": 1}

    def test_of_names_that_collide_the_shortest_way_keeps_the_name_whatever_the_order(self):
        one, renamed = natives.params_of({"a": {"b": 1}, "a.b": 2})
        other, _ = natives.params_of({"a.b": 2, "a": {"b": 1}})
        assert one == other
        assert one["a.b"] == 2
        assert list(renamed.values()) == ["a.b"]
        assert one[next(iter(renamed))] == 1

    def test_the_new_name_of_a_collision_is_nobody_elses(self):
        _, renamed = natives.params_of({"a": {"b": 1}, "a.b": 2})
        taken = next(iter(renamed))
        params, again = natives.params_of({"a": {"b": 1}, "a.b": 2, taken: 3})
        assert params[taken] == 3
        assert len(params) == 3
        assert list(again.values()) == ["a.b"]

    @given(CONFIGS)
    def test_no_value_is_lost_and_none_changed(self, config):
        params, renamed = natives.params_of(config)
        meant = [plainly(value) for value in leaves(config).values()]
        assert len(params) == len(meant)
        assert sorted(map(repr, params.values())) == sorted(map(repr, meant))
        for name, would in renamed.items():
            assert name != would
            assert would in params

    @given(CONFIGS)
    def test_the_order_of_a_config_changes_no_name(self, config):
        def turned(value):
            return {k: turned(v) for k, v in reversed(value.items())} if isinstance(value, dict) else value

        params, again = natives.params_of(config)[0], natives.params_of(turned(config))[0]
        assert params.keys() == again.keys()
        changed = {name for name in params if not same(params[name], again[name])}
        assert all(isinstance(params[name], str) and "[" in params[name] for name in changed)  # dicts in lists

    @given(CONFIGS)
    def test_names_that_do_not_collide_are_the_plain_ones(self, config):
        params, renamed = natives.params_of(config)
        meant = {".".join(way) for way in leaves(config)}
        assert params.keys() - renamed.keys() == meant

    def test_ten_thousand_levels_are_no_harm(self):
        config = {}
        at = config
        for _ in range(10_000):
            at["k"] = {"l": [1]}
            at = at["k"]
        params, _ = natives.params_of(config)
        assert len(params) == natives.DEEPEST + 1
        run, losses = natives.bounded(WandbRun("r", config=config))
        assert [loss.what for loss in losses] == ["config"]
        json.dumps(run.config)

    @given(VALUES)
    def test_what_is_not_too_deep_stays_as_it_is(self, value):
        kept, cut = natives.shallow(value)
        assert cut == 0
        assert repr(kept) == repr(value)

    def test_half_a_surrogate_pair_is_no_harm(self):
        params, _ = natives.params_of({"a": ["ü\ud800"], "b\udfff": "\ud800"})
        assert params["a"] == '["ü\\ud800"]'
        params["a"].encode()


class TestARun:
    def test_what_w_and_b_tells_is_told_in_the_words_of_mlflow(self):
        run, losses = natives.run_of(RUN, Options())
        assert losses == []
        assert (run.id, run.name, run.origin) == ("3kx9", "sunny-sky-1", "wandb:team/vision:3kx9")
        assert (run.status, run.status_word, run.user) == ("FAILED", "crashed", "ada")
        assert (run.start, run.end) == (1_600_000_000_500, 1_600_000_002_750)
        assert run.params == {"lr": 0.1, "model.depth": 3, "model.name": "vgg"}
        assert run.tags == {
            "mlflow.note.content": "# why\nnot",
            "mlflow.user": "ada",
            "mlflow.source.name": "train.py",
            "mlflow.source.git.commit": "abc",
            "mlflow.source.git.repoURL": "https://host/repo.git",
            "wandb.tags": '["baseline", "größe"]',
            "wandb.group": "ablation",
            "wandb.job_type": "train",
            "wandb.sweep": "sw1",
            "wandb.host": "node7",
            "wandb.state": "crashed",
            "wandb.entity": "team",
            "wandb.project": "vision",
            "wandb.id": "3kx9",
        }

    @pytest.mark.parametrize(
        ("state", "status", "word"),
        [
            ("finished", "FINISHED", ""),
            ("failed", "FAILED", ""),
            ("killed", "KILLED", ""),
            ("preempted", "KILLED", "preempted"),
            ("running", "RUNNING", ""),
            ("pending", "SCHEDULED", ""),
            ("a new word", "FINISHED", "a new word"),
        ],
    )
    def test_a_state_is_a_status_and_its_own_word_where_that_has_no_equal(self, state, status, word):
        run, _ = natives.run_of(WandbRun("x", state=state), Options())
        assert (run.status, run.status_word, run.tags.get("wandb.state", "")) == (status, word, word)

    def test_a_run_that_is_running_has_no_end(self):
        assert natives.times_of(WandbRun("x", state="running", started=5, runtime=1.0, ended=7)) == (5, None)

    @pytest.mark.parametrize(
        ("fields", "end"),
        [
            ({"ended": 9, "runtime": 1.0}, 9),
            ({"runtime": 1.5}, 1505),
            ({"summary": {"_wandb": {"runtime": 2}, "_runtime": 7}}, 2005),
            ({"summary": {"_runtime": 7.25, "_timestamp": 99}}, 7255),
            ({"started": None, "summary": {"_runtime": 7, "_timestamp": 99.5}}, 99_500),
            ({"summary": {"_wandb": 3, "_runtime": "NaN", "_timestamp": float("nan")}}, None),
            ({"runtime": 1e300, "summary": {"_runtime": 10**400, "_timestamp": True}}, None),
        ],
    )
    def test_an_end_that_nobody_told_follows_from_what_was(self, fields, end):
        assert natives.times_of(WandbRun("x", **({"started": 5} | fields)))[1] == end

    def test_two_params_of_one_name_are_told(self):
        _, losses = natives.run_of(WandbRun("x", config={"a": {"b": 1}, "a.b": 2}), Options())
        assert losses == [Loss("x", "param 'a.b'", losses[0].because)]

    def test_datasets_that_were_used_are_inputs_once(self):
        data = Version("cifar", "dataset", "v3", "team", "vision", "d1")
        other = Version("weights", "model", "v0")
        run, _ = natives.run_of(WandbRun("x", used=(data, other, data)), Options())
        source = json.dumps({"entity": "team", "project": "vision", "name": "cifar", "version": "v3", "digest": "d1"})
        assert run.inputs == (DatasetInput("cifar", "d1", "wandb", source),)

    def test_sweeps_and_groups_are_parents_where_that_is_asked_for(self):
        parent = "mlflow.parentRunId"
        assert parent not in natives.run_of(RUN, Options())[0].tags
        assert natives.run_of(RUN, Options(sweeps="runs"))[0].tags[parent] == "sweep-sw1"
        grouped = natives.run_of(RUN, Options(groups="runs"))[0].tags[parent]
        assert grouped == natives.group_run("team", "vision", "ablation")
        assert natives.run_of(RUN, Options(groups="runs", sweeps="runs"))[0].tags[parent] == "sweep-sw1"


def block(keys, step=0, others=()):
    return Block(
        pa.array([step], pa.int64()),
        pa.array([1.5e9]),
        pa.array([None], pa.float64()),
        keys,
        pa.array([0] * len(keys), pa.int32()),
        pa.array(range(len(keys)), pa.int32()),
        pa.array([0.5] * len(keys), pa.float64()),
        others,
    )


SUMMARY = {
    "acc": 0.5,
    "best": {"f1": 1, "at": "NaN"},
    "image": {"_type": "image-file", "size": 3},
    "on": True,
    "word": "x",
    "table": {"_type": "table-file", "nrows": 5},
    "_step": 9,
    "_timestamp": 1.5e9,
    "_runtime": 3,
    "_wandb": {"runtime": 3},
}


class TestASummary:
    def test_its_numbers_without_history_are_points_at_the_end(self):
        seen = natives.Seen()
        seen.look(block(["acc"], step=4))
        run, _ = natives.run_of(WandbRun("r", started=1000, ended=2000), Options())
        rows = natives.summary_points(run, SUMMARY, seen).to_pylist()
        assert [(row["run"], row["key"], row["step"], row["timestamp"]) for row in rows] == [
            ("r", "best.f1", 9, 2000),
            ("r", "best.at", 9, 2000),
        ]
        assert rows[0]["value"] == 1.0
        assert math.isnan(rows[1]["value"])

    def test_without_a_last_step_it_is_the_historys(self):
        seen = natives.Seen()
        seen.look(block(["acc"], step=4, others=[Other(0, "word", '"x"')]))
        run, _ = natives.run_of(WandbRun("r", state="running", started=1000), Options())
        rows = natives.summary_points(run, {"f1": 1, "word": 5, "huge": 10**400}, seen).to_pylist()
        assert [(row["key"], row["step"], row["timestamp"]) for row in rows] == [("f1", 4, 1_500_000_000_000)]

    def test_a_summary_that_says_nothing_more_gives_nothing(self):
        seen = natives.Seen()
        seen.look(block(["acc"]))
        run, _ = natives.run_of(RUN, Options())
        assert natives.summary_points(run, {"acc": 1.0, "_step": 3}, seen) is None

    @settings(max_examples=50)
    @given(st.dictionaries(NAMES, VALUES, max_size=5))
    def test_any_summary_can_be_read(self, summary):
        run, _ = natives.run_of(RUN, Options())
        natives.summary_points(run, summary, natives.Seen())
