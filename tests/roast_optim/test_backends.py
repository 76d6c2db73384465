"""When the perturbation and the divergence go to the GPU's kernels. That these do the same: kernels/triton."""

from __future__ import annotations

import pytest
import torch

from roast_optim import backends
from roast_optim.backends import fused_kernels
from roast_optim.kernels import triton

FLOAT32, FLOAT64 = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)


def test_on_the_cpu_plain_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert fused_kernels(FLOAT32, FLOAT32) is None


def test_the_kernels_do_it_where_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "supports", lambda device: True)
    monkeypatch.setattr(triton, "unavailable", lambda device=None: None)
    assert fused_kernels(FLOAT32, FLOAT32.bfloat16()) is triton
    assert fused_kernels(FLOAT32, FLOAT64) is None
    assert fused_kernels(FLOAT32, FLOAT32.to("meta")) is None
    monkeypatch.setattr(triton, "unavailable", lambda device=None: "triton is not installed")
    assert fused_kernels(FLOAT32, FLOAT32) is None


def test_code_that_is_compiled_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "supports", lambda device: True)
    monkeypatch.setattr(triton, "unavailable", lambda device=None: None)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert fused_kernels(FLOAT32, FLOAT32) is None


def test_a_gpu_without_its_kernels_is_said_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnAGpu(torch.Tensor):
        device = torch.device("cuda", 0)

    on_gpu = torch.zeros(2, 3).as_subclass(OnAGpu)
    monkeypatch.setattr(backends, "_told", set())
    monkeypatch.setattr(triton, "unavailable", lambda device=None: f"install a C compiler for {device}")
    with pytest.warns(
        UserWarning, match="adversary runs without its fused kernels.*install a C compiler for cuda:0"
    ) as said:
        found = [fused_kernels(on_gpu, on_gpu) for _ in range(2)]
    assert found == [None, None]
    assert len(said) == 1
