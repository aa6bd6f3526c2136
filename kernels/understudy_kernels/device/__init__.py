"""The Triton side of every operation: kernels and their launchers. Importing a module of it imports Triton."""
