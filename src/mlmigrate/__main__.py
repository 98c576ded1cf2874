"""`python -m mlmigrate` is `mlmigrate`."""

from mlmigrate.cli import main

main()
