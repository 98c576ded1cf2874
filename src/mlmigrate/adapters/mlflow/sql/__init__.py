"""MLflow backend databases: SQLite and PostgreSQL through ADBC, others through SQLAlchemy."""

from mlmigrate.adapters.mlflow.sql.source import open_source

__all__ = ["open_source"]
