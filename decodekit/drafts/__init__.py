"""Drafts for speculative decoding: what proposes tokens that the model then verifies."""
