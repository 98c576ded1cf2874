"""Registered models and prompts of a server, with all their versions.

Versions are asked for model by model, for a search over all of them need not come in any order.
Numbers that are missing were deleted: no server shows those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from mlmigrate.adapters.mlflow import objects
from mlmigrate.adapters.mlflow.objects import Kind, Row, Tree
from mlmigrate.adapters.mlflow.rest.ahead import ahead
from mlmigrate.adapters.mlflow.rest.client import Params
from mlmigrate.adapters.mlflow.rest.listing import Listing, Site
from mlmigrate.adapters.mlflow.rest.things import WireModel, WireVersion, known, tags, tree
from mlmigrate.adapters.mlflow.rest.wire import Location
from mlmigrate.errors import BadData, MigrateError, NotFound, Unavailable
from mlmigrate.model import Loss

API = "api/2.0/mlflow"
PROMPTS = "tags.`mlflow.prompt.is_prompt` = 'true'"  # which a search leaves out unless it asks for them
PROMPTS_SINCE = (2, 21)
MOST = 1000  # models, or versions, on a page
DELETED = "Deleted_Internal"


@dataclass(frozen=True, slots=True)
class Registry:
    """The registry of a server."""

    site: Site

    def heads(self) -> Iterator[Tree]:
        """All that tells one state of the registry from another: models, prompts and versions, each for itself."""
        for model, _ in self._models():
            yield _model_tree(model)
        for filter_text in self._filters():
            for version in self.site.items(_versions(filter_text), WireVersion):
                yield _version_tables([(version, None)])

    def trees(self, losses: list[Loss], pool: Executor) -> Iterator[tuple[Kind, Tree]]:
        """Every model and prompt, whole."""
        for model, versions in ahead(pool, self._models(), lambda one: (one[0], self._whole(one, losses))):
            found = _model_tree(model) | versions
            yield objects.registered_kind(found.get("registered_model_tags", ())), found

    def prompt_versions(self) -> Iterator[str]:
        """All versions of prompts, as traces name them."""
        if self.site.server.version >= PROMPTS_SINCE and self._knows_prompts():
            for version in self.site.items(_versions(PROMPTS), WireVersion):
                yield f"{version.name}/{version.version}"

    def _models(self) -> Iterator[tuple[WireModel, str]]:
        """Each model once, with what finds its versions beside its name."""
        seen = set()
        for filter_text in self._filters():
            ask = {"filter": filter_text} if filter_text else {}
            listing = Listing(f"{API}/registered-models/search", "registered_models", ask, MOST)
            for model in self.site.items(listing, WireModel):
                if model.name not in seen:
                    seen.add(model.name)
                    yield model, filter_text

    def _filters(self) -> Iterator[str]:
        yield ""
        if self.site.server.version >= PROMPTS_SINCE and self._knows_prompts():
            yield PROMPTS

    def _knows_prompts(self) -> bool:
        try:
            self.site.has(Listing(f"{API}/registered-models/search", "registered_models", {"filter": PROMPTS}, 1))
        except Unavailable:
            raise
        except MigrateError:  # a registry that cannot search for tags: prompts are among its models, or there are none
            return False
        return True

    def _whole(self, one: tuple[WireModel, str], losses: list[Loss]) -> Tree:
        model, _ = one
        versions = self.site.take(losses, Loss("", f"versions of {model.name!r}", ""), self._versions, *one)
        found = sorted(versions or (), key=lambda version: version.version)
        return _version_tables([(version, self._location(version, losses)) for version in found])

    def _versions(self, model: WireModel, filter_text: str) -> Sequence[WireVersion]:
        try:
            found = list(self.site.items(_versions(_named(model.name), filter_text), WireVersion))
        except (Unavailable, NotFound, BadData):
            raise
        except MigrateError:  # a name that no filter can hold
            found = list(self.site.items(_versions(filter_text), WireVersion))
        mine = [one for one in found if one.name == model.name and one.current_stage != DELETED]
        return list({one.version: one for one in mine}.values())

    def _location(self, version: WireVersion, losses: list[Loss]) -> str | None:
        """Where the files lie, when the version names a logged model: else that is what it names."""
        if not isinstance(version.source, str) or not version.source.startswith("models:/"):
            return None
        loss = Loss("", f"place of version {version.version} of {version.name!r}", "")
        ask: Params = {"name": version.name, "version": version.version}
        path = f"{API}/model-versions/get-download-uri"
        found = self.site.take(losses, loss, self.site.client.get, path, Location, ask)
        return found.artifact_uri if found is not None and found.artifact_uri != version.source else None


def _versions(*filters: str) -> Listing:
    together = " and ".join(one for one in filters if one)
    return Listing(f"{API}/model-versions/search", "model_versions", {"filter": together} if together else {}, MOST)


def _named(name: str) -> str:
    return f'name = "{name}"' if "'" in name else f"name = '{name}'"


def _model_tree(model: WireModel) -> Tree:
    name = model.name
    row = known(
        name=name,
        creation_time=model.creation_timestamp,
        last_updated_time=model.last_updated_timestamp,
        description=model.description,
    )
    aliases: list[Row] = [{"name": name, "alias": one.alias, "version": one.version} for one in model.aliases]
    return tree(
        registered_models=[row], registered_model_tags=tags(model.tags, name=name), registered_model_aliases=aliases
    )


def _version_tables(versions: Sequence[tuple[WireVersion, str | None]]) -> Tree:
    found: list[Row] = []
    for version, _ in versions:
        found += tags(version.tags, name=version.name, version=version.version)
    return tree(model_versions=[_version(*one) for one in versions], model_version_tags=found)


def _version(version: WireVersion, location: str | None) -> Row:
    return known(
        name=version.name,
        version=version.version,
        creation_time=version.creation_timestamp,
        last_updated_time=version.last_updated_timestamp,
        description=version.description,
        user_id=version.user_id,
        current_stage=version.current_stage,
        source=version.source,
        run_id=version.run_id,
        status=version.status,
        status_message=version.status_message,
        run_link=version.run_link,
        storage_location=location,
    )
