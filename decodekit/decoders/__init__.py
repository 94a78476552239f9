"""Algorithms that turn scores into text; one file or folder each."""
