"""Parameters of every shape and memory layout, and memory that does not grow with them."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from roast_optim import RoastAdamW
from tests.support.layouts import transposed, unaligned, unchanged, with_gaps
from tests.support.optimizer_and_oracle import SHAPES, Gradients, OptimizerAndOracle

MIB = 1 << 20


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


@pytest.mark.parametrize("layout", [unchanged, transposed, with_gaps, unaligned, channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_layout_of_a_parameter_does_not_change_its_masks(
    layout: Callable[[Tensor], Tensor], dtype: torch.dtype, backend: str
) -> None:
    """Elements are numbered in the contiguous parameter, wherever they lie in memory."""
    shapes = [*SHAPES, [(2, 3, 4, 5), (9, 7)]]
    pair = OptimizerAndOracle(
        shapes, backend=backend, dtype=dtype, layout=layout, betas=(0.0, 0.9), alpha=0.5, beta=2.0, refresh_every=3
    )
    for _ in range(7):
        pair.step()
        pair.assert_same_selection()
        pair.assert_same_masks()
    pair.assert_close()


@pytest.mark.parametrize("layout", [transposed, with_gaps, unaligned])
def test_the_layout_does_not_change_the_masks_of_several_chunks(
    layout: Callable[[Tensor], Tensor], backend: str
) -> None:
    pair = OptimizerAndOracle(
        [[(611, 997)]], backend=backend, dtype=torch.float32, layout=layout, betas=(0.0, 0.9), alpha=0.6, beta=2.0
    )
    pair.step()
    pair.refresh()
    pair.step()
    pair.assert_same_selection()
    pair.assert_same_masks()


def test_a_gradient_may_have_another_layout_than_its_parameter(backend: str) -> None:
    pair = OptimizerAndOracle(
        [[(30, 40), (20, 6)]], backend=backend, betas=(0.0, 0.9), alpha=0.5, beta=2.0, refresh_every=1
    )
    for _ in range(3):
        gradients = pair.gradients()
        pair.set_gradients(gradients)
        for parameter in pair.parameters[0]:
            assert parameter.grad is not None
            parameter.grad = transposed(parameter.grad)
            assert not parameter.grad.is_contiguous()
        pair.optimizer.step()
        pair.oracle.step(gradients)
        pair.assert_same_selection()
        pair.assert_same_masks()
    pair.assert_close()


def test_a_gradient_may_be_expanded_from_one_element(backend: str) -> None:
    """The gradient of a sum has stride zero."""
    pair = OptimizerAndOracle([[(30, 40)]], backend=backend, betas=(0.0, 0.9), alpha=0.5, beta=2.0, refresh_every=1)
    for _ in range(3):
        gradients: Gradients = [[pair.random.standard_normal(1).repeat(1200).reshape(30, 40)]]
        pair.set_gradients(gradients)
        (parameter,) = pair.parameters[0]
        assert parameter.grad is not None
        parameter.grad = parameter.grad[:1, :1].expand(30, 40)
        pair.optimizer.step()
        pair.oracle.step(gradients)
        pair.assert_same_selection()
        pair.assert_same_masks()
    pair.assert_close()


def test_state_has_the_shape_of_its_parameter(backend: str) -> None:
    pair = OptimizerAndOracle(backend=backend, refresh_every=1)
    pair.step()
    pair.step()
    for parameters in pair.parameters:
        for parameter in parameters:
            state = pair.optimizer.state[parameter]
            assert state["step"].shape == ()
            for key in ("exp_avg", "exp_avg_sq", "importance", "rank_code"):
                assert state[key].shape == parameter.shape


def test_only_zero_size_parameters_step_and_refresh(backend: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(0, 4))
    optimizer = RoastAdamW([parameter], backend=backend)
    parameter.grad = torch.zeros(0, 4)
    optimizer.step()
    with pytest.warns(UserWarning, match="importance"):
        optimizer.refresh()
    optimizer.step()
    assert optimizer.state[parameter]["step"].item() == 2
    optimizer.selection_stats()


# -------------------------------------------------------------------------------------------------------------- memory


def peak_extra_memory(run: Callable[[], object]) -> int:
    """The most bytes of tensors that torch allocated during `run` and were alive at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    alive = peak = 0
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def test_the_profiler_sees_the_peak() -> None:
    def two_then_one() -> None:
        first, second = torch.ones(MIB), torch.ones(MIB)
        del first, second
        torch.ones(MIB)

    assert 8 * MIB <= peak_extra_memory(two_then_one) < 9 * MIB


