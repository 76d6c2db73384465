"""What RoastTrainer does by itself: ranks, measuring, and checkpoints and options that were made for something else."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import HfArgumentParser, Trainer, TrainerCallback

from roast_optim import RoastAdamW
from roast_optim.integrations.huggingface import RoastCallback, RoastConfig, RoastTrainer
from roast_optim.integrations.trainer_checkpoint import PlainTrainerCheckpoint
from tests.models import ARCHITECTURES
from tests.roast_optim.integrations.test_huggingface import arguments, roast_of, rows
from tests.support.snapshot import assert_same_snapshots, snapshot


def trainer_of(folder: Path, roast: Any = None, *, kind: Any = RoastTrainer, own: Any = None, **options: Any) -> Any:
    extra = {} if kind is Trainer else {"roast": roast}
    model = ARCHITECTURES["bert"].model(dropout=0.1)
    return kind(model, arguments(folder, **options), train_dataset=rows("bert"), **extra, **own or {})


def shares(trainer: Trainer) -> list[float]:
    return [entry["updated_share"] for entry in trainer.state.log_history if "updated_share" in entry]


# ---------------------------------------------------------------------------------------------------------------- masks


def test_by_default_masks_come_within_the_first_epoch_and_the_logs_say_from_which_step(tmp_path: Path) -> None:
    options = {"per_device_train_batch_size": 1, "num_train_epochs": 3}
    trainer = trainer_of(tmp_path, RoastConfig(backend="reference"), **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no step was masked.*")
        trainer.train()
    assert trainer.state.global_step == 36
    assert shares(trainer)[:32] == [1.0] * 32
    assert all(0.0 < share < 1.0 for share in shares(trainer)[32:])
    assert len(shares(trainer)) == 36


def test_a_log_is_the_mean_over_its_steps(tmp_path: Path) -> None:
    config = RoastConfig(refresh_every=2, alpha=0.5, backend="reference")
    trainers = []
    for steps in (1, 3):
        trainers.append(trainer_of(tmp_path, config, logging_steps=steps))
        trainers[-1].train()
    every, third = trainers
    each = shares(every)
    assert each[:2] == [1.0, 1.0] and max(each[2:]) < 1.0  # noqa: PT018
    assert shares(third) == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3])


@pytest.mark.parametrize("refresh_every", [None, 100, "auto"])
def test_training_that_ends_without_masks_says_so(tmp_path: Path, refresh_every: Any) -> None:
    trainer = trainer_of(tmp_path, RoastConfig(refresh_every=refresh_every, backend="reference"), num_train_epochs=1)
    with pytest.warns(UserWarning, match=r"training has ended and no step was masked.*\"auto\""):
        trainer.train()
    assert shares(trainer) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_measuring_first_masks_the_first_step_and_changes_nothing_else(tmp_path: Path, accumulation: int) -> None:
    first: list[dict[str, Tensor]] = []

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                first.append({name: p.grad.clone() for name, p in kwargs["model"].named_parameters()})

    trainers = []
    for measure in (False, True):
        config = RoastConfig(measure_first=measure, alpha=0.5, backend="reference")
        options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 2}
        trainers.append(trainer_of(tmp_path, config, own={"callbacks": [Gradients()]}, **options))
        trainers[-1].train()
    assert all(torch.equal(first[0][name], first[1][name]) for name in first[0])  # same data, same dropout
    plain, measured = map(roast_of, trainers)
    assert (plain.refreshes, measured.refreshes) == (0, 1)
    assert max(shares(trainers[1])) < 1.0
    assert shares(trainers[0]) == [1.0] * trainers[0].state.global_step


def test_measuring_takes_no_more_steps_than_training_and_is_not_repeated_on_resuming(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counting(RoastTrainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(self.state.global_step)
            return super().get_batch_samples(*args, **kwargs)

    config = RoastConfig(measure_first=True, alpha=0.5, backend="reference")
    options = {"kind": Counting, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = trainer_of(tmp_path, config, **options)
    whole.train()
    assert calls == [0, 0, 0, 1]
    resumed = trainer_of(tmp_path, config, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert calls[4:] == [1]
    assert_same_snapshots(snapshot(roast_of(resumed)), snapshot(roast_of(whole)))


# -------------------------------------------------------------------------------------------------------------- options


def test_options_may_be_a_dictionary(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, {"alpha": 0.25, "refresh_every": 2, "state_dtype": torch.float64}, max_steps=1)
    trainer.train()
    assert trainer.roast == RoastConfig(alpha=0.25, refresh_every=2, state_dtype=torch.float64)
    assert roast_of(trainer).param_groups[0]["alpha"] == 0.25
    assert roast_of(trainer).options.state_dtype is torch.float64


@pytest.mark.parametrize(
    ("roast", "error", "message"),
    [
        ({"alhpa": 0.5}, ValueError, "roast has no option 'alhpa'"),
        (0.9, TypeError, "roast=0.9 is of type float: pass a RoastConfig"),
        ([("alpha", 0.5)], TypeError, "is of type list: pass a RoastConfig"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, roast: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        trainer_of(tmp_path, roast)


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("none", None), ("7", 7)])
def test_the_schedule_is_read_from_the_command_line(text: str, value: Any) -> None:
    parser = HfArgumentParser(RoastConfig)  # type: ignore[arg-type]
    (config,) = parser.parse_args_into_dataclasses(["--refresh_every", text, "--measure_first"])
    assert (config.refresh_every, config.measure_first) == (value, True)


def test_optimizer_cls_and_kwargs_may_name_the_optimizer(tmp_path: Path) -> None:
    own = {"optimizer_cls_and_kwargs": (RoastAdamW, {"lr": 0.5, "alpha": 0.25, "backend": "reference"})}
    trainer = trainer_of(tmp_path, max_steps=1, own=own)
    optimizer = trainer.create_optimizer()
    assert {group["selective"] for group in optimizer.param_groups} == {True, False}
    assert {(group["lr"], group["alpha"]) for group in optimizer.param_groups} == {(0.5, 0.25)}


def test_a_plain_trainer_takes_the_model_or_is_told(tmp_path: Path) -> None:
    model = ARCHITECTURES["bert"].model()
    options = {"lr": 1e-3, "backend": "reference"}
    for extra, selective in (({"model": model}, {True, False}), ({}, {True})):
        trainer = Trainer(
            model, arguments(tmp_path, max_steps=2), train_dataset=rows("bert"), callbacks=[RoastCallback()],
            optimizer_cls_and_kwargs=(RoastAdamW, {**options, **extra}),
        )  # fmt: skip
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train()
        assert any("without a word on `selective`" in str(each.message) for each in caught) == (not extra)
        assert {group["selective"] for group in roast_of(trainer).param_groups} == selective


# ---------------------------------------------------------------------------------------------------------- checkpoints


def freeze_embeddings(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name)


@pytest.mark.parametrize("prepare", [lambda model: None, freeze_embeddings], ids=["all", "some frozen"])
def test_it_goes_on_from_a_checkpoint_of_a_plain_trainer(tmp_path: Path, prepare: Callable[[nn.Module], None]) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "cosine"}
    plain = trainer_of(tmp_path, kind=Trainer, **options)
    prepare(plain.model)
    plain.train()
    ours = trainer_of(tmp_path, RoastConfig(backend="reference", refresh_every=None), **options)
    prepare(ours.model)
    loaded: dict[str, Tensor] = {}
    rates: list[float] = []

    class Look(TrainerCallback):
        def on_train_begin(self, *_: Any, model: nn.Module, optimizer: Any, **__: Any) -> None:
            state = optimizer.optimizer.state
            loaded.update({n: state[p]["exp_avg"].clone() for n, p in model.named_parameters() if p in state})

        def on_step_end(self, *_: Any, optimizer: Any, **__: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])
            assert len({group["lr"] for group in optimizer.param_groups}) == 1

    ours.add_callback(Look())
    with pytest.warns(UserWarning, match="without selection"):
        ours.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    saved = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    decayed = ours.get_decay_parameter_names(ours.model)
    trained = [name for name, parameter in ours.model.named_parameters() if parameter.requires_grad]
    order = [n for n in trained if n in decayed] + [n for n in trained if n not in decayed]
    assert loaded.keys() == set(trained)
    for index, name in enumerate(order):
        assert torch.equal(loaded[name], saved["state"][index]["exp_avg"]), name
    logged = [entry["learning_rate"] for entry in plain.state.log_history if "learning_rate" in entry]
    assert [rates[0], rates[1], rates[2]] == pytest.approx(logged[3:])
    assert {group["weight_decay"] for group in roast_of(ours).param_groups} == {0.0, 0.01}


def test_other_checkpoints_are_left_as_they_are() -> None:
    model = ARCHITECTURES["bert"].model()
    optimizer = RoastAdamW(model, backend="reference")
    matching = PlainTrainerCheckpoint(model, [name for name, _ in model.named_parameters()], optimizer)
    own = optimizer.state_dict()
    assert matching.matched(optimizer, own) is None
    other = torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict()
    assert matching.matched(optimizer, other) is None
    assert matching.matched(optimizer, {"param_groups": [1]}) is None
