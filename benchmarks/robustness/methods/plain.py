"""Plain fine-tuning with AdamW: what every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from ..training import Method


@dataclass
class Plain(Method):
    """AdamW on the task loss."""

    paper = "Loshchilov and Hutter, Decoupled weight decay regularization, ICLR 2019"
