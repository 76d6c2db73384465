"""Memory and traffic of RoastAdamW and of AdamW for models and numbers of processes that no single machine holds.

``python -m benchmarks.scaling`` writes the tables into docs/scaling.md. Nothing in them is timed, and nothing
is assumed about sizes: the models are built on the meta device, sharded by FSDP2 in one process of a fake process group
of 1 to 1,024, given to the real optimizers, and the bytes of the tensors that these make are added up.
``python -m benchmarks.scaling --overhead`` times steps on DTensors against steps on the same plain tensors.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from roast_optim import AdversarialEmbedding, RoastAdamW, selective_param_groups
from roast_optim.kernels.step import HISTOGRAM_BINS, TENSORS
from roast_optim.param_groups import transformer_blocks
from roast_optim.state import make_state

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
WORLD_SIZES = (1, 8, 64, 1024)
REFRESH_BYTES = HISTOGRAM_BINS * 8


def _llama(hidden: int, layers: int, heads: int, intermediate: int, tied: bool) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=128256, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=8, intermediate_size=intermediate, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


# Sizes: RoBERTa-base (arXiv 1907.11692); Llama 3.2 1B (its model card); Llama 3 8B and 70B (arXiv 2407.21783, table 3).
MODELS: dict[str, Callable[[], nn.Module]] = {
    "RoBERTa-base": lambda: transformers.RobertaForSequenceClassification(transformers.RobertaConfig(vocab_size=50265)),
    "Llama 3.2 1B": lambda: _llama(2048, 16, 32, 8192, True),
    "Llama 3 8B": lambda: _llama(4096, 32, 32, 14336, False),
    "Llama 3 70B": lambda: _llama(8192, 80, 64, 28672, False),
}


@contextmanager
def fake_processes(world_size: int) -> Iterator[None]:
    """Process 0 of a process group whose other processes do not exist; collectives return at once."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def shard(model: nn.Module) -> None:
    """FSDP2 over all processes, every transformer block by itself, as its documentation advises."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for stack in transformer_blocks(model):
        for block in stack:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


class Collectives(TorchDispatchMode):
    """Notes the name and the bytes of the largest tensor of every collective."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator."""
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [value for value in tree_leaves(args) if isinstance(value, Tensor)]
            self.seen.append((func._opname, max((tensor.nbytes for tensor in tensors), default=0)))
        return func(*args, **kwargs or {})


@dataclass(frozen=True)
class Row:
    """One process's share of a model and of its training; bytes, of the process with the largest share."""

    parameters: int
    block_parameters: int
    blocks: int
    local_parameters: int
    adamw_memory: int
    roast_memory: int
    adamw_traffic: int
    roast_traffic: int


def simulate(make_model: Callable[[], nn.Module], world_size: int) -> Row:
    """Shard the model over fake processes and make the optimizers' state. float32 parameters, gradients and moments.

    Memory is that of parameters, gradients and optimizer state; traffic is what a step reads and writes of them:
    parameter and moments both ways, gradient and rank code once, importance both ways.
    """
    with fake_processes(world_size):
        with torch.device("meta"):
            model = make_model()
        parameters = sum(param.numel() for param in model.parameters())
        blocks = [block for stack in transformer_blocks(model) for block in stack]
        block_parameters = sum(param.numel() for block in blocks for param in block.parameters())
        shard(model)
        optimizer = RoastAdamW(selective_param_groups(model, weight_decay=0.01), backend="reference")
        held = dict.fromkeys(TENSORS, 0)
        for group in optimizer.param_groups:
            for param in group["params"]:
                state: dict[str, Any] = {}
                make_state(state, group, param, optimizer.options, parameter_id=0)
                for name, tensor in {**state, "param": param, "grad": param}.items():
                    if TENSORS[name].per_element:
                        held[name] += tensor.to_local().nbytes
    moved = {name: size * (1 + TENSORS[name].written) for name, size in held.items()}
    of_adamw = [name for name, described in TENSORS.items() if described.needs is None]
    return Row(
        parameters=parameters,
        block_parameters=block_parameters,
        blocks=len(blocks),
        local_parameters=held["param"] // 4,
        adamw_memory=sum(held[name] for name in of_adamw),
        roast_memory=sum(held.values()),
        adamw_traffic=sum(moved[name] for name in of_adamw),
        roast_traffic=sum(moved.values()),
    )


@dataclass(frozen=True)
class Moved:
    """How often the parameters of all blocks, and those outside of them, are gathered or reduced in a pass."""

    blocks: float
    rest: float

    def bytes(self, row: Row) -> float:
        """Of the model of the row, in float32."""
        return 4 * (self.blocks * row.block_parameters + self.rest * (row.parameters - row.block_parameters))


