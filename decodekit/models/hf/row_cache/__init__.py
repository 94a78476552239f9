"""The row cache: one entry of keys and values per row."""
