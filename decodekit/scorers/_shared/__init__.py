"""Parts that several scorers share."""
