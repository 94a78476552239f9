"""Models: their contracts, and transformers models."""
