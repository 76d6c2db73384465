"""What happens seldom: more steps than float32 counts, interruptions, negative bits, forks, many parameters."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from roast_optim import RoastAdamW
from roast_optim.kernels import reference
from roast_optim.kernels.native import library
from roast_optim.kernels.native.elf import missing_bytes
from roast_optim.kernels.step import advance_counts_, draw_number_of, next_count

OPTIONS: dict[str, Any] = {
    "lr": 1e-2,
    "alpha": 0.5,
    "beta": 5.0,
    "selective": True,
    "betas": (0.0, 0.0),
    "weight_decay": 0.0,
}


def make(backend: str, *shapes: tuple[int, ...], **options: Any) -> RoastAdamW:
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes or ((64, 40),)]
    return RoastAdamW(params, **{"refresh_every": None, "backend": backend, **OPTIONS, **options})


def step(optimizer: RoastAdamW, seed: int = 0) -> list[torch.Tensor]:
    """Which elements one step moved."""
    params = optimizer.param_groups[0]["params"]
    before = [param.detach().clone() for param in params]
    for number, param in enumerate(params):
        generator = torch.Generator().manual_seed(seed * 100 + number)
        param.grad = torch.randn(param.shape, generator=generator) + 3.0
    optimizer.step()
    return [param.detach() != old for param, old in zip(params, before, strict=True)]


# --------------------------------------------------------------------------------------------------------------- counts


def test_the_next_count_is_one_more_and_then_the_next_float32() -> None:
    exact = torch.tensor([0.0, 1.0, 2.0**23 - 1, 2.0**23, 2.0**24 - 2, 2.0**24 - 1])
    far = (torch.arange(0, 3 * 2**23, 4099, dtype=torch.int32) + 0x4B800000).view(torch.float32)  # 2**24 .. 2**27
    following = torch.cat([exact + 1, torch.nextafter(far, torch.tensor(torch.inf))])
    counts = torch.cat([exact, far])
    assert torch.equal(torch.tensor([next_count(count) for count in counts.tolist()]), following)
    advance_counts_([counts])
    assert torch.equal(counts, following)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("count", [2.0**24 - 3, 2.0**25, 2.0**32 - 256, 2.0**33])
def test_masks_differ_from_step_to_step_however_many_were_taken(count: float, capturable: bool, backend: str) -> None:
    optimizers = [make(name, capturable=capturable) for name in (backend, "reference")]
    draws = []
    for optimizer in optimizers:
        step(optimizer)
        optimizer.refresh()
        state = optimizer.state[optimizer.param_groups[0]["params"][0]]
        state["step"].fill_(count)
    for _ in range(6):
        masks = [step(optimizer)[0] for optimizer in optimizers]
        assert torch.equal(*masks)
        draws.append(masks[0])
        for optimizer, mask in zip(optimizers, masks, strict=True):
            assert optimizer.selection_stats()["realised_share"] == mask.double().mean().item()
    for i, mask in enumerate(draws):
        assert 0.1 < mask.float().mean() < 0.9
        assert not any(torch.equal(mask, other) for other in draws[:i])
    assert state["step"].dtype == torch.float32
    assert draw_number_of(2.0**33) == 0


# --------------------------------------------------------------------------------------------------------- interruption


class Interrupt(TorchDispatchMode):
    """Raises at the n-th operation of torch."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return function(*args, **kwargs or {})


def test_an_interrupted_refresh_is_done_or_was_not_begun(backend: str) -> None:
    def measured() -> RoastAdamW:
        optimizer = make(backend, (300,), (40, 5), (7,))
        for seed in range(3):
            step(optimizer, seed)
        return optimizer

    expected = measured()
    before = [expected.state[p]["importance"].clone() for p in expected.param_groups[0]["params"]]
    expected.refresh()
    codes = [expected.state[p]["rank_code"] for p in expected.param_groups[0]["params"]]
    outcomes = set()
    for at in range(1, 200):
        optimizer = measured()
        states = [optimizer.state[p] for p in optimizer.param_groups[0]["params"]]
        try:
            with Interrupt(at):
                optimizer.refresh()
        except KeyboardInterrupt:
            done = optimizer.refreshes == 1
            outcomes.add(done)
            for state, code, importance in zip(states, codes, before, strict=True):
                assert torch.equal(state["importance"], torch.zeros_like(importance) if done else importance), at
                assert torch.equal(state["rank_code"], code if done else torch.zeros_like(code)), at
        else:
            break
    else:
        pytest.fail("a refresh has more operations than were tried")
    assert False in outcomes
    assert True in outcomes or backend != "reference"


# --------------------------------------------------------------------------------------------------------- negative bit


