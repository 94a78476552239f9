"""Kernels, each beside its reference in plain PyTorch."""
