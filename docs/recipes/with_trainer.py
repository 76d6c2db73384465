"""Hugging Face Trainer: RoastTrainer in the place of Trainer.

Run it with ``python docs/recipes/with_trainer.py``. All options of TrainingArguments and RoastConfig can be given on
the command line, such as ``--learning_rate 1e-3 --alpha 0.8``. Nothing is downloaded: model and data are tiny and made
here.
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, TrainingArguments

sys.path.append(str(Path(__file__).resolve().parents[2]))  # finds roast_optim in a clone where it is not installed

from roast_optim.integrations.huggingface import RoastConfig, RoastTrainer

DEFAULTS = (
    "--num_train_epochs 3 --per_device_train_batch_size 8 --gradient_accumulation_steps 2 --learning_rate 5e-3 "
    "--warmup_steps 5 --logging_steps 16 --save_strategy epoch --eval_strategy epoch --use_cpu --report_to none "
    "--alpha 0.6 --beta 5"
)


def make_model():
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=2
    )
    return BertForSequenceClassification(config)


def make_data(samples):
    """Sentences of 12 tokens, whose distribution depends on the label."""
    labels = torch.randint(0, 2, (samples,))
    input_ids = torch.randint(3, 70, (samples, 12)) + 30 * labels[:, None]
    return [{"input_ids": row, "labels": label} for row, label in zip(input_ids, labels, strict=True)]


def main(options=()):
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        arguments, roast = HfArgumentParser((TrainingArguments, RoastConfig)).parse_args_into_dataclasses(
            ["--output_dir", folder, *DEFAULTS.split(), *options]
        )
        trainer = RoastTrainer(
            make_model(), arguments, train_dataset=make_data(256), eval_dataset=make_data(64), roast=roast
        )
        trainer.train()  # resume_from_checkpoint=True continues where the last checkpoint ended
    logs = trainer.state.log_history
    print(
        [{name: round(entry[name], 3) for name in ("task_loss", "updated_share")} for entry in logs if "loss" in entry]
    )
    return [entry["eval_loss"] for entry in logs if "eval_loss" in entry]


if __name__ == "__main__":
    main(sys.argv[1:])
