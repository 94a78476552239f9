"""Parts that several processors share."""
