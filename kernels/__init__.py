"""Kernels of the RoAST step: a reference in plain torch, native CPU code, Triton for GPUs.

Imported as ``roast_optim.kernels``. Nothing is imported here, so that a program which finds this folder under the name
``kernels`` (transformers looks for a package of that name) loads nothing and finds no version.
"""
