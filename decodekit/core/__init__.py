"""Data types that all parts share: histories, prompts, vocabularies, limits, requests and results."""
