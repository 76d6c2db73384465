"""RoAST AdamW in float64 (importance in float32), written from the definition, one line per line of it.

Decoupled weight decay: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2. AMSGrad: Reddi et al., arXiv 1904.09237.
Selective training: RoAST, arXiv 2312.04032, section 3.2. Decay towards the pre-trained values: L2-SP, Li et al., arXiv
1802.01483, equation 1, decoupled as weight decay is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tests.oracles import philox, ranks, rounding

Float64Array = npt.NDArray[np.float64]
Gradient = npt.NDArray[np.floating] | None


@dataclass
class ParameterState:
    """What is remembered of one parameter; every array has its shape."""

    step: int
    exp_avg: Float64Array
    exp_avg_sq: Float64Array
    max_exp_avg_sq: Float64Array
    importance: npt.NDArray[np.float32]
    rank_code: npt.NDArray[np.uint8]
    pretrained: Float64Array | None = None


@dataclass
class Group:
    """Parameters with common options, updated in place; `frozen` holds the indices of those without requires_grad."""

    parameters: list[Float64Array]
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    amsgrad: bool = False
    maximize: bool = False
    selective: bool = True
    alpha: float = 0.9
    beta: float = 10.0
    pretrained_decay: float = 0.0
    pretrained_decay_by: str = "uniform"
    refreshes: int = 0
    steps_since_refresh: int = 0
    frozen: set[int] = field(default_factory=set)
    states: list[ParameterState | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start without state."""
        self.states = [None] * len(self.parameters)


