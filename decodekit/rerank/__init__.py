"""Reranking of finished hypotheses: functions on `Decoded`."""
