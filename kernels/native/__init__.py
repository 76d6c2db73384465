"""Placeholder until the backend is written."""

import torch


def unavailable() -> str | None:
    return "it is not written yet"


def supports(device: torch.device) -> bool:
    return False