@dataclass
class RoastAdamWOracle:
    """The optimizer: one `step` takes the gradients of every group's parameters (None: no gradient).

    `largest_gradient` is the largest finite value of the gradients' dtype, at which rescaled gradients saturate.
    `importance_dtype` is one whose name ends in float32 or bfloat16; parameters and moments are never rounded.
    After a step `kept` holds each group's masks (None: no mask was active).
    """

    groups: list[Group]
    refresh_every: int | None = None
    mask_schedule: str = "step"
    selection: str = "gradient"
    rescale: bool = True
    importance: str = "gradient"
    importance_every: int = 1
    importance_dtype: object = "float32"
    seed: int = 0
    largest_gradient: float = float(np.finfo(np.float64).max)
    kept: list[list[npt.NDArray[np.bool_] | None]] = field(default_factory=list)

    def step(self, gradients: Sequence[Sequence[Gradient]]) -> None:
        """Take one step, and refresh the ranks when one is due."""
        if all(gradient is None for of_group in gradients for gradient in of_group):
            return
        if self._only_initialises(gradients):
            self._create_states(gradients)
            return
        self._create_states(gradients)
        self.kept = [[None] * len(group.parameters) for group in self.groups]
        for group_index, (group, of_group) in enumerate(zip(self.groups, gradients, strict=True)):
            group.steps_since_refresh += 1
            for index, gradient in enumerate(of_group):
                if gradient is not None:
                    self._update(group_index, group, index, gradient)
        if self.refresh_every is not None and any(
            group.selective and group.steps_since_refresh >= self.refresh_every for group in self.groups
        ):
            self.refresh()

    def measure(self, gradients: Sequence[Sequence[Gradient]]) -> None:
        """A step inside measure_importance(): accumulate importance, and nothing else."""
        self._create_states(gradients)
        for group, of_group in zip(self.groups, gradients, strict=True):
            for state, gradient in zip(group.states, of_group, strict=True):
                if gradient is not None and group.selective and self.importance == "gradient":
                    assert state is not None
                    self._accumulate(state, gradient, rounding.bits_of_measured(gradient, state.importance))

    def refresh(self) -> None:
        """Rank every element of every selective group anew, unless nothing was accumulated; do nothing without any."""
        selective = [
            (self._parameter_id(group_index, index), group, index)
            for group_index, group in enumerate(self.groups)
            if group.selective
            for index in range(len(group.parameters))
            if index not in group.frozen or group.states[index] is not None
        ]
        if not selective:
            return
        for _, group, index in selective:
            self._complete_state(group, index)
        scores = [self._scores(parameter_id, group, index) for parameter_id, group, index in selective]
        if any(ranks.bins(score).any() for score in scores):
            codes = ranks.percentile_rank_codes(scores)
            for (_, group, index), code in zip(selective, codes, strict=True):
                self._state(group, index).rank_code = code
            for group in self.groups:
                group.refreshes += 1
        for group in self.groups:
            group.steps_since_refresh = 0
        for _, group, index in selective:
            self._state(group, index).importance[...] = 0

    def _update(self, group_index: int, group: Group, index: int, gradient: npt.NDArray[np.floating]) -> None:
        state, parameter = self._state(group, index), group.parameters[index]
        state.step += 1
        if group.selective and self.importance == "gradient" and group.steps_since_refresh % self.importance_every == 0:
            _, bits = rounding.bits_of_step(
                self.seed, self._parameter_id(group_index, index), state.step, np.arange(gradient.size)
            )
            self._accumulate(state, gradient, bits.reshape(gradient.shape))

        g = gradient.astype(np.float64)
        g = -g if group.maximize else g
        moving: npt.NDArray[np.bool_] | bool = True
        drop_probability: npt.NDArray[np.float64] | float = 0.0
        if group.selective and group.refreshes > 0:
            draw_number = {"step": state.step, "refresh": group.refreshes}[self.mask_schedule]
            kept = philox.keep_mask(
                state.rank_code,
                group.alpha,
                group.beta,
                seed=self.seed,
                parameter_id=self._parameter_id(group_index, index),
                draw_number=draw_number,
            )
            if self.selection == "update":
                moving = kept
            else:
                if self.rescale:
                    g = self._rescaled(g, philox.rescaling_factors(group.alpha, group.beta)[state.rank_code])
                g = np.where(kept, g, 0.0)
            thresholds = philox.thresholds(group.alpha, group.beta).astype(np.float64)
            drop_probability = (1 - thresholds / 2**32).astype(np.float32).astype(np.float64)[state.rank_code]
            self.kept[group_index][index] = kept

        beta1, beta2 = group.betas
        with np.errstate(invalid="ignore", over="ignore"):
            parameter *= 1 - group.lr * group.weight_decay
            if group.pretrained_decay:
                w = {"uniform": 1.0, "rank": drop_probability}[group.pretrained_decay_by]
                parameter -= group.lr * group.pretrained_decay * w * (parameter - state.pretrained)
            state.exp_avg = beta1 * state.exp_avg + (1 - beta1) * g
            state.exp_avg_sq = beta2 * state.exp_avg_sq + (1 - beta2) * g * g
            state.max_exp_avg_sq = np.maximum(state.max_exp_avg_sq, state.exp_avg_sq)
            second_moment = state.max_exp_avg_sq if group.amsgrad else state.exp_avg_sq
            first_unbiased = state.exp_avg / (1 - beta1**state.step)
            second_unbiased = second_moment / (1 - beta2**state.step)
            moved = parameter - group.lr * first_unbiased / (np.sqrt(second_unbiased) + group.eps)
            parameter[...] = np.where(moving, moved, parameter)

    def _accumulate(self, state: ParameterState, gradient: npt.NDArray[np.floating], bits: npt.ArrayLike) -> None:
        if str(self.importance_dtype).endswith("bfloat16"):
            total = ranks.accumulated(state.importance, gradient, largest=rounding.BFLOAT16.largest)
            state.importance = rounding.stochastically_rounded(total, bits, rounding.BFLOAT16).astype(np.float32)
        else:
            state.importance = ranks.accumulated(state.importance, gradient)

    def _rescaled(self, g: Float64Array, factors: npt.NDArray[np.float32]) -> Float64Array:
        with np.errstate(invalid="ignore", over="ignore"):
            product = g * factors.astype(np.float64)
            saturated = np.clip(product, -self.largest_gradient, self.largest_gradient)
        return np.where(np.isfinite(g), saturated, g)

    def _scores(self, parameter_id: int, group: Group, index: int) -> npt.NDArray[np.float32]:
        parameter = group.parameters[index]
        if self.importance == "random":
            words = philox.random_words(self.seed, parameter_id, 0, np.arange(parameter.size))
            scores = (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)
            return self._to_nearest(np.asarray(scores.reshape(parameter.shape), dtype=np.float32))
        if self.importance == "magnitude":
            with np.errstate(over="ignore"):
                magnitude = np.abs(parameter).astype(np.float32)
            magnitude = np.nan_to_num(magnitude, nan=0.0, posinf=ranks.LARGEST_FLOAT32)
            return self._to_nearest(np.asarray(magnitude, dtype=np.float32))
        return self._state(group, index).importance

    def _to_nearest(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Scores that are no sums, as the importance's dtype holds them: ties to even, at most its largest number."""
        if not str(self.importance_dtype).endswith("bfloat16"):
            return scores
        bits = np.minimum(scores, np.float32(rounding.BFLOAT16.largest)).astype(np.float32).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
        return np.asarray(rounded.astype(np.uint32).view(np.float32))

    def _only_initialises(self, gradients: Sequence[Sequence[Gradient]]) -> bool:
        """Distributed checkpoints create state by a first step with lr = 0 and zero gradients: it must not count."""
        untouched = all(state is None for group in self.groups for state in group.states)
        still = all(group.lr == 0 for group in self.groups)
        return untouched and still and not any(g.any() for of_group in gradients for g in of_group if g is not None)

    def _create_states(self, gradients: Sequence[Sequence[Gradient]]) -> None:
        for group, of_group in zip(self.groups, gradients, strict=True):
            for index, gradient in enumerate(of_group):
                if gradient is not None:
                    self._complete_state(group, index)

    def _complete_state(self, group: Group, index: int) -> None:
        state = group.states[index] = group.states[index] or self._new_state(group, index)
        if group.pretrained_decay and state.pretrained is None:
            state.pretrained = group.parameters[index].copy()

    @staticmethod
    def _new_state(group: Group, index: int) -> ParameterState:
        shape = group.parameters[index].shape
        return ParameterState(
            step=0,
            exp_avg=np.zeros(shape),
            exp_avg_sq=np.zeros(shape),
            max_exp_avg_sq=np.zeros(shape),
            importance=np.zeros(shape, dtype=np.float32),
            rank_code=np.full(shape, 255, dtype=np.uint8),
        )

    @staticmethod
    def _state(group: Group, index: int) -> ParameterState:
        state = group.states[index]
        assert state is not None
        return state

    def _parameter_id(self, group_index: int, index: int) -> int:
        return sum(len(group.parameters) for group in self.groups[:group_index]) + index
