"""RoastAdamW: AdamW that updates each element with a probability that grows with its importance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from . import checkpoint
from .backends import backend_for, check_backend
from .importance import fill_magnitude_scores_, fill_random_scores_, rank_code_table, score_histogram
from .kernels.backend import Backend, Placement, Selection
from .masking import keep_mask, keep_probabilities, keep_thresholds, no_rescaling, rescaling_factors
from .options import GROUP_COUNTERS, RoastOptions, check_group

_UNRANKED = 255  # rank code of an element whose state is made after its group was ranked: the highest keep probability


@dataclass
class _GroupTensors:
    """The tensors of one group that take part in a step, on one backend; parallel lists."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    state_steps: list[Tensor]
    importances: list[Tensor]
    rank_codes: list[Tensor]
    placements: list[Placement]


class RoastAdamW(Optimizer):
    r"""AdamW with selective training (RoAST, arXiv 2312.04032, section 3.2).

    Between refreshes the importance :math:`s = \sum g^2` of every selective element is accumulated from the gradients
    that ``step`` sees. A refresh turns it into the percentile rank r among all selective elements, and from then on an
    element is updated with keep probability :math:`p = 1 / (1 + \exp(-2 \beta (r - \alpha)))`:

    .. math:: m \sim \mathrm{Bernoulli}(p), \qquad g' = (m / p)\, g, \qquad \theta \leftarrow \mathrm{AdamW}(g')

    An element that is not kept gets gradient zero: its moments decay, and weight decay and momentum still move it. Until
    the first refresh everything is updated. With ``selective=False`` this is ``torch.optim.AdamW(foreach=False)``, bit
    for bit on the reference backend.

    Args:
        params: parameters or group dictionaries, as for every torch optimizer; see also ``selective_param_groups``.
            Group options are those below up to ``amsgrad``, ``maximize``, ``capturable``, ``selective``, ``alpha``,
            ``beta`` and ``seed``.
        lr: learning rate; a float or a tensor of one element.
        betas: decay rates of the two moments, in [0, 1).
        eps: added to the denominator after bias correction.
        weight_decay: decoupled weight decay, applied before the step.
        amsgrad: whether to use the maximum of all second moments so far.
        alpha: percentile rank at which the keep probability is one half, in [0, 1]; larger: fewer elements are updated.
        beta: how sharply the keep probability rises around ``alpha``; positive.
        refresh_every: number of steps (optimizer steps, not micro-batches) after which the ranks are computed anew,
            usually one epoch; None: only when :meth:`refresh` is called.
        mask_schedule: "step" draws the masks anew at every step, "refresh" keeps one draw between two refreshes.
        rescale: whether a kept gradient is divided by its keep probability, so that its expectation is the gradient. A
            rescaled gradient saturates at the range of its dtype.
        selective: default of the group option; False: always updated, no importance, not ranked.
        importance: "gradient" as above; for ablations "random" (a fixed random rank) or "magnitude" (of the parameter).
        importance_every: accumulate only at every k-th step since the last refresh; not more than ``refresh_every``.
        seed: key of all draws, 0 <= seed < 2**64. The global random state is never read or changed.
        state_dtype: dtype of the moments; None: the parameter's. Arithmetic is in the wider of the two.
        backend: "auto" takes the fastest that can run for the device of the parameters; "triton", "native" and
            "reference" ask for one. Masks are the same on all. Never saved in a ``state_dict``.
        maximize: maximise the objective instead of minimising it.
        capturable: keep the step counts on the device, so that a CUDA graph can hold the step. A replayed graph runs no
            Python: call :meth:`refresh` yourself and leave ``importance_every`` at 1.

    Raises:
        ValueError: an option out of range, no selective parameter, or a backend that cannot run here.

    A parameter whose state is made after its group's first refresh (it was frozen, say) counts as most important until
    the next refresh ranks it. Options that are not group options are not saved: construct the optimizer with the same ones before
    ``load_state_dict``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        alpha: float = 0.9,
        beta: float = 10.0,
        refresh_every: int | None = None,
        mask_schedule: str = "step",
        rescale: bool = True,
        selective: bool = True,
        importance: str = "gradient",
        importance_every: int = 1,
        seed: int = 0,
        state_dtype: torch.dtype | None = None,
        backend: str = "auto",
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        self.options = RoastOptions(
            refresh_every=refresh_every,
            mask_schedule=mask_schedule,
            rescale=rescale,
            importance=importance,
            importance_every=importance_every,
            state_dtype=state_dtype,
        )
        self.backend = check_backend(backend)
        self._measuring = False
        self._warned: set[str] = set()
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "capturable": capturable,
            "alpha": alpha,
            "beta": beta,
            "selective": selective,
            "seed": seed,
            **GROUP_COUNTERS,
        }
        check_group(defaults)
        super().__init__(params, defaults)

    # ------------------------------------------------------------------------------------------------- groups and state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as every torch optimizer does; its elements are all updated until the next refresh."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
            for param in group["params"]:
                self._backend_of(param.device)
        except Exception:
            self.param_groups.pop()
            raise
        self._placements = self._place()

    def _place(self) -> dict[Tensor, Placement]:
        ids: dict[Tensor, int] = {}
        for index, param in enumerate(param for group in self.param_groups for param in group["params"]):
            ids.setdefault(param, index)
        return {param: Placement.whole(index, param.numel()) for param, index in ids.items()}

    def _backend_of(self, device: torch.device) -> Backend:
        return backend_for(self.backend, device, self._warn_once)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, UserWarning, stacklevel=5)

    def _make_state(self, group: dict[str, Any], param: Tensor) -> dict[str, Tensor]:
        dtype = self.options.state_dtype or param.dtype
        state: dict[str, Tensor] = self.state[param]
        state["step"] = torch.zeros((), dtype=torch.float32, device=param.device if group["capturable"] else "cpu")
        moments = ["exp_avg", "exp_avg_sq"] + (["max_exp_avg_sq"] if group["amsgrad"] else [])
        for moment in moments:
            state[moment] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
        if group["selective"]:
            self._make_selection_state(group, param)
        return state

    def _make_selection_state(self, group: dict[str, Any], param: Tensor) -> None:
        layout = torch.preserve_format
        self.state[param]["importance"] = torch.zeros_like(param, dtype=torch.float32, memory_format=layout)
        code = _UNRANKED if group["refreshes"] > 0 else 0
        self.state[param]["rank_code"] = torch.full_like(param, code, dtype=torch.uint8, memory_format=layout)

    # ------------------------------------------------------------------------------------------------------------- step

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform a single optimization step, and a refresh when it is the ``refresh_every``-th since the last.

        Args:
            closure: reevaluates the model under ``torch.enable_grad`` and returns the loss.

        Raises:
            RuntimeError: a sparse or complex gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        had_state = len(self.state) > 0
        gathered = [list(self._gather(group)) for group in self.param_groups]
        if not any(gathered):
            return loss
        if self._measuring:
            for parts in gathered:
                for backend, tensors in parts:
                    if tensors.importances:
                        backend.accumulate_importance_(tensors.importances, tensors.grads)
            return loss
        if not had_state and self._only_makes_state(gathered):
            return loss

        for group, parts in zip(self.param_groups, gathered, strict=True):
            group["steps_since_refresh"] += 1
            accumulate = (
                group["selective"]
                and self.options.importance == "gradient"
                and group["steps_since_refresh"] % self.options.importance_every == 0
            )
            for backend, tensors in parts:
                backend.roast_adamw_(
                    tensors.params,
                    tensors.grads,
                    tensors.exp_avgs,
                    tensors.exp_avg_sqs,
                    tensors.max_exp_avg_sqs,
                    tensors.state_steps,
                    tensors.importances,
                    tensors.rank_codes,
                    tensors.placements,
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                    amsgrad=group["amsgrad"],
                    maximize=group["maximize"],
                    capturable=group["capturable"],
                    accumulate=accumulate,
                    selection=self._selection(group, tensors.params[0].device),
                )
        due = self.options.refresh_every
        if due is not None and any(g["selective"] and g["steps_since_refresh"] >= due for g in self.param_groups):
            self.refresh()
        return loss

    def _gather(self, group: dict[str, Any]) -> Iterator[tuple[Backend, _GroupTensors]]:
        """The tensors of ``group`` that have a gradient, one entry per device; makes missing state."""
        by_device: dict[torch.device, _GroupTensors] = {}
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            if grad.is_sparse or grad.is_complex():
                kind = "sparse" if grad.is_sparse else "complex"
                cure = "build the embedding with sparse=False" if grad.is_sparse else "optimize torch.view_as_real of it"
                raise RuntimeError(
                    f"RoastAdamW does not support {kind} gradients (a parameter of shape {tuple(param.shape)}): {cure}"
                )
            state = self.state[param] or self._make_state(group, param)
            tensors = by_device.get(param.device)
            if tensors is None:
                tensors = by_device[param.device] = _GroupTensors([], [], [], [], [], [], [], [], [])
            tensors.params.append(param)
            tensors.grads.append(grad)
            tensors.exp_avgs.append(state["exp_avg"])
            tensors.exp_avg_sqs.append(state["exp_avg_sq"])
            tensors.state_steps.append(state["step"])
            if group["amsgrad"]:
                tensors.max_exp_avg_sqs.append(state["max_exp_avg_sq"])
            if group["selective"]:
                tensors.importances.append(state["importance"])
                tensors.rank_codes.append(state["rank_code"])
            tensors.placements.append(self._placements[param])
        for device, tensors in by_device.items():
            yield self._backend_of(device), tensors

    def _only_makes_state(self, gathered: list[list[tuple[Backend, _GroupTensors]]]) -> bool:
        """Whether this first step is the one by which distributed checkpoints make state: lr = 0, all gradients zero."""
        if any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        return not any(bool(grad.any()) for parts in gathered for _, tensors in parts for grad in tensors.grads)

    def _selection(self, group: dict[str, Any], device: torch.device) -> Selection | None:
        if not group["selective"] or group["refreshes"] == 0:
            return None
        alpha, beta = group["alpha"], group["beta"]
        return Selection(
            seed=group["seed"],
            thresholds=keep_thresholds(alpha, beta).to(device),
            rescaling=(rescaling_factors(alpha, beta) if self.options.rescale else no_rescaling()).to(device),
            draw_number=group["refreshes"] if self.options.mask_schedule == "refresh" else None,
        )

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

        With nothing accumulated the ranks stay as they are, which is said once.
        """
        selective = [
            (group, param)
            for group in self.param_groups
            if group["selective"]
            for param in group["params"]
            if param.requires_grad or self.state.get(param)
        ]
        by_device: dict[torch.device, list[Tensor]] = {}
        for group, param in selective:
            if not self.state[param]:
                self._make_state(group, param)
            self._fill_scores(group, param)
            by_device.setdefault(param.device, []).append(param)
        parts = [
            (self._backend_of(device), [self.state[param]["importance"] for param in params])
            for device, params in by_device.items()
        ]
        histogram = score_histogram(parts)
        for group in self.param_groups:
            group["steps_since_refresh"] = 0
        if int(histogram[0]) == int(histogram.sum()):
            self._warn_once(
                "refresh() found no accumulated importance and keeps the ranks: take a step with non-zero gradients "
                "(or one inside measure_importance()) between two refreshes"
            )
            return
        table = rank_code_table(histogram)
        for (backend, importances), params in zip(parts, by_device.values(), strict=True):
            codes = [self.state[param]["rank_code"] for param in params]
            backend.assign_rank_codes_(importances, codes, table.to(importances[0].device))
        for group in self.param_groups:
            group["refreshes"] += 1

    def _fill_scores(self, group: dict[str, Any], param: Tensor) -> None:
        scores = self.state[param]["importance"]
        if self.options.importance == "random":
            fill_random_scores_(scores, group["seed"], self._placements[param])
        elif self.options.importance == "magnitude":
            fill_magnitude_scores_(scores, param)

    @torch.no_grad()
    def selection_stats(self) -> dict[str, Any]:
        """Shares of kept elements, per group and in all.

        Returns:
            ``expected_share`` (mean keep probability), ``realised_share`` (share kept in the last draw, recomputed from its
            counter; NaN when no draw was made with the present ranks), ``steps_since_refresh``, ``refreshes``,
            ``elements``, and ``groups``: a list of the same entries per parameter group. Shares are fractions of one;
            where no mask is active both are 1. Reads device memory and waits for it.
        """
        groups = [self._group_stats(group) for group in self.param_groups]
        elements = sum(stats["elements"] for stats in groups)
        whole: dict[str, Any] = {"elements": elements}
        for share in ("expected_share", "realised_share"):
            weighted = sum(stats[share] * stats["elements"] for stats in groups if stats["elements"])
            whole[share] = weighted / elements if elements else 1.0
        for counter in GROUP_COUNTERS:
            whole[counter] = max(group[counter] for group in self.param_groups)
        return {**whole, "groups": groups}

    def _group_stats(self, group: dict[str, Any]) -> dict[str, Any]:
        params = [param for param in group["params"] if self.state.get(param)]
        counters = {counter: group[counter] for counter in GROUP_COUNTERS}
        elements = sum(param.numel() for param in group["params"])
        if not group["selective"] or group["refreshes"] == 0 or not params:
            return {"elements": elements, "expected_share": 1.0, "realised_share": 1.0, **counters}
        alpha, beta = group["alpha"], group["beta"]
        per_refresh = self.options.mask_schedule == "refresh"
        expected, realised, ranked = 0.0, 0.0, 0
        for param in params:
            codes = self.state[param]["rank_code"]
            per_code = torch.bincount(codes.reshape(-1), minlength=256).cpu().double()
            expected += float(per_code @ keep_probabilities(alpha, beta))
            ranked += param.numel()
            placement = self._placements[param]
            mask = keep_mask(
                codes,
                alpha,
                beta,
                seed=group["seed"],
                parameter_id=placement.parameter_id,
                draw_number=group["refreshes"] if per_refresh else int(self.state[param]["step"]),
                placement=placement,
            )
            realised += int(mask.sum())
        drawn = per_refresh or group["steps_since_refresh"] > 0
        return {
            "elements": elements,
            "expected_share": expected / max(ranked, 1),
            "realised_share": realised / max(ranked, 1) if drawn else float("nan"),
            **counters,
        }

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("options", "backend", "_measuring", "_warned")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "_incoming"):
            checkpoint.reattach(self, self._incoming)
        self._placements = self._place()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a ``state_dict`` of RoastAdamW or of :class:`torch.optim.AdamW`.

        Every state tensor keeps the dtype in which it was saved. From AdamW the moments are taken; importance starts at
        zero and everything is updated until the next refresh, which is said once.

        Raises:
            ValueError: groups, keys or shapes that do not fit; the optimizer is then unchanged.
        """

        def remember(_: Optimizer, final: dict[str, Any]) -> None:  # after all hooks of the user
            checkpoint.check(self, final)
            self._incoming = final

        handle = self.register_load_state_dict_pre_hook(remember)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_incoming", None)
