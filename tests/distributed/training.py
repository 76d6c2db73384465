"""A small training run that gives the same gradients however its parameters are spread over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from roast_optim import RoastAdamW

STEPS, REFRESH_EVERY = 12, 4
# Without momentum the first moment is the masked gradient: what is not zero was kept.
OPTIONS: dict[str, Any] = {
    "lr": 1e-2, "betas": (0.0, 0.99), "alpha": 0.6, "beta": 5.0, "refresh_every": REFRESH_EVERY, "seed": 7,
}  # fmt: skip
UNEVEN, EVEN = 13, 12


class Network(nn.Module):
    """Rows that no number of processes divides (if ``hidden`` is 13), a parameter with fewer rows, and a scalar."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, hidden)
        self.second = nn.Linear(hidden, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """A regression output of shape ``[batch, 3]``."""
        output: Tensor = self.second(torch.tanh(self.first(x))) * self.scale
        return output


def network(hidden: int = UNEVEN) -> Network:
    """The same network in every process."""
    torch.manual_seed(0)
    return Network(hidden)


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
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def outcome(model: nn.Module, optimizer: RoastAdamW) -> dict[str, Any]:
    """Parameters, rank codes, masks of the last step and counters, whole, by the parameter's name."""
    selective = {name: param for name, param in model.named_parameters() if "rank_code" in optimizer.state[param]}
    return {
        "params": {name: whole(param) for name, param in model.named_parameters()},
        "codes": {name: whole(optimizer.state[param]["rank_code"]) for name, param in selective.items()},
        "masks": {name: whole(optimizer.state[param]["exp_avg"]) != 0 for name, param in selective.items()},
        "refreshes": optimizer.param_groups[0]["refreshes"],
    }


def assert_same_outcome(result: dict[str, Any], expected: dict[str, Any]) -> None:
    """Rank codes and masks are equal exactly, parameters to rounding."""
    assert result["refreshes"] == expected["refreshes"]
    for name in expected["codes"]:
        assert torch.equal(result["codes"][name], expected["codes"][name])
        assert torch.equal(result["masks"][name], expected["masks"][name])
    for name in expected["params"]:
        torch.testing.assert_close(result["params"][name], expected["params"][name], rtol=1e-6, atol=1e-7)


def share_of_differing_codes(result: dict[str, Any], expected: dict[str, Any]) -> float:
    """Share of elements with another rank code; where codes are equal, the masks must be."""
    differing = elements = 0
    for name, codes in expected["codes"].items():
        same = result["codes"][name] == codes
        assert torch.equal(result["masks"][name][same], expected["masks"][name][same])
        differing += int(same.logical_not().sum())
        elements += codes.numel()
    return differing / elements


def single(backend: str = "reference", steps: int = STEPS, hidden: int = UNEVEN) -> dict[str, Any]:
    """The run in one process."""
    model = network(hidden)
    optimizer = RoastAdamW(model.parameters(), backend=backend, **OPTIONS)
    train(model, optimizer, last=steps)
    return outcome(model, optimizer)


def replicated(steps: int, split: bool, backend: str = "reference") -> dict[str, Any]:
    """The run under DistributedDataParallel."""
    model = network()
    wrapped = DistributedDataParallel(model)
    optimizer = RoastAdamW(model.parameters(), backend=backend, **OPTIONS)
    train(wrapped, optimizer, last=steps, split=split)
    return outcome(model, optimizer)


def _fully_sharded(model: nn.Module) -> None:
    fully_shard(model)


def _hybrid_sharded(model: nn.Module) -> None:
    fully_shard(model, mesh=init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "shard")))


def _tensor_parallel(model: nn.Module, mesh: DeviceMesh | None = None) -> None:
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"first": ColwiseParallel(), "second": RowwiseParallel()})


def _fully_sharded_tensor_parallel(model: nn.Module) -> None:
    """Two dimensions of the mesh shard the same dimension of a parameter: a strided shard."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("shard", "tp"))
    _tensor_parallel(model, mesh["tp"])
    fully_shard(model, mesh=mesh["shard"])


def sharded_by_columns(model: nn.Module) -> None:
    """Weights of two dimensions sharded along the second, everything else along the first."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def spread(_: str, module: nn.Module, mesh: Any) -> None:
        for name, param in list(module.named_parameters(recurse=False)):
            dim = 1 if param.ndim == 2 else 0
            module.register_parameter(name, nn.Parameter(distribute_tensor(param.data, mesh, [Shard(dim)])))

    distribute_module(model, mesh, spread)


WAYS_TO_SHARD: dict[str, tuple[Callable[[nn.Module], None], int]] = {
    "fsdp2": (_fully_sharded, UNEVEN),
    "hsdp": (_hybrid_sharded, UNEVEN),
    "tensor parallel": (_tensor_parallel, EVEN),
    "fsdp2 and tensor parallel": (_fully_sharded_tensor_parallel, EVEN),
}


def sharded(way: str, split: bool = False, backend: str = "reference") -> dict[str, Any]:
    """The run with parameters sharded in one of the ``WAYS_TO_SHARD``."""
    shard, hidden = WAYS_TO_SHARD[way]
    model = network(hidden)
    shard(model)
    optimizer = RoastAdamW(model.parameters(), backend=backend, **OPTIONS)
    train(model, optimizer, split=split)
    return outcome(model, optimizer)


def sharded_with_given_gradients(backend: str = "reference") -> dict[str, Any]:
    """The run with column shards, through which torch runs no model: gradients come from a whole copy."""
    model, copy = network(), network()
    sharded_by_columns(model)
    optimizer = RoastAdamW(model.parameters(), backend=backend, **OPTIONS)
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
