"""Faults put into the optimizer, the draw, the importance and the adversary, one at a time: the tests catch each of them.

    python tests/mutations.py [NAME ...]    (make mutations: all of them)

Every fault is made in a copy of the source tree and the tests of that part are run there until the first failure. Exit
status 1 if a fault survives, or if its place is not found any more.
"""

# ruff: noqa: E501 - a fault is one line

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("benchmarks", "docs", "kernels", "roast_optim", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True)
class Fault:
    """`old`, which `file` has exactly once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str


TESTS = {
    "kernels/reference.py": (
        "tests/kernels/test_reference.py",
        "tests/roast_optim/test_optimizer_selection.py",
        "tests/roast_optim/test_optimizer_gradients.py",
        "tests/roast_optim/test_optimizer_adamw.py",
        "tests/kernels/test_backends.py",
        "tests/kernels/test_stochastic_rounding.py",
        "tests/kernels/test_gradient_factor.py",
    ),
    "roast_optim/masking.py": ("tests/roast_optim/test_masking.py",),
    "roast_optim/importance.py": (
        "tests/roast_optim/test_importance.py",
        "tests/roast_optim/test_optimizer_refresh.py",
        "tests/roast_optim/test_optimizer_selection.py",
    ),
    "roast_optim/optimizer.py": (
        "tests/roast_optim/test_optimizer_selection.py",
        "tests/roast_optim/test_optimizer_refresh.py",
        "tests/roast_optim/test_optimizer_checkpoint.py",
        "tests/roast_optim/test_optimizer_adamw.py",
    ),
    "roast_optim/step_options.py": (
        "tests/roast_optim/test_optimizer_selection.py",
        "tests/roast_optim/test_optimizer_refresh.py",
    ),
    "roast_optim/checkpoint.py": ("tests/roast_optim/test_optimizer_checkpoint.py",),
    "roast_optim/adversarial.py": (
        "tests/roast_optim/test_adversarial.py",
        "tests/roast_optim/test_adversarial_calls.py",
        "tests/roast_optim/test_adversarial_models.py",
    ),
    "roast_optim/model_output.py": ("tests/roast_optim/test_adversarial.py",),
    "roast_optim/forward_passes.py": ("tests/roast_optim/test_adversarial_traces.py",),
    "roast_optim/token_mask.py": ("tests/roast_optim/test_token_mask.py",),
    "roast_optim/perturbation.py": ("tests/roast_optim/test_perturbation.py", "tests/roast_optim/test_adversarial.py"),
    "roast_optim/losses.py": ("tests/roast_optim/test_losses.py",),
    "roast_optim/task_gradient.py": ("tests/roast_optim/test_adversarial.py",),
}
REFERENCE, OPTIMIZER = "kernels/reference.py", "roast_optim/optimizer.py"
STEP_OPTIONS = "roast_optim/step_options.py"
MASKING, IMPORTANCE = "roast_optim/masking.py", "roast_optim/importance.py"
ADVERSARIAL, PERTURBATION, LOSSES = "roast_optim/adversarial.py", "roast_optim/perturbation.py", "roast_optim/losses.py"

FAULTS = (
    Fault("ascent instead of descent", REFERENCE, "value=-(lr / bias_correction1))", "value=(lr / bias_correction1))"),
    Fault("weight decay added", REFERENCE, "param.mul_(1 - lr * weight_decay)", "param.mul_(1 + lr * weight_decay)"),
    Fault("weight decay coupled to no learning rate", REFERENCE, "1 - lr * weight_decay)", "1 - weight_decay)"),
    Fault("no bias correction of the second moment", REFERENCE, "/ bias_correction2**0.5)", ")"),
    Fault("betas swapped in the second moment", REFERENCE, "value=1 - beta2)", "value=1 - beta1)"),
    Fault("amsgrad ignores the maximum", REFERENCE, "exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq", "exp_avg_sq"),
    Fault("maximize forgotten", REFERENCE, "-grad if options.maximize else grad", "grad"),
    Fault("mask inverted", REFERENCE, "masked_fill_(~kept(", "masked_fill_(kept("),
    Fault("no rescaling", REFERENCE, "scaled = wide * _look_up(selection.rescaling, rank_code).to(working)", "scaled = wide * 1"),
    Fault("division by p twice", REFERENCE, "_look_up(selection.rescaling, rank_code).to(working)", "_look_up(selection.rescaling, rank_code).to(working) ** 2"),
    Fault("mask after the moments", REFERENCE, "            grad = selected_gradient(grad, chunk[\"rank_code\"], words, selection)\n", "            chunk[\"exp_avg\"].mul_(kept(chunk[\"rank_code\"], words, selection.thresholds))\n"),
    Fault("a threshold is kept too", REFERENCE, "words.view(rank_code.shape) < _look_up", "words.view(rank_code.shape) <= _look_up"),
    Fault("six rounds of the generator", REFERENCE, "rounds: int = 7", "rounds: int = 6"),
    Fault("key halves swapped", REFERENCE, "key = (seed & _MASK, seed >> 32)", "key = (seed >> 32, seed & _MASK)"),
    Fault("counter without the parameter", REFERENCE, "upper, position.parameter_id, draw_number)", "upper, 0, draw_number)"),
    Fault("counter off by one", REFERENCE, "begin // size, -(-(begin + count) // size), device", "begin // size + 1, -(-(begin + count) // size) + 1, device"),
    Fault("words of a block in another order", REFERENCE, "drawn.view(-1)[begin % size : begin % size + count]", "drawn.flip(1).reshape(-1)[begin % size : begin % size + count]"),
    Fault("chunks draw alike", REFERENCE, "row.position, start, grad.numel()", "row.position, 0, grad.numel()"),
    Fault("importance of absolute gradients", REFERENCE, "torch.where(g.isfinite(), g * g, 0.0)", "torch.where(g.isfinite(), g.abs(), 0.0)"),
    Fault("non-finite gradients enter importance", REFERENCE, "torch.where(g.isfinite(), g * g, 0.0)", "g * g"),
    Fault("importance with one rounding", REFERENCE, "score.add_(square).clamp_", "score.copy_(torch.where(g.isfinite(), score.double() + g.double() * g.double(), score.double())).clamp_"),
    Fault("rounding draws the words of the masks", REFERENCE, "upper = (blocks >> 32) | purpose if wide else purpose", "upper = blocks >> 32 if wide else 0"),
    Fault("upper half of each word first", REFERENCE, "torch.stack([drawn & 0xFFFF, drawn >> 16], dim=2)", "torch.stack([drawn >> 16, drawn & 0xFFFF], dim=2)"),
    Fault("bits of the state without their bytes exchanged", REFERENCE, "RoundingBits(drawn, (drawn & 0xFF) << 8 | drawn >> 8)", "RoundingBits(drawn, drawn)"),
    Fault("factor of the gradients forgotten", REFERENCE, "            grad = multiplied(grad, options.gradient_factor)\n", "            pass\n"),
    Fault("multiplied without a rounding to its dtype", REFERENCE, "device=grad.device)).to(grad.dtype)", "device=grad.device))"),
    Fault("rounded by the bits of the state", REFERENCE, "bits.parameter if narrow is param else bits.state", "bits.state"),
    Fault("rounding rounds towards zero", REFERENCE, "((pattern + bits) >> 16 << 16)", "(pattern >> 16 << 16)"),
    Fault("importance not reset", REFERENCE, "            importance.zero_()\n", "            pass\n"),
    Fault("bins one bit wider", REFERENCE, "view(-1) >> 15", "view(-1) >> 16"),
    Fault("step counted after the draw", REFERENCE, "else draw_number_of(step)", "else draw_number_of(step - 1)"),
    Fault("beta not doubled", MASKING, "Decimal(2 * beta)", "Decimal(beta)"),
    Fault("rank and alpha swapped", MASKING, "context.subtract(rank, Decimal(alpha))", "context.subtract(Decimal(alpha), rank)"),
    Fault("rank at the edge of its code", MASKING, "Decimal(2 * code + 1)", "Decimal(2 * code)"),
    Fault("a keep probability of zero", MASKING, "max(int(threshold), 1)", "max(int(threshold), 0)"),
    Fault("rescaling by the unquantised range", MASKING, "return (_WORDS / keep_thresholds", "return ((_WORDS - 1) / keep_thresholds"),
    Fault("no mid-rank", IMPORTANCE, "below.mul_(2).add_(histogram).mul_", "below.mul_(2).mul_"),
    Fault("ranks reversed", IMPORTANCE, "below = histogram.cumsum(0).sub_(histogram)", "below = histogram.sum() - histogram.cumsum(0)"),
    Fault("nothing accumulated resets the ranks", IMPORTANCE, "        return False\n    table", "        pass\n    table"),
    Fault("random scores drawn by a step's number", IMPORTANCE, "draw_number=0, device", "draw_number=1, device"),
    Fault("refresh one step late", OPTIMIZER, "<= self.steps_since_refresh", "< self.steps_since_refresh"),
    Fault("steps since the refresh go on", OPTIMIZER, '            group["steps_since_refresh"] = 0\n', ""),
    Fault("masks before the first refresh", STEP_OPTIONS, 'if not group["selective"] or group["refreshes"] == 0:', 'if not group["selective"]:'),
    Fault("mask per refresh drawn at every step", STEP_OPTIONS, 'if options.mask_schedule == "refresh" else None', 'if options.mask_schedule == "never" else None'),
    Fault("importance at every step", STEP_OPTIONS, "% options.importance_every == 0", "% 1 == 0"),
    Fault("measuring also steps", OPTIMIZER, "            self._accumulate(planned, gradient_factor)\n        elif not", "            self._accumulate(planned, gradient_factor)\n        if not"),
    Fault("every group draws with the same seed", STEP_OPTIONS, 'return Selection(group["seed"],', 'return Selection(0,'),
    Fault("loaded state keeps the parameter's dtype", "roast_optim/checkpoint.py", '            state[key] = (value.contiguous() if shared else value).to(device=param.device)\n', "            pass\n"),
    Fault("shapes not checked", "roast_optim/checkpoint.py", "if value.shape != param.shape:", "if False:"),
    Fault("clean loss forgotten", ADVERSARIAL, "self.clean_weight * clean.result.loss", "0 * clean.result.loss"),
    Fault("adversarial loss counted as clean", ADVERSARIAL, "self.adversarial_weight * adversarial.loss", "self.adversarial_weight * clean.result.loss"),
    Fault("consistency of the clean output with itself", "roast_optim/model_output.py", "yield (first, second) if", "yield (first, first) if"),
    Fault("only one prediction is compared", ADVERSARIAL, "return reduce(add, parts) if", "return parts[0] if"),
    Fault("passes share their inputs", "roast_optim/forward_passes.py", "own = (call or self.call).for_one_pass()", "own = call or self.call"),
    Fault("buffers are those of the second pass", "roast_optim/forward_passes.py", "            self._buffers.end_as(self._ended)\n", "            pass\n"),
    Fault("the second pass begins with the first one's buffers", "roast_optim/forward_passes.py", "            self._buffers.go_back_to(self._begun)\n", "            pass\n"),
    Fault("padding inside is taken for tokens", "roast_optim/token_mask.py", "F.pad(mask, (0, added), value=0)", "F.pad(mask, (0, added), value=1)"),
    Fault("a relative step of absolute length", PERTURBATION, "(direction * lengths)", "(direction * lengths.mean())"),
    Fault("adversary in evaluation mode", ADVERSARIAL, "if not (unwrapped(self.model).training and torch.is_grad_enabled()):", "if not torch.is_grad_enabled():"),
    Fault("descent of the adversary", PERTURBATION, "return step_size * direction,", "return -step_size * direction,"),
    Fault("one length for all tokens", PERTURBATION, "peak = gradient.abs().amax(-1, keepdim=True)", "peak = gradient.abs().amax().expand(*gradient.shape[:-1], 1)"),
    Fault("padding perturbed", PERTURBATION, "        moved = moved & tokens.unsqueeze(-1)\n", "        pass\n"),
    Fault("a sample with NaN is perturbed", PERTURBATION, "        finite = finite.all(dim, keepdim=True)\n", "        pass\n"),
    Fault("one-sided KL", LOSSES, "(log_p.exp() - log_q.exp()) * (log_p - log_q)", "log_p.exp() * (log_p - log_q)"),
    Fault("ignored labels count", LOSSES, "labels != IGNORED_LABEL", "labels != IGNORED_LABEL - 1"),
    Fault("mean over all distributions", LOSSES, "return rows.sum() / counted.sum().clamp(min=1)", "return rows.mean()"),
    Fault("held gradients keep the scale of the loss", "roast_optim/task_gradient.py", "factor = incoming / scale", "factor = incoming"),
)  # fmt: skip


def make_copy(folder: Path) -> None:
    """The source tree with the built library."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(source, folder / name)


