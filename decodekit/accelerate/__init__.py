"""Faster ways to the same numbers: recordings, CUDA graphs, packed linear layers, kernels."""
