"""Parts that several criteria share."""
