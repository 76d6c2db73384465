"""Differentiating the task loss once, and handing its gradients on when the objective is backpropagated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from .model_wrappers import is_fully_sharded


class LossScale:
    """What a loss is multiplied by before it is differentiated, lest float16 gradients underflow.

    A GradScaler scales the objective, later, and cannot lower this when gradients that are held overflow: they would be
    infinite for good. So it is halved after each overflow, down to 1. A power of two changes no other digit.
    """

    def __init__(self) -> None:
        self._value: Tensor | float = 2.0**12

    def like(self, loss: Tensor) -> Tensor:
        """A scalar of the loss's dtype and device."""
        return (torch.ones_like(loss) * self._value).to(loss.dtype)

    def lower_after_overflow(self, gradients: Sequence[Tensor | None]) -> None:
        """Halve it if a gradient is not finite; the host does not wait for the answer."""
        known = [gradient for gradient in gradients if gradient is not None]
        if known:
            finite = nn.utils.get_total_norm(known, torch.inf).isfinite()
            self._value = (self._value * torch.where(finite, 1.0, 0.5)).clamp(min=1.0)


def overflows_early(model: nn.Module, device: torch.device) -> bool:
    """Whether float16 takes part in the backward pass: by autocast, or in the parameters."""
    if torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16:
        return True
    return any(parameter.dtype == torch.float16 for parameter in model.parameters())


@contextmanager
def graphs_kept() -> Iterator[None]:
    """Meanwhile code is compiled so that its graph can be differentiated more than once.

    By default the compiler lets a backward pass overwrite what the forward pass saved for it.
    """
    from torch._functorch import config  # not needed, and not loaded, before the first pass

    # Set by hand: config.patch makes classes and context variables that are never freed, at every call.
    before = config.donated_buffer
    try:
        config.donated_buffer = False
        yield
    finally:
        try:
            config.donated_buffer = before
        except BaseException:  # Ctrl-C within the assignment, which runs Python code
            config.donated_buffer = before
            raise


def differentiate(loss: Tensor, inputs: Sequence[Tensor], scale: Tensor, *, retain_graph: bool) -> list[Tensor | None]:
    """Gradients of ``loss``, a scalar, times ``scale``; None for what it does not depend on.

    Raises:
        RuntimeError: the graph holds a reentrant checkpoint.
    """
    try:
        # Autocast is for forward passes: within it, float32 parts of the backward pass would lose their precision.
        device = loss.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            gradients = torch.autograd.grad(
                loss,
                inputs,
                grad_outputs=scale,
                retain_graph=retain_graph,
                allow_unused=True,
            )
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise RuntimeError(
            "model uses reentrant gradient checkpointing, through which its embeddings have no gradient of their own; "
            "pass use_reentrant=False where checkpointing is switched on"
        ) from error
    return list(gradients)


def parameters_to_hold(model: nn.Module) -> list[nn.Parameter]:
    """The parameters whose gradients :func:`replay` is to hand on.

    Raises:
        RuntimeError: the model is sharded, so that its gradients must be reduced before they are handed on, or hooks of
            its parameters would see them twice.
    """
    if any(is_fully_sharded(module) for module in model.modules()):
        raise RuntimeError('gradient="fast" cannot hold the gradients of a sharded model; use gradient="exact"')
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    hooked = [name for name, parameter in parameters if parameter._backward_hooks]
    if hooked:
        raise RuntimeError(
            f'gradient="fast" would run the hooks of the parameters {hooked} twice, when it takes their gradients and '
            'when it hands them on; use gradient="exact", or register_post_accumulate_grad_hook'
        )
    return [parameter for _, parameter in parameters]


def replay(loss: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None], scale: Tensor) -> Tensor:
    """The value of ``loss`` with a graph of one node, whose gradients :func:`differentiate` returned for ``scale``.

    They are multiplied by the incoming gradient, and so take part in loss scaling, gradient accumulation and the
    reduction of DistributedDataParallel like any others.
    """
    known = [(tensor, gradient) for tensor, gradient in zip(inputs, gradients, strict=True) if gradient is not None]
    held = tuple(gradient for _, gradient in known)
    inputs = [tensor for tensor, _ in known]
    replayed = _Replay.apply(loss.detach(), scale, held, *inputs)  # type: ignore[no-untyped-call]
    return cast(Tensor, replayed)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, loss: Tensor, scale: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor
    ) -> Tensor:
        ctx.save_for_backward(scale, *gradients)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        scale, *gradients = ctx.saved_tensors
        factor = incoming / scale
        return (None, None, None, *(gradient * factor for gradient in gradients))
