"""The same numbers sooner: recordings, CUDA graphs, packed linear layers, kernels."""
