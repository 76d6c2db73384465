"""PyTorch's own database of optimizer cases: every AdamW input, error input and schedule of it, on each backend.

Parameters lie on the device of the tests, so that the database also has what it has for GPUs alone.

Left out are the error inputs that name foreach, an implementation that RoastAdamW does not have. Its options foreach,
fused and differentiable are tested with the other options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from roast_optim import RoastAdamW
from tests.support.devices import CPU, DEVICE, Places
from tests.support.layouts import LAYOUTS
from tests.support.snapshot import assert_same_bits
from tests.support.torch_tests import optim_db

ADAMW = next(info for info in optim_db if info.optim_cls is torch.optim.AdamW)
INPUTS = ADAMW.optim_inputs_func(device=str(DEVICE))
ERROR_INPUTS = [
    case
    for case in ADAMW.optim_error_inputs_func(device=str(DEVICE), dtype=torch.float32)
    if "foreach" not in case.optimizer_error_input.kwargs
]
STEPS = 12

pytestmark = pytest.mark.one_in(4)


@pytest.fixture(autouse=True)
def counted(count_case: Callable[[], None]) -> None:
    """Every test here is one case."""
    count_case()


every_input = pytest.mark.parametrize("case", INPUTS, ids=lambda case: case.desc or "default")


def parameters(
    dtype: torch.dtype, layout: str, shape: tuple[int, int] = (10, 5), device: torch.device = DEVICE
) -> list[torch.nn.Parameter]:
    """Weight and bias of the linear model that PyTorch's tests train, an empty parameter and a scalar."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    rest = [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in ((shape[0],), (0,), ())]
    return [torch.nn.Parameter(Places(device).of(value)) for value in (LAYOUTS[layout](weight), *rest)]


def set_gradients(params: list[torch.nn.Parameter], step: int, layout: str) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for index, param in enumerate(params):
        gradient = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.device, param.dtype)
        if layout == "expanded gradient":
            gradient = gradient.new_full((), 0.1 * (step + 1)).expand(param.shape)
        param.grad = None if (step + index) % 5 == 4 else gradient


def options_of(case: Any) -> dict[str, Any]:
    """A copy, for an optimizer may keep and change a tensor."""
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in case.kwargs.items()}


