"""Logged models of a server, with the runs that made them and those that read them.

Outputs of runs come with their listing; what a run read comes only with the run itself, a request for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from threading import Lock

from mlmigrate.adapters.mlflow.objects import Row, Tree
from mlmigrate.adapters.mlflow.rest.ahead import ahead
from mlmigrate.adapters.mlflow.rest.listing import Listing, Site
from mlmigrate.adapters.mlflow.rest.things import (
    WireLoggedModel,
    WireModelMetric,
    experiment,
    known,
    number,
    tags,
    tree,
)
from mlmigrate.adapters.mlflow.rest.wire import OneRun, WireRun
from mlmigrate.model import OURS, Loss

API = "api/2.0/mlflow"
MOST = 50
STATUSES = {"LOGGED_MODEL_PENDING": 1, "LOGGED_MODEL_READY": 2, "LOGGED_MODEL_UPLOAD_FAILED": 3}
Links = Mapping[str, Sequence[Row]]  # a model's id -> rows of `inputs`
RunsOf = Callable[[Sequence[str]], Iterator[WireRun]]


@dataclass(slots=True)
class LoggedModels:
    """The logged models of a server. `runs` lists the runs of experiments."""

    site: Site
    runs: RunsOf
    _links: Links | None = None
    _one: Lock = field(default_factory=Lock)

    def any_in(self, experiments: Sequence[str]) -> bool:
        """Whether one of the experiments has a logged model."""
        return self.site.has(_listing(experiments, 1))

    def heads(self, of: str) -> Iterator[Tree]:
        """The models of an experiment, without the links."""
        seen = set()
        for model in self.site.items(_listing([of], MOST), WireLoggedModel):
            if model.info.model_id not in seen:
                seen.add(model.info.model_id)
                yield _tree(model)

    def trees(
        self, of: str, experiments: Callable[[], Sequence[str]], losses: list[Loss], pool: Executor
    ) -> Iterator[Tree]:
        """The models of an experiment, whole. `experiments` gives all those that have models."""
        with self._one:
            if self._links is None:
                self._links = self._linked(experiments(), losses, pool)
        for found in self.heads(of):
            links = self._links.get(found["logged_models"][0]["model_id"], ())
            yield found | tree(inputs=[dict(row) for row in links])

    def roots(self, of: str) -> Iterator[tuple[str, str]]:
        """(owner, artifact URI) of each."""
        for found in self.heads(of):
            row = found["logged_models"][0]
            yield f"@model/{row['model_id']}", row.get("artifact_location", "")

    def _linked(self, experiments: Sequence[str], losses: list[Loss], pool: Executor) -> Links:
        """The runs that made and that read each model, of all experiments that have models."""
        links: dict[str, dict[tuple[str, str], Row]] = {}
        runs = self.runs(experiments) if experiments else iter(())
        for run in ahead(pool, runs, lambda run: self._whole(run, losses)):
            for given in run.inputs.model_inputs:
                _link(links, given.model_id, "INPUT", run.id, 0)
            for made in run.outputs.model_outputs:
                _link(links, made.model_id, "OUTPUT", run.id, made.step)
        return {model: list(rows.values()) for model, rows in links.items()}

    def _whole(self, run: WireRun, losses: list[Loss]) -> WireRun:
        """The run with the models that it read; one that is gone meanwhile as it was."""
        loss = Loss(run.id, "the models that it read", "", run.info.experiment_id)
        ask = {"run_id": run.id, "run_uuid": run.id}
        found = self.site.take(losses, loss, self.site.client.get, f"{API}/runs/get", OneRun, ask)
        return run if found is None else found.run


def _listing(experiments: Sequence[str], most: int) -> Listing:
    return Listing(f"{API}/logged-models/search", "models", {"experiment_ids": list(experiments)}, most, post=True)


def _link(links: dict[str, dict[tuple[str, str], Row]], model: str, word: str, run: str, step: int) -> None:
    row = {
        "source_type": f"RUN_{word}",
        "source_id": run,
        "destination_type": f"MODEL_{word}",
        "destination_id": model,
        "step": step,
    }
    links.setdefault(model, {})[word, run] = row


def _tree(model: WireLoggedModel) -> Tree:
    info = model.info
    same = {"model_id": info.model_id, "experiment_id": experiment(info.experiment_id)}
    row = known(
        **same,
        name=info.name,
        artifact_location=info.artifact_uri,
        creation_timestamp_ms=info.creation_timestamp_ms,
        last_updated_timestamp_ms=info.last_updated_timestamp_ms,
        status=STATUSES.get(info.status),
        lifecycle_stage="active",
        model_type=info.model_type,
        source_run_id=info.source_run_id,
        status_message=info.status_message,
    )
    params = [
        {"param_key": one.key, "param_value": one.value, **same}
        for one in model.data.params
        if not one.key.startswith(OURS)
    ]
    return tree(
        logged_models=[row],
        logged_model_params=params,
        logged_model_tags=tags(info.tags, "tag_key", "tag_value", **same),
        logged_model_metrics=[_metric(one) | same for one in model.data.metrics],
    )


def _metric(one: WireModelMetric) -> Row:
    return known(
        metric_name=one.key,
        metric_timestamp_ms=one.timestamp,
        metric_step=one.step,
        metric_value=number(one.value),
        run_id=one.run_id,
        dataset_name=one.dataset_name,
        dataset_digest=one.dataset_digest,
    )
