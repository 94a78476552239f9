"""Constrained beam search."""
