"""The fused RoAST step: which parameters share a launch, and what the launch is given.

One launch serves all parameters of a device that agree in dtypes, alignment and kind of placement.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import reference
from ..backend import Placement, Selection
from .importance import FLOAT_TYPES
from .launch import OPTIONS, cached_outside_graphs, on
from .pointer_table import PointerTable, is_aligned
from .roast_adamw_kernel import roast_adamw_kernel


class Variant(NamedTuple):
    """What the parameters of one launch have in common; compiled into the kernel."""

    device: torch.device
    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype
    aligned: bool  # all addresses are multiples of 16 bytes
    run: bool  # the elements lie side by side in the whole parameter and begin at a multiple of four


def roast_adamw_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    importances: list[Tensor],
    rank_codes: list[Tensor],
    placements: list[Placement],
    *,
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    maximize: bool,
    capturable: bool,
    accumulate: bool,
    selection: Selection | None,
) -> None:
    """One step, in place; see :func:`..reference.roast_adamw_`. The host does not wait for the device.

    Masks and importance are the reference's bit for bit. Values agree to rounding: arithmetic is in float32 and each
    result is rounded once. With ``capturable`` the step counts are read on the device; so is a learning rate that is a
    tensor there. What is not contiguous or not of dtype float32, bfloat16 or float16 takes the reference, and so does
    everything if a beta is a tensor on the device.

    Raises:
        ValueError: the tensors of a parameter differ in device or shape, or ``capturable`` with step counts elsewhere.
    """
    lists = [
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs if amsgrad else [],
        importances if accumulate else [],
        rank_codes if selection is not None else [],
    ]
    given = [column for column, tensors in enumerate(lists) if tensors]
    betas_on_device = any(isinstance(beta, Tensor) and beta.is_cuda for beta in (beta1, beta2))
    members: dict[Variant | None, list[int]] = defaultdict(list)
    addresses = [[0] * len(lists) for _ in params]
    for i, tensors in enumerate(zip(*(lists[column] for column in given), strict=True)):
        for column, tensor in zip(given, tensors, strict=True):
            addresses[i][column] = tensor.data_ptr()
        variant = None if betas_on_device else _variant(tensors, addresses[i], placements[i])
        members[variant].append(i)
        if capturable and state_steps[i].device != tensors[0].device:
            raise ValueError(
                f"capturable=True with a step count on {state_steps[i].device} and a parameter on {tensors[0].device}; "
                "move the step count there"
            )

    for variant, indices in members.items():
        steps = [state_steps[i] for i in indices]
        if variant is None:
            some = [[tensors[i] for i in indices] if tensors else [] for tensors in lists]
            reference.roast_adamw_(
                some[0], some[1], some[2], some[3], some[4], steps, some[5], some[6], [placements[i] for i in indices],
                lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize,
                capturable=capturable, accumulate=accumulate, selection=selection,
            )  # fmt: skip
            continue
        torch._foreach_add_(steps, 1.0)
        columns = [
            [*addresses[i], step.data_ptr() if capturable else int(step), *placements[i]]
            for i, step in zip(indices, steps, strict=True)
        ]
        with on(variant.device):
            table = PointerTable(variant.device, [params[i].numel() for i in indices], columns)
            roast_adamw_kernel[table.grid](
                table.rows,
                table.tensor_of_program,
                None if selection is None else _packed_tables(selection.thresholds, selection.rescaling),
                _as_int32(selection.seed) if selection else 0,
                _as_int32(selection.seed >> 32) if selection else 0,
                _as_int32(selection.draw_number or 0) if selection else 0,
                lr if isinstance(lr, Tensor) and lr.device == variant.device else float(lr),
                float(weight_decay),
                float(eps),
                float(beta1),
                1.0 - float(beta1),
                _log(float(beta1)),
                float(beta2),
                1.0 - float(beta2),
                _log(float(beta2)),
                **table.constants,
                PARAM_TYPE=FLOAT_TYPES[variant.param],
                GRAD_TYPE=FLOAT_TYPES[variant.grad],
                STATE_TYPE=FLOAT_TYPES[variant.state],
                LARGEST=torch.finfo(variant.grad).max,
                ALIGNED=variant.aligned,
                RUN=variant.run,
                ACCUMULATE=accumulate,
                SELECT=selection is not None,
                DRAW_BY_STEP=selection is not None and selection.draw_number is None,
                AMSGRAD=amsgrad,
                MAXIMIZE=maximize,
                STEP_ON_DEVICE=capturable,
                LR_ON_DEVICE=isinstance(lr, Tensor) and lr.device == variant.device,
                **OPTIONS,
            )
        increment_version([params[i] for i in indices])  # as every in-place operation of torch, for autograd to notice


def _variant(tensors: tuple[Tensor, ...], addresses: list[int], placement: Placement) -> Variant | None:
    """The launch that a parameter belongs to; None: the reference."""
    param, grad, exp_avg, exp_avg_sq = tensors[:4]
    device, shape, contiguous = param.device, param.shape, True
    for tensor in tensors:
        if tensor.device != device or tensor.shape != shape:
            raise ValueError(
                f"a parameter of shape {tuple(shape)} on {device} came with a tensor of shape {tuple(tensor.shape)} on "
                f"{tensor.device}; all tensors of a parameter must agree"
            )
        contiguous = contiguous and tensor.is_contiguous()
    dtypes = (param.dtype, grad.dtype, exp_avg.dtype)
    if not contiguous or exp_avg_sq.dtype != exp_avg.dtype or not FLOAT_TYPES.keys() >= set(dtypes):
        return None
    run = placement.inner_length >= param.numel() and placement.first_index % 4 == 0
    return Variant(device, *dtypes, is_aligned(addresses), run)


@cached_outside_graphs
def _packed_tables(thresholds: Tensor, rescaling: Tensor) -> Tensor:
    """Threshold and the bits of the rescaling factor side by side, so that one access fetches both; int64 ``[256]``."""
    return (rescaling.view(torch.int32).to(torch.int64) << 32) | thresholds


def _as_int32(word: int) -> int:
    """The lower 32 bits, as the signed number that triton passes as int32 whatever its value."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf
