"""The one description of a step: the tensors of a parameter, where they lie in the whole, and the scalars.

What must know the tensors follows from the fields of :class:`StepRow` and stands nowhere else: the optimizer's state
and the keys of its checkpoints, the arguments of the native library, the columns of the Triton kernel, the bytes that a
step moves, and the random rows of the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

# Step counts are float32, as AdamW's. From here on adding one changes nothing: a count goes to the next larger float32.
LAST_EXACT_COUNT = 2**24
RANK_CODES = 256
HISTOGRAM_BINS = 65536
UNRANKED = RANK_CODES - 1  # the highest keep probability

GroupOptions = Mapping[str, Any]


class Position(NamedTuple):
    """Where a local tensor lies in its whole, unsharded, contiguous parameter.

    Local element j (row-major) is element ``first_index + (j // inner_length) * outer_stride + j % inner_length`` of
    the whole parameter. For a parameter that is not sharded ``inner_length`` is its number of elements.

    Attributes:
        parameter_id: index of the parameter in the optimizer's ``state_dict``; third word of the draw's counter.
        first_index: element of the whole parameter at which the local tensor begins.
        inner_length: elements that lie side by side in the whole parameter before a gap; at least 1.
        outer_stride: distance in the whole parameter between the beginnings of two such runs.
    """

    parameter_id: int
    first_index: int
    inner_length: int
    outer_stride: int

    @classmethod
    def whole(cls, parameter_id: int, numel: int) -> Position:
        """The position of a parameter of ``numel`` elements that is not sharded."""
        return cls(parameter_id, 0, max(numel, 1), 0)


def next_count(count: float) -> float:
    """The step count after ``count``: one more, or from 2**24 on the next larger float32 (by 2, by 4 from 2**25, ...).

    Every step thus has a count of its own, from which its draw follows, and no other state is needed. Bias correction
    has long been one there. Draws repeat when the count, taken modulo 2**32, does: after 84 million steps.
    """
    if count < LAST_EXACT_COUNT:
        return count + 1.0
    return count + math.ldexp(1.0, math.frexp(count)[1] - 24)


def advance_counts_(counts: list[Tensor]) -> None:
    """:func:`next_count` of counts (float32), in place, on any device and without waiting for it."""
    # Below 2**24 the increment is less than 1.5, which rounds to one. Above, it is more than half the distance to the
    # next float32 and less than one and a half of it, which rounds to that distance.
    increments = torch._foreach_mul(counts, 1.5 / LAST_EXACT_COUNT)
    torch._foreach_clamp_min_(increments, 1.0)
    torch._foreach_add_(counts, increments)


def draw_number_of(count: float) -> int:
    """The draw of a step, of 32 bits, from its count."""
    return int(count) % 2**32


def _number(kind: str, choices: tuple[str, ...] = ()) -> dict[str, Any]:
    """Said of a scalar that the native library takes as this type of C; of choices, as the number of the one chosen."""
    return {"number": kind, "choices": choices}


@dataclass(frozen=True)
class Selection:
    """How the masks of one parameter group are drawn in this step.

    Attributes:
        seed: key of the draw, 0 <= seed < 2**64.
        thresholds: int64 ``[256]``, values in [1, 2**32 - 1]: an element with rank code c is kept iff its random word
            is below ``thresholds[c]``.
        rescaling: float32 ``[256]``: the factor of a kept gradient; ones for a selection without rescaling.
        draw_number: fourth word of the counter; None: each parameter's own step count after its increment.
        acts_on: "gradient": an element that is not kept has gradient zero. "update": the moments see the whole
            gradient, and an element that is not kept is moved by the decays alone; nothing is rescaled.
    """

    seed: int = field(metadata=_number("std::uint64_t"))
    thresholds: Tensor
    rescaling: Tensor
    draw_number: int | None = field(metadata=_number("std::int64_t"))
    acts_on: str = field(default="gradient", metadata=_number("std::int64_t", ("gradient", "update")))


@dataclass(frozen=True)
class StepOptions:
    """The scalars of a step; lr to maximize as in :class:`torch.optim.AdamW`.

    Attributes:
        pretrained_decay: c of theta <- theta - lr c w (theta - theta_0), theta_0 being ``pretrained`` of the row.
        pretrained_decay_by: what w is. "uniform": 1. "rank": 1 - p, the complement of the keep probability in float32;
            0 without a selection.
        stochastic_rounding: whether parameters and moments of 16 bits are rounded stochastically, and not to nearest.
        rounding_seed: key of the bits by which that is done, and by which scores of 16 bits are always rounded, 0 <=
            rounding_seed < 2**64. They are drawn anew in each step, by the parameter's step count after its increment.
        gradient_factor: by what each gradient is multiplied as it is loaded, a number or a tensor of no dimensions on
            any device: see :func:`.reference.multiplied`. Importance, masks and moments see the product.
        capturable: the step counts lie beside the parameters and are read there; for CUDA graphs.
        accumulate: whether the squared gradients are added to the importance.
        selection: how the masks are drawn; None updates everything.
    """

    lr: float | Tensor = field(metadata=_number("double"))
    beta1: float | Tensor = field(metadata=_number("double"))
    beta2: float | Tensor = field(metadata=_number("double"))
    eps: float = field(metadata=_number("double"))
    weight_decay: float = field(metadata=_number("double"))
    maximize: bool = field(metadata=_number("std::int64_t"))
    capturable: bool
    accumulate: bool
    selection: Selection | None
    pretrained_decay: float = field(default=0.0, metadata=_number("double"))
    pretrained_decay_by: str = field(default="uniform", metadata=_number("std::int64_t", ("uniform", "rank")))
    stochastic_rounding: bool = field(default=False, metadata=_number("std::int64_t"))
    rounding_seed: int = field(default=0, metadata=_number("std::uint64_t"))
    gradient_factor: float | Tensor = field(default=1.0, metadata=_number("double"))

    @property
    def multiplies_gradients(self) -> bool:
        """Whether gradients are not taken as they are."""
        return isinstance(self.gradient_factor, Tensor) or self.gradient_factor != 1

    @property
    def returns_to_pretrained(self) -> bool:
        """Whether the step moves anything towards ``pretrained``."""
        return self.pretrained_decay != 0 and (self.pretrained_decay_by == "uniform" or self.selection is not None)

    def uses(self, name: str) -> bool:
        """Whether the step uses a tensor, where the row has it."""
        unused = {
            "importance": not self.accumulate,
            "rank_code": self.selection is None,
            "pretrained": not self.returns_to_pretrained,
        }
        return not unused.get(name, False)


SCALARS: dict[str, str] = {
    each.name: each.metadata["number"]
    for kind in (StepOptions, Selection)
    for each in fields(kind)
    if "number" in each.metadata
}


CHOICES: dict[str, tuple[str, ...]] = {
    each.name: each.metadata["choices"]
    for kind in (StepOptions, Selection)
    for each in fields(kind)
    if each.metadata.get("choices")
}


# -------------------------------------------------------------------------------------------------------------- tensors


class DtypeOf(Enum):
    """What the dtype of a tensor follows from."""

    PARAMETER = "parameter"
    MOMENT = "moment"
    SCORE = "score"
    FLOAT32 = "float32"
    UINT8 = "uint8"

    def resolved(self, param: torch.dtype, moment: torch.dtype, score: torch.dtype = torch.float32) -> torch.dtype:
        """The dtype, given those of the parameter, of the moments and of the importance scores."""
        given = {DtypeOf.PARAMETER: param, DtypeOf.MOMENT: moment, DtypeOf.SCORE: score}
        return given.get(self) or cast(torch.dtype, getattr(torch, self.value))


SCORE_DTYPES = (torch.float32, torch.bfloat16)  # whose bits are those of float32, or its upper half


def _zero(group: GroupOptions, param: Tensor) -> float:
    return 0.0


def _unranked(group: GroupOptions, param: Tensor) -> float:
    """A parameter whose group is ranked already counts as most important until the next refresh."""
    return UNRANKED if group["refreshes"] > 0 else 0.0


def _parameter(group: GroupOptions, param: Tensor) -> Tensor:
    return param.detach()


@dataclass(frozen=True)
class TensorField:
    """What is said of a tensor of a step.

    Attributes:
        dtype: what its dtype follows from.
        written: whether a step writes it; it reads every tensor.
        needs: the group option without which there is no such tensor; None: there always is.
        in_state: whether the optimizer's state holds it, under the field's name.
        per_element: whether it has the parameter's shape; otherwise it is a single number.
        first_value: its value when the state is made, from the options of its group and the parameter.
        replaceable: whether training may go on with its first value where a checkpoint lacks it.
        is_square: whether its values are not negative.
        is_ranked: whether its values are looked up by their bits, and must be finite and not negative.
    """

    dtype: DtypeOf
    written: bool
    needs: str | None = None
    in_state: bool = True
    per_element: bool = True
    first_value: Callable[[GroupOptions, Tensor], float | Tensor] = _zero
    replaceable: bool = False
    is_square: bool = False
    is_ranked: bool = False

    def is_present(self, group: GroupOptions) -> bool:
        """Whether parameters of a group with these options have the tensor."""
        return self.needs is None or bool(group.get(self.needs))

    def make(
        self,
        group: GroupOptions,
        param: Tensor,
        moment_dtype: torch.dtype | None,
        score_dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The tensor of a parameter with its first value, laid out like the parameter."""
        value = self.first_value(group, param)
        if not self.per_element:
            device = param.device if group["capturable"] else "cpu"
            return torch.full((), value, dtype=torch.float32, device=device)  # type: ignore[arg-type]
        dtype = self.dtype.resolved(param.dtype, moment_dtype or param.dtype, score_dtype)
        layout = torch.preserve_format
        if isinstance(value, Tensor):
            return torch.empty_like(value, dtype=dtype, memory_format=layout, requires_grad=False).copy_(value.detach())
        return torch.full_like(param, value, dtype=dtype, memory_format=layout, requires_grad=False)


def _tensor(dtype: DtypeOf, *, written: bool, **more: Any) -> dict[str, TensorField]:
    """Said of a tensor, see :class:`TensorField`."""
    return {"tensor": TensorField(dtype, written, **more)}


@dataclass(slots=True, kw_only=True, eq=False)
class StepRow:
    """The local tensors of one parameter in a step, and where they lie in the whole parameter.

    All but ``step`` have the shape of ``param``. None is a tensor that the options of the group have no use for; a
    gradient of None, one that is told later.
    """

    param: Tensor = field(metadata=_tensor(DtypeOf.PARAMETER, written=True, in_state=False))
    grad: Tensor | None = field(default=None, metadata=_tensor(DtypeOf.PARAMETER, written=False, in_state=False))
    step: Tensor = field(metadata=_tensor(DtypeOf.FLOAT32, written=True, per_element=False))
    exp_avg: Tensor = field(metadata=_tensor(DtypeOf.MOMENT, written=True))
    exp_avg_sq: Tensor = field(metadata=_tensor(DtypeOf.MOMENT, written=True, is_square=True))
    max_exp_avg_sq: Tensor | None = field(
        default=None, metadata=_tensor(DtypeOf.MOMENT, written=True, needs="amsgrad", is_square=True)
    )
    importance: Tensor | None = field(
        default=None,
        metadata=_tensor(
            DtypeOf.SCORE, written=True, needs="selective", replaceable=True, is_square=True, is_ranked=True
        ),
    )
    rank_code: Tensor | None = field(
        default=None,
        metadata=_tensor(DtypeOf.UINT8, written=False, needs="selective", replaceable=True, first_value=_unranked),
    )
    pretrained: Tensor | None = field(
        default=None,
        metadata=_tensor(
            DtypeOf.MOMENT, written=False, needs="pretrained_decay", replaceable=True, first_value=_parameter
        ),
    )
    position: Position

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that are there, by name, in the order of the fields."""
        for name in TENSORS:
            tensor = getattr(self, name)
            if tensor is not None:
                yield name, tensor

    @property
    def score_dtype(self) -> torch.dtype:
        """The dtype of the importance; float32 where there is none."""
        return torch.float32 if self.importance is None else self.importance.dtype

    def usual_dtype(self, name: str) -> torch.dtype:
        """That of a tensor by its name, which follows from the parameter's, the first moment's and the importance's.

        An importance that is none of :data:`SCORE_DTYPES` should be float32.
        """
        score = self.score_dtype if self.score_dtype in SCORE_DTYPES else torch.float32
        return TENSORS[name].dtype.resolved(self.param.dtype, self.exp_avg.dtype, score)

    def has_usual_dtypes(self) -> bool:
        """Whether all but the gradient are of their usual dtypes."""
        return all(tensor.dtype == self.usual_dtype(name) for name, tensor in self.tensors() if name != "grad")

    def with_gradient(self, grad: Tensor | None) -> StepRow:
        """The same row with another gradient."""
        return replace(self, grad=grad)


TENSORS: dict[str, TensorField] = {
    each.name: each.metadata["tensor"] for each in fields(StepRow) if "tensor" in each.metadata
}
STATE_TENSORS = {name: described for name, described in TENSORS.items() if described.in_state}


def state_names(group: GroupOptions) -> tuple[str, ...]:
    """The state tensors that take part in the steps of a group with these options, in the order of the fields."""
    return tuple(name for name, described in STATE_TENSORS.items() if described.is_present(group))


# ------------------------------------------------------------------------------------------------------- memory traffic


def accesses(
    names: Collection[str],
    param_dtype: torch.dtype,
    moment_dtype: torch.dtype,
    score_dtype: torch.dtype = torch.float32,
) -> list[int]:
    """The bytes of each access to an element in a step that uses these tensors: a read, and a write of what changes."""
    sizes = []
    for name, described in TENSORS.items():
        if name in names and described.per_element:
            size = described.dtype.resolved(param_dtype, moment_dtype, score_dtype).itemsize
            sizes += [size] * (1 + described.written)
    return sizes


def names_in_step(group: GroupOptions, options: StepOptions) -> list[str]:
    """The tensors that a step with these options of its group and of its own uses."""
    return [name for name, described in TENSORS.items() if described.is_present(group) and options.uses(name)]
