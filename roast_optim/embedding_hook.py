"""A forward hook that adds to an embedding output, in the passes that ask for it and when they are recomputed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .embedding_block import EmbeddingOutput

_METADATA_KEY = "roast_optim.forward_pass"
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _not_compiled(function: _Function) -> _Function:
    """Run between two pieces of compiled code: within one, the compiler makes no leaf that requires a gradient."""
    # Not torch.compiler.disable, which would import the compiler now and double the time of importing this package.
    disabled: _Function = torch._disable_dynamo(function)  # type: ignore[attr-defined,assignment]
    return disabled


def _next_node() -> int:
    """Sequence number of the next autograd node that this thread makes."""
    number: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
    return number


class InnerCall(NamedTuple):
    """What a part of the model was called with in a forward pass."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class ForwardPass:
    """What becomes of the embedding output in one forward pass.

    Args:
        base: what takes the embedding output's place, without a gradient; None: nothing does.
        addend: what is added to the output or to the base. float32 (float64 if the output is) whatever their dtype.
            None: nothing to a base, and a zero leaf that requires a gradient to the output.

    Attributes:
        nodes: sequence numbers of the autograd nodes made in this pass.
        replacement: what the model went on with in place of the output; kept only where there is a base.
        inner_calls: the calls of the modules that contain the embedding and of the word-embedding table, in their
            order; empty unless they were to be watched.
    """

    def __init__(self, base: Tensor | None = None, addend: Tensor | None = None) -> None:
        self.nodes = range(0)
        self.replacement: Tensor | None = None
        self.inner_calls: list[InnerCall] = []
        self._base = base
        self._addend = addend
        self._output: Tensor | None = None

    @property
    def has_run(self) -> bool:
        """Has the embedding run?"""
        return self._output is not None

    @property
    def output(self) -> Tensor:
        """The embedding output, detached, once the embedding has run."""
        assert self._output is not None
        return self._output

    @property
    def addend(self) -> Tensor:
        """What was added to it, once the embedding has run."""
        assert self._addend is not None
        return self._addend

    def answer(self, output: Any, name: str) -> Any:
        """What the embedding called ``name``, which has just computed ``output``, is to return.

        Of a tuple the first element is the embedding; the others stay.
        """
        if type(output) is tuple and output:
            return (self._answer(output[0], name), *output[1:])
        return self._answer(output, name)

    def _answer(self, output: Any, name: str) -> Tensor:
        if self.has_run:
            raise RuntimeError(
                f"the embedding {name!r} ran more than once in a forward pass; pass embedding=, a module that runs once"
            )
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim < 2:
            raise TypeError(
                f"the embedding {name!r} returned {type(output).__name__}, not one floating-point tensor of shape "
                "[batch, tokens, hidden], nor a tuple that begins with one; pass embedding=, a module that does"
            )
        self._output = output.detach()
        if self._base is not None:
            self.replacement = self._base if self._addend is None else (self._base + self._addend).to(output.dtype)
            return self.replacement
        if self._addend is None:
            dtype = torch.promote_types(output.dtype, torch.float32)
            self._addend = torch.zeros_like(output, dtype=dtype, requires_grad=True)
        return (output + self._addend).to(output.dtype)


