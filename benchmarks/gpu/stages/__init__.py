"""One program per stage. Each can be run alone: ``python -m benchmarks.gpu.stages.smoke --rows FILE``."""
