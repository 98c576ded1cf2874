"""What `wandb:` names: a folder of runs on this machine, or somebody at a server."""

import pytest

from mlmigrate.adapters.wandb.address import is_folder


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
