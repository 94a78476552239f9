"""Compatibility with transformers: its `generate`, processors and configurations."""

from decodekit.compat import hf as hf
