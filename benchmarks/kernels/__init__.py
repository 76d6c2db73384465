"""How fast the kernels are: what they are measured against, in turn, and the table and chart of the result.

    pytest benchmarks/kernels/bench_*.py --benchmark-json=benchmarks/kernels/results/benchmarks.json
    python -m benchmarks.kernels.report

Data flows one way:

    workloads -> contestants -> pairs (in turn, inside pytest-benchmark's rounds) -> JSON
    JSON -> report (with targets and chart) -> results/
"""
