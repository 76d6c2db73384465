"""The adversarial objective: every batch once more, with its embeddings moved towards a larger loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, reduce
from operator import add
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .embedding_block import find_embedding_output
from .embedding_hook import EmbeddingHook, ForwardPass
from .forward_passes import CleanPass, ForwardPasses, PassResult
from .losses import consistency_loss
from .model_call import ModelCall
from .model_output import TaskLoss, comparable, with_loss
from .model_wrappers import call_as_one_forward_pass, unwrapped
from .perturbation import NORMS, SCALES, StartNoise, perturbed_embedding, relative_length
from .task_gradient import LossScale, graphs_kept
from .token_mask import find_labels, find_tokens
from .user_warning import warn

_GRADIENTS = ("exact", "fast")
_LONG_STEP = 0.25  # of the embedding, from which a perturbed embedding resembles another word's
_MEASUREMENTS = 3  # at most: each waits for the device, and the first one that finds a step is the last
_USUAL_STEP = 0.03  # what step_size=0.1 is of a BERT embedding


class AdversarialEmbedding:
    """Calls a model with the objective of RoAST in place of its loss (section 3.1 of arXiv 2312.04032).

    For embeddings e, the task loss L and d = dL/de, in every token,

        ``e_adv = e + step_size * d / max|d|``
        ``loss = clean_weight * L(e) + adversarial_weight * L(e_adv) + consistency_weight * (KL(p||q) + KL(q||p))``

    where p and q are the model's predictions from e and e_adv. Call it like the model: it returns what the model
    returned for e, with the loss replaced. In evaluation mode, or without gradients, the call is the model's own.
    ``docs/adversary.md`` says what happens with padding, several predictions, compiled and distributed models.

    >>> model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(8 * 5, 2))
    >>> ids, labels = torch.randint(0, 50, (4, 5)), torch.tensor([0, 1, 1, 0])
    >>> with AdversarialEmbedding(model, 0.03, scale="relative", loss_fn=nn.functional.cross_entropy) as adversary:
    ...     adversary(ids, labels=labels).loss.backward()  # of a model with a loss: adversary(**batch).loss.backward()
    >>> sorted(adversary.last_losses)
    ['adversarial', 'consistency', 'task']

    Args:
        model: returns its loss and logits, or see ``loss_fn``. An attribute, which may be set to a wrapper.
        step_size: length of the perturbation of each token, in units of ``scale``; not negative.
        consistency_weight: of the consistency loss (lambda in the paper); not negative, as all weights. With 0 no
            predictions are needed.
        adversarial_weight: of the task loss of the adversarial pass.
        clean_weight: of the task loss of the clean pass.
        norm: in which ``step_size`` is measured: "linf", as above; "sign": ``sign(d)``; "l2": ``d / ||d||``.
        embedding: what is perturbed. None: the output of the embedding block. "word": the word-embedding table, whose
            scale is far smaller. Or a module that returns one tensor ``[batch, tokens, hidden]``, once per pass.
        gradient: "exact": both predictions of the consistency loss are differentiated. "fast": p is a constant, which
            saves a backward pass; all of the output but the loss is detached. Not for sharded models.
        loss_fn: ``loss_fn(output, labels)`` with the model's output and the ``labels=`` of the call, which are then
            not passed to the model. A :class:`.TaskLoss` also says by what it is divided. None: the model's own loss.
        logits_fn: ``logits_fn(output)`` returns the predictions that the consistency loss compares, a tensor
            ``[..., classes]`` or several in a tuple or dict. None: all in the output, found by their names.
        scale: "absolute": ``step_size`` is in units of the embeddings. "relative": it is a share of each token's own
            embedding, in the l2 norm.
        start_noise: if not 0, d is taken in a pass of its own, at ``e + start_noise * U(0, 1)``; the authors' code has
            1e-5.

    Attributes:
        last_losses: "task", "adversarial" and "consistency" loss of the last call in training mode, detached and
            without their weights; empty before it. Without predictions, consistency is 0.
        loss_divisor: what the task loss of the last call was divided by: ``num_items_in_batch`` if the model divides by
            it, or that of a :class:`.TaskLoss`; None: it is a mean.
        embedding_name: name of the perturbed module in the model.

    Raises:
        TypeError: ``model`` is not a module, or ``loss_fn`` or ``logits_fn`` not callable.
        ValueError: an argument is out of range; the model has no embeddings or is compiled already. On a call in
            training mode: no labels, no scalar loss or no predictions in the output.
        RuntimeError: on a call in training mode: the embedding did not run exactly once, or the loss does not depend on
            it; the model uses reentrant checkpointing; with ``gradient="fast"``, it is sharded or its parameters have
            hooks; the adversary is closed.
    """

    def __init__(
        self,
        model: nn.Module,
        step_size: float = 0.1,
        consistency_weight: float = 0.01,
        *,
        adversarial_weight: float = 1.0,
        clean_weight: float = 1.0,
        norm: str = "linf",
        embedding: str | nn.Module | None = None,
        gradient: str = "exact",
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        logits_fn: Callable[[Any], Any] | None = None,
        scale: str = "absolute",
        start_noise: float = 0.0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model={model!r} is not an nn.Module")
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"loss_fn={loss_fn!r} must be a function of the model's output and the labels, or None")
        if logits_fn is not None and not callable(logits_fn):
            raise TypeError(f"logits_fn={logits_fn!r} must be a function of the model's output, or None")
        for name, value in (
            ("step_size", step_size),
            ("consistency_weight", consistency_weight),
            ("adversarial_weight", adversarial_weight),
            ("clean_weight", clean_weight),
            ("start_noise", start_noise),
        ):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name}={value!r} must be a finite number from 0 up")
        for name, choice, choices in (
            ("norm", norm, NORMS),
            ("gradient", gradient, _GRADIENTS),
            ("scale", scale, SCALES),
        ):
            if choice not in choices:
                raise ValueError(f"{name}={choice!r} must be one of {choices}")
        if gradient == "fast" and start_noise:
            raise ValueError(
                f'start_noise={start_noise!r} takes a pass of its own, which gradient="fast" is to save; '
                'use 0 or gradient="exact"'
            )
        self.model = model
        self.step_size = step_size
        self.consistency_weight = consistency_weight
        self.adversarial_weight = adversarial_weight
        self.clean_weight = clean_weight
        self.norm = norm
        self.gradient = gradient
        self.loss_fn = loss_fn
        self.logits_fn = logits_fn
        self.scale = scale
        self.start_noise = start_noise
        self.last_losses: dict[str, Tensor] = {}
        self.loss_divisor: Tensor | float | None = None
        self._nonfinite_samples: Tensor | int = 0
        self._said: set[str] = set()
        self._measurements = _MEASUREMENTS
        self._is_closed = False
        self._loss_scale = LossScale()
        self._noise = StartNoise()
        self._hook = EmbeddingHook(find_embedding_output(model, embedding))
        self._hook.attach()  # already here, for a torch.compile that follows

    @property
    def embedding_name(self) -> str:
        """Name of the perturbed module in the model."""
        return self._hook.target.name

    @property
    def nonfinite_samples(self) -> int:
        """How many samples got no perturbation because their gradient was not finite. Waits for the device."""
        return int(self._nonfinite_samples)

    def close(self) -> None:
        """Take the hook off the model, which can then be exported, scripted and compiled whole. Not to be undone.

        Call it after the last backward pass: gradient checkpointing needs the hook until then. ``with`` does it at its
        end. In evaluation mode the call goes on being the model's.
        """
        self._hook.remove()
        self._is_closed = True

    def __enter__(self) -> AdversarialEmbedding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output; in training mode its loss is the whole objective. One thread at a time: others wait."""
        labels = kwargs.pop("labels", None) if self.loss_fn else None
        if not (unwrapped(self.model).training and torch.is_grad_enabled()):
            if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                self._say_once(
                    "evaluation",
                    "AdversarialEmbedding was called in evaluation mode, with gradients: the loss is the model's own. "
                    "Call model.train() before training (from_pretrained() returns evaluation mode), torch.no_grad() "
                    "to evaluate",
                )
            return self.model(*args, **kwargs)
        if self._is_closed:
            raise RuntimeError("this AdversarialEmbedding is closed; make another one to train on")
        with self._hook.lock, graphs_kept() if self.gradient == "exact" else nullcontext():
            try:
                if self.loss_fn and labels is None:
                    raise ValueError(
                        "labels=None: loss_fn needs labels= in training mode; pass them, or call model.eval()"
                    )
                self._hook.attach()
                if isinstance(self.model, nn.parallel.DistributedDataParallel):
                    all_passes = partial(self._all_passes, self.model.module, labels)
                    return call_as_one_forward_pass(self.model, all_passes, args, kwargs)
                return self._all_passes(self.model, labels, *args, **kwargs)
            except BaseException:
                self._hook.remove()
                raise

    def _all_passes(self, model: nn.Module, labels: Any, /, *args: Any, **kwargs: Any) -> Any:
        call = ModelCall(model, args, kwargs, labels)
        with ForwardPasses(self._hook, call, self.loss_fn, self.logits_fn) as passes:
            if self.gradient == "fast":
                clean = passes.fast_clean_pass(self._loss_scale)
            else:
                noise = partial(self._noise.like, amplitude=self.start_noise) if self.start_noise else None
                clean = passes.exact_clean_pass(self._loss_scale, noise)
            perturbed = ForwardPass(self._perturbed(clean, passes))
            adversarial = passes.run(perturbed)
        self._hook.keep(perturbed, adversarial.loss)
        self.loss_divisor = self.loss_fn.divisor if isinstance(self.loss_fn, TaskLoss) else clean.loss_divisor
        consistency = self._consistency(clean.result, adversarial, passes)
        self.last_losses = {
            "task": clean.result.loss.detach(),
            "adversarial": adversarial.loss.detach(),
            "consistency": consistency.detach(),
        }
        objective = self.clean_weight * clean.result.loss + self.adversarial_weight * adversarial.loss
        if self.consistency_weight:
            objective = objective + self.consistency_weight * consistency
        return with_loss(clean.result.output, objective, loss_is_new=self.loss_fn is not None)

    def _perturbed(self, clean: CleanPass, passes: ForwardPasses) -> Tensor:
        embeddings, gradient = clean.result.forward_pass.output, clean.gradient
        rows = find_tokens(
            passes.inner_arguments("attention_mask", clean.result),
            passes.looked_up(clean.result),
            passes.inner_arguments("past_key_values", clean.result),
            shape=gradient.shape,
            tokens_first=self._hook.target.tokens_first and not passes.answers_inputs_embeds,
        )
        if rows.misfit:
            self._say_once(
                "mask",
                f"attention_mask of shape {rows.misfit} does not fit the embedding output of {self.embedding_name!r}, "
                f"{tuple(gradient.shape)}: all its rows are perturbed, also what may be padding; pass embedding=, a "
                "module that returns a row per token",
            )
        perturbed, nonfinite_samples = perturbed_embedding(
            embeddings,
            gradient,
            self.step_size,
            self.norm,
            scale=self.scale,
            tokens=None if rows.tokens is None else rows.tokens.to(gradient.device),
            sample_dim=1 if rows.tokens_first else 0,
        )
        self._nonfinite_samples = self._nonfinite_samples + nonfinite_samples
        if self._measurements:
            self._say_if_the_step_is_long(relative_length(perturbed, embeddings))
        return perturbed

    def _consistency(self, clean: PassResult, adversarial: PassResult, passes: ForwardPasses) -> Tensor:
        """The sum over all predictions; 0 if none is there and none is needed."""
        call = passes.call
        is_shifted = self.loss_fn is None or getattr(self.loss_fn, "labels_are_shifted", False)
        parts = []
        for first, second in comparable(
            clean.predictions, adversarial.predictions, clean.output, needed=self.consistency_weight > 0
        ):
            labels = passes.inner_arguments("labels", clean) if self.loss_fn is None else [call.labels]
            found = find_labels(labels, first.shape)
            if found.misfit:
                self._say_once(
                    "labels",
                    f"labels of shape {found.misfit} do not fit predictions of shape {tuple(first.shape)}: the "
                    "consistency loss is averaged over all of them; pass logits_fn= that returns one per label",
                )
            parts.append(
                consistency_loss(
                    first,
                    second,
                    found.labels,
                    problem_type=getattr(call.config, "problem_type", None),
                    labels_are_shifted=is_shifted and call.labels_are_shifted,
                    num_items=self.loss_divisor,
                )
            )
        return reduce(add, parts) if parts else torch.zeros_like(clean.loss.detach())

    def _say_if_the_step_is_long(self, share: float) -> None:
        self._measurements = 0 if share else self._measurements - 1
        if share > _LONG_STEP:
            name, cure = self.embedding_name, self.step_size * _USUAL_STEP / share
            absolute = f"step_size={cure:.2g}, or " if self.scale == "absolute" else ""
            self._say_once(
                "step",
                f"step_size={self.step_size!r} moves the embeddings of {name!r} by {share:.0%} of their length, where "
                f'0.1 is 3% of a BERT embedding. Set {absolute}step_size={_USUAL_STEP} with scale="relative"',
            )

    def _say_once(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warn(message)
