"""mlmigrate list: the experiments and runs of a place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlmigrate.address import Address
    from mlmigrate.messages import ListedExperiment, ListedRun
    from mlmigrate.model import Experiment, RunRef


@click.command(
    "list",
    **options.help_of(
        "The experiments of PLACE with how many runs each has; with any option that selects runs, those runs.",
        "list mlflow:http://localhost:5000",
        "list mlflow:./mlruns -e vision",
        "list ./archive -r '*' --status failed --json",
    ),
)
@click.argument("place")
@options.takes(options.WHICH_RUNS, options.RETRIES, options.JSON)
def command(place: str, chosen: Chosen) -> int:
    """What is in a place."""
    from mlmigrate.cli.jobs import place_of
    from mlmigrate.cli.output import tell

    experiments, refs = _read(place_of(place, "source"), chosen)
    if chosen.experiment or chosen.run or chosen.status or chosen.since is not None or chosen.until is not None:
        runs = [_run(ref, experiments) for ref in refs]
        tell(chosen, _run_lines(runs), runs)
    else:
        found = [_experiment(one, refs) for one in experiments.values()]
        tell(chosen, _experiment_lines(found), found)
    return 0


def _read(place: Address, chosen: Chosen) -> tuple[Mapping[str, Experiment], Sequence[RunRef]]:
    """The experiments by id, and the runs, as far as they were asked for."""
    from contextlib import closing

    from mlmigrate.adapters import registry
    from mlmigrate.adapters.base import Context
    from mlmigrate.cli.jobs import selection_of
    from mlmigrate.steps import Steps

    selection, steps = selection_of(chosen), Steps(chosen.retries)
    with closing(registry.open_source(place, Context("source", steps))) as source:
        experiments = {one.id: one for one in steps.do("experiments", source.experiments)}
        refs = steps.do("runs", lambda: [ref for ref in source.refs() if ref.kind == "run"])
    wanted = {key: one for key, one in experiments.items() if selection.wants_experiment(one)}
    return wanted, [ref for ref in refs if ref.experiment in wanted and selection.wants(ref)]


def _run(ref: RunRef, experiments: Mapping[str, Experiment]) -> ListedRun:
    from mlmigrate import messages

    name = experiments[ref.experiment].name
    return messages.ListedRun(
        experiment=name, id=ref.id, name=ref.name, status=ref.status, start=ref.start, deleted=ref.deleted
    )


def _experiment(one: Experiment, refs: Sequence[RunRef]) -> ListedExperiment:
    from mlmigrate import messages

    mine = [ref for ref in refs if ref.experiment == one.id]
    gone = sum(ref.deleted for ref in mine)
    return messages.ListedExperiment(id=one.id, name=one.name, runs=len(mine), deleted_runs=gone, deleted=one.deleted)


def _run_lines(runs: Sequence[ListedRun]) -> list[str]:
    from mlmigrate import report

    rows = [("experiment", "id", "name", "status", "start")]
    rows += [(one.experiment, one.id, one.name, _status(one), _clock(one.start)) for one in runs]
    return [*(report.table(rows) if runs else []), f"{report.several(len(runs), 'run')}."]


def _experiment_lines(found: Sequence[ListedExperiment]) -> list[str]:
    from mlmigrate import report

    rows = [("experiment", "runs", "deleted", "")]
    rows += [
        (one.name, f"{one.runs:,}", f"{one.deleted_runs:,}", "deleted itself" if one.deleted else "") for one in found
    ]
    runs = report.several(sum(one.runs for one in found), "run")
    table = report.table(rows, right=(1, 2)) if found else []
    return [*table, f"{report.several(len(found), 'experiment')}, {runs}."]


def _status(run: ListedRun) -> str:
    return f"{run.status} (deleted)" if run.deleted else run.status


def _clock(start: int | None) -> str:
    """A time as people write it, local; one that no calendar has stays a number."""
    from datetime import datetime

    if start is None:
        return ""
    try:
        return datetime.fromtimestamp(start / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # nanoseconds, logged as milliseconds by mistake
        return f"{start} ms"
