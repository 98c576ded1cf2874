"""What `wandb:` names: a folder of runs on this machine, or somebody at a server."""

import pytest

from mlmigrate.adapters.wandb import whole
from mlmigrate.adapters.wandb.address import is_folder, spot
from mlmigrate.address import parse
from mlmigrate.cli.jobs import place_of


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", ["./new", "../new", ".", "/srv/new", "~/new", "lone.wandb", "https.wandb"])
def test_what_looks_like_a_path_is_one_whether_it_is_there_or_not(place):
    assert is_folder(place)


@pytest.mark.parametrize("place", ["team", "team/vision", "https://wandb.corp/team", "http://localhost/./x", ""])
def test_all_else_is_at_a_server(place):
    assert not is_folder(place)


@pytest.mark.parametrize("run", ["offline-run-20240101_120000-a", "run-20240101_120000-a", "dryrun-20240101_120000-a"])
@pytest.mark.parametrize("above", ["team", "team/wandb", "team/some/where/wandb"])
def test_a_folder_that_has_runs_in_it_is_meant(here, above, run):
    (here / above / run).mkdir(parents=True)
    assert is_folder("team")


def test_a_folder_that_is_only_called_like_an_entity_is_not_meant(here):
    (here / "team" / "vision" / "media").mkdir(parents=True)
    (here / "team" / "vision" / "run-notes.txt").touch()
    (here / "file").touch()
    assert not is_folder("team")
    assert not is_folder("team/vision")
    assert not is_folder("file")


OWN = {"WANDB_BASE_URL": "https://wandb.corp:8080/"}


@pytest.mark.parametrize(
    ("text", "env", "meant"),
    [
        ("wandb:team", OWN, "wandb:https://wandb.corp:8080/team"),
        ("wandb:team/vision", OWN, "wandb:https://wandb.corp:8080/team/vision"),
        ("wandb:", OWN, "wandb:https://wandb.corp:8080/"),
        ("wandb:team", {}, "wandb:team"),
        ("wandb:team", {"WANDB_BASE_URL": "https://api.wandb.ai"}, "wandb:team"),
        ("wandb:http://other/team", OWN, "wandb:http://other/team"),
        ("wandb:./runs", OWN, "wandb:./runs"),
        ("wandb:team", {"WANDB_BASE_URL": "https://corp/wandb"}, "wandb:team"),
        ("wandb:team", {"WANDB_BASE_URL": "https://me:secret@corp"}, "wandb:team"),
    ],
)
def test_an_entity_of_a_server_that_the_environment_names_is_one_of_that_server(text, env, meant):
    found = whole(parse(text), env)
    assert found.text == meant
    if not is_folder(found.place):
        assert spot(found.place, env) == spot(parse(text).place, env)


def test_two_servers_with_a_team_of_one_name_are_two_places(monkeypatch):
    monkeypatch.setenv("SOURCE_WANDB_BASE_URL", "https://old")
    monkeypatch.setenv("TARGET_WANDB_BASE_URL", "https://new")
    assert [place_of("wandb:team", side).text for side in ("source", "target")] == [
        "wandb:https://old/team",
        "wandb:https://new/team",
    ]
