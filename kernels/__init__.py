"""What touches weights: number formats and their NumPy truth, native kernels, the cost of a step."""
