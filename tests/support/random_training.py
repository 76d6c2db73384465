"""Random trainings: parameters, options and operations, drawn by hypothesis, of the optimizer and of its oracle."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from roast_optim import RoastAdamW
from roast_optim.kernels.step import STATE_TENSORS
from tests.oracles.roast_adamw import Group
from tests.support.devices import DEVICE
from tests.support.layouts import LAYOUTS
from tests.support.optimizer_and_oracle import Gradients, OptimizerAndOracle
from tests.support.snapshot import assert_same_snapshots, snapshot

Shape = tuple[int, ...]
GRADIENT_KINDS = ["ordinary", "ordinary", "some missing", "zero", "tiny", "huge", "not finite"]

sizes = st.integers(0, 9) | st.sampled_from([1, 16, 33])
shapes = st.lists(sizes, max_size=3).map(tuple) | st.sampled_from([(700,), (31, 5)])
group_options = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.sampled_from([0.0, 1e-3, 0.1]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "eps": st.sampled_from([1e-8, 1e-3]),
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
        "selective": st.sampled_from([True, True, False]),
        "alpha": st.floats(0, 1),
        "beta": st.floats(0.01, 50),
        "pretrained_decay": st.sampled_from([0.0, 0.5]),
        "pretrained_decay_by": st.sampled_from(["uniform", "rank"]),
    },
)
groups = st.tuples(st.lists(shapes, min_size=1, max_size=4), group_options)
optimizer_options = st.fixed_dictionaries(
    {"betas": st.sampled_from([(0.0, 0.99), (0.0, 0.0), (0.9, 0.999)])},
    optional={
        "refresh_every": st.integers(1, 4),
        "mask_schedule": st.sampled_from(["step", "refresh"]),
        "selection": st.sampled_from(["gradient", "gradient", "update"]),
        "rescale": st.booleans(),
        "importance": st.sampled_from(["gradient", "gradient", "random", "magnitude"]),
        "importance_every": st.integers(1, 3),
        "importance_dtype": st.sampled_from([torch.float32, torch.bfloat16]),
        "stochastic_rounding": st.booleans(),
        "seed": st.integers(0, 2**64 - 1),
    },
).filter(lambda options: options.get("importance_every", 1) <= options.get("refresh_every", 3))


@dataclass(frozen=True)
class Operation:
    """Something done between or instead of steps: a function of the training and its arguments."""

    name: str
    arguments: tuple[Any, ...] = ()


def operation(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Operation]:
    return st.builds(Operation, st.just(name), st.tuples(*arguments))


gradient_factors = st.sampled_from([0.3, 1, torch.tensor(0.7), torch.tensor([-0.25], dtype=torch.float64)])
some_group = st.integers(0, 7)  # modulo the number of groups
operations = st.one_of(
    operation("step", st.sampled_from(GRADIENT_KINDS)),
    operation("step", st.just("ordinary")),
    operation("step", st.just("ordinary")),
    operation("step", st.sampled_from(GRADIENT_KINDS), gradient_factors),
    operation("refresh"),
    operation("measure"),
    operation("measure", gradient_factors),
    operation("skip"),
    operation("add_group", groups),
    operation("save_and_load"),
    operation("copy", st.sampled_from(["deepcopy", "pickle"])),
    operation(
        "set_option", some_group, st.just("lr"), st.sampled_from([0.0, 0.03, torch.tensor(0.25, dtype=torch.float64)])
    ),
    operation("set_option", some_group, st.just("alpha"), st.floats(0, 1)),
    operation("set_option", some_group, st.just("beta"), st.floats(0.01, 50)),
    operation("set_option", some_group, st.just("selective"), st.booleans()),
    operation("set_option", some_group, st.just("pretrained_decay"), st.sampled_from([0.0, 0.3])),
    operation("freeze", some_group, st.booleans()),
)


@dataclass(frozen=True)
class Plan:
    """A random training. `layouts` are taken in turn by its parameters."""

    dtype: torch.dtype
    groups: list[tuple[list[Shape], dict[str, Any]]]
    layouts: list[str]
    options: dict[str, Any]
    operations: list[Operation]


def can_be_exact(plan: Plan) -> bool:
    """Magnitudes are those of parameters, which only float64 has near enough to the oracle's to rank them alike."""
    return plan.options.get("importance") != "magnitude" or plan.dtype == torch.float64


