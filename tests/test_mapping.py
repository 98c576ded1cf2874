"""What a mapping file says is what becomes of names and values."""

import io
import json
import pickle
import re
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmigrate import mapping
from mlmigrate.adapters.base import Settings
from mlmigrate.adapters.wandb import options
from mlmigrate.errors import UsageError
from mlmigrate.mapping import Mapping, load
from mlmigrate.model import Artifact, DatasetInput, Experiment, Loss, Record, Run, points

AWS = "AKIA" + "Q" * 16


@pytest.fixture
def mapped(tmp_path):
    """The mapping of some texts, one file each."""

    def make(*texts):
        files = [tmp_path / f"m{number}.toml" for number in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text, "utf-8")
        return load(files)

    return make


def refusal(mapped, text):
    with pytest.raises(UsageError) as refused:
        mapped(text)
    return re.sub(r"^\S*/(?=m\d)", "", refused.value.message)


def batch(*rows):
    runs, keys, values = zip(*rows, strict=True) if rows else ((), (), ())
    return points({"run": list(runs), "key": list(keys), "value": list(values), "step": list(range(len(rows)))})


def rows(found):
    return [(row["run"], row["key"], row["value"]) for row in found.to_pylist()]


class TestNames:
    def test_a_name_no_rule_meets_stays(self, mapped):
        assert mapped('[keys]\n"a" = "b"').key("c") == "c"

    def test_a_star_is_text_without_a_slash(self, mapped):
        rules = mapped('[keys]\n"metrics/*/*" = "{2} of {1}"')
        assert [rules.key(name) for name in ("metrics/train/loss", "metrics/a/b/c", "metrics//x", "xmetrics/a/b")] == [
            "loss of train",
            "metrics/a/b/c",
            "metrics//x",
            "xmetrics/a/b",
        ]

    def test_two_stars_are_any_text(self, mapped):
        rules = mapped('[keys]\n"sys/**" = "s.{1}"')
        assert [rules.key("sys/a/b\nc"), rules.key("sys")] == ["s.a/b\nc", "sys"]

    def test_the_whole_name_is_group_nought(self, mapped):
        assert mapped('[keys]\n"**" = "old/{0}"').key("loss") == "old/loss"

    def test_what_an_expression_would_mean_is_plain_in_a_name(self, mapped):
        rules = mapped("""[keys]\n"a.b(c)[d]+" = "plain"\n'star\\*' = "star"\n"{9}" = "braces {x}" """)
        assert [rules.key(name) for name in ("a.b(c)[d]+", "axb(c)[d]+", "star*", "starry", "{9}")] == [
            "plain",
            "axb(c)[d]+",
            "star",
            "starry",
            "braces {x}",
        ]

    def test_a_plain_name_comes_before_a_pattern(self, mapped):
        rules = mapped('[experiments]\n"research/*" = "research-{1}"\n"research/vision" = "vision"')
        names = [rules.experiment(Experiment("1", name)).name for name in ("research/vision", "research/text")]
        assert names == ["vision", "research-text"]

    def test_the_first_pattern_decides(self, mapped):
        assert mapped('[keys]\n"a*" = "first"\n"*b" = "second"').key("ab") == "first"

    def test_a_later_file_wins_even_over_a_plain_name(self, mapped):
        rules = mapped('[keys]\n"a" = "1"\n"b" = "1"\n"c" = "1"', '[keys]\n"a" = "2"\n"b*" = "3"\n"b" = false')
        assert [rules.key(name) for name in "abc"] == ["2", None, "1"]

    def test_an_experiment_that_is_not_carried_is_none_and_a_loss(self, mapped):
        rules, scratch = mapped('[experiments]\n"scratch/**" = false'), Experiment("7", "scratch/x")
        assert rules.experiment(scratch) is None
        assert rules.experiment_losses(scratch) == [
            Loss("", "experiment 'scratch/x'", "left out by the mapping", "7"),
        ]

    @given(st.lists(st.text(st.characters(exclude_characters="/"), min_size=1), min_size=2, max_size=5))
    def test_any_parts_can_be_turned_round(self, parts):
        pattern, to = "/".join("*" * len(parts)), "/".join(f"{{{n}}}" for n in range(len(parts), 0, -1))
        rule = mapping.Rule("keys", pattern, to, mapping.glob(pattern))
        assert Mapping((rule,)).key("/".join(parts)) == "/".join(reversed(parts))

    @given(st.text(), st.text())
    def test_an_escaped_name_meets_itself_alone(self, name, other):
        pattern = mapping.glob(re.sub(r"([*\\])", r"\\\1", name))
        assert pattern.fullmatch(name)
        assert bool(pattern.fullmatch(other)) == (other == name)

    @given(st.text(min_size=1))
    def test_any_name_meets_the_pattern_of_everything(self, name):
        rule = mapping.Rule("keys", "**", "x/{1}", mapping.glob("**"))
        assert Mapping((rule,)).key(name) == "x/" + name


