"""Figures: mlmigrate beside its peers, in one run on the same stores. Started by scripts/bench."""
