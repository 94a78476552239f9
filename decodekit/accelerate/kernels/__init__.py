"""Kernels of our own, each beside the plain PyTorch that it replaces."""