plans = st.builds(
    Plan,
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    groups=st.lists(groups, min_size=1, max_size=3),
    layouts=st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=1, max_size=4),
    options=optimizer_options,
    operations=st.lists(operations, min_size=2, max_size=9),
).filter(can_be_exact)


def global_random_state() -> list[Tensor]:
    """Of the CPU and of the device of the tests."""
    return [torch.get_rng_state(), *([] if DEVICE.type == "cpu" else [torch.cuda.get_rng_state(DEVICE)])]


class RandomTraining:
    """The optimizer, on the device of the tests, and its oracle while a plan is carried out."""

    def __init__(self, plan: Plan, backend: str) -> None:
        self.backend = backend
        layouts = itertools.cycle(plan.layouts)
        half = plan.dtype in (torch.bfloat16, torch.float16)
        self.options = {**plan.options, **({"state_dtype": torch.float32} if half else {"stochastic_rounding": False})}
        self.pair = OptimizerAndOracle(
            [shapes for shapes, _ in plan.groups],
            backend=backend,
            dtype=plan.dtype,
            group_options=[dict(options) for _, options in plan.groups],
            layout=lambda tensor: LAYOUTS[next(layouts)](tensor) if tensor.dim() else tensor,
            device=DEVICE,
            **self.options,
        )
        self.steps = 0

    def do(self, operation: Operation) -> None:
        """Do it to both."""
        getattr(self, operation.name)(*operation.arguments)

    # ------------------------------------------------------------------------------------------------- the operations

    def step(self, kind: str, gradient_factor: float | Tensor = 1.0) -> None:
        gradients = self.gradients(kind)
        self.pair.set_gradients(gradients)
        before = [None if grad is None else grad.clone() for grad in self.all_gradients()]
        random_state = global_random_state()
        moments = [None if state is None else state.exp_avg.copy() for _, state in self.pair.states()]
        self.pair.optimizer.step(gradient_factor=gradient_factor)
        self.pair.oracle.step(self.pair.multiplied(gradients, float(gradient_factor)))
        self.steps += 1
        if self.options["betas"][0] == 0:
            self.check_masks(moments)
        assert all(map(torch.equal, global_random_state(), random_state))
        for grad, copied in zip(self.all_gradients(), before, strict=True):
            assert (grad is None) == (copied is None)
            if grad is not None and copied is not None:
                assert torch.equal(grad.nan_to_num(7.0), copied.nan_to_num(7.0))

    def refresh(self) -> None:
        self.pair.refresh()

    def measure(self, gradient_factor: float | Tensor = 1.0) -> None:
        self.pair.measure(self.gradients("ordinary"), gradient_factor)

    def skip(self) -> None:
        """What GradScaler does after an overflow: gradients, and no step."""
        before = snapshot(self.pair.optimizer)
        self.pair.set_gradients(self.gradients("not finite"))
        self.pair.optimizer.zero_grad()
        assert_same_snapshots(snapshot(self.pair.optimizer), before)

    def add_group(self, group: tuple[list[Shape], dict[str, Any]]) -> None:
        self.pair.add_group(group[0], **group[1])

    def save_and_load(self) -> None:
        """Into a new optimizer of equal parameters, whose options are those of the beginning."""
        old = self.pair.optimizer
        file = io.BytesIO()
        torch.save(old.state_dict(), file)
        file.seek(0)
        twins = [self.twins(group["params"]) for group in old.param_groups]
        self.pair.optimizer = RoastAdamW(
            [{"params": params, "selective": group["selective"]}
             for params, group in zip(twins, old.param_groups, strict=True)],
            backend=self.backend, **self.options,
        )  # fmt: skip
        self.pair.optimizer.load_state_dict(torch.load(file, weights_only=True))
        # A group whose options ask for more state since its last step has that at once; the old one gets it later.
        for parameters, twins_of_group in zip((group["params"] for group in old.param_groups), twins, strict=True):
            for parameter, twin in zip(parameters, twins_of_group, strict=True):
                for name in STATE_TENSORS.keys() - old.state.get(parameter, {}).keys():
                    self.pair.optimizer.state.get(twin, {}).pop(name, None)
        assert_same_snapshots(snapshot(self.pair.optimizer), snapshot(old))

    def copy(self, how: str) -> None:
        old = self.pair.optimizer
        copied = copy.deepcopy(old) if how == "deepcopy" else pickle.loads(pickle.dumps(old))
        assert_same_snapshots(snapshot(copied), snapshot(old))
        self.pair.optimizer = copied

    def set_option(self, number: int, name: str, value: Any) -> None:
        index = number % len(self.pair.optimizer.param_groups)
        self.pair.optimizer.param_groups[index][name] = value.clone() if isinstance(value, Tensor) else value
        setattr(self.pair.oracle.groups[index], name, float(value) if isinstance(value, Tensor) else value)

    def freeze(self, number: int, frozen: bool) -> None:
        """Or let the first parameter of a group train again."""
        index = number % len(self.pair.optimizer.param_groups)
        self.pair.parameters[index][0].requires_grad_(not frozen)
        change: Callable[[int], None] = self.group(index).frozen.add if frozen else self.group(index).frozen.discard
        change(0)

    # ----------------------------------------------------------------------------------------------------- the checks

    def check(self) -> None:
        """What must hold after every operation."""
        self.pair.assert_same_selection()
        for state, expected in self.pair.states():
            if expected is None:
                continue
            if "rank_code" in state:
                assert state["rank_code"].dtype == torch.uint8
                assert state["importance"].dtype == self.options.get("importance_dtype", torch.float32)
                assert state["importance"].isfinite().all()
        if self.pair.dtype in (torch.float32, torch.float64):
            self.pair.assert_close()
        else:
            self.assert_close_to_rounded()

    def check_masks(self, moments_before: list[Any]) -> None:
        """Where the first moment is the last gradient, it shows the masks."""
        for (state, expected), before in zip(self.pair.states(), moments_before, strict=True):
            if expected is not None:
                # Lost is a gradient that meets a moment millions of times as large, or is below the normal numbers.
                moment = 0.0 if before is None else np.abs(before)
                lost = np.abs(expected.exp_avg) < np.maximum(1e-6 * moment, 2.0**-126)
                shown = ~lost | (expected.exp_avg == 0)
                found = state["exp_avg"].cpu().numpy() != 0
                np.testing.assert_array_equal(found[shown], (expected.exp_avg != 0)[shown])

    def assert_close_to_rounded(self) -> None:
        """In half precision a parameter is rounded up to four times in a step: after decay, update and in between."""
        for parameters, group in zip(self.pair.parameters, self.pair.oracle.groups, strict=True):
            for parameter, expected in zip(parameters, group.parameters, strict=True):
                finite = expected[np.isfinite(expected)]
                largest = float(np.abs(finite).max()) if finite.size else 0.0
                rounding = torch.finfo(self.pair.dtype).eps * (largest + 1)
                np.testing.assert_allclose(
                    parameter.detach().cpu().double().numpy(), expected, rtol=0, atol=(4 * self.steps + 1) * rounding
                )

    # ------------------------------------------------------------------------------------------------------- helpers

    def group(self, index: int) -> Group:
        return self.pair.oracle.groups[index]

    def all_gradients(self) -> list[Tensor | None]:
        return [parameter.grad for parameters in self.pair.parameters for parameter in parameters]

    def gradients(self, kind: str) -> Gradients:
        """Of one kind, and none for what is frozen."""
        gradients = self.pair.gradients()
        for index, of_group in enumerate(gradients):
            for position, gradient in enumerate(of_group):
                assert gradient is not None
                missing = kind == "some missing" and self.pair.random.random() < 0.5
                if missing or position in self.group(index).frozen:
                    of_group[position] = None
                else:
                    of_group[position] = self.changed(gradient, kind)
        return gradients

    def changed(self, gradient: Any, kind: str) -> Any:
        values = gradient.astype(np.float64)
        if kind == "zero":
            values = np.zeros_like(values)
        elif kind == "tiny":  # some of it below the smallest normal number of every dtype but float64
            values = values * 10.0 ** self.pair.random.integers(-42, -6, values.shape)
        elif kind == "huge":  # the square of what rescaling by up to 2^32 makes of it is still a float32
            values = np.clip(values * 10.0 ** self.pair.random.integers(0, 8, values.shape), -6e4, 6e4)
        elif kind == "not finite":
            chosen = self.pair.random.random(values.shape) < 0.2
            values = np.where(chosen, self.pair.random.choice([np.nan, np.inf, -np.inf], values.shape), values)
        return self.pair.rounded(values)

    @staticmethod
    def twins(parameters: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
        """New parameters with the same values, strides and requires_grad."""
        return [
            torch.nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            for parameter in parameters
        ]
