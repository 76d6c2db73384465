"""Whatever happens to a tensor between two steps, the next step is that of an optimizer that was made this moment."""

from __future__ import annotations

import copy
import gc
import os
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from roast_optim import RoastAdamW, step_plans
from roast_optim.kernels import tensor_facts
from roast_optim.kernels.step import STATE_TENSORS, TENSORS
from tests.support.differences import first_difference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # where a step takes seconds
SHAPES = [(6, 6), (40,), (6, 6), (3, 5, 2), ()]
TENSOR_NAMES = ("param", *(name for name, described in STATE_TENSORS.items() if described.per_element))


class Training:
    """An optimizer between whose steps its tensors are changed; `random` is drawn by hypothesis."""

    def __init__(self, backend: str, random: Callable[..., Any]) -> None:
        self.backend, self.random = backend, random
        self.generator = torch.Generator().manual_seed(0)
        groups = [{"params": [self.parameter(shape) for shape in SHAPES[:3]], "amsgrad": True}]
        groups.append({"params": [self.parameter(shape) for shape in SHAPES[3:]], "selective": False})
        self.optimizer = RoastAdamW(groups, lr=0.1, alpha=0.5, beta=2.0, backend=backend)
        self.give_gradients()
        self.optimizer.step()
        self.optimizer.refresh()

    def parameter(self, shape: tuple[int, ...]) -> nn.Parameter:
        return nn.Parameter(self.values(shape))

    def values(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def parameters(self) -> list[nn.Parameter]:
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    def chosen(self) -> nn.Parameter:
        parameters = self.parameters()
        return parameters[self.random(st.integers(0, len(parameters) - 1))]

    def chosen_group(self) -> dict[str, Any]:
        return self.optimizer.param_groups[self.random(st.integers(0, len(self.optimizer.param_groups) - 1))]

    def chosen_tensor(self) -> tuple[nn.Parameter, str, Tensor]:
        """A parameter, the name of one of its tensors, and the tensor."""
        param = self.chosen()
        present = [name for name in TENSOR_NAMES if name == "param" or name in self.optimizer.state.get(param, {})]
        name = self.random(st.sampled_from(present))
        return param, name, param if name == "param" else self.optimizer.state[param][name]

    def give_gradients(self) -> None:
        for param in self.parameters():
            param.grad = self.values(param.shape).to(param.dtype)

    # ------------------------------------------------------------------------------- what may happen between two steps

    def nothing(self) -> None:
        """The plan of the last step is used."""

    def other_memory(self) -> None:
        _, _, tensor = self.chosen_tensor()
        tensor.data = tensor.data.clone()

    def other_storage(self) -> None:
        _, _, tensor = self.chosen_tensor()
        tensor.set_(tensor.detach().clone())

    def storage_freed_and_given_back(self) -> None:
        """As FSDP does with what it gathers."""
        _, _, tensor = self.chosen_tensor()
        storage, values = tensor.untyped_storage(), tensor.detach().clone()
        size = storage.nbytes()
        storage.resize_(0)
        blocker = torch.empty(size, dtype=torch.uint8) if self.random(st.booleans()) else None
        storage.resize_(size)
        tensor.data.copy_(values)
        del blocker

    def storage_moved_within_a_larger_one(self) -> None:
        _, _, tensor = self.chosen_tensor()
        larger = torch.cat([tensor.detach().reshape(-1), tensor.detach().reshape(-1)])
        tensor.data = larger[tensor.numel() :].view(tensor.shape)

    def transposed_in_place(self) -> None:
        """The same address, dtype and number of elements."""
        _, _, tensor = self.chosen_tensor()
        if tensor.dim() == 2:
            tensor.data = tensor.data.t()

    def restrided_in_place(self) -> None:
        _, name, tensor = self.chosen_tensor()
        if tensor.dim() == 2 and name != "param":
            tensor.t_()

    def view_of_the_same_memory(self) -> None:
        _, _, tensor = self.chosen_tensor()
        tensor.data = tensor.data.view(tensor.shape)

    def other_dtype(self) -> None:
        _, name, tensor = self.chosen_tensor()
        if TENSORS[name].dtype.value in ("parameter", "moment"):
            tensor.data = tensor.data.to(self.random(st.sampled_from([torch.bfloat16, torch.float64, torch.float32])))

    def other_dtype_of_the_same_memory(self) -> None:
        """float16 for bfloat16: the same address, size and layout."""
        param, name, tensor = self.chosen_tensor()
        if TENSORS[name].dtype.value in ("parameter", "moment"):
            small = tensor.data.clamp(-1, 1)
            tensor.data = small.to(torch.bfloat16)
            self.step()
            if tensor.dtype == torch.bfloat16:
                tensor.data.zero_()
                tensor.data = tensor.data.view(torch.float16)
        del param

    def other_state_tensor(self) -> None:
        param, name, tensor = self.chosen_tensor()
        if name != "param":
            self.optimizer.state[param][name] = tensor.clone()

    def alias_of_a_state_tensor(self) -> None:
        """Another object with the same memory, and then the first object is changed."""
        param, name, tensor = self.chosen_tensor()
        if name != "param":
            self.optimizer.state[param][name] = tensor.view(tensor.shape)
            self.step()
            tensor.data = torch.zeros_like(tensor)

    def exchanged_state(self) -> None:
        first, second = self.parameters()[0], self.parameters()[2]
        states = self.optimizer.state
        if states.get(first) and states.get(second) and first.shape == second.shape:
            states[first], states[second] = states[second], states[first]

    def exchanged_names(self) -> None:
        """Where the moments stand in the dictionary stays as it is."""
        param = self.chosen()
        state = self.optimizer.state.get(param)
        if state:
            renamed = {"exp_avg": "exp_avg_sq", "exp_avg_sq": "exp_avg"}
            exchanged = {renamed.get(name, name): tensor for name, tensor in state.items()}
            state.clear()
            state.update(exchanged)
            state["exp_avg_sq"].data = state["exp_avg_sq"].data.abs()

    def copied_state_dictionary(self) -> None:
        param = self.chosen()
        if self.optimizer.state.get(param):
            self.optimizer.state[param] = dict(self.optimizer.state[param])

    def deleted_state(self) -> None:
        self.optimizer.state.pop(self.chosen(), None)

    def deleted_selection(self) -> None:
        self.optimizer.state.get(self.chosen(), {}).pop("importance", None)

    def other_step_count(self) -> None:
        param = self.chosen()
        if state := self.optimizer.state.get(param):
            kind = self.random(st.sampled_from(["in place", "tensor", "data"]))
            if kind == "in place":
                state["step"].fill_(7.0)
            elif kind == "tensor":
                state["step"] = torch.tensor(5.0)
            else:
                state["step"].data = torch.tensor(9.0)

    def other_parameter(self) -> None:
        """In the group, with the state of the old one or without."""
        group = self.chosen_group()
        index = self.random(st.integers(0, len(group["params"]) - 1))
        old = group["params"][index]
        group["params"][index] = new = nn.Parameter(
            old.detach().clone() if self.random(st.booleans()) else old.detach()
        )
        state = self.optimizer.state.pop(old, None)
        if state and self.random(st.booleans()):
            self.optimizer.state[new] = state

    def swapped_parameters(self) -> None:
        first, second = self.parameters()[0], self.parameters()[2]
        first.grad = second.grad = None
        if first.shape == second.shape:
            torch.utils.swap_tensors(first, second)

    def other_size(self) -> None:
        param = self.chosen()
        self.optimizer.state.pop(param, None)
        param.grad = None
        param.data = self.values(self.random(st.sampled_from([(7, 9), (3,), (0,), (1000,)])))

    def resized(self) -> None:
        param = self.chosen()
        self.optimizer.state.pop(param, None)
        param.grad = None
        with torch.no_grad():
            param.requires_grad_(False).resize_(5, 3).copy_(self.values((5, 3))).requires_grad_(True)

    def loaded(self) -> None:
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    def added_group(self) -> None:
        self.optimizer.add_param_group({"params": [self.parameter((4, 4))]})

    def removed_group(self) -> None:
        if len(self.optimizer.param_groups) > 2:
            self.optimizer.param_groups.pop()

    def other_option(self) -> None:
        group = self.chosen_group()
        name, values = self.random(
            st.sampled_from(
                [
                    ("lr", [0.0, 0.05, torch.tensor(0.01)]),
                    ("betas", [(0.0, 0.9), (0.5, 0.5)]),
                    ("weight_decay", [0.0, 0.3]),
                    ("amsgrad", [True, False]),
                    ("maximize", [True, False]),
                    ("selective", [True, False]),
                    ("alpha", [0.1, 0.9]),
                    ("seed", [3, 2**63]),
                ]
            )
        )
        group[name] = self.random(st.sampled_from(values))

    def refreshed(self) -> None:
        self.optimizer.refresh()

    # -------------------------------------------------------------------------------- what may be special of a gradient

    def gradient(self, kind: str, param: nn.Parameter) -> None:
        grad = param.grad
        if grad is None:
            return
        if kind == "missing":
            param.grad = None
        elif kind == "not contiguous" and grad.dim() == 2:
            param.grad = grad.t().contiguous().t()
        elif kind == "expanded":
            param.grad = grad.new_ones(()).expand(grad.shape)
        elif kind == "unaligned":
            param.grad = torch.cat([grad.new_zeros(1), grad.reshape(-1)])[1:].view(grad.shape)
        elif kind == "shared":
            for other in self.parameters():
                if other.shape == param.shape and other.dtype == param.dtype and other.grad is not None:
                    other.grad = grad
        elif kind == "of another dtype":
            param.grad.data = grad.data.double()
        elif kind == "the parameter itself":
            param.grad = param.data

    def step(self) -> None:
        """A step of the optimizer, and of a twin that was made this moment, which end with the same bits."""
        self.give_gradients()
        for _ in range(self.random(st.integers(0, 1))):
            kinds = [
                "missing",
                "not contiguous",
                "expanded",
                "unaligned",
                "shared",
                "of another dtype",
                "the parameter itself",
            ]
            self.gradient(self.random(st.sampled_from(kinds)), self.chosen())
        twin = fresh_twin(self.optimizer)
        self.optimizer.step()
        twin.step()
        pairs = zip(self.parameters(), [p for group in twin.param_groups for p in group["params"]], strict=True)
        for i, (param, wanted) in enumerate(pairs):
            state, expected = (optimizer.state.get(p, {}) for optimizer, p in ((self.optimizer, param), (twin, wanted)))
            assert state.keys() == expected.keys()
            for name, tensor, right in [
                ("param", param.detach(), wanted.detach()), *((name, state[name], expected[name]) for name in state)
            ]:  # fmt: skip
                difference = first_difference(tensor, right)
                assert difference is None, f"{name} of parameter {i}: {difference}"


CHANGES = [
    name
    for name, member in vars(Training).items()
    if callable(member) and not name.startswith("_")
    and name not in ("parameter", "values", "parameters", "chosen", "chosen_tensor", "give_gradients")
    and name not in ("chosen_group", "gradient", "step")
]  # fmt: skip


def fresh_twin(optimizer: RoastAdamW) -> RoastAdamW:
    """An optimizer that has taken no step, with copies of everything that lie in memory alike."""

    def copied(tensor: Tensor) -> Tensor:
        if tensor.numel() and 0 in tensor.stride():
            return tensor.detach().clone().as_strided(tensor.shape, tensor.stride())
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor.detach())

    groups, states = [], {}
    gradients: dict[int, Tensor] = {}
    for group in optimizer.param_groups:
        twins = []
        for param in group["params"]:
            twin = nn.Parameter(copied(param))
            if param.grad is not None:
                own = twin.data if param.grad.data_ptr() == param.data_ptr() else copied(param.grad)
                grad = gradients.setdefault(id(param.grad), own)
                twin.grad = torch.zeros_like(twin)
                twin.grad.data = grad
            states[twin] = {name: copied(tensor) for name, tensor in optimizer.state.get(param, {}).items()}
            twins.append(twin)
        groups.append({**group, "params": twins})
    made = RoastAdamW(groups, backend=optimizer.backend, lr=0.1)
    made.state.update({twin: state for twin, state in states.items() if state})
    return made


