"""Code that several criteria share."""
