"""Stopping criteria; one file each. The contract is in `core/stopping_criterion.py`."""
