"""Algorithms that turn scores into text; one file each."""
