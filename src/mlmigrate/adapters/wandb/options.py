"""What a person may choose in the section [wandb] of a mapping file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Literal, get_args, get_type_hints

from mlmigrate.adapters.base import Settings
from mlmigrate.errors import UsageError

AsWhat = Literal["tags", "runs"]
Params = Literal["typed", "text"]


@dataclass(frozen=True, slots=True)
class Options:
    """Choices; the presets in mappings/ say the same for a person.

    To W&B:
    params     "typed": params that are plainly numbers or truth values become such in the config; "text": none does
    nested     a config key under which params stand once more, nested at "." and "/"; "" for no such view
    labels     glob of the tags that become W&B tags "name=value" beside their place in the config; "" for none
    group      name of the tag that becomes the run's group; "" for the parent run's id
    job_type   name of the tag that becomes the job type
    run_files  glob of artifacts that become files of the run page; "" for none

    From W&B:
    sweeps     "tags": a sweep is a tag of its runs; "runs": it is a run besides, their parent
    groups     the same of groups
    models     artifacts of type model become registered models
    separator  what stands between the names of nested config
    """

    params: Params = "typed"
    nested: str = ""
    labels: str = "**"
    group: str = ""
    job_type: str = ""
    run_files: str = ""
    sweeps: AsWhat = "tags"
    groups: AsWhat = "tags"
    models: bool = False
    separator: str = "."


def options(settings: Settings) -> Options:
    """The choices among `settings`. Raises UsageError for one that there is not."""
    hints, known = get_type_hints(Options), [field.name for field in fields(Options)]
    chosen: dict[str, object] = {}
    for name, value in settings.options:
        section, _, option = name.partition(".")
        if section != "wandb":
            continue
        if option not in known:
            close = get_close_matches(option, known, 1) or known
            raise UsageError(f"[wandb] has no option {option!r}.", f"There is {', '.join(close)}")
        wanted = get_args(hints[option]) or (hints[option],)
        if value not in wanted and not (isinstance(wanted[0], type) and isinstance(value, wanted[0])):
            shown = " or ".join(f'"{one}"' if isinstance(one, str) else one.__name__ for one in wanted)
            raise UsageError(f"[wandb] {option} must be {shown}, not {value!r}.", "The presets in mappings/ show each")
        chosen[option] = value
    return Options(**chosen)  # type: ignore[arg-type]  # checked above
