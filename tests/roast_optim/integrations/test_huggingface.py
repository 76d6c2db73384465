"""RoastTrainer, RoastConfig and RoastCallback with the real Trainer on tiny models."""

from __future__ import annotations

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments

from roast_optim import AdversarialEmbedding, RoastAdamW, selective_param_groups
from roast_optim.adversary_options import ADVERSARY_OPTIONS
from roast_optim.integrations.callbacks import UpdatedShare
from roast_optim.integrations.huggingface import RoastCallback, RoastConfig, RoastTrainer
from tests.models import ARCHITECTURES
from tests.support.snapshot import assert_same_snapshots, snapshot

SAMPLES = 12
CONFIG = RoastConfig(refresh_every=None, alpha=0.5, beta=5.0, consistency_weight=0.5, backend="reference")


def rows(architecture: str, samples: int = SAMPLES) -> list[dict[str, Tensor]]:
    batch = ARCHITECTURES[architecture].batch(samples=samples)
    if architecture == "t5_sequence_to_sequence":  # as DataCollatorForSeq2Seq adds it, for losses outside the model
        model: Any = ARCHITECTURES[architecture].model()
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    return [{name: value[row] for name, value in batch.items()} for row in range(samples)]


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.01,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **defaults | options)


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        if not self.of:
            self.of = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained(
    folder: Path,
    architecture: str = "bert",
    *,
    dropout: float = 0.0,
    config: RoastConfig = CONFIG,
    trainer_options: dict[str, Any] | None = None,
    resume: str | None = None,
    **options: Any,
) -> RoastTrainer:
    trainer = RoastTrainer(
        ARCHITECTURES[architecture].model(dropout=dropout),
        arguments(folder, **options),
        train_dataset=rows(architecture),
        roast=config,
        **trainer_options or {},
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def roast_of(trainer: Trainer) -> RoastAdamW:
    inner = trainer.optimizer.optimizer
    assert isinstance(inner, RoastAdamW)
    return inner


def mean_over_items(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    logits = outputs["logits"]
    loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum")
    return loss / num_items_in_batch


LOSSES: dict[str, dict[str, Any]] = {
    "of the model": {},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "compute_loss_func": {"trainer_options": {"compute_loss_func": mean_over_items}},
}


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("architecture", ["bert", "gpt2_language_model", "t5_sequence_to_sequence"])
def test_accumulated_micro_batches_have_the_gradient_of_the_whole_batch(
    tmp_path: Path, architecture: str, loss: str
) -> None:
    def gradients(batch: int, accumulation: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        kept = Gradients()
        options = {**LOSSES[loss], "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        own = {**options.pop("trainer_options", {}), "callbacks": [kept]}
        trainer = trained(tmp_path, architecture, trainer_options=own, max_steps=1, max_grad_norm=0.0, **options)
        return kept.of, trainer.state.log_history[0]

    whole, logs = gradients(6, 1)
    for batch, accumulation in [(2, 3), (1, 6)]:
        accumulated, accumulated_logs = gradients(batch, accumulation)
        largest = max(float(gradient.abs().max()) for gradient in whole.values())
        for name, gradient in whole.items():
            torch.testing.assert_close(accumulated[name], gradient, rtol=1e-3, atol=1e-5 * largest)
        for name in ("loss", "task_loss", "adversarial_loss", "consistency_loss"):
            assert accumulated_logs[name] == pytest.approx(logs[name], rel=1e-3)


def test_an_epoch_whose_micro_batches_do_not_fill_the_last_step_ends_in_a_refresh(tmp_path: Path) -> None:
    trainer = trained(tmp_path, per_device_train_batch_size=5, gradient_accumulation_steps=2, num_train_epochs=3)
    assert trainer.state.global_step == 6
    assert roast_of(trainer).param_groups[0]["refreshes"] == 3


def test_refresh_every_counts_optimizer_steps_and_epochs_do_not_refresh_then(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, refresh_every=4)
    trainer = trained(tmp_path, config=config, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    assert trainer.state.global_step == 6
    group = roast_of(trainer).param_groups[0]
    assert (group["refreshes"], group["steps_since_refresh"]) == (1, 2)


def test_a_data_set_without_length_is_refreshed_when_it_ends(tmp_path: Path) -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(rows("bert", 8))

    trainer = RoastTrainer(
        ARCHITECTURES["bert"].model(), arguments(tmp_path, max_steps=5), train_dataset=Stream(), roast=CONFIG
    )
    trainer.train()
    assert roast_of(trainer).param_groups[0]["refreshes"] == 3  # after 2, 4 and 5 steps


def test_evaluation_is_that_of_the_trainer(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    plain = Trainer(trainer.model, arguments(tmp_path), eval_dataset=rows("bert"))
    assert trainer.evaluate(rows("bert"))["eval_loss"] == plain.evaluate()["eval_loss"]


def test_a_second_model_from_model_init_gets_its_own_optimizer_and_adversary(tmp_path: Path) -> None:
    trainer = RoastTrainer(
        args=arguments(tmp_path),
        model_init=lambda: ARCHITECTURES["bert"].model(),
        train_dataset=rows("bert"),
        roast=CONFIG,
    )
    trainer.train()
    first = snapshot(roast_of(trainer))
    trainer.train()
    assert_same_snapshots(snapshot(roast_of(trainer)), first)


def test_a_second_training_logs_what_a_first_one_would(tmp_path: Path) -> None:
    trainer = RoastTrainer(
        args=arguments(tmp_path, logging_steps=2, max_steps=3, logging_strategy="steps"),
        model_init=lambda: ARCHITECTURES["bert"].model(),
        train_dataset=rows("bert"),
        roast=CONFIG,
    )
    logs = []
    for _ in range(2):
        trainer.train()
        logs.append({name: value for name, value in trainer.state.log_history[0].items() if "loss" in name})
    assert logs[0].keys() == {"loss", "task_loss", "adversarial_loss", "consistency_loss"}
    assert logs[0] == logs[1]


def test_the_updated_share_is_that_of_the_optimizer_that_is_asked() -> None:
    share = UpdatedShare()
    for alpha in (0.1, 0.9):
        optimizer = RoastAdamW([nn.Parameter(torch.ones(50))], alpha=alpha, refresh_every=1, backend="reference")
        optimizer.param_groups[0]["params"][0].grad = torch.arange(50.0)
        optimizer.step()
        assert share.of(optimizer) == optimizer.selection_stats()["expected_share"]
        optimizer.param_groups[0]["alpha"] = 0.5
        assert share.of(optimizer) == optimizer.selection_stats()["expected_share"]


@pytest.mark.parametrize("architecture", ["bert", "gpt2_language_model", "t5_sequence_to_sequence"])
def test_next_to_no_label_smoothing_is_the_loss_of_the_model(tmp_path: Path, architecture: str) -> None:
    logs = [
        trained(tmp_path, architecture, max_steps=1, label_smoothing_factor=factor).state.log_history[0]
        for factor in (0.0, 1e-9)
    ]
    for name in ("loss", "task_loss", "adversarial_loss", "consistency_loss"):
        assert logs[1][name] == pytest.approx(logs[0][name], rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------- logs


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_logged_loss_is_the_weighted_sum_of_its_parts(tmp_path: Path, loss: str, accumulation: int) -> None:
    config = dataclasses.replace(CONFIG, clean_weight=0.5, adversarial_weight=2.0)
    trainer = trained(
        tmp_path, config=config, logging_steps=2, per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation, **LOSSES[loss],
    )  # fmt: skip
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == trainer.state.global_step // 2
    for entry in logs:
        parts = 0.5 * entry["task_loss"] + 2.0 * entry["adversarial_loss"] + 0.5 * entry["consistency_loss"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-5)
        assert entry["consistency_loss"] > 0


def test_the_updated_share_is_logged_and_reaches_callbacks_that_report(tmp_path: Path) -> None:
    reported: list[float] = []

    class Reporter(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            reported.extend([logs["updated_share"]] if "updated_share" in logs else [])

    trainer = trained(tmp_path, trainer_options={"callbacks": [Reporter()]})
    shares = [entry["updated_share"] for entry in trainer.state.log_history if "loss" in entry]
    assert shares == reported
    assert shares[:3] == [1.0, 1.0, 1.0]  # the first ranks come after the third step, the last after the sixth
    assert 0.0 < shares[3] == shares[4] == shares[5] < 1.0
    assert shares[5] != roast_of(trainer).selection_stats()["expected_share"]


@pytest.mark.filterwarnings("ignore:refresh.. found no accumulated importance")
def test_samples_without_a_finite_gradient_are_logged(tmp_path: Path) -> None:
    class Diverging(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden * math.inf

    model = ARCHITECTURES["bert"].model()
    model.classifier = nn.Sequential(model.classifier, Diverging())
    trainer = RoastTrainer(model, arguments(tmp_path, max_steps=1), train_dataset=rows("bert"), roast=CONFIG)
    trainer.train()
    assert trainer.state.log_history[0]["nonfinite_samples"] == 4


# ---------------------------------------------------------------------------------------------------- either half alone


class Recurrent(nn.Module):
    """A classifier without transformer blocks, with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = nn.Embedding(40, 8)
            self.lstm = nn.LSTM(8, 8, batch_first=True)
            self.classifier = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Loss and logits."""
        hidden, _ = self.lstm(self.embedding(input_ids))
        logits = self.classifier((hidden * attention_mask.unsqueeze(-1)).sum(1))
        return {"logits": logits} if labels is None else {
            "loss": nn.functional.cross_entropy(logits, labels), "logits": logits
        }  # fmt: skip


def linear_probe() -> nn.Module:
    model = ARCHITECTURES["bert"].model()
    model.bert.requires_grad_(False)
    return model


def prompt_tuning() -> nn.Module:
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
        model: nn.Module = peft.get_peft_model(ARCHITECTURES["bert"].model(), config)
    return model


WITHOUT_BLOCKS = pytest.mark.parametrize("make", [Recurrent, linear_probe, prompt_tuning])


def trained_weights(trainer: Trainer) -> dict[str, Tensor]:
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


@WITHOUT_BLOCKS
@pytest.mark.parametrize("gradient", ["exact", "fast"])
def test_models_without_selective_blocks_train_with_the_adversary(tmp_path: Path, make: Any, gradient: str) -> None:
    config = RoastConfig(selective=False, gradient=gradient, backend="reference")
    trainer = RoastTrainer(make(), arguments(tmp_path), train_dataset=rows("bert"), roast=config)
    trainer.train()
    assert not any(group["selective"] for group in roast_of(trainer).param_groups)
    logs = trainer.state.log_history[0]
    assert logs["adversarial_loss"] != logs["task_loss"]


@WITHOUT_BLOCKS
def test_without_selection_and_adversary_it_is_the_trainer_with_adamw(tmp_path: Path, make: Any) -> None:
    config = RoastConfig(selective=False, step_size=0.0, adversarial_weight=0.0, consistency_weight=0.0)
    weights = [
        trained_weights(kind(make(), arguments(tmp_path), train_dataset=rows("bert"), **options))
        for kind, options in ((Trainer, {}), (RoastTrainer, {"roast": config}))
    ]
    for name, expected in weights[0].items():
        difference = (weights[1][name] - expected).abs().max()
        assert difference < 1e-5, f"{name} differs by {difference}"


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_the_adversary_works_with_the_callers_own_optimizer(tmp_path: Path, kind: Any) -> None:
    weights = []
    for step_size in (0.0, 0.5):
        model = ARCHITECTURES["bert"].model()
        optimizer = kind(model.parameters(), lr=1e-2)
        trainer = RoastTrainer(
            model,
            arguments(tmp_path),
            train_dataset=rows("bert"),
            optimizers=(optimizer, None),
            roast=RoastConfig(step_size=step_size),
        )
        weights.append(trained_weights(trainer))
        assert trainer.optimizer.optimizer is optimizer
        logs = trainer.state.log_history[0]
        assert (logs["adversarial_loss"] > logs["task_loss"]) == (step_size > 0)
        assert "updated_share" not in logs
    assert any(not torch.equal(weights[1][name], weight) for name, weight in weights[0].items())


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("step", [2, 3, 4], ids=["within an epoch", "at its end", "after its end"])
@pytest.mark.parametrize("refresh_every", [None, 2])
def test_training_resumes_bit_for_bit(tmp_path: Path, step: int, refresh_every: int | None) -> None:
    config = dataclasses.replace(CONFIG, refresh_every=refresh_every)
    whole = trained(tmp_path / "whole", dropout=0.1, config=config)
    options = {"dropout": 0.1, "config": config, "save_strategy": "steps", "save_steps": step}
    trained(tmp_path / "half", **options)
    resumed = trained(tmp_path / "half", **options, resume=str(tmp_path / "half" / f"checkpoint-{step}"))
    assert resumed.state.global_step == whole.state.global_step == 6
    assert_same_snapshots(snapshot(roast_of(resumed)), snapshot(roast_of(whole)))


@pytest.mark.parametrize("restored", [False, True])
def test_ramp_and_draws_of_the_adversary_go_on_where_the_checkpoint_was_written(tmp_path: Path, restored: bool) -> None:
    config = RoastConfig(alpha=0.4, ramp=[1, 9], share=0.5, direction="noise", backend="reference")
    options: dict[str, Any] = {
        "config": config, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2,
        "restore_callback_states_from_checkpoint": restored,
    }  # fmt: skip
    whole = trained(tmp_path / "whole", **options)
    resumed = trained(tmp_path / "half", **options, resume=str(tmp_path / "whole" / "checkpoint-4"))
    assert whole.adversary is not None
    assert resumed.adversary is not None
    assert resumed.adversary.calls == whole.adversary.calls == 6
    assert_same_snapshots(snapshot(roast_of(resumed)), snapshot(roast_of(whole)))
    resumed.train()
    assert resumed.adversary.calls == 6  # another training, whose ramp begins anew


def test_the_papers_preset_takes_the_place_of_defaults_alone(tmp_path: Path) -> None:
    trainer = trained(tmp_path, config=RoastConfig(preset="paper", alpha=0.6), max_steps=1, learning_rate=1e-3)
    optimizer = roast_of(trainer)
    assert optimizer.options.refresh_every is None
    assert {(group["alpha"], group["beta"]) for group in optimizer.param_groups} == {(0.6, 10.0)}
    assert trainer.args.learning_rate == 1e-3
    with pytest.raises(ValueError, match=r"preset='article'.*\('paper',\)"):
        RoastConfig(preset="article")


def test_the_options_of_the_adversary_are_read_from_the_command_line() -> None:
    line = "--ramp 100 400 --share 0.5 --direction consistency --ascents 2 --start_noise 1e-5 --preset paper"
    (config,) = HfArgumentParser(RoastConfig).parse_args_into_dataclasses(line.split())
    assert (config.ramp, config.share, config.direction, config.ascents) == ([100.0, 400.0], 0.5, "consistency", 2)
    assert (config.start_noise, config.refresh_every) == (1e-5, None)


def test_training_resumes_bit_for_bit_from_the_checkpoint_of_an_epoch(tmp_path: Path) -> None:
    options = {"dropout": 0.1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 5}
    whole = trained(tmp_path / "whole", **options)
    trained(tmp_path / "half", **options, save_strategy="epoch")
    resumed = trained(
        tmp_path / "half", **options, save_strategy="epoch", resume=str(tmp_path / "half" / "checkpoint-2")
    )
    assert_same_snapshots(snapshot(roast_of(resumed)), snapshot(roast_of(whole)))


# ------------------------------------------------------------------------------------------------------------- callback


def with_callback(folder: Path, optimizer: torch.optim.Optimizer, model: nn.Module, **options: Any) -> Trainer:
    trainer = Trainer(
        model,
        arguments(folder, **options),
        train_dataset=rows("bert"),
        optimizers=(optimizer, None),
        callbacks=[RoastCallback()],
    )
    trainer.train()
    return trainer


def test_the_callback_refreshes_in_a_plain_trainer_and_logs_the_share(tmp_path: Path) -> None:
    model = ARCHITECTURES["bert"].model()
    groups, options = selective_param_groups(model, 0.01), {"lr": 1e-2, "alpha": 0.5, "beta": 5.0}
    optimizer = RoastAdamW(groups, **options, refresh_every=None, backend="reference")
    trainer = with_callback(tmp_path, optimizer, model)
    assert optimizer.param_groups[0]["refreshes"] == 2
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[0]["updated_share"] == 1.0
    assert 0.0 < logs[-1]["updated_share"] < 1.0
    assert "task_loss" not in logs[0]


def test_the_callback_refuses_another_optimizer(tmp_path: Path) -> None:
    model = ARCHITECTURES["bert"].model()
    with pytest.raises(ValueError, match="optimizer=AdamW is not a RoastAdamW"):
        with_callback(tmp_path, torch.optim.AdamW(model.parameters()), model)


def test_a_group_without_selection_is_never_refreshed(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    trainer = trained(tmp_path, config=dataclasses.replace(CONFIG, selective=False))
    assert roast_of(trainer).param_groups[0]["refreshes"] == 0
    assert not [warning for warning in recwarn if "refresh" in str(warning.message)]


# -------------------------------------------------------------------------------------------------------- configuration


def test_the_defaults_are_those_of_the_optimizer_and_the_adversary() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(RoastConfig)}
    known = {**inspect.signature(RoastAdamW).parameters, **inspect.signature(AdversarialEmbedding).parameters}
    assert (
        defaults.pop("always_update") is inspect.signature(selective_param_groups).parameters["always_update"].default
    )
    assert defaults.pop("measure_first") is False
    assert defaults == {name: known[name].default for name in defaults}


def test_the_options_can_be_read_from_the_command_line_beside_those_of_the_trainer() -> None:
    parser = HfArgumentParser((TrainingArguments, RoastConfig))  # type: ignore[arg-type]
    line = "--output_dir out --alpha 0.6 --refresh_every 5 --no_rescale --always_update bias norm --state_dtype float32"
    line += " --importance_dtype bfloat16 --stochastic_rounding"
    _, config = parser.parse_args_into_dataclasses(line.split())
    assert config == RoastConfig(
        alpha=0.6, refresh_every=5, rescale=False, always_update=["bias", "norm"], state_dtype="float32",
        importance_dtype="bfloat16", stochastic_rounding=True,
    )  # fmt: skip


def test_the_options_and_the_arguments_reach_the_optimizer_and_the_adversary(tmp_path: Path) -> None:
    config = RoastConfig(
        alpha=0.3, beta=2.0, refresh_every=7, mask_schedule="refresh", rescale=False, importance="magnitude",
        importance_every=2, importance_dtype="bfloat16", always_update=["query"], state_dtype="float64",
        backend="reference", step_size=0.2,
        consistency_weight=0.3, adversarial_weight=0.4, clean_weight=0.6, norm="l2", embedding="word", gradient="fast",
        scale="relative", ramp=[0, 4], share=0.5, ascents=2,
    )  # fmt: skip
    trainer = trained(tmp_path, config=config, max_steps=1, seed=11, adam_beta1=0.8, adam_beta2=0.98, adam_epsilon=1e-6)
    optimizer, adversary = roast_of(trainer), trainer.adversary
    assert adversary is not None
    for name in ("refresh_every", "mask_schedule", "rescale", "importance", "importance_every"):
        assert getattr(optimizer.options, name) == getattr(config, name)
    for name in ADVERSARY_OPTIONS:
        assert name == "embedding" or getattr(adversary, name) == getattr(config, name)
    assert adversary.embedding_name == "bert.embeddings.word_embeddings"
    assert optimizer.backend == "reference"
    assert (optimizer.options.state_dtype, optimizer.options.importance_dtype) == (torch.float64, torch.bfloat16)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    for group in optimizer.param_groups:
        assert (group["alpha"], group["beta"], group["seed"]) == (0.3, 2.0, 11)
        assert (group["betas"], group["eps"]) == ((0.8, 0.98), 1e-6)
        for parameter in group["params"]:
            name = names[parameter]
            assert group["selective"] == ("encoder.layer" in name and "query" not in name)
            assert group["weight_decay"] == (0.0 if "bias" in name or "LayerNorm" in name else 0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "adafactor"}, "optim=.*adafactor.*leave optim out"),
        ({"trainer": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {})}}, "optimizer_cls_and_kwargs.*RoastConfig"),
        ({"config": {"state_dtype": "int"}}, "state_dtype=torch.int32"),
        ({"config": {"state_dtype": "floaty"}}, "state_dtype='floaty'"),
        ({"config": {"importance_dtype": "float16", "backend": "reference"}}, "importance_dtype=torch.float16"),
        ({"config": {"importance_dtype": None, "backend": "reference"}}, "importance_dtype=None"),
        ({"config": {"importance_dtype": "floaty"}}, "importance_dtype='floaty'"),
        ({"config": {"alpha": 2.0, "backend": "reference"}}, "alpha=2.0"),
        ({"config": {"step_size": -1.0, "backend": "reference"}}, "step_size=-1.0"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    own, config = options.pop("trainer", {}), RoastConfig(**options.pop("config", {}))
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, config=config, trainer_options=own, **options)
