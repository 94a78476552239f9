"""What chooses among finished hypotheses; functions on `Decoded`."""
