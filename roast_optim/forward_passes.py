"""The passes of a model over one batch: with its own embeddings, or with others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from .embedding_hook import EmbeddingHook, ForwardPass
from .model_buffers import BufferValues, ModelBuffers
from .model_call import ModelCall, argument_of
from .model_output import loss_of, predictions_of
from .model_wrappers import is_compiled, layers, unwrapped
from .task_gradient import LossScale, differentiate, overflows_early, parameters_to_hold, replay


@dataclass(frozen=True)
class PassResult:
    """What a forward pass gave.

    Attributes:
        forward_pass: what became of the embedding output in it.
        output: what the model returned.
        loss: the task loss.
        predictions: those in the output, by name.
    """

    forward_pass: ForwardPass
    output: Any
    loss: Tensor
    predictions: dict[str, Tensor]


@dataclass(frozen=True)
class CleanPass:
    """A pass with the model's own embeddings, and what its loss was differentiated for.

    Attributes:
        result: of the pass; with ``gradient="fast"`` its graph is gone, and its loss hands held gradients on.
        gradient: of the task loss, times a constant, with respect to the embeddings; None: nobody asked for it.
        loss_divisor: what the task loss has been divided by; None: by how many items it is the mean of.
    """

    result: PassResult
    gradient: Tensor | None
    loss_divisor: Tensor | float | None


class ForwardPasses:
    """Runs a call as often as it is asked to, in a ``with`` statement.

    Every pass sees the inputs and buffers that the first one saw. At the end the buffers are as the first left them.

    Args:
        hook: of the embedding.
        call: what is run.
        loss_fn: of the output and the labels; None: the model computes its loss.
        logits_fn: of the output, returns its predictions; None: they are found by their names.
    """

    def __init__(
        self,
        hook: EmbeddingHook,
        call: ModelCall,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        logits_fn: Callable[[Any], Any] | None,
    ) -> None:
        self.call = call
        self._hook = hook
        self._loss_fn = loss_fn
        self._logits_fn = logits_fn
        self._watches = not any(is_compiled(layer) for layer in (*layers(call.model), *hook.target.surroundings))
        self._buffers = ModelBuffers(unwrapped(call.model))
        self._begun: BufferValues = self._buffers.values()
        self._ended: BufferValues | None = None

    def __enter__(self) -> ForwardPasses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ended is not None:
            self._buffers.end_as(self._ended)

    @property
    def answers_inputs_embeds(self) -> bool:
        """Does ``inputs_embeds`` stand in for the table that is to be perturbed?"""
        return self._hook.target.is_table and isinstance(self.call.kwargs.get("inputs_embeds"), Tensor)

    def run(self, forward_pass: ForwardPass, call: ModelCall | None = None) -> PassResult:
        """One pass of the call, or of another version of it."""
        own = (call or self.call).for_one_pass()
        first = self._ended is None
        if not first:
            self._buffers.go_back_to(self._begun)
        with self._hook.running(forward_pass, watch=first and self._watches):
            if self.answers_inputs_embeds:
                own.kwargs["inputs_embeds"] = forward_pass.answer(own.kwargs["inputs_embeds"], "inputs_embeds")
            output = own.model(*own.args, **own.kwargs)
        if first:
            self._ended = self._buffers.values(self._begun)
        loss = loss_of(output, own.labels, self._loss_fn)
        predictions = predictions_of(
            output,
            unwrapped(own.model),
            self._logits_fn,
            has_loss=self._loss_fn is None,
            width=forward_pass.output.shape[-1],
        )
        return PassResult(forward_pass, output, loss, predictions)

    def exact_clean_pass(self, scale: LossScale, *, needs_gradient: bool = True) -> CleanPass:
        """A pass whose graph serves the update as well.

        Args:
            scale: of the loss, while it is differentiated.
            needs_gradient: whether it is asked for; without it, the loss need not depend on the embeddings.
        """
        clean = self.run(ForwardPass())
        if not needs_gradient and self.call.num_items is None:
            return CleanPass(clean, None, None)
        gradient, divisor, _ = self._differentiate(clean, scale, [], retain_graph=True)
        return CleanPass(clean, gradient, divisor)

    def gradient_beside(
        self,
        base: Tensor,
        addend: Tensor,
        scale: LossScale,
        loss_of_pass: Callable[[PassResult], Tensor],
        call: ModelCall | None = None,
    ) -> Tensor:
        """The gradient of a loss, times a constant, with respect to embeddings; from a pass of its own.

        Args:
            base: the embeddings; with ``addend``, which becomes a leaf, they are where the gradient is taken.
            addend: of the same shape, float32, or float64 if the embeddings are.
            scale: of the loss, while it is differentiated.
            loss_of_pass: the loss, from what the pass gave.
            call: another version of the call.
        """
        result = self.run(ForwardPass(base, addend.requires_grad_()), call)
        loss = loss_of_pass(result)
        self._hook.keep(result.forward_pass, loss)  # for gradient checkpointing, which runs the embedding again
        gradient, *_ = differentiate(loss, [addend], scale.like(loss), retain_graph=False)
        if gradient is None:
            raise self._independent()
        return gradient

    def fast_clean_pass(self, scale: LossScale) -> CleanPass:
        """A pass whose graph is gone, all its gradients held by the loss.

        Args:
            scale: as above; lowered when gradients overflow.
        """
        parameters = parameters_to_hold(self.call.model)
        call_on_leaves, inputs, leaves = self.call.on_leaves()
        clean = self.run(ForwardPass(), call_on_leaves)
        used_scale = scale.like(clean.loss)
        gradient, divisor, held = self._differentiate(clean, scale, [*parameters, *leaves], retain_graph=False)
        loss = replay(clean.loss, [*parameters, *inputs], held, used_scale)
        if overflows_early(self.call.model, clean.loss.device):
            scale.lower_after_overflow(held)
        result = replace(
            clean,
            loss=loss,
            predictions={name: value.detach() for name, value in clean.predictions.items()},
            # Lest the graph be entered by way of the output, as DistributedDataParallel would do.
            output=tree_map_only(Tensor, Tensor.detach, clean.output),
        )
        return CleanPass(result, gradient, divisor)

    def inner_arguments(self, name: str, clean: PassResult) -> Iterator[Any]:
        """The argument of that name of the caller, then those of the modules around the embedding, innermost first."""
        yield self.call.argument(name)
        for module, args, kwargs in reversed(clean.forward_pass.inner_calls):
            yield argument_of(module, args, kwargs, name)

    def looked_up(self, clean: PassResult) -> Any:
        """The token ids that the word-embedding table was called with first; None if that was not seen."""
        table = self._hook.target.table
        return next((args[0] for module, args, _ in clean.forward_pass.inner_calls if module is table and args), None)

    def _differentiate(
        self, result: PassResult, scale: LossScale, held: list[Tensor], *, retain_graph: bool
    ) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """The gradient and the divisor of the task loss, and its gradients with respect to what is to be held."""
        num_items = self.call.num_items
        watched = [result.forward_pass.addend, *([] if num_items is None else [num_items])]
        gradients = differentiate(result.loss, [*watched, *held], scale.like(result.loss), retain_graph=retain_graph)
        if gradients[0] is None:
            raise self._independent()
        is_divided = num_items is not None and gradients[1] is not None
        divisor = num_items.detach() if is_divided and num_items is not None else None
        return gradients[0], divisor, gradients[len(watched) :]

    def _independent(self) -> RuntimeError:
        return RuntimeError(
            f"the task loss does not depend on the embedding {self._hook.target.name!r}, or only through a "
            "reentrant checkpoint; pass embedding=, a module that it depends on, or use_reentrant=False"
        )