class TestRuns:
    RUN = Run(
        "r1",
        "0",
        name="night run",
        user="alice@acme.io",
        params={"lr": "0.1", "sys/gpu": "4", "db_password": "hunter2", "max_tokens": "5"},
        tags={"mlflow.user": "alice@acme.io", "note": f"used {AWS} here", "team.name": "vision"},
    )

    def test_an_empty_mapping_changes_nothing(self):
        assert Mapping().run(self.RUN) == (self.RUN, [])
        assert (Mapping().empty, Mapping().recipe, Mapping().rules()) == (True, "", ())

    def test_everything_that_is_asked_for_happens_and_what_is_lost_is_said(self, mapped):
        rules = mapped(
            """
            [keys]
            "sys/**" = false
            "lr" = "learning_rate"
            [tag_keys]
            "team.*" = "{1}"
            [users]
            "*@acme.io" = "{1}"
            [tags]
            origin = "old server"
            [redact.names]
            'password$' = "[redacted]"
            [redact.values]
            '(AKIA)\\w{16}' = "{1}..."
            """
        )
        run, losses = rules.run(self.RUN)
        assert run == replace(
            self.RUN,
            user="alice",
            params={"learning_rate": "0.1", "db_password": "[redacted]", "max_tokens": "5"},
            tags={"mlflow.user": "alice", "note": "used AKIA... here", "name": "vision", "origin": "old server"},
        )
        assert losses == [
            Loss("r1", "param 'db_password'", "redacted by the mapping", "0"),
            Loss("r1", "param 'sys/gpu'", "left out by the mapping", "0"),
            Loss("r1", "tag 'note'", "redacted by the mapping", "0"),
        ]

    def test_params_keep_their_order(self, mapped):
        run, _ = mapped('[keys]\n"b" = "z"').run(replace(self.RUN, params={"c": 1, "b": 2, "a": 3}))
        assert list(run.params.items()) == [("c", 1), ("z", 2), ("a", 3)]

    def test_of_two_params_with_one_name_the_one_that_had_it_stays(self, mapped):
        run, losses = mapped('[keys]\n"a" = "lr"').run(replace(self.RUN, params={"a": "1", "lr": "2"}))
        assert run.params == {"lr": "2"}
        assert losses == [Loss("r1", "param 'a'", "left out: the mapping calls it 'lr', and there is one already", "0")]

    def test_values_keep_their_types_where_no_rule_meets_them(self, mapped):
        given = {"i": 2**53 + 1, "b": True, "n": None, "s": frozenset({AWS, "x"}), "empty": "", "key": 7}
        run, losses = mapped("[redact.names]\n'key|empty' = \"X\"\n[redact.values]\n'AKIA\\w+' = \"Y\"").run(
            replace(self.RUN, params=given, tags={})
        )
        assert run.params == {**given, "s": frozenset({"Y", "x"}), "key": "X"}
        assert [loss.what for loss in losses] == ["param 'key'", "param 's'"]

    def test_a_secret_is_taken_out_of_every_text_of_a_run(self, mapped):
        secret = f"ftp://me:{AWS}@host/x"
        body = json.dumps({"env": {"a": [secret]}, "params": [{"key": "password", "value": "hunter2"}], "n": 1})
        run = Run(
            "r1",
            "0",
            name=secret,
            params={"p": secret},
            tags={"t": secret},
            system={"source_name": secret},
            artifact_uri=secret,
            inputs=(DatasetInput("d", "1", source=secret, schema=secret, profile=secret, tags={"x": secret}),),
            records=(Record("mlflow.x", "1", "r1", body), Record("mlflow.x", "2", "r1", "not JSON " + secret)),
        )
        rules = mapped("[redact.names]\n'password' = \"[redacted]\"\n[redact.values]\n'AKIA\\w+' = \"***\"")
        scrubbed, losses = rules.run(run)
        assert AWS not in repr(scrubbed)
        assert json.loads(scrubbed.records[0].body) == {
            "env": {"a": ["ftp://me:***@host/x"]},
            "params": [{"key": "password", "value": "[redacted]"}],
            "n": 1,
        }
        assert {loss.what for loss in losses} == {
            *("param 'p'", "tag 't'", "name", "artifact_uri", "system", "inputs"),
            *("mlflow.x '1'", "mlflow.x '2'"),
        }

    def test_a_record_without_secrets_stays_as_it_was_written(self, mapped):
        record = Record("mlflow.x", "1", "", '{"b" : 1.50,   "a":[ ]}')
        assert mapped("[redact.values]\n'AKIA\\w+' = \"*\"").record(record) == (record, [])

    def test_a_user_may_be_left_out(self, mapped):
        run, losses = mapped('[users]\n"**" = false').run(self.RUN)
        assert (run.user, "mlflow.user" in run.tags) == ("", False)
        assert losses == [Loss("r1", "user 'alice@acme.io'", "left out by the mapping", "0")]

    def test_an_added_tag_that_hides_another_is_a_loss(self, mapped):
        run, losses = mapped('[tags]\nnote = "new"').run(self.RUN)
        assert run.tags["note"] == "new"
        assert losses == [Loss("r1", "tag 'note'", "overwritten by the mapping", "0")]

    def test_tags_of_experiments_are_mapped_too(self, mapped):
        rules = mapped("[tag_keys]\n'a' = 'b'\n[redact.values]\n'AKIA\\w+' = '*'")
        experiment = Experiment("1", "e", tags={"a": AWS}, artifact_root=f"s3://{AWS}@b")
        assert rules.experiment(experiment) == replace(experiment, tags={"b": "*"}, artifact_root="s3://*@b")
        assert rules.experiment_losses(experiment) == [Loss("", "tag 'a'", "redacted by the mapping", "1")]