@pytest.mark.parametrize("change", CHANGES)
@given(data=st.data())
@settings(
    max_examples=max(1, settings.default.max_examples // (100 if INTERPRETED else 10)),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_step_after_one_change_is_that_of_a_new_optimizer(change: str, backend: str, data: st.DataObject) -> None:
    training = Training(backend, data.draw)
    training.step()
    with torch.no_grad():
        getattr(training, change)()
    training.step()
    training.step()


@pytest.mark.parametrize("reader", ["the library", "Python"])
@given(data=st.data())
@settings(
    max_examples=max(1, settings.default.max_examples // (50 if INTERPRETED else 2)),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.filterwarnings("ignore:refresh\\(\\) found no accumulated importance")
def test_steps_after_any_changes_are_those_of_a_new_optimizer(
    backend: str, reader: str, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reader == "Python":  # as with an older torch, or without a compiler
        monkeypatch.setattr(tensor_facts, "_reader", lambda: None)
    training = Training(backend, data.draw)
    for change in data.draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=6)):
        with torch.no_grad():
            getattr(training, change)()
        training.step()


# ---------------------------------------------------------------------------------------------------- what is refused


def small(backend: str) -> tuple[nn.Parameter, RoastAdamW]:
    param = nn.Parameter(torch.arange(6.0))
    optimizer = RoastAdamW([param], lr=0.1, backend=backend)
    param.grad = torch.ones(6)
    optimizer.step()
    return param, optimizer


@pytest.mark.parametrize("name", TENSOR_NAMES)
def test_freed_memory_is_named_and_nothing_is_changed(name: str, backend: str) -> None:
    param, optimizer = small(backend)
    if name not in ("param", *optimizer.state[param]):
        pytest.skip("the option that it needs is off")
    tensor = param if name == "param" else optimizer.state[param][name]
    storage, values, before = tensor.untyped_storage(), tensor.detach().clone(), optimizer.state[param]["step"].clone()
    size = storage.nbytes()
    storage.resize_(0)
    with pytest.raises(ValueError, match=f"the memory of {name} of row 0, of shape .*6.*was freed.*give it back"):
        optimizer.step()
    assert optimizer.state[param]["step"] == before
    storage.resize_(size)
    tensor.data.copy_(values)
    optimizer.step()
    assert optimizer.state[param]["step"] == before + 1


def test_a_parameter_of_another_shape_than_its_state_is_refused_until_that_is_deleted(backend: str) -> None:
    param, optimizer = small(backend)
    param.data, param.grad = torch.ones(3, 3), torch.ones(3, 3)
    with pytest.raises(RuntimeError, match=r"parameter 0 has shape \(3, 3\), its exp_avg \(6,\): .*delete"):
        optimizer.step()
    del optimizer.state[param]
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].shape == (3, 3)


def test_a_parameter_on_another_device_than_its_state_is_refused(backend: str) -> None:
    param, optimizer = small(backend)
    optimizer.state[param]["exp_avg_sq"] = optimizer.state[param]["exp_avg_sq"].to("meta")
    with pytest.raises(RuntimeError, match="parameter 0 has device cpu, its exp_avg_sq meta"):
        optimizer.step()


def test_gradients_without_an_address_are_taken_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices whose memory none but torch can read; there, too, sparse ones are refused."""

    def unreadable(tensors: list[Tensor]) -> list[Tensor]:
        raise RuntimeError("no address")

    expected, optimizer_of_expected = small("reference")
    param, optimizer = small("reference")
    optimizer_of_expected.step()
    monkeypatch.setattr(step_plans, "TensorsWithFacts", unreadable)
    optimizer.step()
    assert first_difference(param, expected) is None
    param.grad = torch.ones(6).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


def test_no_gradient_is_kept_alive(backend: str) -> None:
    param, optimizer = small(backend)
    optimizer.step()
    assert param.grad is not None
    kept = weakref.ref(param.grad)
    optimizer.zero_grad()
    assert kept() is None


def test_a_loaded_state_leaves_nothing_of_the_old_one_behind(backend: str) -> None:
    param, optimizer = small(backend)
    old = weakref.ref(optimizer.state[param]["exp_avg"])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    gc.collect()
    assert old() is None


def test_an_optimizer_that_is_not_used_any_more_is_freed_at_once(backend: str) -> None:
    """Its state may fill most of a device: no cycle of references must keep it until the next garbage collection."""
    gc.collect()
    gc.disable()
    try:
        param, optimizer = small(backend)
        kept = weakref.ref(optimizer), weakref.ref(optimizer.state[param]["exp_avg"])
        del optimizer
        assert [each() for each in kept] == [None, None]
    finally:
        gc.enable()
