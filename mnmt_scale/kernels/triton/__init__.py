"""Kernels in Triton: rows over the vocabulary."""
