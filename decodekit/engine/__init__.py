"""The engine: from a call of `decode` to its result."""
