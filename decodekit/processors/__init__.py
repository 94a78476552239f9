"""What changes a distribution before a token is chosen; one file each."""
