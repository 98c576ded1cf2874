"""What a mapping leaves out or redacts of a run of W&B's is nowhere in the target, whichever way the run goes."""

import gzip
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

# Logged by the real SDK, once on the server and once offline. Each secret has a text, or a number, of its own.
LOGGED = """
import os, wandb
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
        run.summary["secret_verdict"] = "S3CR-summary"
        run.summary["secret_alone"] = 7772.0078125
        run.summary["private"] = {"best": {"word": "S3CR-deep-summary"}}
"""
TEXTS = ("nested", "listed", "flat", "under", "notes", "group", "job", "tag", "row", "in-row", "caption", "summary")
SECRETS = (*(f"S3CR-{text}" for text in (*TEXTS, "deep-summary")), "918273645")
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
REPEATED = ("config.yaml", "wandb-summary.json", "wandb-metadata.json", "media/**")  # what the docs say to leave out
WITHOUT = [word for name in REPEATED for word in ("--exclude", f"wandb/files/{name}")]


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
    assert found((*SECRETS, *NUMBERS, *KEPT), held) == [*SECRETS, *NUMBERS, *KEPT]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rules", RULES)
def test_what_a_mapping_takes_out_is_nowhere(rules, way, copied):
    held = copied(way, RULES[rules], *WITHOUT)
    secrets = [one for one in SECRETS if rules != "redacted by value" or not one.isdecimal()]
    assert found((*secrets, *(NUMBERS if rules == "left out" else ())), held) == []
    assert found(KEPT, held) == list(KEPT)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS[:2])
def test_files_that_repeat_it_are_carried_as_they_are_unless_they_are_left_out(way, copied):
    secrets = found(SECRETS, copied(way, LEAVES_OUT))
    assert "S3CR-flat" in secrets  # config.yaml
    assert "S3CR-summary" in secrets or way == "offline to database"  # wandb-summary.json
