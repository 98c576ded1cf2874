"""Which of one side's variables were given to it alone: SOURCE_X and TARGET_X win over every X, whatever X is.

An environment is the process's with the side's own over it (adapters.base.Context.env), so a variable
that is one side's own has the value of its prefixed twin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def own(env: Mapping[str, str], name: str) -> bool:
    """Whether the variable was given to this side alone; also when it was given as empty."""
    return name in env and env[name] in (env.get(f"SOURCE_{name}"), env.get(f"TARGET_{name}"))


def said(env: Mapping[str, str], names: Iterable[str]) -> str:
    """The variable that counts: the side's own, else the first that is set; "" for none."""
    there = [name for name in names if env.get(name)]
    return next((name for name in there if own(env, name)), there[0] if there else "")
