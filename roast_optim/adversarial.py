"""The adversarial objective: every batch once more, with its embeddings moved towards a larger loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .embedding_block import find_embedding_output
from .embedding_hook import EmbeddingHook, ForwardPass
from .losses import consistency_loss
from .model_call import ModelCall, loss_and_logits, with_loss
from .model_wrappers import call_as_one_forward_pass, unwrapped
from .perturbation import NORMS, perturbed_embedding, token_mask
from .task_gradient import LossScale, differentiate, graphs_kept, overflows_early, parameters_to_hold, replay
from .user_warning import warn

_GRADIENTS = ("exact", "fast")


class AdversarialEmbedding:
    """Calls a model with the objective of RoAST in place of its loss (section 3.1 of arXiv 2312.04032).

    For embeddings e, the task loss L and d = dL/de, in every token,

        ``e_adv = e + step_size * d / max|d|``
        ``loss = clean_weight * L(e) + adversarial_weight * L(e_adv) + consistency_weight * (KL(p||q) + KL(q||p))``

    where p and q are the model's predictions from e and e_adv. e_adv is a constant: nothing reaches the embeddings
    through the second pass. Dropout is drawn anew in it, as the authors do; no other random state is touched.

    Call it like the model: it returns what the model returned in the clean pass, with the loss replaced. Outputs of
    transformers have it as ``.loss``, tuples as their first element (before all others, if ``loss_fn`` computed it),
    and for a plain tensor a named tuple (loss, logits) is returned. In evaluation mode, or without gradients, the call
    is the model's own; in evaluation mode with gradients that is said once, for it is likely a forgotten
    ``model.train()``. In training mode it needs ``labels``, or whatever else the model computes its loss from.

    - Padding is not perturbed: tokens whose ``attention_mask`` is 0. The mask must be ``[batch, tokens]``; one of four
      dimensions, or that is not a tensor, says nothing of padding, so that all tokens are perturbed.
    - The KL is averaged over the batch or, for outputs per token, over the tokens whose label is not -100. A
      decoder-only language model (``can_generate()``) is taken to predict the next label. For a model with one output,
      or ``problem_type="regression"`` in its config, it is the mean squared error, for
      ``problem_type="multi_label_classification"`` the KL of independent binary labels. If the model divides its loss
      by ``num_items_in_batch``, which transformers' Trainer passes, the consistency loss is divided likewise.
    - Distribution: pass the DistributedDataParallel wrapper, or set ``adversary.model`` to it; it sees both passes as
      one, and reduces the gradients once.
    - torch.compile: make the AdversarialEmbedding first, then call ``model.compile()``. The compiled code is in two
      parts, before and after the embedding (no ``fullgraph=True``).
    - Gradient checkpointing must be the non-reentrant one (``use_reentrant=False``).

    Args:
        model: returns its loss and logits, or see ``loss_fn``. An attribute, which may be set to a wrapper.
        step_size: length of the perturbation of each token, in units of the embeddings; not negative.
        consistency_weight: of the consistency loss (lambda in the paper); not negative, as all weights.
        adversarial_weight: of the task loss of the adversarial pass.
        clean_weight: of the task loss of the clean pass.
        norm: in which ``step_size`` is measured: "linf", as above; "sign": ``sign(d)``; "l2": ``d / ||d||``.
        embedding: what is perturbed. None: the output of the embedding block, whose scale is about 1. "word": the
            word-embedding table, whose scale is far smaller (about 0.04), so that it needs a smaller step. Or a module
            of the model that returns one tensor ``[batch, tokens, hidden]``, once per forward pass. See
            :func:`.embedding_block.find_embedding_output`, and ``embedding_name`` for what was found.
        gradient: "exact": both predictions of the consistency loss are differentiated; forward and backward cost about
            7/3 of the model's. "fast": p is a constant, so that one backward of the clean pass serves both d and the
            update (6/3). Its gradients are held until the loss is backpropagated, in the memory of one more set of
            gradients. All of the output but the loss is detached. Not for sharded models.
        loss_fn: ``loss_fn(output, labels)`` with the model's output and the ``labels=`` of the call, which are then
            not passed to the model. Labels of tokens are those at their place: shift them yourself for a language
            model. None: the model computes its loss.
        start_noise: if not 0, d is taken in a pass of its own, at ``e + start_noise * U(0, 1)``, as in the authors'
            code with 1e-5 (8/3 of the model's cost). The noise has its own generator, which starts with seed 0.

    Attributes:
        last_losses: "task", "adversarial" and "consistency" loss of the last call in training mode, detached and
            without their weights; empty before it.
        embedding_name: name of the perturbed module in the model.

    Raises:
        TypeError: ``model`` is not a module, or ``loss_fn`` not callable.
        ValueError: an argument is out of range; the model has no embeddings or is compiled already. On a call in
            training mode: no labels, no scalar loss or no logits in the output; a mask or labels that do not fit.
        RuntimeError: on a call in training mode: the embedding did not run exactly once, or the loss does not depend on
            it; the model uses reentrant checkpointing; with ``gradient="fast"``, it is sharded or its parameters have
            hooks.
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
        start_noise: float = 0.0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model={model!r} is not an nn.Module")
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"loss_fn={loss_fn!r} must be a function of the model's output and the labels, or None")
        for name, value in (
            ("step_size", step_size),
            ("consistency_weight", consistency_weight),
            ("adversarial_weight", adversarial_weight),
            ("clean_weight", clean_weight),
            ("start_noise", start_noise),
        ):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name}={value!r} must be a finite number from 0 up")
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r} must be one of {NORMS}")
        if gradient not in _GRADIENTS:
            raise ValueError(f"gradient={gradient!r} must be one of {_GRADIENTS}")
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
        self.start_noise = start_noise
        self.last_losses: dict[str, Tensor] = {}
        self._nonfinite_samples: Tensor | int = 0
        self._has_warned = False
        self._loss_scale = LossScale()
        self._noise_generator: torch.Generator | None = None
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output; in training mode its loss is the whole objective."""
        labels = kwargs.pop("labels", None) if self.loss_fn else None
        if not (unwrapped(self.model).training and torch.is_grad_enabled()):
            if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                self._say_once_that_nothing_is_perturbed()
            return self.model(*args, **kwargs)
        try:
            if self.loss_fn and labels is None:
                raise ValueError("labels=None: loss_fn needs labels= in training mode; pass them, or call model.eval()")
            self._hook.attach()
            with graphs_kept() if self.gradient == "exact" else nullcontext():
                if isinstance(self.model, nn.parallel.DistributedDataParallel):
                    both_passes = partial(self._both_passes, self.model.module, labels)
                    return call_as_one_forward_pass(self.model, both_passes, args, kwargs)
                return self._both_passes(self.model, labels, *args, **kwargs)
        except BaseException:
            self._hook.remove()
            raise

    def _say_once_that_nothing_is_perturbed(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(
                "AdversarialEmbedding was called in evaluation mode, with gradients: the loss is the model's own. Call "
                "model.train() before training (from_pretrained() returns evaluation mode), torch.no_grad() to evaluate"
            )

    def _both_passes(self, model: nn.Module, labels: Any, /, *args: Any, **kwargs: Any) -> Any:
        call = ModelCall(model, args, kwargs, labels)
        clean = self._fast_clean_pass(call) if self.gradient == "fast" else self._exact_clean_pass(call)
        perturbed = ForwardPass(self._perturbed(clean.embeddings, clean.gradient, call))
        adversarial = self._run(perturbed, call)
        self._hook.keep(perturbed, adversarial.loss)
        consistency = consistency_loss(
            clean.logits,
            adversarial.logits,
            call.labels,
            problem_type=getattr(call.config, "problem_type", None),
            labels_are_shifted=self._labels_are_shifted(call),
            num_items=clean.loss_divisor,
        )
        self.last_losses = {
            "task": clean.loss.detach(),
            "adversarial": adversarial.loss.detach(),
            "consistency": consistency.detach(),
        }
        objective = (
            self.clean_weight * clean.loss
            + self.adversarial_weight * adversarial.loss
            + self.consistency_weight * consistency
        )
        return with_loss(clean.output, objective, loss_is_new=self.loss_fn is not None)

    def _labels_are_shifted(self, call: ModelCall) -> bool:
        return self.loss_fn is None and call.labels_are_shifted

    def _run(self, forward_pass: ForwardPass, call: ModelCall) -> _Result:
        kwargs = call.kwargs
        with self._hook.running(forward_pass):
            if self._answers_inputs_embeds(call):
                kwargs = {**kwargs, "inputs_embeds": forward_pass.answer(kwargs["inputs_embeds"], "inputs_embeds")}
            output = call.model(*call.args, **kwargs)
        loss, logits = loss_and_logits(output, call.labels, self.loss_fn)
        return _Result(forward_pass, output, loss, logits)

    def _answers_inputs_embeds(self, call: ModelCall) -> bool:
        """Does ``inputs_embeds`` stand in for the table that is to be perturbed?"""
        return self._hook.target.is_table and isinstance(call.kwargs.get("inputs_embeds"), Tensor)

    def _exact_clean_pass(self, call: ModelCall) -> _Result:
        """A pass whose graph serves the update as well."""
        clean = self._run(ForwardPass(), call)
        started = clean
        if self.start_noise:
            started = self._run(ForwardPass(clean.embeddings, self._noise_like(clean.embeddings)), call)
        self._differentiate(started, call, [])
        clean.gradient, clean.loss_divisor = started.gradient, started.loss_divisor
        return clean

    def _fast_clean_pass(self, call: ModelCall) -> _Result:
        """A pass whose graph is gone, all its gradients held by the loss."""
        parameters = parameters_to_hold(call.model)
        call_on_leaves, inputs, leaves = call.on_leaves()
        clean = self._run(ForwardPass(), call_on_leaves)
        scale = self._loss_scale.like(clean.loss)
        held = self._differentiate(clean, call, [*parameters, *leaves])
        clean.loss = replay(clean.loss, [*parameters, *inputs], held, scale)
        if overflows_early(call.model, clean.loss.device):
            self._loss_scale.lower_after_overflow(held)
        clean.logits = clean.logits.detach()
        # Lest the graph be entered by way of the output, as DistributedDataParallel would do.
        clean.output = tree_map_only(Tensor, Tensor.detach, clean.output)
        return clean

    def _differentiate(self, result: _Result, call: ModelCall, held: list[Tensor]) -> list[Tensor | None]:
        """Find gradient and divisor of the task loss; return its gradients with respect to what is to be held."""
        watched = [result.forward_pass.addend, *([] if call.num_items is None else [call.num_items])]
        gradients = differentiate(
            result.loss,
            [*watched, *held],
            self._loss_scale.like(result.loss),
            retain_graph=self.gradient == "exact",
        )
        if gradients[0] is None:
            raise RuntimeError(
                f"the task loss does not depend on the embedding {self.embedding_name!r}, or only through a reentrant "
                "checkpoint; pass embedding=, a module that it depends on, or use_reentrant=False"
            )
        result.gradient = gradients[0]
        if call.num_items is not None and gradients[1] is not None:
            result.loss_divisor = call.num_items.detach()
        return gradients[len(watched) :]

    def _noise_like(self, embeddings: Tensor) -> Tensor:
        """A leaf of uniform noise, drawn from a generator of its own."""
        if self._noise_generator is None or self._noise_generator.device != embeddings.device:
            self._noise_generator = torch.Generator(embeddings.device).manual_seed(0)
        noise = torch.rand(
            embeddings.shape,
            generator=self._noise_generator,
            device=embeddings.device,
            dtype=torch.promote_types(embeddings.dtype, torch.float32),
        )
        return noise.mul_(self.start_noise).requires_grad_()

    def _perturbed(self, embeddings: Tensor, gradient: Tensor, call: ModelCall) -> Tensor:
        tokens_first = self._hook.target.tokens_first and not self._answers_inputs_embeds(call)
        attention_mask, tokens = call.argument("attention_mask"), None
        # Embeddings of two dimensions have no padding: those of all tokens of the batch in a row.
        if isinstance(attention_mask, Tensor) and attention_mask.ndim in (2, 3) and gradient.ndim > 2:
            tokens, tokens_first = token_mask(attention_mask.to(gradient.device), gradient.shape, tokens_first)
        perturbed, nonfinite_samples = perturbed_embedding(
            embeddings, gradient, self.step_size, self.norm, tokens=tokens, sample_dim=1 if tokens_first else 0
        )
        self._nonfinite_samples = self._nonfinite_samples + nonfinite_samples
        return perturbed


@dataclass
class _Result:
    """What a forward pass gave.

    Attributes:
        gradient: of the task loss, times a constant, with respect to the embeddings; empty until it is differentiated.
        loss_divisor: what the task loss has been divided by; None: by how many items it is the mean of.
    """

    forward_pass: ForwardPass
    output: Any
    loss: Tensor
    logits: Tensor
    gradient: Tensor = field(default_factory=lambda: torch.empty(0))
    loss_divisor: Tensor | None = None

    @property
    def embeddings(self) -> Tensor:
        return self.forward_pass.output
