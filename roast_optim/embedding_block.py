"""Where the embedding output of a model is, found by structure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .model_wrappers import is_compiled, is_fully_sharded, unwrapped
from .param_groups import transformer_blocks
from .token_trace import TokenTrace, has_forward
from .user_warning import warn


@dataclass(frozen=True)
class EmbeddingOutput:
    """The module whose output is perturbed.

    Attributes:
        module: returns one tensor, ``[batch, tokens, hidden]``.
        name: of the module in the model without its wrappers.
        is_table: it is the word-embedding table, which ``inputs_embeds`` bypasses.
        tokens_first: it returns ``[tokens, batch, hidden]``, as XLNet's table does.
        surroundings: the modules that contain it, the largest first.
        table: the word-embedding table; None: there is none.
    """

    module: nn.Module
    name: str
    is_table: bool
    tokens_first: bool
    surroundings: tuple[nn.Module, ...] = ()
    table: nn.Module | None = None


def find_embedding_output(model: nn.Module, embedding: str | nn.Module | None) -> EmbeddingOutput:
    """Find what :class:`.AdversarialEmbedding` perturbs.

    With ``embedding=None`` it is the embedding block: the largest module that holds the word-embedding table but no
    transformer block (``embeddings`` of BERT and its like; ALBERT's and ELECTRA's before the projection to the width
    of the blocks). Where the table lies beside the blocks, it is the first module whose output reaches the first block
    unchanged, dropout aside: GPT-2's ``drop`` after words and positions, BART's ``layernorm_embedding``, the table of
    Llama, T5 and XLNet. Failing that, which is said in a warning, or without blocks, it is the table. Of an
    encoder-decoder model all this means the encoder.

    To see what reaches the first block, and in which layout, two tokens are sent through a copy of the model, in
    evaluation mode and without gradients. The copy shares the parameters.

    Raises:
        ValueError: the model has no embeddings, or ``embedding`` is not one of its modules; the model is a
            ``DataParallel``, or compiled already, or sharded already so that no tokens can be sent through a part.
    """
    if isinstance(model, nn.DataParallel):
        raise ValueError("model is a DataParallel, whose replicas bypass hooks; wrap it in DistributedDataParallel")
    names = {module: name for name, module in unwrapped(model).named_modules()}
    root = _encoder(unwrapped(model))
    table, is_stand_in = _word_embedding_table(root)
    path = [] if table is None else _ancestors(root, table)
    trace: TokenTrace | str = "the model is sharded"
    if not any(is_fully_sharded(module) for module in path):
        trace = TokenTrace.of(path)
    if isinstance(embedding, nn.Module):
        module = embedding
        if module not in names:
            raise ValueError(f"embedding={type(module).__name__}(...) is not a module of the model; pass one that is")
    elif embedding not in (None, "word"):
        raise ValueError(f'embedding={embedding!r} must be None, "word" or a module of the model')
    elif table is None:
        raise ValueError(
            f"model={type(model).__name__} has no embeddings, neither get_input_embeddings() nor an nn.Embedding; pass "
            "embedding=, the module whose output is to be perturbed"
        )
    else:
        if is_stand_in:
            warn(
                f"get_input_embeddings() of model={type(model).__name__} returns no module of it: its first "
                f"nn.Embedding, {names[table]!r}, is taken for the word-embedding table; pass embedding= if it is not"
            )
        module = table if embedding == "word" else _embedding_block(table, path, trace, names)
    _refuse_compiled(model, module)
    return EmbeddingOutput(
        module,
        names[module],
        is_table=module is table,
        tokens_first=isinstance(trace, TokenTrace) and trace.tokens_first(module),
        surroundings=tuple(reversed(_ancestors(unwrapped(model), module))),
        table=table,
    )


def _encoder(model: nn.Module) -> nn.Module:
    """The encoder of an encoder-decoder model of transformers, else the model."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        encoder = model.get_encoder()  # type: ignore[operator]
        if any(module is encoder for module in model.modules()):
            found: nn.Module = encoder
            return found
    return model


def _word_embedding_table(root: nn.Module) -> tuple[nn.Module | None, bool]:
    """What ``get_input_embeddings()`` returns, as in transformers, else the nn.Embedding that was registered first.

    The second value says whether that stands in for what ``get_input_embeddings()`` did not return.
    """
    inside = list(root.modules())
    if hasattr(root, "get_input_embeddings"):
        try:
            table = root.get_input_embeddings()  # type: ignore[operator]
        except (NotImplementedError, AttributeError):  # how a model of transformers says that it has none
            table = None
        if any(module is table for module in inside):
            return table, False
    first = next((module for module in inside if isinstance(module, nn.Embedding)), None)
    return first, first is not None and hasattr(root, "get_input_embeddings")


def _ancestors(root: nn.Module, module: nn.Module) -> list[nn.Module]:
    """The modules of ``root`` that contain ``module``, from the smallest to ``root`` itself."""
    name = next(name for name, candidate in root.named_modules() if candidate is module)
    parts = name.split(".") if name else []
    return [root.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) - 1, -1, -1)]


def _embedding_block(
    table: nn.Module, path: list[nn.Module], trace: TokenTrace | str, names: dict[nn.Module, str]
) -> nn.Module:
    block = table
    for module in path:
        if transformer_blocks(module):
            break
        if has_forward(module):
            block = module
    else:
        return table
    if block is not table:
        return block
    if any(is_fully_sharded(module) for module in path):
        raise ValueError(
            "model is sharded already, and its embedding block cannot be found without running a part of it; make the "
            'AdversarialEmbedding before sharding, or pass embedding="word" or the module to perturb'
        )
    found = trace.source_of_first_block() if isinstance(trace, TokenTrace) else None
    if found is None:
        reason = trace if isinstance(trace, str) else "no module returns what its first block takes"
        warn(
            f"AdversarialEmbedding perturbs {names[table]!r}, the word-embedding table, because the embedding block "
            f"could not be found ({reason}). A table's scale may be far smaller, and so should step_size be; pass "
            'embedding=, the module whose output the first block takes, or embedding="word" if the table is meant'
        )
    return found or table


def _refuse_compiled(model: nn.Module, module: nn.Module) -> None:
    for outer in model.modules():
        if is_compiled(outer) and any(inner is module for inner in outer.modules()):
            raise ValueError(
                f"model={type(outer).__name__} is compiled already, and compiled code ignores new hooks; make the "
                "AdversarialEmbedding first, then compile (model.compile(), or adversary.model = torch.compile(model))"
            )
