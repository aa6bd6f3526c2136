"""The shadow's arithmetic as fused kernels. No kernel has landed yet: see kernels/README.md."""
