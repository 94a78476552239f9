"""Kernels of our own, for what no library has: each beside the plain PyTorch that it replaces."""
