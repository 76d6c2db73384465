"""How robust is a classifier of texts? Five columns: in-distribution, shift, adversarial, calibration, anomalies.

:func:`evaluate` measures any classifier; ``python -m roast_optim.evaluation`` measures models on files and compares
them. Needs the extra: ``pip install 'roast-optim[evaluation]'``.
"""

from __future__ import annotations

try:
    from .measure import evaluate
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing in ("", "roast_optim"):
        raise
    raise ImportError(
        f"roast_optim.evaluation needs {missing}: pip install 'roast-optim[evaluation]'", name=missing
    ) from error

from .metrics import ReliabilityBins
from .scores import AnomalyScores, Evaluation, LabelledScores
from .sets import TextSet

__all__ = ["AnomalyScores", "Evaluation", "LabelledScores", "ReliabilityBins", "TextSet", "evaluate"]
