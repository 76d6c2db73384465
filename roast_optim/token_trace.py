"""What a model makes of two tokens, and what reaches its first transformer block."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .param_groups import transformer_blocks

_LARGE_BUFFER = 2**20  # quantised weights, which are not copied


def has_forward(module: nn.Module) -> bool:
    """Can it be called, unlike nn.ModuleList and nn.ModuleDict?"""
    return type(module).forward is not nn.Module.forward


@dataclass(frozen=True)
class TokenTrace:
    """What two tokens, ``[1, 2]``, passed on their way through a model.

    Attributes:
        outputs: each module that returned a tensor, with that tensor, in the order in which they returned.
        block_inputs: the tensors that the first block was given when it first ran.
    """

    outputs: list[tuple[nn.Module, Tensor]]
    block_inputs: list[Tensor]

    @classmethod
    def of(cls, path: list[nn.Module]) -> TokenTrace | str:
        """Run the smallest of these modules that holds blocks and runs on tokens, or say why none does.

        A copy of it runs, which shares its parameters: models change themselves when they run, as BigBird does for
        few tokens.
        """
        first_block, reason = None, "no module holds both the table and transformer blocks"
        for module in path:
            if first_block is None and (stacks := transformer_blocks(module)):
                first_block = stacks[0][0]
            if first_block is not None and has_forward(module):
                try:
                    return cls._run(module, first_block)
                except Exception as error:  # it takes something other than tokens, whatever that is, or has no copy
                    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return reason

    @classmethod
    def _run(cls, original: nn.Module, first_block: nn.Module) -> TokenTrace:
        outputs: list[tuple[nn.Module, Tensor]] = []
        block_inputs: list[Tensor] = []
        copies: dict[int, Any] = {}
        model = _copy_that_shares_parameters(original, copies)
        originals = {copies[id(module)]: module for module in original.modules()}

        def record(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.append((originals[module], output))

        def reach(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not block_inputs:
                block_inputs.extend(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

        device = next(model.parameters()).device
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            for module in model.modules():
                module._forward_hooks.clear()  # those of the caller see no run but the caller's
                module.register_forward_hook(record)
            copies[id(first_block)].register_forward_pre_hook(reach, with_kwargs=True)
            try:
                # To the end, for modules that run before the first block and again after the last one.
                model.eval()(torch.zeros(1, 2, dtype=torch.long, device=device))
            except Exception:
                if not block_inputs:
                    raise
        if not block_inputs:
            raise RuntimeError("two tokens did not reach the first block")
        return cls(outputs, block_inputs)

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


def _copy_that_shares_parameters(model: nn.Module, copies: dict[int, Any]) -> nn.Module:
    """A copy with parameters, and large buffers, that are the model's own.

    Args:
        model: to be copied.
        copies: filled with the copies by the ids of the originals.
    """
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values()):
            if value is not None and (isinstance(value, nn.Parameter) or value.numel() > _LARGE_BUFFER):
                copies[id(value)] = value
        for value in vars(module).values():
            if isinstance(value, Tensor):  # deepcopy refuses those with a graph
                copies[id(value)] = value.detach().clone()
    return copy.deepcopy(model, copies)