class TestPoints:
    def test_keys_are_renamed_and_dropped_and_the_order_kept(self, mapped):
        rules = mapped('[keys]\n"train/*" = "train_{1}"\n"sys/**" = false')
        found = rules.points(
            batch(("r", "train/loss", 1), ("r", "sys/cpu", 2), ("r", "acc", 3), ("r", "train/loss", 4))
        )
        assert rows(found) == [("r", "train_loss", 1), ("r", "acc", 3), ("r", "train_loss", 4)]

    def test_two_keys_become_one_and_that_is_said_once(self, mapped):
        rules = mapped('[keys]\n"a" = "c"\n"b" = "c"')
        found = rules.points(batch(("r", "a", 1), ("r", "b", 2), ("r", "d", 3)))
        assert rows(found) == [("r", "c", 1), ("r", "c", 2), ("r", "d", 3)]
        assert found.column("key").dictionary.to_pylist() == ["c", "d"]
        assert rules.key_losses("r", ["b", "a", "d", "a"]) == [Loss("r", "metrics 'a', 'b'", "merged into 'c'")]

    def test_a_dropped_key_is_a_loss_of_its_run(self, mapped):
        assert mapped('[keys]\n"a" = false').key_losses("r", ["a", "b"]) == [
            Loss("r", "metric 'a'", "left out by the mapping"),
        ]

    def test_a_part_of_a_batch_is_mapped_as_that_part(self, mapped):
        rules = mapped('[keys]\n"a" = false\n"b" = "B"')
        found = rules.points(batch(("r", "a", 1), ("r", "b", 2), ("r", "a", 3), ("r", "b", 4)).slice(1, 2))
        assert (rows(found), found.schema) == ([("r", "B", 2)], batch().schema)

    def test_a_batch_of_nothing_stays_one(self, mapped):
        assert mapped('[keys]\n"**" = false').points(batch()).num_rows == 0

    def test_a_batch_no_rule_meets_is_the_same_object(self, mapped):
        untouched = batch(("r", "a", 1))
        assert mapped('[keys]\n"b" = "c"').points(untouched) is untouched

    @given(st.lists(st.sampled_from(["a/x", "a/y", "b/x", "c", "d/e/f"]), max_size=30))
    def test_points_and_single_keys_agree(self, keys):
        given = [("a/*", "a_{1}"), ("b/**", None), ("c", "a_x")]
        rules = Mapping(tuple(mapping.Rule("keys", name, to, mapping.glob(name)) for name, to in given))
        found = rules.points(batch(*((str(n), key, n) for n, key in enumerate(keys))))
        assert rows(found) == [(str(n), rules.key(key), n) for n, key in enumerate(keys) if rules.key(key) is not None]
        assert isinstance(found, pa.RecordBatch)


