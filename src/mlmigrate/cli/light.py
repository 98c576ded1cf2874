"""What a command need not load."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _NoPandas:
    """Finds everything but pandas."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  as importlib calls it
        target: ModuleType | None = None,  # noqa: ARG002  as importlib calls it
    ) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError(name, name=name)
        return None


def leave_pandas_out() -> None:
    """Keeps pyarrow from importing pandas, which takes a third of a second, to see whether a list is one of its series.

    pyarrow asks once for all; whoever else wants pandas in this process still gets it.
    """
    import pyarrow as pa

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)
