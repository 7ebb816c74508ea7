"""Triton kernels for NVIDIA GPUs, and their truth in torch. Imported only where the cuda engine was asked for."""