class TestCounting:
    def test_each_rule_says_how_many_different_names_it_met(self, mapped):
        rules = mapped('[keys]\n"a*" = "x"\n"abc" = "y"\n"zz" = "z"\n[tags]\no = "1"\n[redact.values]\n"AKIA" = "*"')
        runs = [Run(str(n), "0", params={"abc": 1, "ab": 2}, tags={"t": AWS}) for n in range(3)]
        names = [pair for run in runs for pair in rules.names(run)] + [("keys", "aa"), ("keys", "ab")]
        assert rules.counts(names) == {
            '[keys] "abc"': 1,
            '[keys] "a*"': 2,
            '[keys] "zz"': 0,
            '[tags] "o"': 3,
            '[redact.values] "AKIA"': 1,
        }
        assert tuple(rules.counts([])) == rules.rules()

    def test_experiments_are_counted(self, mapped):
        rules = mapped('[experiments]\n"a/*" = "{1}"\n[tag_keys]\n"t" = "u"')
        names = [pair for n in "xyx" for pair in rules.names(Experiment(n, "a/" + n, tags={"t": ""}))]
        assert rules.counts(names) == {'[experiments] "a/*"': 2, '[tag_keys] "t"': 1}

    def test_the_recipe_is_the_same_for_the_same_rules_alone(self, mapped):
        one, same, other = (mapped(f'[keys]\n"a" = "{to}"') for to in "xxy")
        assert one.recipe == same.recipe != other.recipe
        assert one == same == pickle.loads(pickle.dumps(one))


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('[keys]\n"a" = "b"\n"sys/**" = 3', 'm0.toml, line 3: [keys] "sys/**" must be a name or false, not 3.'),
            ("[keys]\na = true", 'm0.toml, line 2: [keys] "a" must be a name or false, not true.'),
            ('[keys]\na = ""', "m0.toml, line 2: [keys] \"a\" must be a name or false, not ''."),
            ("[users]\n\n  'a' = [\n 1]", 'm0.toml, line 3: [users] "a" must be a name or false, not [1].'),
            (
                '[experiments]\n"a/*" = "{2}"',
                'm0.toml, line 2: [experiments] "a/*" has 1 wildcards, so {2} means nothing.',
            ),
            ('[tags]\na = "x"\n[keys]\na = 1', 'm0.toml, line 4: [keys] "a" must be a name or false, not 1.'),
            ("[tags]\na = false", 'm0.toml, line 2: [tags] "a" must be a text, not false.'),
            (
                '[tag_keys]\n"a" = "mlmigrate."',
                (
                    "m0.toml, line 2: [tag_keys] \"a\" makes a name that begins with 'mlmigrate.': "
                    "that is mlmigrate's own."
                ),
            ),
            (
                "[redact.names]\n'+' = \"x\"",
                'm0.toml, line 2: [redact.names] "+" is no expression: nothing to repeat at position 0.',
            ),
            (
                "[redact.values]\n'x*' = \"y\"",
                'm0.toml, line 2: [redact.values] "x*" finds something in an empty text.',
            ),
            ("[redact.values]\nx = false", 'm0.toml, line 2: [redact.values] "x" must be a text, not false.'),
            ("\n[key]\na = 'b'", "m0.toml, line 2: there is no section [key]."),
            ("[redact.value]\na = 'b'", "m0.toml, line 1: there is no section [redact.value]."),
            (
                "[redact]\nnames = 'b'",
                'm0.toml, line 2: [redact] "names" must be a section.',
            ),
            ("a = 'b'", 'm0.toml, line 1: "a" stands in no section.'),
            ("[keys]\na = ", "m0.toml: the mapping file is not TOML: Invalid value (at end of document)."),
        ],
    )
    def test_each_names_file_line_and_rule(self, mapped, text, says):
        assert refusal(mapped, text) == says

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(UsageError, match=r"gone\.toml: the mapping file cannot be read: No such file"):
            load([tmp_path / "gone.toml"])

    def test_a_file_that_is_no_text_is_named(self, tmp_path):
        (tmp_path / "m.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(UsageError, match="is not UTF-8 text"):
            load([tmp_path / "m.toml"])

    def test_a_misspelt_preset_is_guessed(self):
        with pytest.raises(UsageError) as refused:
            load([Path("scrub-secret")])
        assert refused.value.hint == "Presets: scrub-secrets"


class TestChoices:
    def test_choices_reach_the_adapters_and_later_files_win(self, mapped):
        rules = mapped('[wandb]\nparams = "text"\nmodels = true', '[wandb]\nparams = "typed"')
        assert dict(rules.choices) == {"wandb.params": "typed", "wandb.models": True}
        assert rules.empty
        assert rules.recipe not in ("", mapped('[wandb]\nparams = "typed"').recipe)

    def test_a_choice_is_a_text_or_a_truth_value(self, mapped):
        assert refusal(mapped, "[wandb]\nparams = 3") == (
            'm0.toml, line 2: [wandb] "params" must be a text, true or false, not 3.'
        )

    @pytest.mark.parametrize(
        ("choice", "said"),
        [
            (("wandb.parms", "text"), "[wandb] has no option 'parms'."),
            (("wandb.params", "both"), '[wandb] params must be "typed" or "text", not \'both\'.'),
            (("wandb.models", "yes"), "[wandb] models must be bool, not 'yes'."),
            (("wandb.nested", True), "[wandb] nested must be str, not True."),
        ],
    )
    def test_a_choice_that_there_is_not_is_told(self, choice, said):
        with pytest.raises(UsageError) as refused:
            options.options(Settings(options=(choice,)))
        assert refused.value.message == said


class TestFilesOfValues:
    SECRET = "[redact.names]\n'(?i)token' = \"[gone]\""

    def given(self, path, data, values=True):
        return Artifact("r", path, lambda: io.BytesIO(data), len(data), "digest", values=values)

    def text(self, artifact):
        with artifact.open() as stream:
            return stream.read()

    def test_what_redacts_params_redacts_the_json_made_of_them(self, mapped):
        found, losses = mapped(self.SECRET).artifact(self.given("wandb/run.json", b'{"config": {"api_token": "x"}}'))
        assert self.text(found) == self.text(found) == b'{"config":{"api_token":"[gone]"}}'
        assert (found.size, found.sha256) == (len(self.text(found)), None)
        assert losses == [Loss("r", "artifact 'wandb/run.json'", "redacted by the mapping")]

    def test_json_lines_are_redacted_line_by_line(self, mapped):
        data = b'{"key": "token", "value": "x"}\n{"key": "a", "value": "y"}\n'
        found, _ = mapped(self.SECRET).artifact(self.given("wandb/history.jsonl", data))
        assert self.text(found) == b'{"key":"token","value":"[gone]"}\n{"key": "a", "value": "y"}\n'

    def test_a_users_file_and_one_without_secrets_stay_as_they_are(self, mapped):
        for one in (self.given("a.json", b'{"token": "x"}', values=False), self.given("a.json", b'{"a": "x"}')):
            assert mapped(self.SECRET).artifact(one) == (one, [])


class TestPresets:
    def test_there_are_these(self):
        assert sorted(mapping.presets()) == ["mlflow-to-mlflow", "mlflow-to-wandb", "scrub-secrets", "wandb-to-mlflow"]

    @pytest.mark.parametrize(
        "name",
        [
            "api_key",
            "OPENAI_API_KEY",
            "aws.secret-key",
            "db_password",
            "password",
            "HF_TOKEN",
            "token",
            "client secret",
        ],
    )
    def test_scrub_secrets_takes_the_value_of_a_secret_name(self, name):
        run, losses = load([Path("scrub-secrets")]).run(Run("r", "0", params={name: "x1"}))
        assert (run.params, len(losses)) == ({name: "[redacted]"}, 1)

    @pytest.mark.parametrize(
        "name",
        [
            "max_tokens",
            "tokenizer",
            "n_keys",
            "key",
            "pad_token",
            "eos_token",
            "keyword",
            "secretary",
            "num_token",
            "passes",
        ],
    )
    def test_scrub_secrets_leaves_the_names_of_everyday_params(self, name):
        run = Run("r", "0", params={name: "x1"})
        assert load([Path("scrub-secrets")]).run(run) == (run, [])

    @pytest.mark.parametrize(
        ("value", "scrubbed"),
        [
            (f"key {AWS}.", "key [redacted]."),
            ("ghp_" + "a" * 36, "[redacted]"),
            ("hf_" + "A" * 34, "[redacted]"),
            ("sk-proj-" + "a1" * 20, "[redacted]"),
            ("postgresql://me:pa@db/x", "postgresql://me:pa@db/x".replace("me:pa", "[redacted]")),
            ("https://" + "a" * 24 + "@git.example/x.git", "https://[redacted]@git.example/x.git"),
            ("python train.py --api-key s3cr3t --lr 0.1", "python train.py --api-key [redacted] --lr 0.1"),
            ("AccountKey=" + "a" * 40 + "==;x", "AccountKey=[redacted];x"),
            ("0.1", "0.1"),
            ("https://example.com:8080/a@b", "https://example.com:8080/a@b"),
            ("s3://bucket/path/3f2c8a", "s3://bucket/path/3f2c8a"),
            ("sk-learn", "sk-learn"),
        ],
    )
    def test_scrub_secrets_knows_the_shapes_of_secrets(self, value, scrubbed):
        run, _ = load([Path("scrub-secrets")]).run(Run("r", "0", params={"p": value}))
        assert run.params == {"p": scrubbed}

    @pytest.mark.parametrize("name", ["mlflow-to-wandb", "wandb-to-mlflow"])
    def test_the_presets_of_wandb_say_the_defaults_and_every_choice_of_their_direction(self, name):
        rules = load([Path(name)])
        assert rules.empty
        assert options.options(Settings(options=rules.choices)) == options.Options()
        said = {choice.removeprefix("wandb.") for choice, _ in rules.choices}
        given = {"params", "nested", "labels", "group", "job_type", "run_files"}
        assert said == (given if name == "mlflow-to-wandb" else {f.name for f in fields(options.Options)} - given)

    @pytest.mark.parametrize("name", ["mlflow-to-wandb", "wandb-to-mlflow"])
    def test_the_commented_rules_of_the_presets_are_rules(self, name, mapped):
        lines = mapping.presets()[name].read_text("utf-8").splitlines()
        text = "\n".join(line.removeprefix("# ") if line.startswith('# "') else line for line in lines)
        assert len(mapped(text).rules()) >= 5

    def test_the_template_shows_every_section_and_each_rule_works(self):
        rules = load([Path("mlflow-to-mlflow")])
        run = Run(
            "r",
            "0",
            user="robot@example.org",
            params={"example/train/lr": "1", "example/sys/x": "2", "example_password": "3", "c": "example-secret-4"},
            tags={"example.team": "a", "example.internal.x": "b", "mlflow.user": "bob@example.com"},
        )
        mapped, losses = rules.run(run)
        assert mapped == replace(
            run,
            user="",
            params={"train_lr": "1", "example_password": "[redacted]", "c": "example-secret-[redacted]"},
            tags={"team": "a", "mlflow.user": "bob"},
        )
        assert len(losses) == 5
        names = ("example/vision", "example/text", "example-scratch/a/b", "other")
        found = [rules.experiment(Experiment("1", name)) for name in names]
        assert [one and one.name for one in found] == ["vision", "example-text", None, "other"]
        text = mapping.presets()["mlflow-to-mlflow"].read_text()
        assert all(f"[{section}]" in text for section in mapping.SECTIONS)