def tests_pass(file: str, folder: Path) -> bool:
    """Whether the tests of a file pass in the copy.

    Raises:
        SystemExit: they could not be run.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS[file]]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=1800)
    if result.returncode not in (0, 1):  # 1: a test failed
        raise SystemExit(f"{file}: pytest ended with {result.returncode}\n{result.stdout}{result.stderr}")
    return result.returncode == 0


def is_caught(fault: Fault, folder: Path) -> bool:
    """Whether a test fails with the fault in the copy; the copy is mended afterwards."""
    path = folder / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.name}: {fault.file} has {text.count(fault.old)} places like {fault.old!r}, not one")
    path.write_text(text.replace(fault.old, fault.new))
    try:
        return not tests_pass(fault.file, folder)
    finally:
        path.write_text(text)


def main(names: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    if unknown := set(names) - {fault.name for fault in FAULTS}:
        raise SystemExit(f"no such fault: {', '.join(sorted(unknown))}")
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_copy(folder)
        for file in dict.fromkeys(fault.file for fault in chosen):
            if not tests_pass(file, folder):
                raise SystemExit(f"the tests of {file} fail without a fault")
        for number, fault in enumerate(chosen, 1):
            caught = is_caught(fault, folder)
            survivors += [] if caught else [fault.name]
            print(f"{number}/{len(chosen)} {'caught' if caught else 'SURVIVED'}: {fault.name}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} faults caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
