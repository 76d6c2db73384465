"""Optimizers that take a step: RoastAdamW on its backends, torch's AdamW, and RoAST as one would first write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from roast_optim import RoastAdamW
from roast_optim.kernels.backend import load_backend
from roast_optim.kernels.step import TENSORS

from .pairs import Contestant
from .workloads import Shapes, make_parameters

FASTEST = {"cpu": "native", "cuda": "triton"}  # backend of each kind of device
STRAIGHTFORWARD = "straightforward torch RoAST"

ALPHA, BETA = 0.9, 10.0  # the paper's, for sentiment
RECIPE: dict[str, Any] = {"lr": 1e-5, "weight_decay": 0.01}


def cannot_run(backend: str, device: torch.device) -> str | None:
    """Why that backend cannot run on that device in this process; None when it can."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if (reason := load_backend(backend).unavailable()) is not None:
        return reason
    return None if load_backend(backend).supports(device) else f"it does not run on {device}"


def ranked_optimizer(backend: str, shapes: Shapes, device: torch.device, **options: Any) -> RoastAdamW:
    """RoastAdamW after its first refresh, every tensor selective; ``options`` are its own and ``dtype``."""
    return ranked(make_parameters(shapes, device, options.pop("dtype", torch.float32)), backend=backend, **options)


def ranked(parameters: Sequence[nn.Parameter], **options: Any) -> RoastAdamW:
    """RoastAdamW over given parameters with gradients, after its first refresh."""
    own = {**RECIPE, "alpha": ALPHA, "beta": BETA, "selective": True, "refresh_every": None}
    optimizer = RoastAdamW(parameters, **{**own, **options})
    with optimizer.measure_importance():
        optimizer.step()
    optimizer.refresh()
    return optimizer


def roast(backend: str, shapes: Shapes, device: torch.device, **options: Any) -> Contestant:
    """Steps of RoastAdamW, which draw masks; a run is ``importance_every`` steps, of which one accumulates.

    Args:
        backend, shapes, device: where the steps run, and over which tensors.
        options: of RoastAdamW, and ``dtype``.
    """
    return roast_steps(backend, ranked_optimizer(backend, shapes, device, **options))


def roast_steps(name: str, optimizer: RoastAdamW) -> Contestant:
    """Steps of a ranked optimizer; a run is so many that one of them accumulates importance."""
    every = optimizer.options.importance_every
    importance = sum(state["importance"].nbytes for state in optimizer.state.values())
    moved = step_bytes(optimizer) + 2 * importance / every
    return Contestant(name, repeated(optimizer.step, every), calls=every, bytes_moved=moved)


def torch_adamw(
    kind: str, shapes: Shapes, device: torch.device, *, dtype: torch.dtype = torch.float32, calls: int = 1
) -> Contestant:
    """Steps of torch's AdamW: "fused", "foreach" or "for-loop"."""
    return torch_steps(kind, make_parameters(shapes, device, dtype), calls=calls)


def torch_steps(kind: str, parameters: Sequence[nn.Parameter], *, calls: int = 1) -> Contestant:
    """Steps of torch's AdamW over given parameters with gradients."""
    optimizer = AdamW(parameters, **RECIPE, fused=kind == "fused", foreach=kind == "foreach")
    optimizer.step()  # makes the state
    run = repeated(optimizer.step, calls)
    return Contestant(f"torch AdamW, {kind}", run, calls=calls, bytes_moved=step_bytes(optimizer))


def squared_gradients(optimizer: RoastAdamW) -> list[Tensor]:
    """Importance after one step, in the order of the optimizer's state."""
    gradients = [parameter.grad for parameter in optimizer.state]
    return [gradient.float().square() for gradient in gradients if gradient is not None]


def refreshes(optimizer: RoastAdamW, scores: list[Tensor], name: str) -> Contestant:
    """Refreshes with ``scores`` as the importance, which is read twice and set to zero, while the codes are written."""
    states = list(optimizer.state.values())

    def restore() -> None:
        for state, score in zip(states, scores, strict=True):
            state["importance"].copy_(score)

    moved = sum(3 * state["importance"].nbytes + state["rank_code"].nbytes for state in states)
    return Contestant(name, optimizer.refresh, prepare=restore, bytes_moved=moved)


def straightforward_roast(shapes: Shapes, device: torch.device) -> Contestant:
    """RoAST around AdamW in torch operations on whole tensors, with a stored importance and stored probabilities."""
    parameters = make_parameters(shapes, device)
    gradients = [parameter.grad for parameter in parameters]
    importances = [torch.zeros_like(parameter) for parameter in parameters]
    probabilities = [torch.sigmoid(2 * BETA * (torch.rand_like(parameter) - ALPHA)) for parameter in parameters]
    optimizer = AdamW(parameters, **RECIPE)

    @torch.no_grad()
    def step() -> None:
        for i, parameter in enumerate(parameters):
            gradient = gradients[i]
            assert gradient is not None
            importances[i] += gradient**2
            mask = torch.rand_like(gradient) < probabilities[i]
            parameter.grad = mask * gradient / probabilities[i]
        optimizer.step()

    return Contestant(STRAIGHTFORWARD, step)


def double_argsort(scores: list[Tensor]) -> Tensor:
    """Percentile ranks in [0, 1] as the authors of RoAST compute them: by sorting all scores twice, on the host."""
    everything = torch.cat([score.flatten().cpu() for score in scores])
    return torch.argsort(torch.argsort(everything)) / (len(everything) - 1)


def step_bytes(optimizer: Optimizer) -> float:
    """Bytes that a step which accumulates no importance has to read and write."""
    moved = 0.0
    for parameter, state in optimizer.state.items():
        for name, tensor in {**state, "param": parameter, "grad": parameter.grad}.items():
            if TENSORS[name].per_element and name != "importance":
                moved += tensor.nbytes * (1 + TENSORS[name].written)
    return moved


def repeated(step: Callable[[], object], times: int) -> Callable[[], None]:
    """A function that takes so many steps."""

    def run() -> None:
        for _ in range(times):
            step()

    return run
