"""What survives between W&B and other places: the part of docs/what-survives.md that is about W&B's own things.

What MLflow's things become in W&B is a column of the first table there, made from `limits.LIMITS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlmigrate.adapters.base import How

WORDS = {"whole": "whole", "mapped": "mapped", "record": "record only", "lost": "lost"}


@dataclass(frozen=True, slots=True)
class Kept:
    """What becomes of a thing of W&B's: in an archive, in MLflow, and in W&B again out of either; each with a note."""

    what: str
    archive: tuple[How, str]
    mlflow: tuple[How, str]
    again: tuple[How, str]


INDEX = "it stands in the run's artifact `wandb/run.json`"
NUMBERS = (
    "MLflow's times have no microseconds; nested names are joined by `.`, as W&B itself shows them; a key that begins "
    "with `system/` becomes `mlflow/key/system/...`, since MLflow's system metrics are called so"
)
WHOLE: tuple[How, str] = ("whole", "")
COMPUTED: tuple[How, str] = ("mapped", "it is computed from the time and the start")
THINGS = (
    Kept(
        "run id, project",
        WHOLE,
        ("mapped", "a database keeps the id where it fits, a server gives its own; the tag `wandb.id` has it"),
        ("mapped", "an id that was deleted there can never be used again: the run gets the next, `<id>-2`"),
    ),
    Kept("display name, notes", WHOLE, WHOLE, WHOLE),
    Kept("tags, group, job type, host", WHOLE, ("mapped", "they become tags `wandb.*`"), WHOLE),
    Kept(
        "state",
        WHOLE,
        ("mapped", "crashed becomes FAILED, preempted KILLED; W&B's own word " + INDEX.removeprefix("it ")),
        ("mapped", "nobody can set crashed, killed or preempted: such runs have failed, the word is in their config"),
    ),
    Kept("start, runtime", WHOLE, ("mapped", "the end is the start plus the runtime"), WHOLE),
    Kept(
        "time of creation",
        ("record", INDEX),
        ("record", INDEX),
        ("lost", "W&B sets its own, and no API changes it; the old one is in the config"),
    ),
    Kept("user", WHOLE, WHOLE, ("record", "all belongs to the account of the key; the name is in the config")),
    Kept("config", WHOLE, ("mapped", "nested names are joined, lists become JSON; as it was, " + INDEX), WHOLE),
    Kept(
        "history: numbers",
        WHOLE,
        ("mapped", NUMBERS),
        ("mapped", "nested names stay joined; times are those that MLflow kept, out of an archive they are whole"),
    ),
    Kept(
        "history: text, truth values, media, tables, histograms",
        WHOLE,
        ("record", "they stand in the artifact `wandb/history.jsonl`, media files below `wandb/files/`"),
        WHOLE,
    ),
    Kept("time since the start of each row", COMPUTED, COMPUTED, COMPUTED),
    Kept("system metrics", WHOLE, ("mapped", "they become metrics `system/*`, the step numbers the lines"), WHOLE),
    Kept("summary", WHOLE, ("mapped", "a number without history becomes one point; all of it: " + INDEX), WHOLE),
    Kept("definitions of metrics", WHOLE, ("record", INDEX), WHOLE),
    Kept("git, program", WHOLE, ("mapped", "they become tags `mlflow.source.*`"), WHOLE),
    Kept("files of the run page, media", WHOLE, ("mapped", "they become artifacts `wandb/files/**`"), WHOLE),
    Kept(
        "console output",
        WHOLE,
        ("mapped", "it becomes the artifact `wandb/files/output.log`"),
        ("mapped", "the text is whole; when each line was printed is not kept"),
    ),
    Kept("artifacts: files, references", WHOLE, ("mapped", "they become artifacts `wandb/artifacts/**`"), WHOLE),
    Kept(
        "artifacts: type, metadata, description, aliases",
        WHOLE,
        ("record", f"{INDEX}; with `models = true` those of type model are registered models"),
        WHOLE,
    ),
    Kept(
        "artifacts: version numbers",
        WHOLE,
        ("record", INDEX),
        ("mapped", "W&B counts from v0 again, so gaps that deleted versions left are closed"),
    ),
    Kept(
        "artifacts that no run logged",
        ("mapped", "a run `artifacts` of their project holds them"),
        ("mapped", "a run `artifacts` of their experiment holds them"),
        ("mapped", "that run logs them"),
    ),
    Kept(
        "lineage: artifacts that a run used",
        WHOLE,
        ("mapped", "those of type dataset become dataset inputs; the others: " + INDEX),
        ("mapped", "where the artifact is there; otherwise it is told"),
    ),
    Kept(
        "sweeps",
        WHOLE,
        ("mapped", 'a tag of the runs, or a parent run (`sweeps = "runs"`)'),
        ("lost", "a sweep can only be started, so its runs keep its name and its config"),
    ),
    Kept("reports", WHOLE, ("lost", "MLflow has no place for them"), ("record", "kept as JSON in an artifact")),
)  # fmt: skip


def section() -> str:
    """The table and its reasons, in Markdown."""
    numbers: dict[str, int] = {}
    rows = ["| of W&B | archive | MLflow | W&B again |", "| --- | --- | --- | --- |"]
    for kept in THINGS:
        cells = [_cell(cell, numbers) for cell in (kept.archive, kept.mlflow, kept.again)]
        rows.append(f"| {kept.what} | " + " | ".join(cells) + " |")
    reasons = [f"{number}. {text[0].upper()}{text[1:]}." for text, number in numbers.items()]
    return "\n".join(["## Weights & Biases", "", OPENING, "", *rows, "", *reasons]) + "\n"


def _cell(cell: tuple[How, str], numbers: dict[str, int]) -> str:
    how, because = cell
    return WORDS[how] + (f" ({numbers.setdefault(because, len(numbers) + 1)})" if because else "")


OPENING = """\
What MLflow's things become in W&B is the column "W&B" above: nearly all is whole, since what W&B has no field for
stands in the config key `mlmigrate`, and a copy back is equal. What W&B's own things become elsewhere, and in W&B
again when they are copied back from there:"""
