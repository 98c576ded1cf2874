"""MLflow backend databases: SQLite and PostgreSQL through ADBC, others through SQLAlchemy."""

from mlmigrate.adapters.mlflow.sql.estate import open_estate
from mlmigrate.adapters.mlflow.sql.source import open_source
from mlmigrate.adapters.mlflow.sql.target import open_target

__all__ = ["open_estate", "open_source", "open_target"]
