"""Sampling without replacement."""
