"""A shard's position names exactly the elements of the whole parameter that lie in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from roast_optim.sharding import local, position_of

WORLD = 4


@pytest.fixture(params=range(WORLD))
def rank(request: pytest.FixtureRequest) -> Iterator[int]:
    """One process of four, without the other three."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=WORLD)
    yield request.param
    dist.destroy_process_group()


def spread_over(mesh: DeviceMesh, whole: torch.Tensor, spread: Sequence[Placement]) -> DTensor:
    """The part of a tensor that every process has; nothing is sent, as distribute_tensor of torch 2.6 would."""
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=spread)


@pytest.mark.parametrize(
    ("shape", "mesh_shape", "spread"),
    [
        ((8, 3), (4,), [Shard(0)]),
        ((7, 3), (4,), [Shard(0)]),
        ((2, 5), (4,), [Shard(0)]),
        ((3, 7), (4,), [Shard(1)]),
        ((3, 5, 9), (4,), [Shard(1)]),
        ((3, 5, 9), (4,), [Shard(2)]),
        ((5, 7), (4,), [Replicate()]),
        ((5, 6), (2, 2), [Shard(0), Shard(0)]),
        ((5, 6), (2, 2), [Shard(0), Shard(1)]),
        ((5, 6, 7), (2, 2), [Shard(2), Shard(0)]),
        ((1, 6, 7), (2, 2), [Shard(1), Shard(2)]),
        ((5, 6), (2, 2), [Replicate(), Shard(1)]),
        ((6,), (4,), [Shard(0)]),
        ((1,), (4,), [Shard(0)]),
    ],
    ids=str,
)
def test_placement_names_the_local_elements(
    rank: int, shape: tuple[int, ...], mesh_shape: tuple[int, ...], spread: list[Shard | Replicate]
) -> None:
    mesh = init_device_mesh("cpu", mesh_shape)
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    part = spread_over(mesh, whole, spread)
    place = position_of(part, 3)
    j = torch.arange(local(part).numel())
    elements = place.first_index + j // place.inner_length * place.outer_stride + j % place.inner_length
    assert place.parameter_id == 3
    assert torch.equal(elements, local(part).reshape(-1))


def test_shards_that_are_not_evenly_spaced_are_refused(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    part = spread_over(mesh, torch.zeros(3, 4, 6), [Shard(1), Shard(2)])
    with pytest.raises(ValueError, match=r"parameter 5 .* not evenly spaced"):
        position_of(part, 5)


def test_plain_tensors_are_whole() -> None:
    assert tuple(position_of(torch.zeros(3, 4), 2)) == (2, 0, 12, 0)
