"""RoastAdamW: AdamW that updates each element with a probability that grows with its importance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, ParamsT

from . import checkpoint
from .backends import backend_for, check_backend, tell_fallbacks
from .graph_capture import refuse_capture_of_refresh, refuse_capture_of_step
from .group_checks import CheckedGroup, check_keys
from .importance import RankedTensors, fill_magnitude_scores_, fill_random_scores_, refresh_rank_codes
from .kernels.backend import Backend
from .kernels.forked import without_lost_threads
from .kernels.step import Position, StepRow
from .options import (
    DEFAULTS,
    NOT_SAID_TO_BE_SELECTIVE,
    OPTIONS,
    RoastOptions,
    check_group,
    documented,
    group_options,
    is_said,
)
from .param_groups import always_updated_param_groups, selective_param_groups
from .processes import any_of_them, device_of, parameters_of_earlier_stages, require_same_masks
from .sharding import check_process_group, local, position_of, shard_groups
from .shared_ranks import SharedRanks, is_made_by_zero_redundancy_optimizer, takes_turns_with_another
from .state import State, make_state, step_row
from .statistics import selection_stats
from .step_options import accumulates, checked_gradient_factor, prepare_selections, step_options, without_effect
from .step_plans import PlannedStep, StepPlans
from .user_warning import warn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# After so many steps without masks it is said that there are none: eight times the first interval of "auto", about what
# an epoch over a few thousand sentences takes, and early enough to begin again.
_STEPS_WITHOUT_MASKS = 256

_UNMARKED = (
    "RoastAdamW: parameters came without a word on `selective`, so all of them are selective: embeddings, "
    "normalisation and head too, which RoAST always updates. Pass the model, RoastAdamW(model, ...), or the groups of "
    "selective_param_groups(model, weight_decay); or selective=True where all are meant"
)
NEVER_MASKED = (
    'Until the first refresh has ranked the elements this is AdamW. Leave refresh_every at "auto", set it to less than '
    "the training takes in optimizer steps (not micro-batches), or measure importance first and call refresh()"
)
_SAME_DRAWS = (
    "RoastAdamW: two optimizers take turns and draw their masks with the same seed, so that masks are equal where they "
    "should be independent. If they train one model, give both the same shared_ranks=SharedRanks(), by which they are "
    "numbered and ranked together, or each its own seed"
)
_PARTS_OF_PROCESSES = (
    "RoastAdamW: ZeroRedundancyOptimizer gives each process a part of the parameters, so that ids begin at 0 and ranks "
    "are local in each. Pass optimizer_class=functools.partial(RoastAdamW, process_group=group), the group being that "
    "of these processes"
)


@documented
class RoastAdamW(Optimizer):
    r"""AdamW with selective training (RoAST, arXiv 2312.04032, section 3.2).

    Between refreshes the importance :math:`s = \sum g^2` of every selective element is accumulated from the gradients
    that ``step`` sees. A refresh turns it into the percentile rank r among all selective elements, and from then on an
    element is updated with keep probability :math:`p = 1 / (1 + \exp(-2 \beta (r - \alpha)))`:

    .. math:: m \sim \mathrm{Bernoulli}(p), \qquad g' = (m / p)\, g, \qquad \theta \leftarrow \mathrm{AdamW}(g')

    An element that is not kept gets gradient zero: its moments decay, and weight decay and momentum still move it.
    Until the first refresh everything is updated. With ``selective=False`` this is
    ``torch.optim.AdamW(foreach=False)``, bit for bit on the reference backend.

    Args:
        params: a module, whose groups are then ``selective_param_groups(module, weight_decay)`` (with
            ``selective=False``: all its trainable parameters, none selective); or parameters or group dictionaries, as
            for every torch optimizer. Parameters that come without a word on ``selective``, here or in their group, are
            all selective, which is said once.
        {options}

    Raises:
        ValueError: an option out of range, an unknown key of a group that looks like an option, a module without
            transformer blocks, a backend that cannot run here, or a process group of which this process is not a
            member.

    {group options}

    A parameter whose state is made after its group's first refresh (it was frozen, say) counts as most important until
    the next refresh ranks it. Options that are not group options are not saved: construct the optimizer with the same
    ones before ``load_state_dict``.
    """

    def __init__(
        self,
        params: ParamsT | nn.Module,
        lr: float | Tensor = DEFAULTS["lr"],
        betas: tuple[float | Tensor, float | Tensor] = DEFAULTS["betas"],
        eps: float = DEFAULTS["eps"],
        weight_decay: float = DEFAULTS["weight_decay"],
        amsgrad: bool = DEFAULTS["amsgrad"],
        *,
        alpha: float = DEFAULTS["alpha"],
        beta: float = DEFAULTS["beta"],
        refresh_every: int | str | None = DEFAULTS["refresh_every"],
        mask_schedule: str = DEFAULTS["mask_schedule"],
        selection: str = DEFAULTS["selection"],
        rescale: bool = DEFAULTS["rescale"],
        pretrained_decay: float = DEFAULTS["pretrained_decay"],
        pretrained_decay_by: str = DEFAULTS["pretrained_decay_by"],
        selective: bool = NOT_SAID_TO_BE_SELECTIVE,
        importance: str = DEFAULTS["importance"],
        importance_every: int = DEFAULTS["importance_every"],
        importance_dtype: torch.dtype | str = DEFAULTS["importance_dtype"],
        seed: int = DEFAULTS["seed"],
        state_dtype: torch.dtype | str | None = DEFAULTS["state_dtype"],
        stochastic_rounding: bool = DEFAULTS["stochastic_rounding"],
        backend: str = DEFAULTS["backend"],
        maximize: bool = DEFAULTS["maximize"],
        capturable: bool = DEFAULTS["capturable"],
        process_group: ProcessGroup | None = DEFAULTS["process_group"],
        shared_ranks: SharedRanks | None = DEFAULTS["shared_ranks"],
    ) -> None:
        given = {name: value for name, value in locals().items() if name in OPTIONS}
        self.options = RoastOptions.of(given)
        self.backend = check_backend(backend)
        self.process_group = check_process_group(process_group)
        self.shared_ranks = shared_ranks
        self._is_said_to_be_selective = is_said(selective)
        self._measuring = False
        self._has_stepped = False
        self._has_drawn = False
        self._first_id = 0
        self._plans = StepPlans()
        self._checked_groups: list[CheckedGroup] = []
        self._warned: set[str] = set()
        defaults = group_options(given)
        if shared_ranks is not None:
            if process_group is not None:
                raise ValueError("RoastAdamW: shared_ranks and process_group cannot be combined: give one of them")
            shared_ranks.join(self)
        if isinstance(params, nn.Module):
            groups_of = selective_param_groups if defaults["selective"] else always_updated_param_groups
            params = groups_of(params, weight_decay)
        super().__init__(params, defaults)
        if process_group is None and is_made_by_zero_redundancy_optimizer():
            self._warn_once(_PARTS_OF_PROCESSES)

    # ----------------------------------------------------------------------------------------------------------- groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as every torch optimizer does; its elements are all updated until the next refresh."""
        check_keys(param_group)
        is_unmarked = "selective" not in param_group and not self._is_said_to_be_selective
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
            for param in self.param_groups[-1]["params"]:
                self._backend_of(param.device)
            self.positions = self._place()
        except Exception:
            self.param_groups.pop()
            raise
        if is_unmarked:
            self._warn_once(_UNMARKED)

    def _place(self) -> dict[Tensor, Position]:
        """Where each parameter lies in the whole; its id is its index in the state_dict, from `_first_id` up.

        A lazy parameter that has no shape yet is placed before its first step.
        """
        self._plans.clear()
        every = [param for group in self.param_groups for param in group["params"]]
        numbers: Iterable[int] = range(self._first_id, self._first_id + len(every))
        if self.shared_ranks is not None:
            numbers = self.shared_ranks.ids(self, len(every))
        ids: dict[Tensor, int] = {}
        for parameter_id, param in zip(numbers, every, strict=True):
            if not is_lazy(param):
                ids.setdefault(param, parameter_id)
        self._placed_sizes = {param: param.numel() for param in ids}
        return {param: position_of(param, parameter_id) for param, parameter_id in ids.items()}

    def _number_after_earlier_stages(self) -> None:
        if self.process_group is not None:
            self._first_id = parameters_of_earlier_stages(self.param_groups, self.process_group)
            self.positions = self._place()

    def _backend_of(self, device: torch.device) -> Backend:
        return backend_for(self.backend, device, self._warn_once)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warn(message)

    # ------------------------------------------------------------------------------------------------------------- step

    @overload
    def step(self, closure: None = None, *, gradient_factor: float | Tensor = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float], *, gradient_factor: float | Tensor = ...) -> float: ...
    @torch.no_grad()
    def step(
        self, closure: Callable[[], float] | None = None, *, gradient_factor: float | Tensor = 1.0
    ) -> float | None:
        """Perform a single optimization step, and a refresh when it is the ``refresh_every``-th since the last.

        Args:
            closure: reevaluates the model under ``torch.enable_grad`` and returns the loss.
            gradient_factor: by what every gradient is multiplied as the step reads it: a finite number, or a tensor of
                one element, which is best on the device of the parameters and read there. The step is that with
                gradients which were multiplied before, bit for bit, and saves the pass over them. Gradients stay as
                they are. Inside :meth:`measure_importance` a copy of them is made.

        Raises:
            RuntimeError: a sparse or complex gradient, a state that does not fit its parameter, or options that differ
                between processes.
            ValueError: an option of a group was set to what it cannot be, or ``gradient_factor`` is none.

        Example:
            Gradients clipped to norm 1, as by ``clip_grad_norm_``, without writing them::

                norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
                optimizer.step(gradient_factor=(1.0 / (norm + 1e-6)).clamp(max=1.0))
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        with without_lost_threads():
            self._take_step(gradient_factor)
        return loss

    # Kernels are opaque to torch.compile: a compiled step runs this as it is, and compiles nothing anew for another
    # learning rate.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _take_step(self, gradient_factor: float | Tensor) -> None:
        gradient_factor = checked_gradient_factor(gradient_factor)
        refuse_capture_of_step(self.param_groups, self.state, self.options, self._measuring, self._has_stepped)
        self._check_groups()
        if self.shared_ranks is not None and self._is_due():  # the others have waited for one that took no more steps
            self.refresh()
        had_state = len(self.state) > 0
        if not self._has_stepped:
            self._number_after_earlier_stages()
        planned = self._planned_steps()
        # A process of a process group takes every step with the others, even if nothing of its own has a gradient.
        if not any(planned) and self.process_group is None:
            return
        first, self._has_stepped = not self._has_stepped, True
        if first:
            require_same_masks(self.param_groups, self.options, self.process_group)
            if message := without_effect(self.param_groups, self.options):
                self._warn_once(message)
        if self._measuring:
            self._accumulate(planned, gradient_factor)
        elif not (first and self._only_makes_state(had_state, planned)):
            self._update(planned, gradient_factor)
            self._refresh_if_due()

    def _planned_steps(self) -> list[list[PlannedStep]]:
        """What the step of each group has to do; makes missing state and notices what has changed."""
        return [
            self._plans.of_group(number, group, self.state, self._row_of, self._backend_of)
            for number, group in enumerate(self.param_groups)
        ]

    def _accumulate(self, planned: list[list[PlannedStep]], gradient_factor: float | Tensor) -> None:
        for group, steps in zip(self.param_groups, planned, strict=True):
            if accumulates(group, self.options):
                for _, plan, grads in steps:
                    plan.accumulate(grads, gradient_factor)

    def _check_groups(self) -> None:
        if len(self._checked_groups) != len(self.param_groups):
            self._checked_groups = [CheckedGroup() for _ in self.param_groups]
        for number, group in enumerate(self.param_groups):
            self._checked_groups[number].check(number, group)

    def _update(self, planned: list[list[PlannedStep]], gradient_factor: float | Tensor) -> None:
        for group, steps in zip(self.param_groups, planned, strict=True):
            group["steps_since_refresh"] += 1
            for device, plan, grads in steps:
                options = step_options(group, self.options, device, gradient_factor)
                if options.selection is not None:
                    self._notice_same_draws(options.selection.seed)
                plan.step(grads, options)
                tell_fallbacks(plan, self._warn_once)

    def _notice_same_draws(self, seed: int) -> None:
        if self.shared_ranks is None and self.process_group is None:
            if takes_turns_with_another(self, seed, has_drawn=self._has_drawn):
                self._warn_once(_SAME_DRAWS)
            self._has_drawn = True

    def _is_due(self) -> bool:
        """Whether this optimizer has taken the steps after which its ranks are computed anew."""
        return 0 < self.options.interval(self.refreshes) <= self.steps_since_refresh

    def _ranked_together(self) -> list[RoastAdamW]:
        return [self] if self.shared_ranks is None else self.shared_ranks.optimizers

    def _refresh_if_due(self) -> None:
        if self._is_due() and all(
            optimizer._is_due() for optimizer in self._ranked_together() if optimizer.steps_since_refresh > 0
        ):
            self.refresh()
        elif self.steps_since_refresh == _STEPS_WITHOUT_MASKS and self.refreshes == 0:
            self._warn_once(f"RoastAdamW has taken {_STEPS_WITHOUT_MASKS} steps, none of them masked. {NEVER_MASKED}")

    @property
    def refreshes(self) -> int:
        """Refreshes that have ranked the elements so far; 0 if nothing is selective."""
        return max((group["refreshes"] for group in self._ranked_groups()), default=0)

    @property
    def has_masked(self) -> bool:
        """Whether a step was taken with masks, that is after the first refresh; from counters that a checkpoint has."""
        return any(
            group["refreshes"] + (group["steps_since_refresh"] > 0) > 1
            for group in self._ranked_groups()
            if group["refreshes"] > 0
        )

    @property
    def steps_since_refresh(self) -> int:
        """Steps that this process and those it is ranked with have taken since; 0 if nothing is selective."""
        return max((group["steps_since_refresh"] for group in self._ranked_groups()), default=0)

    def _ranked_groups(self) -> list[dict[str, Any]]:
        # A process of a process group joins in the others' refresh even if nothing of its own is selective.
        return [group for group in self.param_groups if group["selective"] or self.process_group is not None]

    def _position_of(self, param: Tensor) -> Position:
        # Accelerate puts the shards in the place of the parameters; others give a parameter another size.
        # A lazy parameter has a size from its first forward pass on.
        if self._placed_sizes.get(param) != param.numel():
            self.positions = self._place()
        return self.positions[param]

    def _state_of(self, group: dict[str, Any], param: Tensor, position: Position) -> State:
        state: State = self.state[param]
        if anew := make_state(state, group, param, self.options, position.parameter_id):
            self._warn_once(
                f"RoastAdamW: the shape of a parameter has changed, and {' and '.join(anew)} of its state did not "
                "with it: made anew. Until the next refresh its elements count as most important"
            )
        return state

    def _row_of(self, group: dict[str, Any], param: Tensor) -> StepRow:
        position = self._position_of(param)
        return step_row(self._state_of(group, param, position), group, param, position)

    def _only_makes_state(self, had_state: bool, planned: list[list[PlannedStep]]) -> bool:
        """Whether this is the step by which distributed checkpoints make state: lr = 0 and all gradients zero."""
        if any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        real = had_state or any(bool(grad.any()) for steps in planned for step in steps for grad in step.grads)
        return not any_of_them(real, self.param_groups, self.process_group)

    # ------------------------------------------------------------------------------------------------------- importance

    @contextmanager
    def measure_importance(self) -> Iterator[None]:
        """Steps inside accumulate importance and change and count nothing else.

        One pass over the data inside, followed by :meth:`refresh`, gives masks before the first real step, as the
        authors of RoAST do.
        """
        previous, self._measuring = self._measuring, True
        try:
            yield
        finally:
            self._measuring = previous

    @torch.no_grad()
    def refresh(self) -> None:
        """Rank all selective elements by the importance accumulated since the last refresh, and start again at zero.

        With nothing accumulated the ranks stay as they are, which is said once; with no selective parameter nothing is
        done. Where parameters are sharded, every process must call it: it is one all-reduce of 512 KB over the
        processes that share them.
        """
        refuse_capture_of_refresh()
        with without_lost_threads():
            self._rank_together()

    def _rank_together(self) -> None:
        together = self._ranked_together()
        parts: dict[tuple[Any, ...], RankedTensors] = {}
        for optimizer in together:
            optimizer._add_ranked_tensors(parts)
        if not parts and self.process_group is None:
            return

        def count(ranked: bool) -> None:
            for group in (group for optimizer in together for group in optimizer.param_groups):
                group["steps_since_refresh"] = 0
                group["refreshes"] += int(ranked)

        ranked = refresh_rank_codes(list(parts.values()), self.process_group, device_of(self.param_groups), count)
        for optimizer in together:
            prepare_selections(optimizer.param_groups, optimizer.options)
        if not ranked:
            self._warn_once(
                "refresh() found no accumulated importance and keeps the ranks: take a step with non-zero gradients "
                "(or one inside measure_importance()) between two refreshes"
            )

    def _add_ranked_tensors(self, parts: dict[tuple[Any, ...], RankedTensors]) -> None:
        """Add what is ranked to the parts, by device and by the processes over which it is spread."""
        require_same_masks(self.param_groups, self.options, self.process_group)
        self._number_after_earlier_stages()
        for group in self.param_groups:
            for param in group["params"]:
                if not group["selective"] or is_lazy(param) or not (param.requires_grad or self.state.get(param)):
                    continue
                position = self._position_of(param)
                state, groups = self._state_of(group, param, position), shard_groups(param)
                scores = local(state["importance"])
                if self.options.importance == "random":
                    fill_random_scores_(scores, group["seed"], position)
                elif self.options.importance == "magnitude":
                    fill_magnitude_scores_(scores, local(param))
                key = (param.device, groups)
                if key not in parts:
                    parts[key] = RankedTensors(self._backend_of(param.device), param.device, groups)
                parts[key].importances.append(scores)
                parts[key].rank_codes.append(local(state["rank_code"]))

    @torch.no_grad()
    def selection_stats(self, *, realised: bool = True) -> dict[str, Any]:
        """Shares of kept elements, per group and in all; reads device memory and waits for it.

        Args:
            realised: whether to recompute the last draw, which takes most of the time.

        Returns:
            ``elements``; ``expected_share``, the mean keep probability; ``realised_share``, the share kept in the last
            draw, recomputed from its counter (NaN when no draw was made with the present ranks, or
            without ``realised``);
            ``steps_since_refresh``; ``refreshes``; ``groups``, a list of the same entries per parameter group. Shares
            are fractions of one; where no mask is active both are 1.
        """
        with without_lost_threads():
            return selection_stats(
                self.param_groups, self.state, self.positions, self.options.mask_schedule, realised=realised
            )

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def __getstate__(self) -> dict[str, Any]:
        own = {
            name: self.__dict__[name]
            for name in (
                "options",
                "backend",
                "process_group",
                "_measuring",
                "_has_stepped",
                "_first_id",
                "_warned",
                "_is_said_to_be_selective",
            )
        }
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans = StepPlans()
        self._checked_groups = []
        if "shared_ranks" not in self.__dict__:  # a copy is numbered and ranked alone
            self.shared_ranks, self._has_drawn = None, False
        if hasattr(self, "_incoming"):
            checkpoint.reattach(self.param_groups, self.state, self.defaults, self.options, *self._incoming)
        self.positions = self._place()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a ``state_dict`` of RoastAdamW or of :class:`torch.optim.AdamW`.

        Every state tensor keeps the dtype in which it was saved. From AdamW the moments are taken; importance starts at
        zero and everything is updated until the next refresh, which is said once.

        Raises:
            TypeError: ``state_dict`` is no dictionary.
            ValueError: groups, keys, shapes, dtypes or numbers that do not fit. Whatever is raised, the optimizer is
                unchanged.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict is of type {type(state_dict).__name__}: pass what state_dict() returned")
        before = (self.state, self.param_groups, self.positions)

        def remember(_: Optimizer, final: dict[str, Any]) -> dict[str, Any]:  # after all hooks of the user
            checkpoint.check(self.param_groups, final)
            self._incoming = (final, self.param_groups)
            return checkpoint.with_fast_indices(final)

        handle = self.register_load_state_dict_pre_hook(remember)
        try:
            super().load_state_dict(state_dict)
        except BaseException:  # also of a user's hook; the base class replaces these and never writes into them
            self.state, self.param_groups, self.positions = before
            self._plans.clear()
            raise
        finally:
            handle.remove()
            self.__dict__.pop("_incoming", None)
