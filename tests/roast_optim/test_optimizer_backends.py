"""Every backend of the table is tested, or says why it cannot run; what is asked for, and what auto takes."""

from __future__ import annotations

import warnings

import pytest
import torch

from roast_optim import RoastAdamW
from roast_optim.backends import backend_for
from roast_optim.kernels.backend import BACKEND_NAMES, load_backend
from tests.conftest import RUNNABLE_BACKENDS


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(3))


def test_the_table_holds_the_backends_of_the_contract() -> None:
    assert set(BACKEND_NAMES) == {"triton", "native", "reference"}
    assert "reference" in RUNNABLE_BACKENDS


@pytest.mark.parametrize("name", BACKEND_NAMES)
def test_every_backend_is_tested_here_or_says_why_it_cannot_run(name: str) -> None:
    if name in RUNNABLE_BACKENDS:
        assert RoastAdamW([parameter()], backend=name).backend == name
    else:
        with pytest.raises(ValueError, match=rf"backend='{name}' cannot run .+"):
            RoastAdamW([parameter()], backend=name)


def test_asking_for_an_unavailable_backend_raises_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        load_backend("native"), "unavailable", lambda device=None: "the extension was not built; install gcc"
    )
    with pytest.raises(ValueError, match=r"backend='native'.*the extension was not built; install gcc"):
        RoastAdamW([parameter()], backend="native")


def test_auto_falls_back_with_one_warning_that_says_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        load_backend("native"), "unavailable", lambda device=None: "the extension was not built; install gcc"
    )

    def train() -> RoastAdamW:
        optimizer = RoastAdamW([{"params": [parameter()]}, {"params": [parameter()]}], selective=True)
        for _ in range(3):
            for group in optimizer.param_groups:
                group["params"][0].grad = torch.ones(3)
            optimizer.step()
        optimizer.refresh()
        return optimizer

    with pytest.warns(UserWarning, match=r"reference.*the extension was not built; install gcc") as caught:
        optimizer = train()
    assert len(caught) == 1
    assert optimizer.backend == "auto"


def test_the_reference_can_be_asked_for_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = RoastAdamW([parameter()], selective=True, backend="reference")
        optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
        optimizer.step()


def test_what_a_fast_backend_leaves_to_the_reference_is_said_once_with_the_cure() -> None:
    convolution = torch.nn.Parameter(torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last))

    def train() -> None:
        optimizer = RoastAdamW([convolution, parameter()], selective=True, backend="native")
        for _ in range(3):
            for param in optimizer.param_groups[0]["params"]:
                param.grad = torch.ones_like(param)
            optimizer.step()
            optimizer.refresh()

    with pytest.warns(UserWarning, match=r"slow reference.*param is not contiguous.*channels_last") as caught:
        train()
    assert len(caught) == 1


def test_a_gpu_on_which_nothing_can_be_launched_runs_the_reference_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    triton, device, said = load_backend("triton"), torch.device("cuda", 0), []
    monkeypatch.setattr(triton, "supports", lambda device: True)
    monkeypatch.setattr(triton, "unavailable", lambda device=None: None if device is None else "install a C compiler")
    assert backend_for("auto", device, said.append) is load_backend("reference")
    (message,) = said
    assert "because the triton backend cannot run here: install a C compiler" in message
    with pytest.raises(ValueError, match="backend='triton' cannot run parameters on cuda:0: install a C compiler"):
        backend_for("triton", device, said.append)
