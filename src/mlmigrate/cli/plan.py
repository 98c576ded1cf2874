"""mlmigrate plan: what a copy would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlmigrate.messages import Message
    from mlmigrate.plan import Plan
    from mlmigrate.transfer import Job

SOME_LOST = 3


@click.command(
    "plan",
    **options.help_of(
        "Say what a copy of SOURCE (or several) into TARGET would do: runs, points, bytes, and what would be lost. "
        "Writes nothing.",
        "plan mlflow:./mlruns mlflow:http://localhost:5000",
        "plan mlflow:http://localhost:5000 ./archive -m scrub-secrets",
    ),
)
@click.argument("places", nargs=-1, metavar="SOURCE... TARGET")
@click.option("--quick", is_flag=True, envvar="MLMIGRATE_QUICK", help="Estimate: read no points and no artifacts.")
@options.takes(
    options.WHICH_RUNS,
    options.WHICH_PARTS,
    options.LIMITS,
    options.MAPPING,
    options.PLACES,
    options.CONFLICTS,
    options.RETRIES,
    options.STRICT,
    options.PRINTING,
    options.REPORT,
)
def command(places: tuple[str, ...], chosen: Chosen, *, quick: bool) -> int:
    """What a copy would do."""
    from mlmigrate.cli.jobs import job_of

    return show(job_of(places, chosen), chosen, quick=quick)


def show(job: Job, chosen: Chosen, *, quick: bool = False) -> int:
    """Plans the job and shows the plan. Gives the exit code."""
    from mlmigrate import plan, report
    from mlmigrate.cli.carry import written
    from mlmigrate.cli.jobs import whole_file
    from mlmigrate.cli.output import shown, tell

    planned = plan.plan(job, shown(chosen), quick=quick)
    lines, told = report.planned(planned, job), list(_messages(planned))
    if chosen.report is not None:
        whole_file(chosen.report, written(lines, told, as_json=chosen.report.suffix == ".json"))
    tell(chosen, lines, told)
    return SOME_LOST if chosen.strict and planned.losses else 0


def _messages(plan: Plan) -> Iterator[Message]:
    from mlmigrate import messages, progress

    for one in plan.lines:
        yield messages.PlannedExperiment(
            experiment=one.experiment, runs=one.runs, points=one.points, artifacts=one.artifacts, bytes=one.size
        )
    yield from (messages.Oddity(what=one.what, because=one.because) for one in plan.oddities)
    yield from map(progress.loss_message, plan.losses)
    yield from (messages.Rule(rule=rule, names=count) for rule, count in plan.rules)
    for cost in plan.costs:
        yield messages.PlannedCost(
            side=cost.side,
            way=cost.way,
            place=cost.place,
            put_requests=cost.puts,
            get_requests=cost.gets,
            bytes_up=cost.up,
            bytes_down=cost.down,
            bytes_inside=cost.inside,
        )
    yield messages.Planned(
        source=plan.source,
        target=plan.target,
        runs=sum(one.runs for one in plan.lines),
        already=plan.already,
        points=sum(one.points for one in plan.lines),
        artifacts=sum(one.artifacts for one in plan.lines),
        bytes=sum(one.size for one in plan.lines),
        losses=len(plan.losses),
        records=dict(plan.records),
        artifacts_left=plan.left.artifacts,
        bytes_left=plan.left.size,
    )
