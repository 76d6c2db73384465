"""The options of RoAST in the Trainer, and the optimizer and the adversary that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from ..adversarial import AdversarialEmbedding
from ..adversary_options import ADVERSARY_OPTIONS
from ..optimizer import RoastAdamW
from ..options import OPTIONS, as_dtype, config_field
from ..param_groups import always_updated_param_groups, selective_param_groups
from ..presets import ADVERSARY_PRESETS, OPTIMIZER_PRESETS, preset_of

_adversary_field = partial(config_field, options=ADVERSARY_OPTIONS)


@dataclass
class RoastConfig:
    """Options beside ``TrainingArguments``, from which learning rate, betas, eps, weight decay and seed are taken.

    Can be read from the command line together with them: ``HfArgumentParser((TrainingArguments, RoastConfig))``. See
    :class:`.RoastAdamW` and :class:`.AdversarialEmbedding` for what each option does; values out of range raise there.
    """

    alpha: float = config_field("alpha")
    beta: float = config_field("beta")
    # A string last, so that argparse reads strings.
    refresh_every: int | str | None = config_field("refresh_every", '"none": after every epoch.')
    measure_first: bool = field(
        default=False,
        metadata={
            "help": "Before training, measure importance in one pass over the data with the plain loss, so that the "
            "first step is masked already. Costs about as much as a plain epoch."
        },
    )
    mask_schedule: str = config_field("mask_schedule")
    rescale: bool = config_field("rescale")
    selective: bool = config_field("selective", "Of the transformer blocks; all else is always updated.")
    importance: str = config_field("importance")
    importance_every: int = config_field("importance_every")
    always_update: list[str] | None = field(
        default=None, metadata={"help": "Regular expressions of names that are never selective."}
    )
    # None, which is refused, is there because argparse would read a union of two as the dtype and not as its name.
    importance_dtype: torch.dtype | str | None = config_field("importance_dtype")  # noqa: RUF009
    state_dtype: torch.dtype | str | None = config_field("state_dtype")  # noqa: RUF009
    stochastic_rounding: bool = config_field("stochastic_rounding")
    backend: str = config_field("backend")
    step_size: float = _adversary_field("step_size")
    consistency_weight: float = _adversary_field("consistency_weight")
    adversarial_weight: float = _adversary_field("adversarial_weight")
    clean_weight: float = _adversary_field("clean_weight")
    norm: str = _adversary_field("norm")
    scale: str = _adversary_field("scale")
    embedding: str | None = _adversary_field("embedding")
    gradient: str = _adversary_field("gradient")
    ramp: list[float] | None = _adversary_field("ramp")  # noqa: RUF009 (a field)
    share: float = _adversary_field("share")
    direction: str = _adversary_field("direction")
    ascents: int = _adversary_field("ascents")
    start_noise: float = _adversary_field("start_noise")
    preset: str | None = field(
        default=None,
        metadata={
            "help": '"paper": the settings of the paper in place of those options here that are at their defaults. '
            "Learning rate, betas, eps and weight decay remain those of TrainingArguments."
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.refresh_every, str):  # from the command line
            text = self.refresh_every.strip().lower()
            self.refresh_every = int(text) if text.lstrip("-").isdigit() else None if text == "none" else text
        if self.preset is not None:
            self._take_preset()

    def _take_preset(self) -> None:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        at_default = {each.name for each in fields(self) if given[each.name] == each.default}
        for presets in (OPTIMIZER_PRESETS, ADVERSARY_PRESETS):
            for name, value in preset_of(presets, self.preset).items():
                if name in at_default:
                    setattr(self, name, value)

    @classmethod
    def of(cls, options: object) -> RoastConfig:
        """The configuration that is given as such, as a dictionary of its fields, or not at all (None).

        Raises:
            TypeError: it is something else.
            ValueError: the dictionary has a key that is no field.
        """
        if options is None or isinstance(options, RoastConfig):
            return options or cls()
        if not isinstance(options, Mapping):
            raise TypeError(f"roast={options!r} is of type {type(options).__name__}: pass a RoastConfig")
        known = [each.name for each in fields(cls)]
        for name in options:
            if name not in known:
                raise ValueError(f"roast has no option {name!r}: it must be one of {known}")
        return cls(**options)

    def make_optimizer(self, model: nn.Module, args: TrainingArguments, **options: Any) -> RoastAdamW:
        """The optimizer for the trainable parameters of ``model``.

        Args:
            model: whose transformer blocks are selective, if ``selective``.
            args: learning rate, betas, eps, weight decay and seed.
            **options: of :class:`.RoastAdamW`, which come before both.

        Raises:
            ValueError: an option is out of range, or the model has no transformer blocks and ``selective`` is True.
        """
        dtypes = {name: as_dtype(getattr(self, name)) for name in ("importance_dtype", "state_dtype")}
        for name, dtype in dtypes.items():
            if isinstance(dtype, str):
                raise ValueError(f"{name}={dtype!r} is not the name of a torch dtype, such as 'float32'")
        weight_decay = options.pop("weight_decay", args.weight_decay)
        if options.get("selective", self.selective):
            groups = selective_param_groups(model, weight_decay, self.always_update)
        else:
            groups = always_updated_param_groups(model, weight_decay)
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name in OPTIONS}
        of_trainer = {
            "lr": args.learning_rate,
            "betas": (args.adam_beta1, args.adam_beta2),
            "eps": args.adam_epsilon,
            "seed": args.seed,
        }
        return RoastAdamW(groups, **{**own, **of_trainer, **dtypes, **options})

    def make_adversary(self, model: nn.Module) -> AdversarialEmbedding:
        """The adversary of ``model``, which must not be wrapped, sharded or compiled yet.

        Raises:
            ValueError: an option is out of range, or the model has no embeddings.
        """
        return AdversarialEmbedding(model, **{name: getattr(self, name) for name in ADVERSARY_OPTIONS})
