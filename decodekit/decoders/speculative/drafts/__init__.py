"""Drafts: the sources of the proposals that speculative decoding verifies."""
