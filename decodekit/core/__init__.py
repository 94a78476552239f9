"""The words that every part speaks: histories, prompts, vocabularies, limits, requests and results."""
