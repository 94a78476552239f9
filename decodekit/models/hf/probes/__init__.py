"""Numerical experiments that find out what a transformers model at hand can do."""
