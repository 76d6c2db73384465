"""Some rows of a batch, in place of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .model_call import ModelCall


@dataclass(frozen=True)
class BatchPart:
    """Rows of a batch.

    Args:
        rows: their numbers, int64; None: all.
        samples: how many rows the batch has.
    """

    rows: Tensor | None
    samples: int

    @property
    def share(self) -> float:
        """Of the batch."""
        return 1.0 if self.rows is None else len(self.rows) / self.samples

    def of(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """These rows of a tensor whose rows lie along ``dim``."""
        return tensor if self.rows is None else tensor.index_select(dim, self.rows.to(tensor.device))

    def of_predictions(self, predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of every prediction.

        Raises:
            ValueError: one has no row per sample.
        """
        for name, value in predictions.items() if self.rows is not None else ():
            if len(value) != self.samples:
                raise ValueError(
                    f"share= needs predictions with a row for each of the {self.samples} samples; {name!r} has shape "
                    f"{tuple(value.shape)}. Pass logits_fn= that returns such, or share=1.0"
                )
        return {name: self.of(value) for name, value in predictions.items()}

    def of_call(self, call: ModelCall) -> ModelCall:
        """The call with these rows of all inputs that have one per sample.

        Raises:
            ValueError: none has.
        """
        if self.rows is None:
            return call
        cut = call.with_rows(self.of, self.samples)
        if cut is None:
            raise ValueError(
                f"share= found no input whose first dimension is that of the embedding output, {self.samples}: it "
                "needs one row of embeddings per sample; use share=1.0"
            )
        return cut
