"""Other libraries' ways of saying the same."""

from decodekit.compat import hf as hf
