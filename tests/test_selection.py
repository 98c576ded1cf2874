"""Which artifacts a person asked for."""

import io
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest

from mlmigrate.adapters.base import Limits
from mlmigrate.errors import NotFound, Unavailable
from mlmigrate.mapping import Mapping
from mlmigrate.model import Artifact
from mlmigrate.pack import Contents, Left, Recipe
from mlmigrate.selection import Selection, meets


@pytest.mark.parametrize(
    ("path", "glob", "meant"),
    [
        ("a.ckpt", "*.ckpt", True),
        ("deep/a.ckpt", "*.ckpt", False),
        ("very/deep/a.ckpt", "**/*.ckpt", True),
        ("a.ckpt", "**/*.ckpt", True),
        ("checkpoints/1/weights", "checkpoints/**", True),
        ("checkpoints/1/weights", "checkpoints/", True),
        ("checkpoints", "checkpoints/**", False),
        ("old checkpoints/1", "checkpoints/**", False),
        ("a/b/c/d", "a/**/d", True),
        ("a/d", "a/**/d", True),
        ("ad", "a**/d", False),
        ("abc", "a?c", True),
        ("a/c", "a?c", False),
        ("a1", "a[0-9]", True),
        ("ax", "a[!0-9]", True),
        ("a/", "a[!0-9]", False),
        ("a]", "a[]]", True),
        ("a^", "a[^]", True),
        ("a[z-a]", "a[z-a]", True),
        ("a[", "a[", True),
        ("back\\slash", "back[\\]slash", True),
        ("two\nlines", "*", True),
        ("A.ckpt", "a.ckpt", False),
        ("模型/重み.bin", "模型/*.bin", True),
        ("a.+(b)", "a.+(b)", True),
        ("aXXb", "a.+b", False),
    ],
)
def test_a_glob_names_the_whole_of_a_path(path, glob, meant):
    assert meets(path, glob) is meant


def test_exclude_wins():
    selection = Selection(include=("model/**",), exclude=("**/*.ckpt",))
    assert selection.refuses_path("model/weights.pt") == ""
    assert selection.refuses_path("model/weights.ckpt") == "left out by --exclude '**/*.ckpt'"
    assert selection.refuses_path("log.txt") == "left out: no --include names it"


def test_without_globs_nothing_is_left_out():
    assert Selection().refuses_path("any/thing") == ""


def test_a_copy_with_other_globs_is_another_copy():
    recipes = [
        Selection(),
        Selection(include=("a",)),
        Selection(exclude=("a",)),
        Selection(exclude=("a b",)),
        Selection(exclude=("a", "b")),
        Selection(exclude=("a", "b"), max_artifact_size=1),
    ]
    assert len({one.recipe for one in recipes}) == len(recipes)


def test_the_order_of_globs_changes_nothing():
    assert Selection(exclude=("a", "b", "a")).recipe == Selection(exclude=("b", "a")).recipe


OWNERS = ("run", "@model/m", "@trace/t", "@version/v/1")


def contents(artifacts, **selection):
    reading = SimpleNamespace(runs=[], losses=[], distinct=True, artifacts=lambda: iter(artifacts))
    return Contents(reading, Recipe(Selection(**selection), Mapping(), Limits()))


def artifact(owner, path, size, told=True):
    return Artifact(owner, path, partial(lambda: nullcontext(io.BytesIO(bytes(size)))), size if told else None)


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("told", [True, False])
def test_larger_files_of_all_owners_stay_behind(owner, told):
    """Those too whose size nobody tells: they are read until it is known."""
    found = contents([artifact(owner, str(n), n, told) for n in (0, 999, 1000, 1001, 5000)], max_artifact_size=1000)
    assert [one.path for one in found.artifacts()] == ["0", "999", "1000"]
    assert found.left == Left(2, 6001 if told else 0)
    assert [(loss.run, loss.what, loss.because) for loss in found.losses] == [
        (owner, f"artifact {path!r}", "left behind: larger than 1000 bytes") for path in ("1001", "5000")
    ]


def test_a_file_that_cannot_be_read_is_whose_business_it_is_to_write_it():
    def gone(error):
        raise error

    broken = Artifact("run", "a", partial(gone, NotFound("gone")))
    assert list(contents([broken], max_artifact_size=1).artifacts()) == [broken]
    away = Artifact("run", "a", partial(gone, Unavailable("away")))
    with pytest.raises(Unavailable):
        list(contents([away], max_artifact_size=1).artifacts())


def test_the_spans_of_a_trace_are_no_artifact_that_a_glob_is_about():
    given = [
        artifact("@trace/t", "traces.json", 5),
        artifact("@trace/t", "a.png", 5),
        artifact("run", "traces.json", 5),
    ]
    assert [(one.owner, one.path) for one in contents(given, exclude=("**",)).artifacts()] == [
        ("@trace/t", "traces.json")
    ]
