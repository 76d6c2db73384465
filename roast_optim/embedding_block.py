"""Where the embedding output of a model is, found by structure."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .model_wrappers import is_compiled, is_fully_sharded, unwrapped
from .param_groups import transformer_blocks


@dataclass(frozen=True)
class EmbeddingOutput:
    """The module whose output is perturbed.

    Attributes:
        module: returns one tensor, ``[batch, tokens, hidden]``.
        name: of the module in the model without its wrappers.
        is_table: it is the word-embedding table, which ``inputs_embeds`` bypasses.
        tokens_first: it returns ``[tokens, batch, hidden]``, as XLNet's table does.
    """

    module: nn.Module
    name: str
    is_table: bool
    tokens_first: bool


def find_embedding_output(model: nn.Module, embedding: str | nn.Module | None) -> EmbeddingOutput:
    """Find what :class:`.AdversarialEmbedding` perturbs.

    With ``embedding=None`` it is the embedding block: the largest module that holds the word-embedding table but no
    transformer block (``embeddings`` of BERT and its like; ALBERT's and ELECTRA's before the projection to the width
    of the blocks). Where the table lies beside the blocks, it is the first module whose output reaches the first block
    unchanged, dropout aside: GPT-2's ``drop`` after words and positions, BART's ``layernorm_embedding``, the table of
    Llama, T5 and XLNet. Failing that, or without blocks, it is the table. Of an encoder-decoder model all this means
    the encoder.

    To see what reaches the first block, and in which layout, two tokens are sent through the model up to that block,
    in evaluation mode and without gradients.

    Raises:
        ValueError: the model has no embeddings, or ``embedding`` is not one of its modules; the model is a
            ``DataParallel``, or compiled already, or sharded already so that no tokens can be sent through a part.
    """
    if isinstance(model, nn.DataParallel):
        raise ValueError("model is a DataParallel, whose replicas bypass hooks; wrap it in DistributedDataParallel")
    names = {module: name for name, module in unwrapped(model).named_modules()}
    root = _encoder(unwrapped(model))
    table = _word_embedding_table(root)
    path = [] if table is None else _ancestors(root, table)
    trace = None if any(is_fully_sharded(module) for module in path) else _Trace.of(path)
    if isinstance(embedding, nn.Module):
        module = embedding
        if module not in names:
            raise ValueError(f"embedding={type(module).__name__}(...) is not a module of the model; pass one that is")
    elif embedding not in (None, "word"):
        raise ValueError(f'embedding={embedding!r} must be None, "word" or a module of the model')
    elif table is None:
        raise ValueError(
            f"model={type(model).__name__} has no embeddings, neither get_input_embeddings() nor an nn.Embedding; pass "
            "embedding=, the module whose output is to be perturbed"
        )
    else:
        module = table if embedding == "word" else _embedding_block(table, path, trace)
    _refuse_compiled(model, module)
    return EmbeddingOutput(module, names[module], module is table, trace is not None and trace.tokens_first(module))


def _encoder(model: nn.Module) -> nn.Module:
    """The encoder of an encoder-decoder model of transformers, else the model."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        encoder: nn.Module = model.get_encoder()  # type: ignore[operator]
        return encoder
    return model


def _word_embedding_table(root: nn.Module) -> nn.Module | None:
    """What ``get_input_embeddings()`` returns, as in transformers, else the nn.Embedding that was registered first."""
    inside = list(root.modules())
    if hasattr(root, "get_input_embeddings"):
        try:
            table = root.get_input_embeddings()  # type: ignore[operator]
        except NotImplementedError:  # how a model of transformers says that it has none
            table = None
        if any(module is table for module in inside):
            found: nn.Module = table
            return found
    return next((module for module in inside if isinstance(module, nn.Embedding)), None)


