"""Which project an experiment goes into, where others have projects of its name. Pure.

merge   ours joins what is there: no run that is there is changed
rename  ours gets a name of its own: "fraud-2"
fail    nothing is written
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count

from mlmigrate.adapters.base import OnConflict
from mlmigrate.errors import Conflict
from mlmigrate.model import Loss

SHOWN = 5  # names in an error message


def settle(
    wanted: Sequence[tuple[str, str]], known: Mapping[str, str], there: Collection[str], policy: OnConflict
) -> dict[str, str]:
    """Origin of each experiment -> project, for those that want these names; `known` has the same of experiments that
    are there already, `there` the names of all projects. Raises Conflict when the policy is to fail.
    """
    clashes = [name for origin, name in wanted if origin not in known and name in there]
    if clashes and policy == "fail":
        raise _refusal(clashes)
    taken = {*there, *(name for _, name in wanted)}
    settled: dict[str, str] = {}
    for origin, name in wanted:
        own = known.get(origin, name)
        if policy == "rename" and origin not in known and name in there:
            own = next(f"{name}-{n}" for n in count(2) if f"{name}-{n}" not in taken)
            taken.add(own)
        settled[origin] = own
    return settled


def losses(
    wanted: Sequence[tuple[str, str]], known: Mapping[str, str], there: Collection[str], settled: Mapping[str, str]
) -> list[Loss]:
    """The merged and the renamed, told."""
    told = []
    for origin, name in wanted:
        if settled[origin] != name:
            told.append(Loss("", f"project {name!r}", f"the target has one of this name; ours is {settled[origin]!r}"))
        elif name in there and origin not in known:
            told.append(Loss("", f"project {name!r}", "the target has one of this name; ours is merged into it"))
    return told


def _refusal(clashes: Sequence[str]) -> Conflict:
    more = f" and {len(clashes) - SHOWN} more" if len(clashes) > SHOWN else ""
    shown = ", ".join(map(repr, clashes[:SHOWN])) + more
    return Conflict(
        f"The target has {len(clashes)} projects of the same name already: {shown}. Nothing was written.",
        "Merge into them with --on-conflict merge, or keep ours apart with --on-conflict rename.",
    )
