"""How robust is a classifier of texts? Five columns: in-distribution, shift, adversarial, calibration, anomalies."""

from __future__ import annotations
