"""Scorers of hypotheses inside a search; one file each."""
