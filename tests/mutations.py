"""Faults put into the optimizer, the kernels and the adversary, one at a time: the tests catch each of them.

    python tests/mutations.py [NAME ...]    (make mutations: all of them)

Every fault is made in a copy of the source tree, where the library is built again if the fault is in C++, and the tests
of that part are run there until the first failure. Triton's kernels run in its interpreter. Exit status 1 if a fault
survives, or if its place is not found any more. A name is that of a fault, or of a file: all of its faults.
"""

# ruff: noqa: E501 - a fault is one line

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = Path("kernels/native/_native.so")
COPIED = ("benchmarks", "docs", "kernels", "roast_optim", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True)
class Fault:
    """`old`, which `file` has exactly once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str


TESTS = {
    "kernels/reference/draw.py": (
        "tests/kernels/test_reference.py",
        "tests/kernels/test_stochastic_rounding.py",
        "tests/roast_optim/test_optimizer_selection.py",
        "tests/roast_optim/test_optimizer_gradients.py",
        "tests/kernels/test_backends.py",
    ),
    "kernels/reference/rounding.py": ("tests/kernels/test_stochastic_rounding.py",),
    "kernels/reference/roast_adamw.py": (
        "tests/roast_optim/test_optimizer_selection.py",
        "tests/roast_optim/test_optimizer_gradients.py",
        "tests/roast_optim/test_optimizer_adamw.py",
        "tests/kernels/test_stochastic_rounding.py",
        "tests/kernels/test_gradient_factor.py",
    ),
    "kernels/reference/importance.py": (
        "tests/roast_optim/test_optimizer_selection.py",
        "tests/roast_optim/test_optimizer_gradients.py",
        "tests/kernels/test_backends.py",
    ),
    "kernels/native/step.h": (
        "tests/kernels/test_native_step.py",
        "tests/kernels/test_backends.py",
        "tests/kernels/test_native_tensors.py",
    ),
    "kernels/native/draw.h": (
        "tests/kernels/test_native_step.py",
        "tests/kernels/test_backends.py",
        "tests/kernels/test_stochastic_rounding.py",
    ),
    "kernels/reference/gradient_factor.py": (
        "tests/kernels/test_gradient_factor.py",
        "tests/roast_optim/test_gradient_factor.py",
    ),
    "kernels/native/adamw.cpp": (
        "tests/kernels/test_native_tensors.py",
        "tests/kernels/test_native_step.py",
        "tests/kernels/test_backends.py",
    ),
    "kernels/triton/roast_adamw_kernel.py": ("tests/kernels/test_backends.py", "tests/kernels/triton/test_step.py"),
    "kernels/triton/roast_adamw.py": ("tests/kernels/triton/test_step.py",),
    "kernels/triton/draw.py": ("tests/kernels/test_backends.py", "tests/kernels/triton/test_step.py"),
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
    "roast_optim/refresh_schedule.py": ("tests/roast_optim/test_optimizer_refresh.py",),
    "roast_optim/step_options.py": (
        "tests/roast_optim/test_optimizer_selection.py",
        "tests/roast_optim/test_optimizer_refresh.py",
    ),
    "roast_optim/checkpoint.py": ("tests/roast_optim/test_optimizer_checkpoint.py",),
    "roast_optim/adversarial.py": (
        "tests/roast_optim/test_adversarial.py",
        "tests/roast_optim/test_adversarial_calls.py",
        "tests/roast_optim/test_adversarial_models.py",
        "tests/roast_optim/test_adversary_options.py",
    ),
    **dict.fromkeys(
        (
            "roast_optim/adversarial_pass.py",
            "roast_optim/adversary_draws.py",
            "roast_optim/ascent.py",
            "roast_optim/presets.py",
        ),
        ("tests/roast_optim/test_adversary_options.py",),
    ),
    "roast_optim/consistency.py": (
        "tests/roast_optim/test_adversarial.py",
        "tests/roast_optim/test_adversarial_models.py",
    ),
    "roast_optim/model_output.py": ("tests/roast_optim/test_adversarial.py",),
    "roast_optim/forward_passes.py": ("tests/roast_optim/test_adversarial_traces.py",),
    "roast_optim/token_mask.py": ("tests/roast_optim/test_token_mask.py",),
    "roast_optim/perturbation.py": ("tests/roast_optim/test_perturbation.py", "tests/roast_optim/test_adversarial.py"),
    "roast_optim/losses.py": ("tests/roast_optim/test_losses.py",),
    "roast_optim/task_gradient.py": ("tests/roast_optim/test_adversarial.py",),
}
STEP, DRAW = "kernels/reference/roast_adamw.py", "kernels/reference/draw.py"
FACTOR = "kernels/reference/gradient_factor.py"
ROUNDING, REFERENCE_IMPORTANCE = "kernels/reference/rounding.py", "kernels/reference/importance.py"
CPP_STEP, CPP_DRAW, CPP = "kernels/native/step.h", "kernels/native/draw.h", "kernels/native/adamw.cpp"
TRITON, TRITON_DRAW = "kernels/triton/roast_adamw_kernel.py", "kernels/triton/draw.py"
TRITON_HOST = "kernels/triton/roast_adamw.py"
OPTIMIZER, SCHEDULE = "roast_optim/optimizer.py", "roast_optim/refresh_schedule.py"
STEP_OPTIONS = "roast_optim/step_options.py"
MASKING, IMPORTANCE = "roast_optim/masking.py", "roast_optim/importance.py"
ADVERSARIAL, PERTURBATION, LOSSES = "roast_optim/adversarial.py", "roast_optim/perturbation.py", "roast_optim/losses.py"

FAULTS = (
    Fault("ascent instead of descent", STEP, "value=-(lr / bias_correction1))", "value=(lr / bias_correction1))"),
    Fault("weight decay added", STEP, "param.mul_(1 - lr * weight_decay)", "param.mul_(1 + lr * weight_decay)"),
    Fault("weight decay coupled to no learning rate", STEP, "1 - lr * weight_decay)", "1 - weight_decay)"),
    Fault("no bias correction of the second moment", STEP, "/ bias_correction2**0.5)", ")"),
    Fault("betas swapped in the second moment", STEP, "value=1 - beta2)", "value=1 - beta1)"),
    Fault("amsgrad ignores the maximum", STEP, "exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq", "exp_avg_sq"),
    Fault("maximize forgotten", STEP, "-grad if options.maximize else grad", "grad"),
    Fault("mask inverted", DRAW, "masked_fill_(~kept(", "masked_fill_(kept("),
    Fault("no rescaling", DRAW, "scaled = wide * look_up(selection.rescaling, rank_code).to(working)", "scaled = wide * 1"),
    Fault("division by p twice", DRAW, "look_up(selection.rescaling, rank_code).to(working)", "look_up(selection.rescaling, rank_code).to(working) ** 2"),
    Fault("mask after the moments", STEP, "            grad = selected_gradient(grad, chunk[\"rank_code\"], words, selection)\n", "            chunk[\"exp_avg\"].mul_(kept(chunk[\"rank_code\"], words, selection.thresholds))\n"),
    Fault("a threshold is kept too", DRAW, "words.view(rank_code.shape) < look_up", "words.view(rank_code.shape) <= look_up"),
    Fault("six rounds of the generator", DRAW, "rounds: int = 7", "rounds: int = 6"),
    Fault("key halves swapped", DRAW, "key = (seed & WORD, seed >> 32)", "key = (seed >> 32, seed & WORD)"),
    Fault("counter without the parameter", DRAW, "upper, position.parameter_id, draw_number)", "upper, 0, draw_number)"),
    Fault("counter off by one", DRAW, "begin // size, -(-(begin + count) // size), device", "begin // size + 1, -(-(begin + count) // size) + 1, device"),
    Fault("words of a block in another order", DRAW, "drawn.view(-1)[begin % size : begin % size + count]", "drawn.flip(1).reshape(-1)[begin % size : begin % size + count]"),
    Fault("chunks draw alike", STEP, "row.position, start, grad.numel()", "row.position, 0, grad.numel()"),
    Fault("importance of absolute gradients", REFERENCE_IMPORTANCE, "torch.where(g.isfinite(), g * g, 0.0)", "torch.where(g.isfinite(), g.abs(), 0.0)"),
    Fault("non-finite gradients enter importance", REFERENCE_IMPORTANCE, "torch.where(g.isfinite(), g * g, 0.0)", "g * g"),
    Fault("importance with one rounding", REFERENCE_IMPORTANCE, "score.add_(square).clamp_", "score.copy_(torch.where(g.isfinite(), score.double() + g.double() * g.double(), score.double())).clamp_"),
    Fault("rounding draws the words of the masks", DRAW, "upper = (blocks >> 32) | purpose if wide else purpose", "upper = blocks >> 32 if wide else 0"),
    Fault("upper half of each word first", DRAW, "torch.stack([drawn & 0xFFFF, drawn >> 16], dim=2)", "torch.stack([drawn >> 16, drawn & 0xFFFF], dim=2)"),
    Fault("bits of the state without their bytes exchanged", STEP, "RoundingBits(drawn, (drawn & 0xFF) << 8 | drawn >> 8)", "RoundingBits(drawn, drawn)"),
    Fault("factor of the gradients forgotten", STEP, "            grad = multiplied(grad, options.gradient_factor)\n", "            pass\n"),
    Fault("multiplied without a rounding to its dtype", FACTOR, "device=grad.device)).to(grad.dtype)", "device=grad.device))"),
    Fault("rounded by the bits of the state", STEP, "bits.parameter if narrow is param else bits.state", "bits.state"),
    Fault("rounding rounds towards zero", ROUNDING, "((pattern + bits) >> 16 << 16)", "(pattern >> 16 << 16)"),
    Fault("importance not reset", REFERENCE_IMPORTANCE, "            importance.zero_()\n", "            pass\n"),
    Fault("bins one bit wider", REFERENCE_IMPORTANCE, "view(-1) >> 15", "view(-1) >> 16"),
    Fault("step counted after the draw", STEP, "else draw_number_of(step)", "else draw_number_of(step - 1)"),
    Fault("C++: importance does not saturate", CPP_STEP, "return at_most(LARGEST<S>, score + g * g);", "return score + g * g;"),
    Fault("C++: non-finite gradients enter importance", CPP_STEP, "if (special) finite_g = zero_where_not_finite(g);", ";"),
    Fault("C++: a kept element loses its non-finite gradient", CPP_STEP, "if (special) scaled = (is_finite(g) | (factor == 0)) ? scaled : g;", ";"),
    Fault("C++: maximize forgotten", CPP_STEP, "    g = (F32)((I32)g ^ scalars.sign);\n", ""),
    Fault("C++: denormal numbers stay in the first moment", CPP_STEP, "    exp_avg = without_denormals(exp_avg);\n", ""),
    Fault("C++: the largest second moment forgets what is not a number", CPP_STEP, "((previous > exp_avg_sq) | (previous != previous))", "(previous > exp_avg_sq)"),
    Fault("C++: the step is taken before the weight decay", CPP_STEP, "param = multiply_add(param, scalars.decay, step);", "param = (param + step) * scalars.decay;"),
    Fault("C++: the return to pre-trained weights is the same for every rank", CPP_STEP, "if (scalars.decay_of_rank != nullptr) decay *=", "if (false) decay *="),
    Fault("C++: the mask of the update is that of the whole block", CPP_STEP, "((load(factors + i) != 0) ? moved : param)", "((load(factors) != 0) ? moved : param)"),
    Fault("C++: a row is taken to begin where the part does", CPP_STEP, "+ row * p.draw.outer_stride + column;", "+ row * p.draw.outer_stride;"),
    Fault("C++: elements are drawn for from the first word of a counter", CPP_STEP, "const int offset = element % HALVES, most", "const int offset = 0, most"),
    Fault("C++: both halves of the key by the first constant", CPP_DRAW, "round * WEYL[half]", "round * WEYL[0]"),
    Fault("C++: counters of 32 bits", CPP_DRAW, "words[i][1] = counters >> 32 | static_cast", "words[i][1] = U64{} | static_cast"),
    Fault("C++: groups of a block draw alike", CPP_DRAW, "draw_group<FOR_MASKS>(draw, schedule, first + done / WORDS, words);", "draw_group<FOR_MASKS>(draw, schedule, first, words);"),
    Fault("C++: a threshold is kept too", CPP_DRAW, "((word < (I32)high_halves(entry0, entry1))", "((word <= (I32)high_halves(entry0, entry1))"),
    Fault("C++: one bias correction for all parameters", CPP, "if (step != step_of_adamw) adamw", "if (step_of_adamw == 0) adamw"),
    Fault("C++: bias correction of the second moment by the first beta", CPP, "1 - std::pow(s.beta2, static_cast<double>(step))", "1 - std::pow(s.beta1, static_cast<double>(step))"),
    Fault("C++: one draw between refreshes is drawn anew", CPP, "s.draw_number < 0 ? own : s.draw_number, table", "own, table"),
    Fault("C++: a gradient may overlap what is written", CPP, "if (next != ranges + s.written_count && next->begin < end) return false;", ";"),
    Fault("Triton: a threshold is kept too", TRITON, "kept = words < threshold", "kept = words <= threshold"),
    Fault("Triton: maximize forgotten", TRITON, "        grad = -grad\n", "        pass\n"),
    Fault("Triton: eps is not corrected for its bias", TRITON, "    eps = eps * correction\n", ""),
    Fault("Triton: the largest second moment forgets what is not a number", TRITON, "exp_avg_sq = tl.maximum(largest, exp_avg_sq, propagate_nan=tl.PropagateNan.ALL)", "exp_avg_sq = tl.maximum(largest, exp_avg_sq)"),
    Fault("Triton: an element that is not kept moves", TRITON, "            moved = tl.where(kept, moved, param)\n", "            pass\n"),
    Fault("Triton: no weight decay where weights return", TRITON, "        param = param * decay\n", ""),
    Fault("Triton: what is important returns", TRITON, "((0 - threshold).to(tl.float32)", "(threshold.to(tl.float32)"),
    Fault("Triton: one element beyond the last", TRITON, "mask = tl.arange(0, BLOCK) < end - full", "mask = tl.arange(0, BLOCK) <= end - full"),
    Fault("Triton: subnormal second moments count as zero", TRITON, "return tl.where(small, root * 0.000244140625, root)", "return tl.where(small, 0.0, root)"),
    Fault("Triton: rows of a shard lie side by side", TRITON_DRAW, "rows * (outer_stride - inner_length)", "rows * 0"),
    Fault("Triton: counters of 32 bits", TRITON_DRAW, "return (blocks >> 32).to(tl.uint32) |", "return (blocks & 0).to(tl.uint32) |"),
    Fault("Triton: gradients of the wrong rows", TRITON_HOST, "numbers if are_own else [numbers[i] for i in self.indices]", "numbers[: len(self.indices)]"),
    Fault("beta not doubled", MASKING, "Decimal(2 * beta)", "Decimal(beta)"),
    Fault("rank and alpha swapped", MASKING, "context.subtract(rank, Decimal(alpha))", "context.subtract(Decimal(alpha), rank)"),
    Fault("rank at the edge of its code", MASKING, "Decimal(2 * code + 1)", "Decimal(2 * code)"),
    Fault("a keep probability of zero", MASKING, "max(int(threshold), 1)", "max(int(threshold), 0)"),
    Fault("rescaling by the unquantised range", MASKING, "return (_WORDS / keep_thresholds", "return ((_WORDS - 1) / keep_thresholds"),
    Fault("no mid-rank", IMPORTANCE, "below.mul_(2).add_(histogram).mul_", "below.mul_(2).mul_"),
    Fault("ranks reversed", IMPORTANCE, "below = histogram.cumsum(0).sub_(histogram)", "below = histogram.sum() - histogram.cumsum(0)"),
    Fault("nothing accumulated resets the ranks", IMPORTANCE, "        return False\n    table", "        pass\n    table"),
    Fault("random scores drawn by a step's number", IMPORTANCE, "draw_number=0, device", "draw_number=1, device"),
    Fault("refresh one step late", SCHEDULE, "<= optimizer.steps_since_refresh", "< optimizer.steps_since_refresh"),
    Fault("steps since the refresh go on", SCHEDULE, '        group["steps_since_refresh"] = 0\n', ""),
    Fault("masks before the first refresh", STEP_OPTIONS, 'if not group["selective"] or group["refreshes"] == 0:', 'if not group["selective"]:'),
    Fault("mask per refresh drawn at every step", STEP_OPTIONS, 'if options.mask_schedule == "refresh" else None', 'if options.mask_schedule == "never" else None'),
    Fault("importance at every step", STEP_OPTIONS, "% options.importance_every == 0", "% 1 == 0"),
    Fault("measuring also steps", OPTIMIZER, "            accumulate_importance(self.param_groups, planned, self.options, gradient_factor)\n            return\n", "            accumulate_importance(self.param_groups, planned, self.options, gradient_factor)\n"),
    Fault("every group draws with the same seed", STEP_OPTIONS, 'return Selection(group["seed"],', 'return Selection(0,'),
    Fault("loaded state keeps the parameter's dtype", "roast_optim/checkpoint.py", '            state[key] = (value.contiguous() if shared else value).to(device=param.device)\n', "            pass\n"),
    Fault("shapes not checked", "roast_optim/checkpoint.py", "if value.shape != param.shape:", "if False:"),
    Fault("clean loss forgotten", ADVERSARIAL, "objective = self.clean_weight * task", "objective = 0 * task"),
    Fault("adversarial loss counted as clean", ADVERSARIAL, "self.adversarial_weight * adversarial\n", "self.adversarial_weight * task\n"),
    Fault("consistency of the clean output with itself", "roast_optim/model_output.py", "yield (name, first, second) if", "yield (name, first, first) if"),
    Fault("only one prediction is compared", "roast_optim/consistency.py", "return reduce(add, parts) if", "return parts[0] if"),
    Fault("a ramp that jumps", ADVERSARIAL, "return (self.calls - begin) / (end - begin)", "return 1.0"),
    Fault("calls are not counted", ADVERSARIAL, "        self.calls += 1\n", "        pass\n"),
    Fault("rows that are not perturbed count as if they were", "roast_optim/adversarial_pass.py", "if part.share != 1.0 and self.loss_divisor is None:", "if False:"),
    Fault("sums are taken for means", "roast_optim/adversarial_pass.py", "if part.share != 1.0 and self.loss_divisor is None:", "if part.share != 1.0:"),
    Fault("the clean prediction is no constant", "roast_optim/adversarial_pass.py", "{name: value.detach() for", "{name: value for"),
    Fault("all ascents along the first gradient", "roast_optim/ascent.py", "first_gradient if number == 0 else None", "first_gradient"),
    Fault("every ascent of full length", "roast_optim/ascent.py", "self.step_size / self.ascents,", "self.step_size,"),
    Fault("an ascent measures its length where it is", "roast_optim/ascent.py", "lengths=lengths,", "lengths=None,"),
    Fault("a start of one sign", "roast_optim/ascent.py", 'both_signs=self.direction == "consistency"', "both_signs=False"),
    Fault("every call draws alike", "roast_optim/adversary_draws.py", "self._call * _PURPOSES + purpose", "purpose"),
    Fault("noise of one purpose is that of another", "roast_optim/adversary_draws.py", "self._call * _PURPOSES + purpose", "self._call"),
    Fault("explicit options give way to a preset", "roast_optim/presets.py", "if key not in given}", "}"),
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
    # What a fault does is the same with fewer optimizations, which take most of the time that compiling takes.
    setup = folder / "setup.py"
    setup.write_text(setup.read_text().replace('"-O3"', '"-O1"'))


def tests_pass(file: str, folder: Path) -> bool:
    """Whether the tests of a file pass in the copy.

    Raises:
        SystemExit: they could not be run.
    """
    # A failed example is not made smaller, which takes longer than all the rest.
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=first failure"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *TESTS[file]],
        cwd=folder,
        env={**os.environ, "TRITON_INTERPRET": "1"} if file.startswith("kernels/triton/") else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    crashed = result.returncode < 0 and not file.endswith(".py")  # C++ has more ways to fail
    if result.returncode not in (0, 1) and not crashed:  # 1: a test failed
        raise SystemExit(f"{file}: pytest ended with {result.returncode}\n{result.stdout}{result.stderr}")
    return result.returncode == 0


def build_library(folder: Path) -> None:
    """Build the library of the copy from its sources.

    Raises:
        SystemExit: it does not compile.
    """
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not (folder / LIBRARY).exists():
        raise SystemExit(f"the library does not compile\n{result.stdout}{result.stderr}")


def is_caught(fault: Fault, folder: Path) -> bool:
    """Whether a test fails with the fault in the copy; the copy is mended afterwards."""
    path = folder / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.name}: {fault.file} has {text.count(fault.old)} places like {fault.old!r}, not one")
    library = folder / LIBRARY
    intact = library.read_bytes() if library.exists() else None
    path.write_text(text.replace(fault.old, fault.new))
    try:
        if not fault.file.endswith(".py"):
            build_library(folder)
        return not tests_pass(fault.file, folder)
    finally:
        path.write_text(text)
        if intact is not None:
            library.unlink(missing_ok=True)  # not written over: a process may have it mapped
            library.write_bytes(intact)


def main(names: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not names or {fault.name, fault.file} & set(names)]
    if unknown := set(names) - {name for fault in FAULTS for name in (fault.name, fault.file)}:
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