def tensors_of(optimizer: torch.optim.Optimizer, like: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The parameters and the moments that `like` has of them, by what they are."""
    tensors = {}
    pairs = zip(optimizer.param_groups[0]["params"], like.param_groups[0]["params"], strict=True)
    for i, (param, other) in enumerate(pairs):
        tensors[f"parameter {i}"] = param.detach()
        for name in like.state.get(other, {}):
            tensors[f"{name} of parameter {i}"] = optimizer.state[param][name]
    return tensors


def assert_agree(ours: RoastAdamW, theirs: torch.optim.Optimizer, exact: torch.optim.Optimizer, backend: str) -> None:
    """Parameters and moments are equal bit for bit on the reference, to rounding elsewhere.

    In half precision AdamW itself is inexact, since it rounds after every operation: a fused backend may then be no
    further from AdamW in float64, `exact`, than AdamW is, or than two roundings of the result.
    """
    of_mine, of_theirs, of_exact = (tensors_of(each, theirs) for each in (ours, theirs, exact))
    assert of_mine.keys() == of_theirs.keys()
    for what, mine in of_mine.items():
        other, truth = of_theirs[what], of_exact[what]
        assert mine.dtype == other.dtype, what
        if backend == "reference":
            assert_same_bits(mine, other, what)
        elif mine.element_size() > 2:
            torch.testing.assert_close(mine, other, check_stride=False, msg=lambda said, what=what: f"{what}: {said}")
        elif mine.numel():
            two_roundings = 2 * torch.finfo(mine.dtype).eps * truth.abs().max()
            allowed = torch.maximum((other.double() - truth).abs().max(), two_roundings)
            assert (mine.double() - truth).abs().max() <= allowed, what


def take_steps_alike(
    case: Any, dtype: torch.dtype, layout: str, backend: str, make_schedulers: Any = ()
) -> tuple[RoastAdamW, torch.optim.AdamW, torch.optim.AdamW]:
    """Our optimizer, PyTorch's and PyTorch's in float64 after equal gradients."""
    ours, theirs = parameters(dtype, layout), parameters(dtype, layout)
    exact = [torch.nn.Parameter(param.detach().to(torch.float64, copy=True)) for param in theirs]
    optimizers = (
        RoastAdamW(ours, **options_of(case), backend=backend),
        torch.optim.AdamW(theirs, **options_of(case), foreach=False),
        torch.optim.AdamW(exact, **options_of(case), foreach=False),
    )
    schedulers = [make(optimizer) for optimizer in optimizers for make in make_schedulers]
    for step in range(STEPS):
        set_gradients(ours, step, layout)
        set_gradients(theirs, step, layout)
        for param, other in zip(exact, theirs, strict=True):
            param.grad = None if other.grad is None else other.grad.double()
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in schedulers:
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(1.0)
            else:
                scheduler.step()
    return optimizers


@every_input
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_input_trains_as_adamw(case: Any, dtype: torch.dtype, layout: str, device_backend: str) -> None:
    assert_agree(*take_steps_alike(case, dtype, layout, device_backend), device_backend)


@every_input
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{"alpha": 0.6, "beta": 1.0}, {"alpha": 0.9, "beta": 10.0}, {"rescale": False}])
def test_every_input_draws_the_same_masks_on_every_backend_and_layout(
    case: Any, dtype: torch.dtype, options: dict[str, Any], device_backend: str
) -> None:
    outcomes = []
    on_device = [(device_backend, layout, DEVICE) for layout in LAYOUTS if layout != "expanded gradient"]
    for name, layout, device in (("reference", "contiguous", CPU), *on_device):
        params = parameters(dtype, layout, device=device)
        optimizer = RoastAdamW(params, **{**options_of(case), "betas": (0.0, 0.99)}, **options, backend=name)
        masks = []
        for step in range(STEPS):
            set_gradients(params, step, layout)
            optimizer.step()
            # Without a first moment, exp_avg is the masked gradient.
            masks.append([optimizer.state[param]["exp_avg"].cpu() != 0 for param in params if param.grad is not None])
            if step % 4 == 3:
                optimizer.refresh()
        outcomes.append((masks, [optimizer.state[param]["rank_code"].cpu() for param in params]))
    first_masks, first_codes = outcomes[0]
    assert any(not mask.all() for step in first_masks for mask in step)
    for masks, codes in outcomes[1:]:
        for found, expected in zip([*masks, codes], [*first_masks, first_codes], strict=True):
            assert all(map(torch.equal, found, expected))


@every_input
@pytest.mark.parametrize("schedulers", ADAMW.scheduler_inputs, ids=lambda schedulers: f"{len(schedulers)} schedulers")
def test_every_schedule_of_the_database(case: Any, schedulers: Any, device_backend: str) -> None:
    ours, theirs, exact = take_steps_alike(case, torch.float32, "contiguous", device_backend, schedulers)
    assert float(ours.param_groups[0]["lr"]) == float(theirs.param_groups[0]["lr"])
    assert_agree(ours, theirs, exact, device_backend)


@pytest.mark.parametrize("case", ERROR_INPUTS, ids=lambda case: case.optimizer_error_input.desc)
def test_every_error_input_raises_what_adamw_raises(case: Any, device_backend: str) -> None:
    given = case.optimizer_error_input
    params = [torch.nn.Parameter(torch.randn(1, device=DEVICE))] if given.params is None else given.params
    if issubclass(case.error_type, Warning):
        with pytest.warns(case.error_type, match=case.error_regex):
            RoastAdamW(params, **options_of(given), backend=device_backend)
        return
    with pytest.raises(case.error_type) as raised:
        RoastAdamW(params, **options_of(given), backend=device_backend)
    if given.kwargs:  # RoastAdamW checks its options itself, and names the wrong one
        assert next(name for name in ("weight_decay", "beta", "lr") if name in given.desc) in str(raised.value)
    else:  # the base class checks the parameters
        raised.match(case.error_regex)
