"""Numerical probes of the capabilities of a transformers model."""
