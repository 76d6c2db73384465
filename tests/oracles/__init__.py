"""Independent definitions of what the package must compute, in NumPy and Python's own exact arithmetic.

Nothing here imports torch or roast_optim: an oracle that shares code with what it judges shares its mistakes.
"""
