"""Each transcript of this folder goes as it is written there."""

import importlib.util
from pathlib import Path

import pytest

from mlmigrate import demo

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("transcript", HERE / "transcript.py")
transcript = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(transcript)


LONG = ("archive", "database", "demo", "export", "relocate", "wandb")  # of many commands, each a process of its own


def transcripts():
    for file in sorted(HERE.glob("*.md")):
        yield pytest.param(file, id=file.stem, marks=pytest.mark.slow if file.stem in LONG else ())


@pytest.mark.parametrize("file", list(transcripts()))
def test_it_goes_as_written(file, tmp_path):
    demo.make(tmp_path)
    steps = transcript.steps(file.read_text(encoding="utf-8"))
    assert steps
    for step in steps:
        actual = transcript.play(step, tmp_path)
        assert transcript.as_expected(step, actual), "\n".join(["expected", *step.lines(), "", "but", *actual.lines()])


@pytest.mark.parametrize(
    ("expected", "actual", "equal"),
    [
        (["a [...] c"], ["a b c"], True),
        (["a"], ["a", "b"], False),
        (["[...]", "z"], ["a", "b", "z"], True),
        (["[...]", "z"], ["z"], True),
        (["a.c"], ["abc"], False),
    ],
)
def test_any_text_is_any_text_and_all_else_is_itself(expected, actual, equal):
    assert transcript.matches(expected, actual) is equal
