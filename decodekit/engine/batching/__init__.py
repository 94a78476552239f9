"""Batches that change while they are decoded: eviction, merging, long lists of prompts."""
