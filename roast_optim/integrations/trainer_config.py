"""The options of RoAST in the Trainer, and the optimizer and the adversary that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from ..adversarial import AdversarialEmbedding
from ..optimizer import RoastAdamW
from ..options import OPTIONS, as_dtype, config_field
from ..param_groups import always_updated_param_groups, selective_param_groups


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
    step_size: float = field(default=0.1, metadata={"help": "Length of the perturbation of each token."})
    consistency_weight: float = field(default=0.01, metadata={"help": "Weight of the consistency loss."})
    adversarial_weight: float = field(
        default=1.0, metadata={"help": "Weight of the task loss of the adversarial pass."}
    )
    clean_weight: float = field(default=1.0, metadata={"help": "Weight of the task loss of the clean pass."})
    norm: str = field(default="linf", metadata={"help": 'In which step_size is measured: "linf", "sign" or "l2".'})
    scale: str = field(
        default="absolute",
        metadata={"help": '"absolute", or "relative": step_size is a share of the length of each token\'s embedding.'},
    )
    embedding: str | None = field(
        default=None, metadata={"help": '"word": perturb the word embeddings, not the whole embedding block.'}
    )
    gradient: str = field(
        default="exact",
        metadata={"help": '"exact", or "fast": hold the clean prediction constant, and save a backward.'},
    )

    def __post_init__(self) -> None:
        if isinstance(self.refresh_every, str):  # from the command line
            text = self.refresh_every.strip().lower()
            self.refresh_every = int(text) if text.lstrip("-").isdigit() else None if text == "none" else text

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
        names = (
            "step_size", "consistency_weight", "adversarial_weight", "clean_weight", "norm", "embedding", "gradient",
            "scale",
        )  # fmt: skip
        return AdversarialEmbedding(model, **{name: getattr(self, name) for name in names})
