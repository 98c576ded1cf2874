"""Where packs are carried: threads here, or Dask's workers elsewhere. Both are an Executor to the loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from mlmigrate.errors import Unavailable, UsageError


@contextmanager
def executor(workers: int = 0, dask: str = "") -> Iterator[Executor]:
    """An executor of `workers` threads (0: `default_workers`), or of the Dask scheduler at `dask`.

    Raises UsageError when dask is not installed, Unavailable when no scheduler answers.
    """
    if dask:
        with _dask(dask) as cluster:
            yield cluster
        return
    threads = ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="pack")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def default_workers() -> int:
    """Enough to keep a disk and a server busy: some work waits on the network, none of it on Python alone."""
    return min(8, max(2, os.cpu_count() or 1))


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client  # noqa: PLC0415  an extra, imported only when it is asked for
    except ImportError as error:
        raise UsageError("dask.distributed is not installed.", 'pip install "mlmigrate[dask]"') from error
    try:
        client = Client(address)
    except OSError as error:
        raise Unavailable(f"No Dask scheduler answers at {address}.") from error
    with client:
        yield client.get_executor(pure=False)
