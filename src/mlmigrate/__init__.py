"""mlmigrate moves experiment-tracking estates and proves what arrived."""

__version__ = "0.1.0"
