"""Inspection of results: the tables of a trace."""
