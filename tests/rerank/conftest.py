"""The script that records runs with another library, which is not installed here."""

collect_ignore_glob = ["record_*.py"]
