"""Tensors on the device of the tests lie as they do on the CPU, and what became of them comes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from roast_optim.kernels import reference
from tests.support import devices
from tests.support.devices import CPU, DEVICE, BackendOnDevice, Places, differentiably_placed, placed
from tests.support.differences import units_apart
from tests.support.layouts import LAYOUTS
from tests.support.steps import OPTIONAL, assert_same_tensors, random_step, selection

ROOT = Path(__file__).parents[2]


def tensors() -> dict[str, Tensor]:
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    return {
        **{name: layout(values) for name, layout in LAYOUTS.items()},
        "expanded": torch.ones(()).expand(3, 4),
        "empty": torch.zeros(0, 3),
        "no dimensions": torch.tensor(2.0),
        "bytes": torch.arange(9, dtype=torch.uint8)[1:],
    }


@pytest.mark.parametrize("name", tensors())
def test_a_placed_tensor_has_the_values_strides_and_offset_of_the_original_and_memory_of_its_own(name: str) -> None:
    original = tensors()[name]
    copied = placed(original)
    assert copied.device == DEVICE
    assert torch.equal(copied.cpu(), original)
    assert (copied.dtype, copied.shape) == (original.dtype, original.shape)
    assert (copied.stride(), copied.storage_offset()) == (original.stride(), original.storage_offset())
    assert copied.numel() == 0 or copied.data_ptr() != original.data_ptr()
    assert copied.data_ptr() % 16 == original.data_ptr() % 16


def test_tensors_that_share_memory_do_so_on_the_device_and_what_is_written_comes_back() -> None:
    whole = torch.arange(10.0)
    every_second, tail = whole[::2], whole[6:]
    places = Places()
    first, second = places.of(every_second), places.of(tail)
    first += 100
    assert second.tolist() == [106, 7, 108, 9]
    assert whole.tolist() == list(range(10))
    places.bring_back()
    assert whole.tolist() == [100, 1, 102, 3, 104, 5, 106, 7, 108, 9]


def test_gradients_come_back_to_the_original() -> None:
    leaf = torch.arange(6.0).view(2, 3).T.requires_grad_()
    copied = differentiably_placed(leaf)
    assert copied.stride() == leaf.stride()
    (copied * 3).sum().backward()
    assert torch.equal(leaf.grad, torch.full((3, 2), 3.0))
    assert not differentiably_placed(leaf.detach()).requires_grad


@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_on_the_device_is_the_step(capturable: bool) -> None:
    if DEVICE != CPU:
        pytest.skip("the reference rounds otherwise there")
    step = random_step([(4, 5), (7,)], optional=OPTIONAL, selection=selection(), capturable=capturable, offset=1)
    step.set(lr=torch.tensor(0.5))
    expected = step.copy().run(reference)
    assert_same_tensors(step.run(BackendOnDevice(reference)), expected)


@pytest.mark.parametrize(
    ("name", "interpreted", "message"),
    [
        ("gpu", False, "ROAST_TEST_DEVICE='gpu' must be"),
        ("cuda", True, "TRITON_INTERPRET=1"),
        ("cuda", False, "finds 0 GPUs"),
        ("cuda:3", False, "finds 0 GPUs"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(
    name: str, interpreted: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "INTERPRETED", interpreted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(pytest.UsageError, match=message):
        devices.device_of_the_tests(name)


def test_a_gpu_has_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [str(devices.device_of_the_tests(name)) for name in ("cpu", "cuda", "cuda:1")]
    assert found == ["cpu", "cuda:0", "cuda:1"]


def test_units_of_the_last_place_are_those_of_the_scale() -> None:
    one = torch.ones(3)
    assert units_apart(one + 2.0**-22, one, one) == 2
    assert units_apart(one + 2.0**-22, one, 4 * one) == 0.5
    assert units_apart(torch.full((3,), float("nan")), one, one) == 0
    assert units_apart(one.bfloat16() + 2.0**-6, one.bfloat16(), one.bfloat16()) == 2
    assert units_apart(one[:0], one[:0], one[:0]) == 0


def test_the_tests_need_nothing_that_a_gpu_machine_lacks() -> None:
    """No expecttest, no datasets: what runs there is collected, conformity included."""
    missing: dict[str, Any] = dict.fromkeys(["expecttest", "datasets", "lightning", "peft", "accelerate"])
    code = (
        f"import sys; sys.modules.update({missing}); import pytest\n"
        "sys.exit(pytest.main(['-q', '--collect-only', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    files = ["tests/kernels/triton", "tests/kernels/test_backends.py", "tests/roast_optim/test_conformity.py"]
    environment = {"TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code, *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_every_input_trains_as_adamw[triton" in done.stdout
