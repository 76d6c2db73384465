"""The adversarial objective: every batch once more, with its embeddings moved towards a larger loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .adversarial_pass import AdversarialPass
from .adversary_draws import AdversaryDraws
from .adversary_options import ADVERSARY_DEFAULTS, ADVERSARY_OPTIONS, check_adversary_options
from .ascent import Ascent
from .embedding_block import find_embedding_output
from .embedding_hook import EmbeddingHook
from .forward_passes import CleanPass, ForwardPasses
from .model_call import ModelCall
from .model_output import TaskLoss, with_loss
from .model_wrappers import call_as_one_forward_pass, unwrapped
from .options import documentation
from .perturbation import relative_length
from .presets import ADVERSARY_PRESETS, takes_preset
from .task_gradient import LossScale, graphs_kept
from .user_warning import warn

_LONG_STEP = 0.25  # of the embedding, from which a perturbed embedding resembles another word's
_MEASUREMENTS = 3  # at most: each waits for the device, and the first one that finds a step is the last
_USUAL_STEP = 0.03  # what step_size=0.1 is of a BERT embedding


class AdversarialEmbedding:
    """Calls a model with the objective of RoAST in place of its loss (section 3.1 of arXiv 2312.04032).

    For embeddings e, the task loss L and d = dL/de, in every token,

        ``e_adv = e + step_size * d / max|d|``
        ``loss = clean_weight * L(e) + adversarial_weight * L(e_adv) + consistency_weight * (KL(p||q) + KL(q||p))``

    where p and q are the model's predictions from e and e_adv. Call it like the model: it returns what the model
    returned for e, with the loss replaced. In evaluation mode, or without gradients, the call is the model's own.
    ``docs/adversary.md`` says what happens with padding, several predictions, compiled and distributed models.

    >>> model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(8 * 5, 2))
    >>> ids, labels = torch.randint(0, 50, (4, 5)), torch.tensor([0, 1, 1, 0])
    >>> with AdversarialEmbedding(model, 0.03, scale="relative", loss_fn=nn.functional.cross_entropy) as adversary:
    ...     adversary(ids, labels=labels).loss.backward()  # of a model with a loss: adversary(**batch).loss.backward()
    >>> sorted(adversary.last_losses)
    ['adversarial', 'consistency', 'task']

    Args:
        model: returns its loss and logits, or see ``loss_fn``. An attribute, which may be set to a wrapper.
        loss_fn: ``loss_fn(output, labels)`` with the model's output and the ``labels=`` of the call, which are then
            not passed to the model. A :class:`.TaskLoss` also says by what it is divided. None: the model's own loss.
        logits_fn: ``logits_fn(output)`` returns the predictions that the consistency loss compares, a tensor
            ``[..., classes]`` or several in a tuple or dict. None: all in the output, found by their names.
        preset: "paper": the settings of the paper, of which those that are given explicitly are not taken.
        {options}

    Attributes:
        last_losses: "task", "adversarial" and "consistency" loss of the last call in training mode, detached and
            without their weights, the last two times the share of rows that were perturbed; empty before it. Without
            predictions, consistency is 0; without an adversarial pass (``ramp``), both are.
        calls: how many calls in training mode there have been. With the options, all that the next one depends on:
            :meth:`state_dict` holds it. Draws of rows and of noise follow from it alone and so are the same in all
            processes.
        loss_divisor: what the task loss of the last call was divided by: ``num_items_in_batch`` if the model divides by
            it, or that of a :class:`.TaskLoss`; None: it is a mean.
        embedding_name: name of the perturbed module in the model.

    Raises:
        TypeError: ``model`` is not a module, or ``loss_fn`` or ``logits_fn`` not callable.
        ValueError: an argument is out of range; the model has no embeddings or is compiled already. On a call in
            training mode: no labels, no scalar loss or no predictions in the output.
        RuntimeError: on a call in training mode: the embedding did not run exactly once, or the loss does not depend on
            it; the model uses reentrant checkpointing; with ``gradient="fast"``, it is sharded or its parameters have
            hooks; the adversary is closed.
    """

    @takes_preset(ADVERSARY_PRESETS)
    def __init__(
        self,
        model: nn.Module,
        step_size: float = ADVERSARY_DEFAULTS["step_size"],
        consistency_weight: float = ADVERSARY_DEFAULTS["consistency_weight"],
        *,
        adversarial_weight: float = ADVERSARY_DEFAULTS["adversarial_weight"],
        clean_weight: float = ADVERSARY_DEFAULTS["clean_weight"],
        norm: str = ADVERSARY_DEFAULTS["norm"],
        embedding: str | nn.Module | None = ADVERSARY_DEFAULTS["embedding"],
        gradient: str = ADVERSARY_DEFAULTS["gradient"],
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        logits_fn: Callable[[Any], Any] | None = None,
        scale: str = ADVERSARY_DEFAULTS["scale"],
        ramp: Sequence[float] | None = ADVERSARY_DEFAULTS["ramp"],
        share: float = ADVERSARY_DEFAULTS["share"],
        direction: str = ADVERSARY_DEFAULTS["direction"],
        ascents: int = ADVERSARY_DEFAULTS["ascents"],
        start_noise: float = ADVERSARY_DEFAULTS["start_noise"],
        preset: str | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in ADVERSARY_OPTIONS}
        if not isinstance(model, nn.Module):
            raise TypeError(f"model={model!r} is not an nn.Module")
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"loss_fn={loss_fn!r} must be a function of the model's output and the labels, or None")
        if logits_fn is not None and not callable(logits_fn):
            raise TypeError(f"logits_fn={logits_fn!r} must be a function of the model's output, or None")
        check_adversary_options(given)
        self._checked = given
        self.model = model
        self.step_size = step_size
        self.consistency_weight = consistency_weight
        self.adversarial_weight = adversarial_weight
        self.clean_weight = clean_weight
        self.norm = norm
        self.gradient = gradient
        self.loss_fn = loss_fn
        self.logits_fn = logits_fn
        self.scale = scale
        self.ramp = ramp
        self.share = share
        self.direction = direction
        self.ascents = ascents
        self.start_noise = start_noise
        self.calls = 0
        self.last_losses: dict[str, Tensor] = {}
        self.loss_divisor: Tensor | float | None = None
        self._nonfinite_samples: Tensor | int = 0
        self._said: set[str] = set()
        self._measurements = _MEASUREMENTS
        self._is_closed = False
        self._loss_scale = LossScale()
        self._hook = EmbeddingHook(find_embedding_output(model, embedding))
        self._hook.attach()  # already here, for a torch.compile that follows

    @property
    def embedding_name(self) -> str:
        """Name of the perturbed module in the model."""
        return self._hook.target.name

    @property
    def nonfinite_samples(self) -> int:
        """How many samples got no perturbation because their gradient was not finite. Waits for the device."""
        return int(self._nonfinite_samples)

    def close(self) -> None:
        """Take the hook off the model, which can then be exported, scripted and compiled whole. Not to be undone.

        Call it after the last backward pass: gradient checkpointing needs the hook until then. ``with`` does it at its
        end. In evaluation mode the call goes on being the model's.
        """
        self._hook.remove()
        self._is_closed = True

    def __enter__(self) -> AdversarialEmbedding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_options(self) -> None:
        """Refuse what was set to nonsense since. What is as it was is not read, which may wait for a device."""
        options = {name: getattr(self, name, value) for name, value in self._checked.items()}
        if any(options[name] is not value for name, value in self._checked.items()):
            check_adversary_options(options)
            self._checked = options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output; in training mode its loss is the whole objective. One thread at a time: others wait."""
        labels = kwargs.pop("labels", None) if self.loss_fn else None
        if not (unwrapped(self.model).training and torch.is_grad_enabled()):
            if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                self._say_once(
                    "evaluation",
                    "AdversarialEmbedding was called in evaluation mode, with gradients: the loss is the model's own. "
                    "Call model.train() before training (from_pretrained() returns evaluation mode), torch.no_grad() "
                    "to evaluate",
                )
            return self.model(*args, **kwargs)
        if self._is_closed:
            raise RuntimeError("this AdversarialEmbedding is closed; make another one to train on")
        self._check_options()
        with self._hook.lock, graphs_kept() if self.gradient == "exact" else nullcontext():
            try:
                if self.loss_fn and labels is None:
                    raise ValueError(
                        "labels=None: loss_fn needs labels= in training mode; pass them, or call model.eval()"
                    )
                self._hook.attach()
                if isinstance(self.model, nn.parallel.DistributedDataParallel):
                    all_passes = partial(self._all_passes, self.model.module, labels)
                    return call_as_one_forward_pass(self.model, all_passes, args, kwargs)
                return self._all_passes(self.model, labels, *args, **kwargs)
            except BaseException:
                self._hook.remove()
                raise

    def state_dict(self) -> dict[str, int]:
        """What a training that is resumed needs: the number of calls, on which ``ramp`` and all draws depend."""
        return {"calls": self.calls}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            ValueError: it is not of an AdversarialEmbedding.
        """
        calls = state_dict.get("calls") if isinstance(state_dict, Mapping) else None
        if not isinstance(calls, int) or isinstance(calls, bool) or calls < 0:
            raise ValueError(
                f"state_dict={state_dict!r} is not that of an AdversarialEmbedding: it has no number 'calls'"
            )
        self.calls = calls

    @property
    def height(self) -> float:
        """What share of ``step_size`` the next call takes: grows from 0 to 1 along ``ramp``."""
        if self.ramp is None:
            return 1.0
        begin, end = self.ramp
        if not begin < self.calls < end:
            return float(self.calls >= end)
        return (self.calls - begin) / (end - begin)

    def _all_passes(self, model: nn.Module, labels: Any, /, *args: Any, **kwargs: Any) -> Any:
        height = self.height
        ascent = Ascent(
            self.step_size if height == 1.0 else height * self.step_size,
            self.norm,
            self.scale,
            self.ascents,
            self.start_noise,
            self.direction,
        )
        call = ModelCall(model, args, kwargs, labels)
        with ForwardPasses(self._hook, call, self.loss_fn, self.logits_fn) as passes:
            if self.gradient == "fast":
                clean = passes.fast_clean_pass(self._loss_scale)
            else:
                needs_gradient = height > 0 and ascent.needs_clean_gradient
                clean = passes.exact_clean_pass(self._loss_scale, needs_gradient=needs_gradient)
            self.loss_divisor = self.loss_fn.divisor if isinstance(self.loss_fn, TaskLoss) else clean.loss_divisor
            task = clean.result.loss
            adversarial = consistency = torch.zeros_like(task.detach())
            if height:
                adversarial, consistency = self._adversarial_losses(clean, passes, ascent)
        self.calls += 1
        self.last_losses = {
            "task": task.detach(),
            "adversarial": adversarial.detach(),
            "consistency": consistency.detach(),
        }
        objective = self.clean_weight * task
        if height:
            objective = objective + self.adversarial_weight * adversarial
            if self.consistency_weight:
                objective = objective + self.consistency_weight * consistency
        return with_loss(clean.result.output, objective, loss_is_new=self.loss_fn is not None)

    def _adversarial_losses(self, clean: CleanPass, passes: ForwardPasses, ascent: Ascent) -> tuple[Tensor, Tensor]:
        found = AdversarialPass(
            clean, passes, ascent, AdversaryDraws(self.calls), self._hook,
            share=self.share, loss_fn=self.loss_fn, loss_divisor=self.loss_divisor, loss_scale=self._loss_scale,
            needs_predictions=self.consistency_weight > 0, say_once=self._say_once,
        ).run()  # fmt: skip
        self._nonfinite_samples = self._nonfinite_samples + found.nonfinite_samples
        if self._measurements:
            height = ascent.step_size / self.step_size if self.step_size else 1.0
            self._say_if_the_step_is_long(relative_length(found.perturbed, found.embeddings) / height)
        return found.task, found.consistency

    def _say_if_the_step_is_long(self, share: float) -> None:
        self._measurements = 0 if share else self._measurements - 1
        if share > _LONG_STEP:
            name, cure = self.embedding_name, self.step_size * _USUAL_STEP / share
            absolute = f"step_size={cure:.2g}, or " if self.scale == "absolute" else ""
            self._say_once(
                "step",
                f"step_size={self.step_size!r} moves the embeddings of {name!r} by {share:.0%} of their length, where "
                f'0.1 is 3% of a BERT embedding. Set {absolute}step_size={_USUAL_STEP} with scale="relative"',
            )

    def _say_once(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warn(message)


assert AdversarialEmbedding.__doc__ is not None
AdversarialEmbedding.__doc__ = AdversarialEmbedding.__doc__.replace(
    "        {options}", documentation(ADVERSARY_OPTIONS)
)