def _ancestors(root: nn.Module, module: nn.Module) -> list[nn.Module]:
    """The modules of ``root`` that contain ``module``, from the smallest to ``root`` itself."""
    name = next(name for name, candidate in root.named_modules() if candidate is module)
    parts = name.split(".") if name else []
    return [root.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) - 1, -1, -1)]


def _has_forward(module: nn.Module) -> bool:
    """Can it be called, unlike nn.ModuleList and nn.ModuleDict?"""
    return type(module).forward is not nn.Module.forward


def _embedding_block(table: nn.Module, path: list[nn.Module], trace: _Trace | None) -> nn.Module:
    block = table
    for module in path:
        if transformer_blocks(module):
            break
        if _has_forward(module):
            block = module
    else:
        return table
    if block is not table:
        return block
    if trace is None and any(is_fully_sharded(module) for module in path):
        raise ValueError(
            "model is sharded already, and its embedding block cannot be found without running a part of it; make the "
            'AdversarialEmbedding before sharding, or pass embedding="word" or the module to perturb'
        )
    return (trace.source_of_first_block() if trace is not None else None) or table


def _refuse_compiled(model: nn.Module, module: nn.Module) -> None:
    for outer in model.modules():
        if is_compiled(outer) and any(inner is module for inner in outer.modules()):
            raise ValueError(
                f"model={type(outer).__name__} is compiled already, and compiled code ignores new hooks; make the "
                "AdversarialEmbedding first, then compile (model.compile(), or adversary.model = torch.compile(model))"
            )


class _FirstBlockReached(Exception):  # noqa: N818
    """Stops the run of a trace, as it should."""


@dataclass(frozen=True)
class _Trace:
    """What two tokens, ``[1, 2]``, passed on their way to the first block.

    Attributes:
        outputs: each module that returned a tensor, with that tensor, in the order in which they returned.
        block_inputs: the tensors that the first block was given.
    """

    outputs: list[tuple[nn.Module, Tensor]]
    block_inputs: list[Tensor]

    @classmethod
    def of(cls, path: list[nn.Module]) -> _Trace | None:
        """Run the smallest of these modules that holds blocks; None if there is none, or none that runs on tokens."""
        first_block = None
        for module in path:
            if first_block is None and (stacks := transformer_blocks(module)):
                first_block = stacks[0][0]
            if first_block is not None and _has_forward(module):
                return cls._run(module, first_block)
        return None

    @classmethod
    def _run(cls, model: nn.Module, first_block: nn.Module) -> _Trace | None:
        outputs: list[tuple[nn.Module, Tensor]] = []
        block_inputs: list[Tensor] = []

        def record(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.append((module, output))

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            block_inputs.extend(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            raise _FirstBlockReached

        device = next(model.parameters()).device
        modes = [(module, module.training) for module in model.modules()]
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            stack.callback(_restore_modes, modes)
            for module in model.modules():
                stack.enter_context(module.register_forward_hook(record))
            stack.enter_context(first_block.register_forward_pre_hook(stop, with_kwargs=True))
            try:
                model.eval()(torch.zeros(1, 2, dtype=torch.long, device=device))
            except _FirstBlockReached:
                return cls(outputs, block_inputs)
            except Exception:  # it takes something other than tokens, whatever that is
                return None
        return None

    def source_of_first_block(self) -> nn.Module | None:
        """The first module whose very output is what the first block works on; in evaluation, dropout is no step."""
        ran = [module for module, _ in self.outputs]
        for module, output in self.outputs:
            reaches_block = any(output is given for given in self.block_inputs)
            if reaches_block and _is_hidden_state(output) and ran.count(module) == 1:
                return module
        return None

    def tokens_first(self, module: nn.Module) -> bool:
        """Does ``module`` return ``[tokens, batch, hidden]``?"""
        return any(traced is module and output.shape[:2] == (2, 1) for traced, output in self.outputs)


def _is_hidden_state(value: Tensor) -> bool:
    return value.ndim == 3 and value.is_floating_point()


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
