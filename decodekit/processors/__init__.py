"""Processors of scores, one file each."""
