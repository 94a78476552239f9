"""The scripts that record run in environments of their own: their imports are not installed here."""

collect_ignore_glob = ["record_*.py"]