def peak_resident_growth(run: Callable[[], object]) -> int:
    """By how many bytes the resident memory of this process grew during `run`, at most; sees every allocator."""

    def resident(which: str) -> int:
        return 1024 * int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0])

    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would hide an allocation
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present size: man 5 proc_pid_clear_refs
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def test_the_resident_peak_is_seen() -> None:
    growth = peak_resident_growth(lambda: torch.ones(8 * MIB))
    assert 30 * MIB < growth < 36 * MIB


def test_the_resident_peak_of_step_and_refresh_stays_below_64_megabytes_and_does_not_grow(backend: str) -> None:
    """Whoever allocates: native code does not use torch's allocator.

    What else the process holds moves its resident memory by some MB from one call to the next, hence the medians, and
    sizes so far apart that one byte for every element more is twice as much.
    """

    def peaks(numel: int) -> list[float]:
        parameter = torch.nn.Parameter(torch.ones(numel))
        parameter.grad = torch.ones(numel)
        optimizer = RoastAdamW([parameter], backend=backend)
        optimizer.step()
        optimizer.refresh()
        pairs = [(peak_resident_growth(optimizer.step), peak_resident_growth(optimizer.refresh)) for _ in range(3)]
        return [statistics.median(growths) for growths in zip(*pairs, strict=True)]

    small, large = 2 * MIB, 24 * MIB
    for few, many in zip(peaks(small), peaks(large), strict=True):
        assert many < 64 * 10**6
        assert many - few < large - small  # less than one byte for every element more


@pytest.mark.parametrize("layout", [unchanged, transposed, with_gaps])
def test_temporaries_of_step_and_refresh_stay_below_64_megabytes_and_do_not_grow(
    layout: Callable[[Tensor], Tensor], backend: str
) -> None:
    def peaks(rows: int) -> dict[str, int]:
        parameter = torch.nn.Parameter(layout(torch.ones(rows, 2_048)))
        parameter.grad = layout(torch.ones(rows, 2_048))
        optimizer = RoastAdamW([parameter], amsgrad=True, maximize=True, backend=backend)
        optimizer.step()
        optimizer.refresh()

        def measure() -> None:
            with optimizer.measure_importance():
                optimizer.step()

        return {
            "step": peak_extra_memory(optimizer.step),
            "measuring step": peak_extra_memory(measure),
            "refresh": peak_extra_memory(optimizer.refresh),
        }

    small, large = peaks(512), peaks(2_048)
    for name, peak in large.items():
        assert peak < 64 * 10**6, f"{name}: {peak} bytes"
        assert peak <= small[name] + MIB, f"{name}: {small[name]} bytes grew to {peak}"


def test_temporaries_do_not_grow_with_the_number_of_parameters(backend: str) -> None:
    def peaks(count: int) -> list[int]:
        parameters = [torch.nn.Parameter(torch.ones(100, 200)) for _ in range(count)]
        for parameter in parameters:
            parameter.grad = torch.ones(100, 200)
        optimizer = RoastAdamW(parameters, backend=backend)
        optimizer.step()
        optimizer.refresh()
        return [peak_extra_memory(run) for run in (optimizer.step, optimizer.refresh)]

    for few, many in zip(peaks(10), peaks(60), strict=True):
        assert many <= few + MIB
