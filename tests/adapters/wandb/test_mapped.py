"""What a mapping leaves out or redacts of a run of W&B's is nowhere in the target, whichever way the run goes."""

import gzip
import io
import json
import sqlite3
import urllib.parse
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import wandbsdk
import wandbserver
import wandbtarget
from mlmigrate.mapping import load
from mlmigrate.model import Artifact, Loss

# Logged by the real SDK, once on the server and once offline. Each secret has a text, or a number, of its own.
LOGGED = """
import sys, wandb
sys.argv += ["--word", "S3CR-argument"]
private = {"deep": {"er": "S3CR-nested"}, "list": [{"word": "S3CR-listed"}], "number": 918273645}
config = {"private": private, "secret_flat": "S3CR-flat", "off": {"secret_on": "S3CR-under"}, "lr": 0.125}
about = {"notes": "S3CR-notes", "group": "S3CR-group", "job_type": "S3CR-job", "tags": ["S3CR-tag"], "config": config}
for mode in ("online", "offline"):
    with wandb.init(project="p", id=f"it-{mode}", mode=mode, **about) as run:
        for step in range(3):
            row = {"loss": 1 / (step + 1), "secret_loss": 5551.0078125 + step, "secret_flag": True, "kept": "kept-text"}
            row |= {"secret_text": "S3CR-row", "secret_exact": 1152921504606846983, "private": {"x": "S3CR-in-row"}}
            row["secret_image"] = {"_type": "image-file", "caption": "S3CR-caption", "path": "media/none.png"}
            run.log(row)
        made = wandb.Artifact("made", type="thing", description="S3CR-described", metadata={"note": "S3CR-metadata"})
        with made.new_file("it.txt") as file:
            file.write("it")
        run.log_artifact(made)
        run.summary["secret_verdict"] = "S3CR-summary"
        run.summary["secret_alone"] = 7772.0078125
        run.summary["private"] = {"best": {"word": "S3CR-deep-summary"}}
"""
TEXTS = ("nested", "listed", "flat", "under", "notes", "group", "job", "tag", "row", "in-row", "caption", "summary")
SECRETS = (*(f"S3CR-{text}" for text in (*TEXTS, "deep-summary")), "918273645")
BESIDES = ("S3CR-argument", "S3CR-described", "S3CR-metadata")  # what has no name here: found by its value alone
NUMBERS = ("5551.0078125", "7772.0078125", "1152921504606846983")  # of metrics
KEPT = ("0.125", "kept-text")
LEAVES_OUT = """
[keys]
"private.**" = false
"secret_*" = false
"off.secret_*" = false
[tag_keys]
"mlflow.note.content" = false
"wandb.group" = false
"wandb.job_type" = false
"wandb.tags" = false
"""
REDACTS = """
[redact.names]
'private|^secret_|^off\\.secret' = "[gone]"
'^(mlflow\\.note\\.content|wandb\\.(group|job_type|tags))$' = "[gone]"
"""
REDACTS_VALUES = """
[redact.values]
'S3CR-[a-z-]+' = "[gone]"
"""
RULES = {"left out": LEAVES_OUT, "redacted by name": REDACTS, "redacted by value": REDACTS_VALUES}
WITHOUT = ("--exclude", "wandb/files/media/**")  # a mapping does not look into these


@pytest.fixture(scope="module")
def server():
    with wandbserver.running() as server:
        yield server


