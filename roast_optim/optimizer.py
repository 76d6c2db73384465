"""RoastAdamW: AdamW that updates each element with a probability that grows with its importance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from . import checkpoint, refresh_schedule
from .backends import check_backend
from .graph_capture import refuse_capture_of_refresh, refuse_capture_of_step
from .group_checks import UNMARKED, CheckedGroups, check_keys
from .group_steps import accumulate_importance, update
from .kernels.forked import without_lost_threads
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
from .parameters import Parameters, Positions
from .presets import OPTIMIZER_PRESETS, takes_preset
from .processes import only_makes_state, require_same_masks
from .ranking import rank_together
from .sharding import check_process_group
from .shared_ranks import SharedRanks, draws_like_another, gets_part_of_a_model
from .statistics import selection_stats
from .step_options import checked_gradient_factor, without_effect
from .user_warning import WarnOnce

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


# What a copy takes over, beside torch's own.
_COPIED = (
    "options", "backend", "process_group", "_measuring", "_has_stepped", "_warn_once", "_is_said_to_be_selective",
)  # fmt: skip


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
        preset: "paper": the settings of the paper for RoBERTa-large on sentiment, learning rate included, of which
            those that are given explicitly are not taken. Ranks come when ``refresh()`` is called at the end of every
            epoch, as the callbacks for Trainer and Lightning do.
        {options}

    Raises:
        ValueError: an option out of range, an unknown key of a group that looks like an option, a module without
            transformer blocks, a backend that cannot run here, or a process group of which this process is not a
            member.

    {group options}

    A parameter whose state is made after its group's first refresh (it was frozen, say) counts as most important until
    the next refresh ranks it. Options that are not group options are not saved: construct the optimizer with the same
    ones before ``load_state_dict``.

    Example, with a refresh after every second step:
        >>> _ = torch.manual_seed(0)
        >>> block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = nn.Sequential(nn.TransformerEncoder(block, 2), nn.Linear(16, 2))
        >>> optimizer = RoastAdamW(model, lr=1e-3, alpha=0.6, beta=1.0, refresh_every=2)
        >>> for _ in range(3):
        ...     model(torch.randn(8, 5, 16)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> round(optimizer.selection_stats()["expected_share"], 2)  # of the elements are updated in a step
        0.46
    """

    @takes_preset(OPTIMIZER_PRESETS)
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
        preset: str | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in OPTIONS}
        self.options = RoastOptions.of(given)
        self.backend = check_backend(backend)
        self.process_group = check_process_group(process_group)
        self.shared_ranks = shared_ranks
        self._is_said_to_be_selective = is_said(selective)
        self._measuring = False
        self._has_stepped = False
        self._checked_groups = CheckedGroups()
        self._warn_once = WarnOnce()
        defaults = group_options(given)
        shared_ids = None if shared_ranks is None else partial(shared_ranks.ids, shared_ranks.join(self))
        self.parameters = Parameters(self.options, self.backend, process_group, self._warn_once, shared_ids)
        if isinstance(params, nn.Module):
            groups_of = selective_param_groups if defaults["selective"] else always_updated_param_groups
            params = groups_of(params, weight_decay)
        super().__init__(params, defaults)
        if process_group is None and (message := gets_part_of_a_model()):
            self._warn_once(message)

    # ----------------------------------------------------------------------------------------------------------- groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as every torch optimizer does; its elements are all updated until the next refresh."""
        check_keys(param_group)
        is_unmarked = "selective" not in param_group and not self._is_said_to_be_selective
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
            for param in self.param_groups[-1]["params"]:
                self.parameters.backend_of(param.device)
            self.parameters.place(self.param_groups)
        except Exception:
            self.param_groups.pop()
            raise
        if is_unmarked:
            self._warn_once(UNMARKED)

    @property
    def positions(self) -> Positions:
        """Where each parameter lies in the whole, by which its elements draw."""
        return self.parameters.positions

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
        self._check_before_step()
        had_state = len(self.state) > 0
        planned = self.parameters.planned_steps(self.param_groups, self.state)
        # A process of a process group takes every step with the others, even if nothing of its own has a gradient.
        if not any(planned) and self.process_group is None:
            return
        is_first = self._begin()
        if self._measuring:
            accumulate_importance(self.param_groups, planned, self.options, gradient_factor)
            return
        if is_first:
            grads = (grad for steps in planned for step in steps for grad in step.grads)
            if only_makes_state(self.param_groups, grads, had_state, self.process_group):
                return
        update(
            self.param_groups,
            planned,
            self.options,
            gradient_factor,
            will_draw=self._notice_same_draws,
            warn=self._warn_once,
        )
        self._refresh_if_due()

    def _check_before_step(self) -> None:
        refuse_capture_of_step(self.param_groups, self.state, self.options, self._measuring, self._has_stepped)
        self._checked_groups.check(self.param_groups)
        if self.shared_ranks is not None and refresh_schedule.is_due(self):
            self.refresh()  # the others have waited for one that took no more steps
        if not self._has_stepped:
            self.parameters.number_after_earlier_stages(self.param_groups)

    def _begin(self) -> bool:
        """Whether this is the first step in this process; before that, whatever must be right in all processes is."""
        if self._has_stepped:
            return False
        self._has_stepped = True
        require_same_masks(self.param_groups, self.options, self.process_group)
        if message := without_effect(self.param_groups, self.options):
            self._warn_once(message)
        return True

    def _notice_same_draws(self, seed: int) -> None:
        if message := draws_like_another(self, seed):
            self._warn_once(message)

    # ---------------------------------------------------------------------------------------------------------- refresh

    @property
    def refreshes(self) -> int:
        """Refreshes that have ranked the elements so far; 0 if nothing is selective."""
        return refresh_schedule.refreshes(self._ranked_groups())

    @property
    def has_masked(self) -> bool:
        """Whether a step was taken with masks, that is after the first refresh; from counters that a checkpoint has."""
        return refresh_schedule.has_masked(self._ranked_groups())

    @property
    def steps_since_refresh(self) -> int:
        """Steps that this process and those it is ranked with have taken since; 0 if nothing is selective."""
        return refresh_schedule.steps_since_refresh(self._ranked_groups())

    def _ranked_groups(self) -> list[dict[str, Any]]:
        return refresh_schedule.ranked_groups(self.param_groups, self.process_group)

    def _ranked_together(self) -> list[RoastAdamW]:
        return [self] if self.shared_ranks is None else self.shared_ranks.optimizers

    def _refresh_if_due(self) -> None:
        if refresh_schedule.is_due(self) and refresh_schedule.all_are_due(self._ranked_together()):
            self.refresh()
        elif message := refresh_schedule.without_masks(self):
            self._warn_once(message)

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
            rank_together(self._ranked_together(), self._warn_once)

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
        return {
            **super().__getstate__(),
            **{name: self.__dict__[name] for name in _COPIED},
            "first_id": self.parameters.first_id,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({key: value for key, value in state.items() if key != "first_id"})
        if "shared_ranks" not in self.__dict__:  # a copy is numbered and ranked alone
            self.shared_ranks = None
            self.parameters = Parameters(
                self.options, self.backend, self.process_group, self._warn_once, first_id=state["first_id"]
            )
        self._checked_groups = CheckedGroups()
        if hasattr(self, "_incoming"):
            checkpoint.reattach(self.param_groups, self.state, self.defaults, self.options, *self._incoming)
        self.parameters.place(self.param_groups)

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
        before, positions = (self.state, self.param_groups), self.positions

        def remember(_: Optimizer, final: dict[str, Any]) -> dict[str, Any]:  # after all hooks of the user
            checkpoint.check(self.param_groups, final)
            self._incoming = (final, self.param_groups)
            return checkpoint.with_fast_indices(final)

        handle = self.register_load_state_dict_pre_hook(remember)
        try:
            super().load_state_dict(state_dict)
        except BaseException:  # also of a user's hook; the base class replaces these and never writes into them
            self.state, self.param_groups = before
            self.parameters.go_back_to(positions)
            raise
        finally:
            handle.remove()
            self.__dict__.pop("_incoming", None)
