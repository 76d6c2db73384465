"""Optimizers that take a step: RoastAdamW on its backends, torch's AdamW, and RoAST as one would first write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from roast_optim import RoastAdamW
from roast_optim.kernels.backend import load_backend

from .pairs import Contestant
from .workloads import Shapes, make_parameters

FASTEST = {"cpu": "native", "cuda": "triton"}  # the fused backend of each kind of device
FUSED_ADAMW = "torch AdamW, fused"
STRAIGHTFORWARD = "straightforward torch RoAST"

ALPHA, BETA = 0.9, 10.0  # the paper's, for sentiment
RECIPE: dict[str, Any] = {"lr": 1e-5, "weight_decay": 0.01}


def cannot_run(backend: str, device: torch.device) -> str | None:
    """Why that backend cannot run on that device in this process; None when it can."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    reason = load_backend(backend).unavailable()
    if reason is None and not load_backend(backend).supports(device):
        return f"it does not run on {device.type}"
    return reason


def roast(
    backend: str,
    shapes: Shapes,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    importance_every: int = 1,
) -> Contestant:
    """Steps of RoastAdamW with every tensor selective and masks drawn; ``importance_every`` steps in one run."""
    optimizer = ranked_optimizer(backend, shapes, device, dtype=dtype, importance_every=importance_every)
    bytes_moved = step_bytes(optimizer) - (1 - 1 / importance_every) * importance_bytes(optimizer)
    return Contestant(
        backend_name(backend), repeated(optimizer.step, importance_every), calls=importance_every, bytes_moved=bytes_moved
    )


def ranked_optimizer(
    backend: str,
    shapes: Shapes,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    importance_every: int = 1,
) -> RoastAdamW:
    """A RoastAdamW after its first refresh, which holds no importance yet."""
    optimizer = RoastAdamW(
        make_parameters(shapes, device, dtype),
        **RECIPE,
        alpha=ALPHA,
        beta=BETA,
        importance_every=importance_every,
        backend=backend,
    )
    with optimizer.measure_importance():
        optimizer.step()
    optimizer.refresh()
    return optimizer


def backend_name(backend: str) -> str:
    return backend


def torch_adamw(kind: str, shapes: Shapes, device: torch.device, dtype: torch.dtype = torch.float32, calls: int = 1) -> Contestant:
    """Steps of torch's AdamW: "fused", "foreach" or "for-loop"."""
    optimizer = AdamW(
        make_parameters(shapes, device, dtype), **RECIPE, fused=kind == "fused", foreach=kind == "foreach"
    )
    optimizer.step()  # makes the state
    return Contestant(f"torch AdamW, {kind}", repeated(optimizer.step, calls), calls=calls, bytes_moved=step_bytes(optimizer))


def straightforward_roast(shapes: Shapes, device: torch.device) -> Contestant:
    """RoAST in torch operations on whole tensors, with a stored importance and stored probabilities, around AdamW."""
    parameters = make_parameters(shapes, device)
    gradients = [parameter.grad for parameter in parameters]
    importances = [torch.zeros_like(parameter) for parameter in parameters]
    probabilities = [torch.sigmoid(2 * BETA * (torch.rand_like(parameter) - ALPHA)) for parameter in parameters]
    optimizer = AdamW(parameters, **RECIPE)

    @torch.no_grad()
    def step() -> None:
        for parameter, gradient, importance, probability in zip(
            parameters, gradients, importances, probabilities, strict=True
        ):
            assert gradient is not None
            importance += gradient**2
            mask = torch.rand_like(gradient) < probability
            parameter.grad = mask * gradient / probability
        optimizer.step()

    return Contestant(STRAIGHTFORWARD, step)


def double_argsort(scores: list[Tensor]) -> Tensor:
    """Percentile ranks in [0, 1] as the authors of RoAST compute them: by sorting all scores twice, on the host."""
    everything = torch.cat([score.flatten().cpu() for score in scores])
    return torch.argsort(torch.argsort(everything)) / (len(everything) - 1)


def step_bytes(optimizer: Optimizer) -> int:
    """Bytes of the tensors that a step reads plus bytes of those that it writes: all but gradient and rank code, both."""
    moved = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            both = [parameter, state["exp_avg"], state["exp_avg_sq"]]
            read = [parameter.grad]
            if "rank_code" in state:
                both.append(state["importance"])
                read.append(state["rank_code"])
            moved += 2 * sum(tensor.nbytes for tensor in both) + sum(tensor.nbytes for tensor in read)
    return moved


def importance_bytes(optimizer: Optimizer) -> int:
    """The part of :func:`step_bytes` that a step without accumulation saves."""
    return 2 * sum(state["importance"].nbytes for state in optimizer.state.values())


def repeated(step: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            step()

    return run
