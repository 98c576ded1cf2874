"""Which artifacts a person asked for."""

import pytest

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