@cache
def collectives_of_training(adversarial: bool, blocks: int, world_size: int = 8) -> dict[str, Moved]:
    """What is gathered and what is reduced in one forward and backward pass under FSDP2.

    Counted in a small model, by the size of what is moved. FSDP2 frees the blocks between their uses, and gathers them
    again; what lies outside of them it keeps.
    """
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=blocks, num_attention_heads=2, intermediate_size=256
    )
    with fake_processes(world_size):
        model = transformers.BertForSequenceClassification(config).train()
        of_block = sum(param.nbytes for param in model.bert.encoder.layer[0].parameters())
        run = AdversarialEmbedding(model) if adversarial else model
        shard(model)
        batch = {"input_ids": torch.zeros(2, 4, dtype=torch.long), "labels": torch.zeros(2, dtype=torch.long)}
        with Collectives() as collectives:
            run(**batch).loss.backward()
    operators = {"gathered": "_allgather_base_", "reduced": "_reduce_scatter_base_"}
    assert {name for name, _ in collectives.seen} == {*operators.values()}, collectives.seen
    sizes = {kind: [moved for name, moved in collectives.seen if name == each] for kind, each in operators.items()}
    return {
        kind: Moved(moved.count(of_block) / blocks, len(moved) - moved.count(of_block)) for kind, moved in sizes.items()
    }


# --------------------------------------------------------------------------------------------------------------- tables


def _bytes(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def memory_table(rows: dict[tuple[str, int], Row]) -> str:
    """Memory and memory traffic, as Markdown."""
    lines = [
        "| model | parameters | processes | memory per process: AdamW | RoastAdamW | bytes per parameter: AdamW | "
        "RoastAdamW | read and written by a step: AdamW | RoastAdamW | bytes per parameter: AdamW | RoastAdamW |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (name, world_size), row in rows.items():
        cells = [
            name, f"{row.parameters / 1e6:,.0f}M", f"{world_size:,}",
            _bytes(row.adamw_memory), _bytes(row.roast_memory),
            f"{row.adamw_memory / row.local_parameters:.2f}", f"{row.roast_memory / row.local_parameters:.2f}",
            _bytes(row.adamw_traffic), _bytes(row.roast_traffic),
            f"{row.adamw_traffic / row.local_parameters:.2f}", f"{row.roast_traffic / row.local_parameters:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def communication_table(rows: dict[tuple[str, int], Row]) -> str:
    """What each process sends, as Markdown: a ring sends (n - 1)/n of what is gathered or reduced."""
    lines = [
        "| model | processes | forward and backward, plain | with the adversary | a step of RoastAdamW | a refresh |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (name, world_size), row in rows.items():
        ring = (world_size - 1) / world_size
        sent = [
            ring * sum(moved.bytes(row) for moved in collectives_of_training(adversarial, row.blocks).values())
            for adversarial in (False, True)
        ]
        cells = [name, f"{world_size:,}", *map(_bytes, sent), "0 B", _bytes(2 * ring * REFRESH_BYTES)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gathering_table(blocks: int) -> str:
    """How often a model of so many blocks is gathered."""
    lines = [f"| gathered in a pass, {blocks} blocks | the blocks | the rest |", "|---|---:|---:|"]
    for name, adversarial in (("plain training", False), ("with the adversary", True)):
        gathered = collectives_of_training(adversarial, blocks)["gathered"]
        lines.append(f"| {name} | {gathered.blocks:.3g} times | {gathered.rest:.3g} times |")
    return "\n".join(lines)


def tables() -> str:
    """All tables, computed now."""
    rows = {(name, size): simulate(make, size) for name, make in MODELS.items() for size in WORLD_SIZES}
    return f"{memory_table(rows)}\n\n### What processes send\n\n{communication_table(rows)}\n\n{gathering_table(12)}"


# ------------------------------------------------------------------------------------------------------------- overhead


def overhead(elements: int, backend: str, tensors: int = 200, rounds: int = 31) -> float:
    """Median ratio of the time of a step on DTensors to that on plain tensors, measured in turn.

    The plain tensors lie in the same places of the same whole parameters, so that both draw the same masks.
    """
    with fake_processes(8):
        mesh = init_device_mesh("cpu", (8,))
        optimizers = []
        for as_dtensor in (False, True):
            params = []
            for _ in range(tensors):
                value, grad = torch.randn(2, elements // tensors // 64, 64).unbind()
                if as_dtensor:
                    value, grad = (DTensor.from_local(part, mesh, [Shard(0)]) for part in (value, grad))
                params.append(nn.Parameter(value))
                params[-1].grad = grad
            optimizers.append(RoastAdamW(params, lr=1e-3, selective=True, refresh_every=None, backend=backend))
        plain, sharded = optimizers
        for param, position in zip(plain.param_groups[0]["params"], sharded.positions.values(), strict=True):
            plain.positions[param] = position
        for optimizer in optimizers:
            optimizer.step()
            optimizer.refresh()
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for optimizer, spent in zip(optimizers, times, strict=True):
                start = time.perf_counter()
                optimizer.step()
                spent.append(time.perf_counter() - start)
    return statistics.median(second / first for first, second in zip(*times, strict=True))


def main() -> None:
    """Write the tables, or print the overhead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overhead", action="store_true", help="time steps on DTensors against plain tensors")
    parser.add_argument("--backend", default="auto", help="of the optimizer whose steps are timed")
    options = parser.parse_args()
    if options.overhead:
        for elements in (3_000_000, 25_000_000, 100_000_000):
            ratio = overhead(elements, options.backend)
            print(f"200 parameters, {elements / 1e6:.0f}M elements in this process: {ratio:.3f} times as long a step")
        return
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