def negated(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, stored with the other sign and read with torch's negative bit."""
    return torch._neg_view(-tensor)


@pytest.mark.parametrize("what", ["parameter", "gradient", "exp_avg"])
@pytest.mark.parametrize("later", [False, True], ids=["from the beginning", "later"])
def test_a_negative_bit_changes_nothing(what: str, later: bool, backend: str) -> None:
    ours, plain = (make(backend, (64, 4), betas=(0.9, 0.99)) for _ in range(2))
    for number in range(5):
        (param,) = ours.param_groups[0]["params"]
        if number == (2 if later else 0):
            if what == "parameter":
                param.data = negated(param.data)
            elif what == "exp_avg" and ours.state[param]:
                ours.state[param]["exp_avg"] = negated(ours.state[param]["exp_avg"])
        for optimizer in (ours, plain):
            (each,) = optimizer.param_groups[0]["params"]
            grad = torch.randn(each.shape, generator=torch.Generator().manual_seed(number))
            each.grad = (
                negated(grad) if what == "gradient" and optimizer is ours and (number > 1 or not later) else grad
            )
            optimizer.step()
            if number == 2:
                optimizer.refresh()
    expected = plain.param_groups[0]["params"][0]
    torch.testing.assert_close(param.resolve_neg(), expected)
    assert torch.equal(ours.state[param]["rank_code"], plain.state[expected]["rank_code"])


def test_a_plan_notices_a_negative_bit_in_the_same_memory() -> None:
    param = nn.Parameter(torch.ones(64))
    optimizer = RoastAdamW([param], backend="native", **OPTIONS)
    param.grad = torch.ones(64)
    optimizer.step()
    param.data = torch._neg_view(param.data)  # the values change their sign, the memory stays
    before = param.detach().resolve_neg().clone()
    optimizer.step()
    assert bool((param < before).all())


# ----------------------------------------------------------------------------------------------------------------- fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("what", ["step", "refresh", "selection_stats", "first step"])
def test_a_forked_process_does_not_wait_for_threads_that_are_gone(what: str, backend: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        optimizer = make(backend, (300, 1000))
        if what != "first step":
            step(optimizer)
            optimizer.refresh()
            step(optimizer)
        grad = torch.randn(300, 1000)
        torch.randn(300, 300) @ torch.randn(300, 300)  # begins the team
        optimizer.param_groups[0]["params"][0].grad = grad
        child = os.fork()
        if child == 0:  # pragma: no cover
            signal.alarm(60)
            getattr(optimizer, "step" if what == "first step" else what)()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------------ many, truncated


def test_the_time_for_many_parameters_grows_with_their_number() -> None:
    """Torch's own loader takes the square of it."""

    def seconds(count: int) -> float:
        optimizer = make("reference", *[(4,)] * count)
        step(optimizer)
        optimizer.refresh()
        step(optimizer)
        saved = optimizer.state_dict()
        begin = time.perf_counter()
        optimizer.load_state_dict(saved)
        optimizer.selection_stats()
        return time.perf_counter() - begin

    seconds(100)
    assert seconds(4000) < 25 * seconds(500)  # eight times as many; the square would be 64


def test_the_share_of_many_small_parameters_is_that_of_their_masks(backend: str) -> None:
    optimizer = make(backend, *[(size,) for size in range(1, 90)], (3, 2, 5))
    step(optimizer)
    optimizer.refresh()
    moved = step(optimizer, 1)
    share = sum(int(mask.sum()) for mask in moved) / sum(mask.numel() for mask in moved)
    assert optimizer.selection_stats()["realised_share"] == pytest.approx(share, abs=1e-12)


def test_a_library_that_was_cut_off_is_noticed_before_it_is_mapped(tmp_path: Path) -> None:
    (file,) = Path(library.__file__).parent.glob("_native*.so")
    whole, part = file.read_bytes(), tmp_path / "_native.so"
    if whole[:4] != b"\x7fELF":
        pytest.skip("only the linker of ELF files maps what is not there")
    assert missing_bytes(file) == 0
    for length in (0, 3, 20, 64, 4096, len(whole) // 2, len(whole) - 1):
        part.write_bytes(whole[:length])
        assert missing_bytes(part) > 0, length
    part.write_bytes(b"\xcf\xfa\xed\xfe" + bytes(100))  # of macOS
    assert missing_bytes(part) == 0


def test_the_reference_assigns_all_codes_or_none() -> None:
    scores, codes = [torch.arange(5.0), torch.ones(3)], [torch.zeros(5, dtype=torch.uint8), torch.zeros(2).byte()]
    with pytest.raises(RuntimeError):  # the second code is too short
        reference.assign_rank_codes_(scores, codes, torch.arange(65536).to(torch.uint8))
    assert torch.equal(scores[0], torch.arange(5.0))