@pytest.fixture(scope="module")
def logged(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdk")
    wandbsdk.run("0.31.0", LOGGED, server, folder, {"WANDB_ENTITY": "team"})
    return folder / "wandb"


@pytest.fixture
def copied(server, logged, tmp_path, monkeypatch):
    """Copies with a mapping; gives all that the target holds then, as one text."""
    wandbtarget.use(server, monkeypatch)
    monkeypatch.setenv("WANDB_ENTITY", "other")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    def done(way, rules="", *words):
        mapping = tmp_path / "m.toml"
        mapping.write_text(rules)
        ways = {
            "offline to database": (f"wandb:{logged}", f"mlflow:sqlite:///{tmp_path}/m.db", tmp_path),
            "server to archive": ("wandb:team", f"{tmp_path}/archive", tmp_path / "archive"),
            "server to server": ("wandb:team/p", f"wandb:other/{tmp_path.name}", None),
            "archive to offline": (f"{tmp_path}/first", f"wandb:{tmp_path}/out", tmp_path / "out"),
        }
        source, target, place = ways[way]
        if way == "archive to offline":
            told(wandbtarget.command("export", "wandb:team", f"{tmp_path}/first", *words))
        verb = "export" if way == "server to archive" else "copy"
        told(wandbtarget.command(verb, source, target, "-m", mapping, *words))
        told(wandbtarget.command("verify", source, target, "-m", mapping, *words))
        if place is None:
            return on_server(server, f"other/{tmp_path.name}/")
        return in_folder(place)

    return done


def told(ended):
    code, out = ended
    assert code == 0, out


def in_folder(folder):
    return "\n".join(
        of_file(file) for file in sorted(folder.rglob("*")) if file.is_file() and "state" not in file.parts
    )


def of_file(file: Path):
    """All that is in a file: its bytes, and of tables their rows."""
    data = file.read_bytes()
    text = data.decode("latin-1")
    if file.suffix == ".db":
        with closing(sqlite3.connect(file)) as link:
            text += "\n".join(link.iterdump())
    if file.suffix == ".parquet":
        text = json.dumps(pq.read_table(file).to_pylist(), default=str)
    return f"{file.name}\n" + (gzip.decompress(data).decode("latin-1") if data[:2] == b"\x1f\x8b" else text)


def on_server(server, prefix):
    """All that the server holds of a project: runs, artifacts, and the bytes of both."""
    state = server.state()
    held = {
        kind: {at: one for at, one in state[kind].items() if at.startswith(prefix)} for kind in ("runs", "artifacts")
    }
    md5s = [file["md5"] for run in held["runs"].values() for file in run["files"].values()]
    md5s += [entry["digest"] for one in held["artifacts"].values() for entry in one["manifest"].values()]
    blobs = [server.blob(md5).decode("latin-1") for md5 in md5s if md5 in state["blobs"]]
    assert held["runs"]
    assert blobs
    return "\n".join([json.dumps(held), urllib.parse.unquote(json.dumps(held)), *blobs])


def found(secrets, text):
    return [secret for secret in secrets if secret in text]


WAYS = ("offline to database", "server to archive", "server to server", "archive to offline")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_without_rules_all_of_it_arrives(way, copied):
    held = copied(way, "", *WITHOUT)
    assert found((*SECRETS, *BESIDES, *NUMBERS, *KEPT), held) == [*SECRETS, *BESIDES, *NUMBERS, *KEPT]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rules", RULES)
def test_what_a_mapping_takes_out_is_nowhere(rules, way, copied):
    held = copied(way, RULES[rules], *WITHOUT)
    texts = [one for one in SECRETS if not one.isdecimal()]
    secrets = {"left out": (*SECRETS, *NUMBERS), "redacted by name": SECRETS, "redacted by value": (*texts, *BESIDES)}
    assert found(secrets[rules], held) == []
    assert found(KEPT, held) == list(KEPT)


def test_files_of_wandbs_that_repeat_it_stay_behind_where_anything_is_hidden(tmp_path):
    names = ("config.yaml", "wandb-summary.json", "wandb-metadata.json")
    hiding = [
        '[keys]\n"a" = false',
        '[tag_keys]\n"a" = false',
        '[users]\n"ann" = "someone"',
        '[redact.names]\n"a" = ""',
    ]
    for text in hiding:
        (tmp_path / "m.toml").write_text(text)
        mapping = load([tmp_path / "m.toml"])
        assert all("wandb/run.json" in mapping.refuses_path(f"wandb/files/{name}") for name in names), text
        assert mapping.refuses_path("wandb/files/output.log") == mapping.refuses_path("config.yaml") == ""
    (tmp_path / "m.toml").write_text('[keys]\n"a" = "b"')
    assert load([tmp_path / "m.toml"]).refuses_path("wandb/files/config.yaml") == ""


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_without_the_folder_nothing_goes_but_params_tags_and_metrics(way, copied):
    held = copied(way, "", "--skip", "params", "--exclude", "wandb/**")
    assert found(("S3CR-nested", "S3CR-flat", "S3CR-row", "S3CR-caption", "S3CR-summary", "S3CR-metadata"), held) == []
    assert found(("S3CR-notes", "5551.0078125"), held) == ["S3CR-notes", "5551.0078125"]


RUN = {
    "id": "i",
    "user": "ann@acme.io",
    "host": "h",
    "metadata": {"username": "ann", "email": "ann@acme.io", "host": "h", "git": {"commit": "c", "remote": "r"}},
    "internal": {"e": {"writer": {"email": "ann@acme.io", "host": "h"}}, "t": {"1": [1]}},
    "config": {"a": {"b": 1, "c": {"$float": "NaN"}}, "a.b": 2, "large": 2**80},
    "summary": {"_step": 3, "_wandb": {"runtime": 3}, "a": {"b": 1}, "image": {"_type": "image", "b": "x"}},
}


class TestFiles:
    """What becomes of the two files that tell of a run, wherever they come from."""

    @pytest.fixture
    def told(self, tmp_path):
        def told(rules, data, path="wandb/run.json", values=True):
            (tmp_path / "m.toml").write_text(rules)
            given = Artifact("r", path, lambda: io.BytesIO(data), len(data), values=values)
            found, losses = load([tmp_path / "m.toml"]).artifact(given)
            with found.open() as stream:
                return stream.read(), losses

        return told

    @pytest.fixture
    def run(self, told):
        return lambda rules, **more: json.loads(told(rules, json.dumps({"run": RUN}).encode(), **more)[0])["run"]

    def test_users_are_called_as_the_rules_call_them_everywhere(self, run):
        assert run('[users]\n"*@acme.io" = "{1}-1"') == RUN | {
            "user": "ann-1",
            "metadata": RUN["metadata"] | {"email": "ann-1"},
            "internal": {"e": {"writer": {"email": "ann-1", "host": "h"}}, "t": {"1": [1]}},
        }

    def test_a_tag_that_is_left_out_is_no_part_of_the_environment(self, run):
        found = run('[tag_keys]\n"wandb.host" = false\n"mlflow.source.git.commit" = false')
        environment = {"username": "ann", "email": "ann@acme.io", "git": {"remote": "r"}}
        assert (found["metadata"], found["internal"]["e"]) == (environment, {"writer": {"email": "ann@acme.io"}})
        assert "host" not in found

    def test_a_rule_means_the_name_that_a_param_has_whatever_way_leads_there(self, run):
        found = run('[keys]\n"a.b" = false')
        assert (found["config"], found["summary"]) == (
            {"a": {"c": {"$float": "NaN"}}, "large": 2**80},
            {name: value for name, value in RUN["summary"].items() if name != "a"},
        )

    def test_a_separator_that_was_chosen_is_that_of_the_names(self, run):
        found = run('[keys]\n"a/*" = false\n[wandb]\nseparator = "/"')
        assert found["config"] == {"a.b": 2, "large": 2**80}

    def test_what_is_no_metric_stays_in_a_summary_without_any(self, run):
        assert run('[keys]\n"**" = false')["summary"] == {"_step": 3, "_wandb": {"runtime": 3}}

    def test_a_file_that_another_tracker_kept_is_held_to_the_rules_too(self, run):
        assert run('[keys]\n"large" = false', values=False)["config"].keys() == {"a", "a.b"}

    def test_what_a_sweep_tries_of_a_param_goes_with_it(self, told):
        tried = {"a": {"values": [1, 2]}, "b": {"parameters": {"c": {"value": 3}, "d": {"value": 4}}}}
        data = json.dumps({"run": {"id": "i", "sweep": "s", "sweep_config": {"parameters": tried}}}).encode()
        found, losses = told('[keys]\n"a" = false\n"b.c" = false', data)
        assert json.loads(found)["run"]["sweep_config"] == {"parameters": {"b": {"parameters": {"d": {"value": 4}}}}}
        assert losses == [Loss("r", "artifact 'wandb/run.json'", "without what the mapping leaves out")]

    def test_lines_that_are_left_out_are_none_and_others_stay_to_the_byte(self, told):
        kept = b'{"_step":1, "key":"kept","value":1e400}\n{"_step":2,"key":"kept","value":"\\ud800"}\n'
        gone = b'{"key":"gone","value":%d}\n{"key":"gone","value":%s}\n' % (2**70, b"9" * 5000)
        found, _ = told('[keys]\n"gone" = false', gone + kept + gone, "wandb/history.jsonl")
        assert found == kept

    def test_half_a_surrogate_pair_hides_nothing(self, told):
        given = b'{"key":"k","value":{"token":"s","other":"\\ud800"}}\n'
        found, _ = told("[redact.names]\n'token' = \"[gone]\"", given, "wandb/history.jsonl")
        assert found == b'{"key":"k","value":{"token":"[gone]","other":"\\ud800"}}\n'

    def test_rules_that_meet_nothing_change_no_byte(self, told):
        data = json.dumps({"run": RUN}, indent=3).encode()
        assert told('[keys]\n"other" = false\n[redact.values]\n"zzz" = "y"', data) == (data, [])