class EmbeddingHook:
    """Answers for the embedding output: by the pass that is running, or by the one that is being recomputed.

    Gradient checkpointing that includes the embedding runs it again during a backward pass, possibly long after the
    forward pass has ended. Which pass is recomputed is told by the autograd node that asks for it: nodes are numbered
    in the order in which they are made. At any other time the hook changes nothing. The model does not keep it alive:
    it goes when its owner and the graphs of the passes that it is kept for are gone.

    Attributes:
        target: the embedding output.
        lock: for those who let passes run: a pass is one thread's.
    """

    def __init__(self, target: EmbeddingOutput) -> None:
        self.target = target
        self.lock = threading.RLock()
        self._handle: RemovableHandle | None = None
        self._finalizer: Callable[[], Any] | None = None
        self._running: ForwardPass | None = None
        self._running_thread = 0
        self._kept: weakref.WeakSet[ForwardPass] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        """A copy is of no pass, and not on the module yet."""
        return {"target": self.target}

    def __setstate__(self, state: dict[str, Any]) -> None:
        EmbeddingHook.__init__(self, state["target"])

    def attach(self) -> None:
        """Register the hook, unless it is."""
        if self._handle is None:
            self._handle = self.target.module.register_forward_hook(AdversarialEmbeddingHook(self))
            self._finalizer = weakref.finalize(self, self._handle.remove)

    def remove(self) -> None:
        """Take the hook off, if it is on."""
        if self._finalizer is not None:
            self._finalizer()  # once: it is gone then
        self._handle = self._finalizer = None
        self._stop_watching()

    def _watched(self) -> list[torch.nn.Module]:
        table = self.target.table
        return [*self.target.surroundings, *([] if table is None else [table])]

    def _stop_watching(self) -> None:
        # By what is there, not by handles: Ctrl-C may have come between a registration and its return.
        for module in self._watched():
            for key, hook in list(module._forward_pre_hooks.items()):
                if isinstance(hook, _Watch) and hook.owner is self:
                    module._forward_pre_hooks.pop(key, None)
                    module._forward_pre_hooks_with_kwargs.pop(key, None)

    @contextmanager
    def running(self, forward_pass: ForwardPass, *, watch: bool = False) -> Iterator[None]:
        """Let ``forward_pass`` answer for the embedding meanwhile, in this thread.

        Args:
            forward_pass: which is beginning.
            watch: note its inner calls. Not for compiled models, which would compile it in.

        Raises:
            RuntimeError: the embedding has not run exactly once.
        """
        first = _next_node()
        try:
            if watch:
                for module in self._watched():
                    module.register_forward_pre_hook(_Watch(self, forward_pass.inner_calls), with_kwargs=True)
            self._running, self._running_thread = forward_pass, threading.get_ident()
            yield
        finally:
            self._running = None
            if watch:
                self._stop_watching()
        forward_pass.nodes = range(first, _next_node())
        if not forward_pass.has_run:
            raise RuntimeError(
                f"the embedding {self.target.name!r} did not run in the forward pass, or ran as code that had been "
                "compiled before the AdversarialEmbedding was made; pass embedding=, a module that runs once, or "
                "compile the model afterwards"
            )

    def keep(self, forward_pass: ForwardPass, loss: Tensor) -> None:
        """Answer for ``forward_pass`` when it is recomputed, for as long as the graph of its ``loss`` lives."""
        if loss.grad_fn is not None:
            loss.grad_fn.metadata[_METADATA_KEY] = (self, forward_pass)  # type: ignore[index]
            self._kept.add(forward_pass)

    def answer(self, output: Any) -> Any:
        """What the embedding, which has just computed ``output``, is to return; None: that."""
        if self._running is not None and self._running_thread == threading.get_ident():
            return self._running.answer(output, self.target.name)
        node = torch._C._current_autograd_node()
        if node is None:
            return None
        number = node._sequence_nr()
        # A clean pass needs no answer: it has added zero.
        replacement = next((kept.replacement for kept in self._kept if number in kept.nodes), None)
        return (replacement, *output[1:]) if replacement is not None and type(output) is tuple else replacement


class _Watch:
    """Notes the calls of a module."""

    def __init__(self, owner: EmbeddingHook, calls: list[InnerCall]) -> None:
        self.owner = owner
        self._calls = calls

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.append(InnerCall(module, args, kwargs))


class AdversarialEmbeddingHook:
    """What is registered with the module. Copies of the model, pickled or not, do without."""

    __name__ = "adversarial_embedding_hook"  # as functions have one, by which torch names hooks

    def __init__(self, hook: EmbeddingHook) -> None:
        self._hook = weakref.ref(hook)

    @_not_compiled
    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        hook = self._hook()
        return None if hook is None else hook.answer(output)

    def __reduce__(self) -> Any:
        return _inert_hook, ()


def _inert_hook() -> Callable[..., None]:
    return _change_nothing


def _change_nothing(module: torch.nn.Module, args: Any, output: Any) -> None:
    return None
