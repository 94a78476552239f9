"""What a hypothesis is worth inside the search; one file each."""
