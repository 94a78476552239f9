"""Forward passes of transformers models."""
