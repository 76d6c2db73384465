"""A small training run that gives the same gradients however its parameters are spread over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from roast_optim import RoastAdamW

STEPS, REFRESH_EVERY = 12, 4
OPTIONS: dict[str, Any] = {"lr": 1e-2, "alpha": 0.6, "beta": 5.0, "refresh_every": REFRESH_EVERY, "seed": 7}


class Network(nn.Module):
    """Rows that no number of processes divides, a parameter with fewer rows than processes, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 13)
        self.second = nn.Linear(13, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """A regression output of shape ``[batch, 3]``."""
        output: Tensor = self.second(torch.tanh(self.first(x))) * self.scale
        return output


def network() -> Network:
    """The same network in every process."""
    torch.manual_seed(0)
    return Network()


def batch(step: int, share: int = 0, shares: int = 1) -> Tensor:
    """Inputs of one step; with ``shares`` > 1 one share of them."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
    return x[share * 8 // shares : (share + 1) * 8 // shares]


def train(model: nn.Module, optimizer: RoastAdamW, first: int = 0, last: int = STEPS, split: bool = False) -> None:
    """Steps ``first`` to ``last`` - 1; with ``split`` every process takes its own share of each batch."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if split else (0, 1)
    for step in range(first, last):
        model(batch(step, rank, world)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def outcome(model: nn.Module, optimizer: RoastAdamW) -> dict[str, Any]:
    """Parameters, rank codes and counters, whole, by parameter."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return {
        "params": [whole(param) for param in params],
        "codes": [whole(optimizer.state[param]["rank_code"]) for param in params],
        "refreshes": optimizer.param_groups[0]["refreshes"],
    }


def single(backend: str = "reference", steps: int = STEPS) -> dict[str, Any]:
    """The run in one process."""
    model = network()
    optimizer = RoastAdamW(model.parameters(), backend=backend, **OPTIONS)
    train(model, optimizer, last=steps)
    return outcome(model, optimizer)


def replicated(steps: int, split: bool) -> dict[str, Any]:
    """The run under DistributedDataParallel."""
    model = network()
    wrapped = DistributedDataParallel(model)
    optimizer = RoastAdamW(model.parameters(), backend="reference", **OPTIONS)
    train(wrapped, optimizer, last=steps, split=split)
    return outcome(model, optimizer)


def _fully_sharded(model: nn.Module) -> None:
    fully_shard(model)


def _hybrid_sharded(model: nn.Module) -> None:
    fully_shard(model, mesh=init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "shard")))


def _sharded_by_columns(model: nn.Module) -> None:
    """Weights of two dimensions sharded along the second, everything else along the first."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def spread(_: str, module: nn.Module, mesh: Any) -> None:
        for name, param in list(module.named_parameters(recurse=False)):
            dim = 1 if param.ndim == 2 else 0
            module.register_parameter(name, nn.Parameter(distribute_tensor(param.data, mesh, [Shard(dim)])))

    distribute_module(model, mesh, spread)


WAYS_TO_SHARD: dict[str, Callable[[nn.Module], None]] = {
    "fsdp2": _fully_sharded,
    "hsdp": _hybrid_sharded,
    "columns": _sharded_by_columns,
}


def sharded(way: str, split: bool = False, backend: str = "reference") -> dict[str, Any]:
    """The run with DTensor parameters; gradients of the column-sharded model are set by hand from a whole copy."""
    model = network()
    copy = network()
    WAYS_TO_SHARD[way](model)
    optimizer = RoastAdamW(model.parameters(), backend=backend, **OPTIONS)
    if way != "columns":
        train(model, optimizer, split=split)
        return outcome(model, optimizer)
    for step in range(STEPS):
        with torch.no_grad():
            for target, param in zip(copy.parameters(), model.parameters(), strict=True):
                target.copy_(whole(param))
        copy.zero_grad()
        copy(batch(step)).square().mean().backward()
        for target, param in zip(copy.parameters(), model.parameters(), strict=True):
            assert isinstance(param, DTensor)
            assert target.grad is not None
            param.grad = distribute_tensor(target.grad, param.device_mesh, param.placements)
        optimizer.step()
    return outcome(model, optimizer)
