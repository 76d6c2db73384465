"""Parameters that are spread over processes: local views, their place in the whole, and what processes tell each other.

A plain tensor counts as replicated: every process holds all of it. A DTensor is sharded over some dimensions of its
mesh and replicated over the others. Where nothing is sharded and no process group is given, nothing here communicates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from .kernels.step import Position

if dist.is_available():
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    def sharding_of(tensor: Tensor) -> tuple[object, object] | None:
        """Mesh and placements of a DTensor, which says how it is spread; None of a plain tensor."""
        return (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None

    def local(tensor: Tensor) -> Tensor:
        """The part of ``tensor`` that lies in this process; shares its memory."""
        return tensor._local_tensor if isinstance(tensor, DTensor) else tensor

    def whole(tensor: Tensor) -> Tensor:
        """All of ``tensor`` in every process, a sum of parts as the sum; a plain tensor as it is."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def spread_like(param: Tensor, grad: Tensor) -> Tensor:
        """The gradient with the placements of its parameter, which those of tensor parallelism may lack.

        SequenceParallel leaves a partial sum to a replicated parameter, RowwiseParallel a whole one to a sharded
        embedding table.
        """
        if isinstance(grad, DTensor) and isinstance(param, DTensor) and grad.placements != param.placements:
            return grad.redistribute(placements=param.placements)
        return grad

    def shard_groups(param: Tensor) -> tuple[ProcessGroup, ...]:
        """The process groups over which the elements of ``param`` are spread, one per mesh dimension that shards it."""
        if not isinstance(param, DTensor):
            return ()
        mesh = param.device_mesh
        # Not is_shard(), which says no of the strided shards that FSDP2 makes of tensor-parallel parameters.
        return tuple(mesh.get_group(dim) for dim, spread in enumerate(param.placements) if not spread.is_replicate())

    def mesh_groups(params: Iterable[Tensor]) -> list[ProcessGroup]:
        """Every process group of every mesh on which one of ``params`` lies, in order of appearance."""
        meshes = dict.fromkeys(param.device_mesh for param in params if isinstance(param, DTensor))
        return [mesh.get_group(dim) for mesh in meshes for dim in range(mesh.ndim)]

    def position_of(param: Tensor, parameter_id: int) -> Position:
        """Where the local part of ``param`` lies in the whole parameter.

        Raises:
            ValueError: the shard is not a run of rows of one dimension (sharded over two dimensions that are not the
                first of more than one element and a later one), or the parameter is a partial sum.
        """
        if not isinstance(param, DTensor):
            return Position.whole(parameter_id, param.numel())
        if any(spread.is_partial() for spread in param.placements):
            raise ValueError(
                f"RoastAdamW: parameter {parameter_id} is a partial sum {param.placements}: redistribute it"
            )
        shape, offset = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
        strides = [1] * param.ndim
        for dim in reversed(range(param.ndim - 1)):
            strides[dim] = strides[dim + 1] * param.shape[dim + 1]
        cut = [dim for dim in range(param.ndim) if shape[dim] != param.shape[dim]]
        if not cut:
            return Position.whole(parameter_id, param.numel())
        leading = next((dim for dim in range(param.ndim) if param.shape[dim] != 1), 0)
        if any(dim != leading for dim in cut[:-1]):
            raise ValueError(
                f"RoastAdamW: parameter {parameter_id} of shape {tuple(param.shape)} is sharded as {param.placements}, "
                "whose parts are not evenly spaced in the whole; shard the first dimension and at most one other"
            )
        first = sum(start * stride for start, stride in zip(offset, strides, strict=True))
        return Position(
            parameter_id, first, max(shape[cut[-1]] * strides[cut[-1]], 1), param.shape[cut[-1]] * strides[cut[-1]]
        )

else:  # a build of torch without distributed

    def sharding_of(tensor: Tensor) -> tuple[object, object] | None:
        """None: this build of torch knows one process only."""
        return None

    def local(tensor: Tensor) -> Tensor:
        """The tensor itself: this build of torch knows one process only."""
        return tensor

    def whole(tensor: Tensor) -> Tensor:
        """The tensor itself: this build of torch knows one process only."""
        return tensor

    def spread_like(param: Tensor, grad: Tensor) -> Tensor:
        """The gradient itself: this build of torch knows one process only."""
        return grad

    def shard_groups(param: Tensor) -> tuple[ProcessGroup, ...]:
        """No group: this build of torch knows one process only."""
        return ()

    def mesh_groups(params: Iterable[Tensor]) -> list[ProcessGroup]:
        """No group: this build of torch knows one process only."""
        return []

    def position_of(param: Tensor, parameter_id: int) -> Position:
        """The position of a whole parameter."""
        return Position.whole(parameter_id, param.numel())


def check_process_group(group: ProcessGroup | None) -> ProcessGroup | None:
    """``group``, if this process can communicate in it, or None.

    Raises:
        ValueError: torch.distributed is not initialised, or this process is not a member.
    """
    if group is None:
        return None
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            f"RoastAdamW: process_group={group!r}, but torch.distributed is not initialised: call "
            "torch.distributed.init_process_group first, or leave process_group out"
        )
    if not isinstance(group, ProcessGroup):  # what torch.distributed.new_group returns to those that are not in it
        raise ValueError(
            f"RoastAdamW: process_group={group!r} is not a process group of which process {dist.get_rank()} is a "
            "member: pass the group of its own pipeline, or leave process_group out"
        )
    return group


def all_reduced(values: Tensor, groups: Iterable[ProcessGroup]) -> Tensor:
    """``values`` summed over the processes of all groups, in place."""
    for group in groups:
        dist.all_reduce(values, group=group)
    return values


def any_process(flag: bool, groups: Iterable[ProcessGroup], device: torch.device) -> bool:
    """Whether ``flag`` is true in any process of the groups."""
    seen = torch.tensor([flag], dtype=torch.int64, device=device)
    for group in groups:
        dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=group)
    return bool(seen)


def sum_over_lower_ranks(number: int, group: ProcessGroup, device: torch.device) -> int:
    """The sum of what the processes of a lower rank in the group gave as ``number``."""
    rank = dist.get_rank(group)
    numbers = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=device)
    numbers[rank] = number
    return int(all_reduced(numbers, [group])[:rank].sum())


def require_same(description: str, groups: Iterable[ProcessGroup], device: torch.device) -> None:
    """Raise in every process of the groups unless all of them give the same description.

    One all-reduce of 16 bytes per group.

    Raises:
        RuntimeError: descriptions differ.
    """
    fingerprint = int.from_bytes(hashlib.sha256(description.encode()).digest()[:7], "big")
    for group in groups:
        extremes = torch.tensor([fingerprint, -fingerprint], dtype=torch.int64, device=device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
        if int(extremes[0]) != -int(extremes[1]):
            raise RuntimeError(
                "RoastAdamW differs between processes, so their masks would differ: give every process the same seed, "
                f"options and parameter groups. This process has {description}"
            )
