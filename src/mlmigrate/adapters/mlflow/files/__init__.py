"""MLflow's file store (mlruns/), read by our own reader, never through MLflow.

source     the store as a Source         homes    which folders are experiments
runs       a run's folder                records  registry, models, traces
points     metric files into Arrow       lines    ... one line at a time, huge  ... of any size
artifacts  where the bytes lie           meta     meta.yaml, safe and fast
find       every store under a folder    disk     regular files, never by way of a link
estate     every value that names a place of artifacts, and their change
"""

from mlmigrate.adapters.mlflow.files.disk import explain
from mlmigrate.adapters.mlflow.files.estate import open_estate
from mlmigrate.adapters.mlflow.files.find import databases_under, stores_under
from mlmigrate.adapters.mlflow.files.source import open_source

__all__ = ["databases_under", "explain", "open_estate", "open_source", "stores_under"]
