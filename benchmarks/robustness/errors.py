"""The error of a training that fails by its settings."""

from __future__ import annotations

from roast_optim.evaluation.errors import UserError


class DivergedError(UserError):
    """A training whose loss or predictions are not finite: a result of its settings, not a fault of the study."""
