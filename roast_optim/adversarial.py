"""The adversarial objective: every batch once more, with its embeddings moved towards a larger loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .data_parallel import call_as_one_forward_pass
from .embedding_block import find_embedding_output, is_sharded, unwrapped
from .embedding_hook import EmbeddingHook, ForwardPass
from .losses import consistency_loss
from .model_output import argument, loss_and_logits, with_loss
from .perturbation import NORMS, perturbation, token_mask
from .task_gradient import differentiate, replay

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
    is the model's own. In training mode it needs ``labels``, or whatever else the model computes its loss from.

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
            not passed to the model. None: the model computes its loss.
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
            return self.model(*args, **kwargs)
        try:
            self._hook.attach()
            if isinstance(self.model, nn.parallel.DistributedDataParallel):
                objective = partial(self._objective, self.model.module, labels)
                return call_as_one_forward_pass(self.model, objective, args, kwargs)
            return self._objective(self.model, labels, *args, **kwargs)
        except BaseException:
            self._hook.remove()
            raise

    def _objective(self, model: nn.Module, labels: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Both passes of a model; ``labels`` are those of ``loss_fn``."""
        call = _Call(model, args, kwargs, labels)
        if self.loss_fn is None:
            call.labels = call.argument("labels")
        elif labels is None:
            raise ValueError("labels=None: loss_fn needs labels= in training mode; pass them, or call model.eval()")
        call.watch_num_items()
        clean = self._forward(ForwardPass(), call)
        gradient = self._embedding_gradient(clean, call)
        adversarial = self._forward(ForwardPass(clean.embeddings, self._perturbation(gradient, call)), call)
        self._hook.keep(adversarial.forward_pass, adversarial.loss)
        consistency = consistency_loss(
            clean.logits,
            adversarial.logits,
            call.labels,
            problem_type=getattr(call.config, "problem_type", None),
            labels_are_shifted=self._labels_are_shifted(call),
            num_items=call.loss_divisor,
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

    def _forward(self, forward_pass: ForwardPass, call: _Call) -> _Result:
        kwargs = call.kwargs
        with self._hook.running(forward_pass):
            if self._answers_inputs_embeds(call):
                kwargs = {**kwargs, "inputs_embeds": forward_pass.answer(kwargs["inputs_embeds"], "inputs_embeds")}
            output = call.model(*call.args, **kwargs)
        loss, logits = loss_and_logits(output, call.labels, self.loss_fn)
        return _Result(forward_pass, output, loss, logits)

    def _answers_inputs_embeds(self, call: _Call) -> bool:
        """Does ``inputs_embeds`` stand in for the table that is to be perturbed?"""
        return self._hook.target.is_table and isinstance(call.kwargs.get("inputs_embeds"), Tensor)

    def _embedding_gradient(self, clean: _Result, call: _Call) -> Tensor:
        """Gradient of the task loss, of any scale, with respect to the embeddings."""
        fast = self.gradient == "fast"
        held = self._trainable_tensors(call) if fast else []
        started = clean
        if self.start_noise:
            started = self._forward(ForwardPass(clean.embeddings, self._noise_like(clean.embeddings)), call)
        watched = [started.forward_pass.addend] + ([call.num_items] if call.num_items is not None else [])
        gradients = differentiate(started.loss, [*watched, *held], retain_graph=not fast)
        gradient = gradients[0]
        if gradient is None:
            raise RuntimeError(
                f"the task loss does not depend on the embedding {self.embedding_name!r}, or only through a reentrant "
                "checkpoint; pass embedding=, a module that it depends on, or use_reentrant=False"
            )
        if len(watched) > 1 and gradients[1] is not None:
            call.loss_divisor = watched[1].detach()
        if fast:
            clean.loss = replay(clean.loss, held, gradients[len(watched) :])
            clean.logits = clean.logits.detach()
            # The graph is gone, and must not be entered by way of the output, as DistributedDataParallel would do.
            clean.output = tree_map_only(Tensor, Tensor.detach, clean.output)
        return gradient

    def _trainable_tensors(self, call: _Call) -> list[Tensor]:
        """Everything that the clean pass has gradients for: parameters, and inputs that require one."""
        if any(is_sharded(module) for module in call.model.modules()):
            raise RuntimeError('gradient="fast" cannot hold the gradients of a sharded model; use gradient="exact"')
        tensors = [
            tensor
            for tensor in (*call.model.parameters(), *tree_leaves((call.args, call.kwargs)))
            if isinstance(tensor, Tensor) and tensor.requires_grad and tensor is not call.num_items
        ]
        if any(tensor._backward_hooks for tensor in tensors):
            raise RuntimeError(
                'gradient="fast" would run hooks registered with a parameter or input twice, on its gradient and when '
                'that is handed on; use gradient="exact", or register_post_accumulate_grad_hook'
            )
        return tensors

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

    def _perturbation(self, gradient: Tensor, call: _Call) -> Tensor:
        tokens_first = self._hook.target.tokens_first and not self._answers_inputs_embeds(call)
        attention_mask, tokens = call.argument("attention_mask"), None
        # Embeddings of two dimensions have no padding: those of all tokens of the batch in a row.
        if isinstance(attention_mask, Tensor) and attention_mask.ndim in (2, 3) and gradient.ndim > 2:
            tokens, tokens_first = token_mask(attention_mask.to(gradient.device), gradient.shape, tokens_first)
        step, nonfinite_samples = perturbation(
            gradient, self.step_size, self.norm, tokens=tokens, sample_dim=1 if tokens_first else 0
        )
        self._nonfinite_samples = self._nonfinite_samples + nonfinite_samples
        return step

    def _labels_are_shifted(self, call: _Call) -> bool:
        """Does the prediction at a token belong to the label of the next one?"""
        can_generate = getattr(unwrapped(call.model), "can_generate", None)
        is_encoder_decoder = getattr(call.config, "is_encoder_decoder", False)
        return self.loss_fn is None and can_generate is not None and can_generate() and not is_encoder_decoder


@dataclass
class _Call:
    """What the adversary was called with, and the model to run."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Any
    num_items: Tensor | None = None
    loss_divisor: Tensor | None = None

    @property
    def config(self) -> Any:
        return getattr(unwrapped(self.model), "config", None)

    def argument(self, name: str) -> Any:
        return argument(unwrapped(self.model), name, self.args, self.kwargs)

    def watch_num_items(self) -> None:
        """Make ``num_items_in_batch`` a leaf: many models take it, and divide their loss by it or do not."""
        num_items = self.kwargs.get("num_items_in_batch")
        if num_items is not None:
            self.num_items = torch.as_tensor(num_items, dtype=torch.float32).detach().clone().requires_grad_()
            self.kwargs["num_items_in_batch"] = self.num_items


@dataclass
class _Result:
    """What a forward pass gave."""

    forward_pass: ForwardPass
    output: Any
    loss: Tensor
    logits: Tensor

    @property
    def embeddings(self) -> Tensor:
        return self.forward_pass.output
