"""The pass with perturbed embeddings: which rows take part, how they are moved, and the losses that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .adversary_draws import AdversaryDraws
from .ascent import Ascent
from .batch_part import BatchPart
from .consistency import consistency_of
from .embedding_hook import EmbeddingHook, ForwardPass
from .forward_passes import CleanPass, ForwardPasses, PassResult
from .task_gradient import LossScale
from .token_mask import TokenMask, find_tokens


@dataclass(frozen=True)
class AdversarialLosses:
    """What an adversarial pass gave.

    Attributes:
        task: the task loss of the perturbed rows, as a part of the whole batch's: times their share of it.
        consistency: the consistency loss, likewise.
        embeddings: of the rows that took part, detached.
        perturbed: those in their place.
        nonfinite_samples: how many had a gradient that was not finite: a scalar, int64.
    """

    task: Tensor
    consistency: Tensor
    embeddings: Tensor
    perturbed: Tensor
    nonfinite_samples: Tensor


@dataclass(frozen=True)
class AdversarialPass:
    """The adversarial pass that follows a clean one.

    Attributes:
        clean: the clean pass.
        passes: which it is of.
        ascent: how embeddings are moved.
        draws: of the call.
        hook: of the embedding.
        share: of the rows that take part.
        loss_fn: computes the task loss; None: the model does.
        loss_divisor: what the task loss is divided by; None: it is a mean.
        loss_scale: of losses that are differentiated for a gradient of the embeddings.
        needs_predictions: whether the consistency loss is needed.
        say_once: tells the user what does not fit; called with a name for it, and a message.
    """

    clean: CleanPass
    passes: ForwardPasses
    ascent: Ascent
    draws: AdversaryDraws
    hook: EmbeddingHook
    share: float
    loss_fn: Callable[[Any, Any], Tensor] | None
    loss_divisor: Tensor | float | None
    loss_scale: LossScale
    needs_predictions: bool
    say_once: Callable[[str, str], None]

    def run(self) -> AdversarialLosses:
        """Perturb the embeddings, and run the model on them.

        Raises:
            ValueError: only a share of the rows is to be perturbed, and inputs, embeddings or predictions have no row
                per sample; or there are no predictions and they are needed.
        """
        tokens = self._tokens()
        part = self._part(tokens)
        embeddings = part.of(self.clean.result.forward_pass.output, tokens.sample_dim)
        perturbed, nonfinite_samples = self._perturbed(embeddings, tokens, part)
        forward_pass = ForwardPass(perturbed)
        result = self.passes.run(forward_pass, part.of_call(self.passes.call))
        self.hook.keep(forward_pass, result.loss)
        predictions = part.of_predictions(self.clean.result.predictions)
        task, consistency = result.loss, self._consistency(predictions, result, part, needed=self.needs_predictions)
        # A loss that is divided by a number of items is a sum over the rows already.
        if part.share != 1.0 and self.loss_divisor is None:
            task, consistency = part.share * task, part.share * consistency
        return AdversarialLosses(task, consistency, embeddings, perturbed, nonfinite_samples)

    def _tokens(self) -> TokenMask:
        clean, target = self.clean.result, self.hook.target
        shape = clean.forward_pass.output.shape
        found = find_tokens(
            self.passes.inner_arguments("attention_mask", clean),
            self.passes.looked_up(clean),
            self.passes.inner_arguments("past_key_values", clean),
            shape=shape,
            tokens_first=target.tokens_first and not self.passes.answers_inputs_embeds,
        )
        if found.misfit:
            self.say_once(
                "mask",
                f"attention_mask of shape {found.misfit} does not fit the embedding output of {target.name!r}, "
                f"{tuple(shape)}: all its rows are perturbed, also what may be padding; pass embedding=, a "
                "module that returns a row per token",
            )
        return found

    def _part(self, tokens: TokenMask) -> BatchPart:
        shape = self.clean.result.forward_pass.output.shape
        samples = shape[tokens.sample_dim]
        if self.share == 1.0:
            return BatchPart(None, samples)
        if len(shape) < 3:
            raise ValueError(
                f"share={self.share!r} needs embeddings with a row per sample; those of {self.hook.target.name!r} have "
                f"shape {tuple(shape)}. Use share=1.0"
            )
        return BatchPart(self.draws.rows(samples, self.share), samples)

    def _perturbed(self, embeddings: Tensor, tokens: TokenMask, part: BatchPart) -> tuple[Tensor, Tensor]:
        """Those of the rows that take part, and how many had a gradient that was not finite."""
        dim = tokens.sample_dim
        moved = None if tokens.tokens is None else part.of(tokens.tokens.to(embeddings.device), dim)
        if self.ascent.direction == "noise":
            nothing = torch.zeros((), dtype=torch.int64, device=embeddings.device)
            return self.ascent.of_noise(embeddings, self.draws, moved), nothing
        part_call = part.of_call(self.passes.call)

        def gradient_at(place: Tensor, beside: Tensor) -> Tensor:
            return self.passes.gradient_beside(
                place, beside, self.loss_scale, lambda result: self._enlarged(result, part), part_call
            )

        known = self.clean.gradient if self.ascent.needs_clean_gradient else None
        return self.ascent.along_gradients(
            embeddings,
            None if known is None else part.of(known, dim),
            gradient_at,
            self.draws,
            tokens=moved,
            sample_dim=dim,
        )

    def _enlarged(self, result: PassResult, part: BatchPart) -> Tensor:
        """What the ascent is to enlarge."""
        if self.ascent.direction == "task":
            return result.loss
        predictions = part.of_predictions(self.clean.result.predictions)
        constants = {name: value.detach() for name, value in predictions.items()}
        return self._consistency(constants, result, part, needed=True)

    def _consistency(
        self, predictions: Mapping[str, Tensor], other: PassResult, part: BatchPart, *, needed: bool
    ) -> Tensor:
        return consistency_of(
            self.clean.result, predictions, other, self.passes, part,
            loss_fn=self.loss_fn, divisor=self.loss_divisor, needed=needed, say_once=self.say_once,
        )  # fmt: skip
