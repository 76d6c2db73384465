"""Options: ranges, defaults, groups; every error names the argument and the value and says what would be right."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roast_optim import RoastAdamW
from roast_optim.options import OPTIONS
from tests.support.optimizer_and_oracle import OptimizerAndOracle

NAN, INF = float("nan"), float("inf")

BAD_GROUP_OPTIONS = [
    ("alpha", -0.1, r"\[0, 1\]"),
    ("alpha", 1.1, r"\[0, 1\]"),
    ("alpha", NAN, r"\[0, 1\]"),
    ("beta", 0.0, "positive"),
    ("beta", -1.0, "positive"),
    ("beta", NAN, "positive"),
    ("beta", INF, "positive"),
    ("lr", -1e-3, "negative"),
    ("lr", NAN, "negative"),
    ("betas", (1.0, 0.9), r"\[0, 1\)"),
    ("betas", (0.9, -0.1), r"\[0, 1\)"),
    ("eps", -1e-8, "negative"),
    ("weight_decay", -0.1, "negative"),
    ("seed", -1, r"2\*\*64"),
    ("seed", 2**64, r"2\*\*64"),
    ("seed", 1.5, "integer"),
]
BAD_OPTIONS = [
    ("refresh_every", 0, "at least 1"),
    ("refresh_every", -5, "at least 1"),
    ("refresh_every", 1.5, "at least 1"),
    ("importance_every", 0, "at least 1"),
    ("mask_schedule", "epoch", "'step', 'refresh'"),
    ("importance", "fisher", "'gradient', 'random', 'magnitude'"),
    ("state_dtype", torch.int32, "floating"),
    ("backend", "cuda", "'auto', 'triton', 'native', 'reference'"),
]


@pytest.mark.parametrize(("name", "value", "cure"), BAD_GROUP_OPTIONS + BAD_OPTIONS, ids=str)
def test_an_option_out_of_range_is_refused(name: str, value: Any, cure: str) -> None:
    with pytest.raises(ValueError, match=f"{name}={re.escape(repr(value))}.*{cure}"):
        RoastAdamW([torch.nn.Parameter(torch.ones(2))], **{"backend": "reference", name: value})


@pytest.mark.parametrize(("name", "value", "cure"), BAD_GROUP_OPTIONS, ids=str)
def test_a_group_option_out_of_range_is_refused_and_leaves_the_optimizer_as_it_was(
    name: str, value: Any, cure: str
) -> None:
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    with pytest.raises(ValueError, match=f"{name}={re.escape(repr(value))}.*{cure}"):
        RoastAdamW([{"params": parameters, name: value}], backend="reference")
    optimizer = RoastAdamW(parameters[:1], backend="reference")
    with pytest.raises(ValueError, match=f"{name}={re.escape(repr(value))}.*{cure}"):
        optimizer.add_param_group({"params": parameters[1:], name: value})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": parameters[1:]})  # it may be added once it is right
    assert len(optimizer.param_groups) == 2


def test_importance_every_beyond_refresh_every_is_refused() -> None:
    with pytest.raises(ValueError, match=r"importance_every=4.*refresh_every.*3"):
        RoastAdamW([torch.nn.Parameter(torch.ones(2))], importance_every=4, refresh_every=3, backend="reference")


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1e-6), (1.0, 1e6), (0, 1)])
def test_limits_of_alpha_and_beta_are_legal(alpha: float, beta: float, backend: str) -> None:
    pair = OptimizerAndOracle([[(50,)]], backend=backend, betas=(0.0, 0.9), alpha=alpha, beta=beta, refresh_every=1)
    for _ in range(3):
        pair.step()
        pair.assert_same_masks()
    pair.assert_close()


@pytest.mark.parametrize("kind", [np.float32, np.float64, Fraction])
def test_alpha_and_beta_may_be_any_real_number(kind: Callable[[float], Any], backend: str) -> None:
    pair = OptimizerAndOracle([[(50,)]], backend=backend, betas=(0.0, 0.9), alpha=0.5, beta=2.0, refresh_every=1)
    params = pair.optimizer.param_groups.pop()["params"]
    pair.optimizer.add_param_group({"params": params, "alpha": kind(0.5), "beta": kind(2.0)})
    for _ in range(3):
        pair.step()
        pair.assert_same_masks()


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_alpha_and_beta_may_not_be_tensors(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=tensor"):
        RoastAdamW([torch.nn.Parameter(torch.ones(2))], backend="reference", **{name: torch.tensor(0.5)})


def test_no_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        RoastAdamW([], backend="reference")


def test_signature_and_defaults_are_those_of_the_contract() -> None:
    parameters = inspect.signature(RoastAdamW).parameters
    expected = {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False, "alpha": 0.9,
        "beta": 10.0, "refresh_every": "auto", "mask_schedule": "step", "rescale": True, "selective": True,
        "importance": "gradient", "importance_every": 1, "seed": 0, "state_dtype": None, "backend": "auto",
        "maximize": False, "capturable": False,
    }  # fmt: skip
    assert {name: parameters[name].default for name in expected} == expected
    positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["params", "lr", "betas", "eps", "weight_decay", "amsgrad"]


def test_every_option_is_explained_once_and_documented_everywhere() -> None:
    """In the class, in the configuration of the Trainer, and beyond AdamW's own on the page of options."""
    document = RoastAdamW.__doc__ or ""
    assert "{" not in document.replace("\\frac{", "").replace("\\mathrm{", "")
    page = (Path(__file__).parents[2] / "docs" / "options.md").read_text()
    own = OPTIONS.keys() - inspect.signature(torch.optim.AdamW).parameters.keys() - {"process_group", "shared_ranks"}
    assert "alpha" in own
    for name, option in OPTIONS.items():
        assert f"\n        {name}: {option.help.split()[0]}" in document
        if name in own:
            default = f'`"{option.default}"`' if isinstance(option.default, str) else str(option.default)
            assert re.search(rf"^\| `{name}` \| {re.escape(default.removesuffix('.0'))} \|", page, re.M), name


def test_groups_hold_the_options_and_counters_of_the_contract() -> None:
    optimizer = RoastAdamW(
        [{"params": [torch.nn.Parameter(torch.ones(2))], "alpha": 0.5, "selective": False}], seed=7, backend="reference"
    )
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in ("alpha", "beta", "selective", "seed", "refreshes", "steps_since_refresh")} == {
        "alpha": 0.5, "beta": 10.0, "selective": False, "seed": 7, "refreshes": 0, "steps_since_refresh": 0,
    }  # fmt: skip
    assert optimizer.backend == "reference"
    assert "backend" not in group


def test_a_scheduler_may_change_alpha_between_steps(backend: str) -> None:
    pair = OptimizerAndOracle([[(40, 5)]], backend=backend, betas=(0.0, 0.9), refresh_every=1)
    for alpha in (0.9, 0.5, 0.1):
        pair.optimizer.param_groups[0]["alpha"] = pair.oracle.groups[0].alpha = alpha
        pair.step()
        pair.assert_same_masks()


def test_capturable_gives_the_same_masks_and_the_same_values_up_to_rounding() -> None:
    """On the CPU it only keeps the step count beside the parameter; torch's own AdamW would refuse."""
    pair = OptimizerAndOracle(
        backend="reference",
        dtype=torch.float32,
        betas=(0.0, 0.9),
        alpha=0.5,
        beta=2.0,
        refresh_every=3,
        capturable=True,
    )
    for _ in range(8):
        pair.step()
        pair.assert_same_selection()
        pair.assert_same_masks()
    pair.assert_close()
