"""When a hypothesis is finished, beyond its end ids and its length; one file each."""
