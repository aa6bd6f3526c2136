"""Every operation in plain PyTorch: the path for CPU tensors, and what the kernels are compared with."""
