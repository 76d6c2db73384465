"""Everything that this project wants to know of a GPU, by one command: ``python -m benchmarks.gpu``."""
