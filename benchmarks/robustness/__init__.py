"""The robustness study: fine-tune a model with several methods and measure how robust each result is.

`python -m benchmarks.robustness --help` lists the options, `--preset demo` is the short demonstration. A run is one
(task, method, seed, model). Data flows one way:

    sources -> data.Suite -> training (one loop, methods supply optimizer and objective)
            -> evaluation (metrics, attack) -> runs.jsonl -> table and pictures
"""

from roast_optim.evaluation import metrics

__all__ = ["metrics"]
