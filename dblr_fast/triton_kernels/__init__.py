"""The ops as Triton kernels over dense maps (N, H, W, C), and what launches them; no modules, no autograd.

Importing this package imports triton; it compiles nothing until a kernel is launched.
"""
