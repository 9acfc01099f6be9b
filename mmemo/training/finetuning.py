"""How far a pretrained encoder is trained: where the line is drawn, when each block starts, how fast it learns.

A strategy belongs to one encoder: ``audio_finetuning`` and ``text_finetuning`` of an experiment. Without one the
encoder stays frozen and its features are cached. With one, all below the lowest trained block is still cached, the
blocks above are trained, and a checkpoint holds just those.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

LORA_TARGETS = ("q_proj", "v_proj", "query", "value", "q", "v", "q_lin", "v_lin")
"""Query and value projections as the families of encoders name them."""


class Finetuning(Protocol):
    """A strategy for one encoder."""

    def prepare(self, encoder: Any) -> None:
        """Draws the line; once, when the system is built."""

    def learning_rate_ratio(self, block: int, top: int) -> float:
        """A block's learning rate as a share of the optimizer's; ``top`` is the highest block."""

    def first_epoch(self, block: int, top: int) -> int:
        """Epoch, from 0, in which a block starts to learn."""


class LastBlocks:
    """Trains the last blocks; all below them stays frozen and cached.

    Args:
        num_blocks: How many, counted down from the highest chosen layer.
        lr_ratio: Learning rate of the highest block as a share of the optimizer's, above 0.
        layer_decay: Learning rate of each block as a share of the block's above it, in (0, 1] (Clark et al. 2020,
            <https://arxiv.org/abs/2003.10555>).
    """

    def __init__(self, num_blocks: int = 2, lr_ratio: float = 0.1, layer_decay: float = 1.0) -> None:
        _check(type(self).__name__, num_blocks, lr_ratio, layer_decay)
        self.num_blocks = num_blocks
        self.lr_ratio = lr_ratio
        self.layer_decay = layer_decay

    def prepare(self, encoder: Any) -> None:
        _check_pretrained(type(self).__name__, encoder)
        encoder.unfreeze(_lowest(type(self).__name__, encoder, self.num_blocks))

    def learning_rate_ratio(self, block: int, top: int) -> float:
        return self.lr_ratio * self.layer_decay ** (top - block)

    def first_epoch(self, block: int, top: int) -> int:
        return 0


class Full(LastBlocks):
    """Trains the whole encoder, embeddings or convolutions included; nothing is cached.

    Args:
        lr_ratio: Learning rate of the highest block as a share of the optimizer's, above 0.
        layer_decay: Learning rate of each block as a share of the block's above it, in (0, 1].
    """

    def __init__(self, lr_ratio: float = 0.1, layer_decay: float = 0.9) -> None:
        super().__init__(1, lr_ratio, layer_decay)

    def prepare(self, encoder: Any) -> None:
        _check_pretrained(type(self).__name__, encoder)
        encoder.unfreeze(0)


class ProgressiveUnfreezing(LastBlocks):
    """Trains what follows the encoder first, then one more block at a time from the top (Howard and Ruder 2018,
    section 3.3, <https://arxiv.org/abs/1801.06146>).

    Args:
        num_blocks: How many blocks are trained in the end.
        epochs_per_block: Epochs before the next block joins, at least 1; the highest joins after as many.
        lr_ratio: Learning rate of the highest block as a share of the optimizer's, above 0.
        layer_decay: Learning rate of each block as a share of the block's above it, in (0, 1].
    """

    def __init__(
        self, num_blocks: int = 2, epochs_per_block: int = 1, lr_ratio: float = 0.1, layer_decay: float = 0.9
    ) -> None:  # fmt: skip
        super().__init__(num_blocks, lr_ratio, layer_decay)
        if epochs_per_block < 1:
            raise ValueError(f"ProgressiveUnfreezing(epochs_per_block={epochs_per_block}), expected 1 or more")
        self.epochs_per_block = epochs_per_block

    def first_epoch(self, block: int, top: int) -> int:
        return self.epochs_per_block * (top - block + 1)


class LinearProbeFirst(LastBlocks):
    """Trains what follows the encoder alone, then all together: a head that has learned does not tear the features
    apart (LP-FT, Kumar et al. 2022, <https://arxiv.org/abs/2202.10054>).

    Args:
        probe_epochs: Epochs before the encoder joins, at least 1.
        num_blocks: How many blocks are trained then.
        lr_ratio: Learning rate of the highest block as a share of the optimizer's, above 0.
        layer_decay: Learning rate of each block as a share of the block's above it, in (0, 1].
    """

    def __init__(
        self, probe_epochs: int = 5, num_blocks: int = 2, lr_ratio: float = 0.1, layer_decay: float = 1.0
    ) -> None:  # fmt: skip
        super().__init__(num_blocks, lr_ratio, layer_decay)
        if probe_epochs < 1:
            raise ValueError(f"LinearProbeFirst(probe_epochs={probe_epochs}), expected 1 or more")
        self.probe_epochs = probe_epochs

    def first_epoch(self, block: int, top: int) -> int:
        return self.probe_epochs


class LoRA(LastBlocks):
    """Trains small low-rank updates of chosen matrices instead of the matrices (Hu et al. 2021,
    <https://arxiv.org/abs/2106.09685>), by the peft library. A checkpoint holds the updates alone.

    Args:
        rank: Rank of the updates, at least 1.
        alpha: Scale of the updates; they are multiplied by ``alpha / rank``.
        targets: Names of the linear modules that get an update; when not given, the attention's query and value
            projections, or in WavLM the feed-forward layers.
        dropout: Share of the updates' inputs dropped in training, in [0, 1).
        num_blocks: In how many blocks, counted down from the highest chosen layer.
        lr_ratio: Learning rate of the updates as a share of the optimizer's, above 0.

    Raises:
        ValueError: A target that no module is called.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: int = 16,
        targets: list[str] | None = None,
        dropout: float = 0.0,
        num_blocks: int = 2,
        lr_ratio: float = 1.0,
    ) -> None:
        super().__init__(num_blocks, lr_ratio)
        if rank < 1:
            raise ValueError(f"LoRA(rank={rank}), expected 1 or more")
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.dropout = dropout

    def prepare(self, encoder: Any) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        super().prepare(encoder)
        linear = {name for name, part in encoder.trained.named_modules() if isinstance(part, nn.Linear)}
        names = {name.rsplit(".", 1)[-1] for name in linear}
        allowed = getattr(encoder, "replaceable", None)
        names = names & set(allowed) if allowed else names
        default = allowed or LORA_TARGETS
        unknown = sorted(set(self.targets or ()) - names)
        found = sorted(names & set(self.targets or default))
        if unknown or not found:
            raise ValueError(
                f"LoRA(targets={unknown or list(default)}): {encoder.model_id} has no linear module of that name "
                f"that can be updated in the trained blocks, expected some of {sorted(names)}"
            )
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=found, lora_dropout=self.dropout)
        matrices = list(encoder.trained.parameters())
        inject_adapter_in_model(config, encoder.trained)
        for parameter in matrices:
            parameter.requires_grad_(False)


class LowRank(LastBlocks):
    """Trains blocks whose matrices are products of two narrow ones: a pretrained encoder small enough for a student.

    The narrow matrices begin as what serves the first training batch best, which loses far less than the best fit of
    the matrix itself: the inputs of a pretrained encoder are anything but white (Chen et al. 2021, "DRONE: Data-aware
    Low-rank Compression for Large NLP Models", NeurIPS, section 3). Training mends what is lost.

    Args:
        rank: Rank of each matrix, at least 1; one that would not become smaller stays as it is.
        num_blocks: How many blocks, counted down from the highest chosen layer; all below them stays frozen and cached.
        lr_ratio: Learning rate of the highest block as a share of the optimizer's, above 0.
        layer_decay: Learning rate of each block as a share of the block's above it, in (0, 1].
    """

    def __init__(self, rank: int = 64, num_blocks: int = 2, lr_ratio: float = 0.3, layer_decay: float = 1.0) -> None:
        super().__init__(num_blocks, lr_ratio, layer_decay)
        if rank < 1:
            raise ValueError(f"LowRank(rank={rank}), expected 1 or more")
        self.rank = rank

    def prepare(self, encoder: Any) -> None:
        super().prepare(encoder)
        allowed = getattr(encoder, "replaceable", None)
        _replace(encoder.trained, nn.Linear, lambda linear: LowRankLinear.instead_of(linear, self.rank), allowed)


class LowRankLinear(nn.Module):
    """A linear layer as two narrow ones, fitted to the first batch that it hears in training.

    Args:
        linear: What it stands for.
        rank: How narrow.

    Shape:
        ``(..., in_features)`` -> ``(..., out_features)``
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(linear.in_features, rank, bias=False)
        self.widen = nn.Linear(rank, linear.out_features, bias=linear.bias is not None)
        if linear.bias is not None:
            self.widen.bias.data.copy_(linear.bias.data)
        self.whole: Tensor
        self.fitted: Tensor
        self.register_buffer("whole", linear.weight.data.clone(), persistent=False)
        self.register_buffer("fitted", torch.tensor(False))

    @classmethod
    def instead_of(cls, linear: nn.Linear, rank: int) -> nn.Module:
        """The layer itself, where it would not become smaller."""
        smaller = rank * (linear.in_features + linear.out_features) < linear.weight.numel()
        return cls(linear, rank) if smaller else linear

    @property
    def product(self) -> nn.Linear:
        """One linear layer that does the same."""
        linear = nn.Linear(self.narrow.in_features, self.widen.out_features, bias=self.widen.bias is not None)
        linear.weight.data = self.widen.weight.data @ self.narrow.weight.data
        if self.widen.bias is not None:
            linear.bias.data = self.widen.bias.data
        return linear

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and not self.fitted:
            self.fit(inputs.detach())
        return self.widen(self.narrow(inputs))

    @torch.no_grad()
    def fit(self, inputs: Tensor) -> None:
        """Takes on the narrow matrices whose product's outputs for these inputs are nearest to the whole matrix's.

        Args:
            inputs: ``(..., in_features)``.
        """
        rows = inputs.flatten(0, -2).double()
        second_moment = rows.T @ rows
        scale = second_moment.diagonal().mean().clamp(min=1e-12)
        second_moment = second_moment / scale + 1e-4 * torch.eye(len(second_moment), device=rows.device)
        values, vectors = torch.linalg.eigh(second_moment)  # fewer rows than features leave values of 1e-4
        root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
        left, singular, right = torch.linalg.svd(self.whole.double() @ root, full_matrices=False)
        rank = self.narrow.out_features
        share = singular[:rank].sqrt()
        self.widen.weight.copy_(left[:, :rank] * share)
        self.narrow.weight.copy_(share[:, None] * right[:rank] @ inverse)
        self.fitted.fill_(True)
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # each process heard another batch
            for tensor in (self.widen.weight, self.narrow.weight):
                torch.distributed.broadcast(tensor, 0)


def _replace(
    module: nn.Module, kind: type[nn.Module], other: Callable[[Any], nn.Module], names: Sequence[str] | None = None
) -> None:
    """Puts another module in the place of each one of a kind, at any depth; of some names alone, where given."""
    for name, child in module.named_children():
        if not isinstance(child, kind):
            _replace(child, kind, other, names)
        elif names is None or name in names:
            setattr(module, name, other(child))


def parameter_groups(encoder: Any, strategy: Finetuning) -> list[dict[str, Any]]:
    """What the optimizer trains of an encoder.

    Args:
        encoder: After ``strategy.prepare``.
        strategy: Says how fast each block learns.

    Returns:
        One group per block, with the ratio of its learning rate to the optimizer's as ``lr_ratio`` and its number as
        ``block``.
    """
    blocks = encoder.block_parameters()
    top = max(blocks)
    groups = [
        {
            "params": [parameter for parameter in parameters if parameter.requires_grad],
            "lr_ratio": strategy.learning_rate_ratio(block, top),
            "block": block,
        }
        for block, parameters in blocks.items()
    ]
    return [group for group in groups if group["params"]]


def last_first_epoch(encoder: Any, strategy: Finetuning) -> int:
    """Epoch in which the last block of an encoder starts to learn.

    Args:
        encoder: After ``strategy.prepare``.
        strategy: Its schedule.
    """
    blocks = encoder.block_parameters()
    return max(strategy.first_epoch(block, max(blocks)) for block in blocks)


def save_backbone(encoder: Any, folder: Path) -> Path:
    """Writes an encoder with its trained blocks as a model folder that ``model_id`` takes: emotion-enhanced
    pretraining hands its backbone on to the next experiment.

    LoRA's updates are added to the matrices they belong to, and LowRank's are multiplied to whole ones.

    Args:
        encoder: An encoder of a trained model.
        folder: Where ``config.json``, ``model.safetensors`` and the rest of the model's files go.

    Raises:
        ValueError: Nothing of this encoder has been trained, or it is not a pretrained one.
    """
    from mmemo import pretrained

    _check_pretrained("save_backbone", encoder)
    if encoder.trained is None:
        raise ValueError(
            f"{encoder.model_id} was frozen in this run, so there is nothing new to save; train it with "
            "audio_finetuning or text_finetuning"
        )
    merged = copy.deepcopy(encoder.trained)
    for part in merged.modules():
        if hasattr(part, "lora_A") and hasattr(part, "merge"):
            part.merge()
    _replace(merged, LowRankLinear, lambda part: part.product)
    model = encoder.whole_model(_merged_names(merged.state_dict()))
    source = pretrained.resolve(encoder.model_id)
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json"):
            shutil.copy(path, folder / path.name)  # tokenizer, preprocessor, generation settings
    model.save_pretrained(folder)
    return folder


def _merged_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if ".lora_" not in name}


def _check(name: str, num_blocks: int, lr_ratio: float, layer_decay: float) -> None:
    if num_blocks < 1 or lr_ratio <= 0 or not 0 < layer_decay <= 1:
        raise ValueError(
            f"{name}(num_blocks={num_blocks}, lr_ratio={lr_ratio}, layer_decay={layer_decay}): expected a block or "
            "more, a ratio above 0 and a decay in (0, 1]"
        )


def _check_pretrained(name: str, encoder: Any) -> None:
    if not hasattr(encoder, "unfreeze"):
        raise ValueError(
            f"{name}: {type(encoder).__name__} is trained from scratch, there is no pretrained part to tune; leave the "
            "fine-tuning out"
        )


def _lowest(name: str, encoder: Any, num_blocks: int) -> int:
    top = encoder.layers[-1]
    if num_blocks > top:
        raise ValueError(
            f"{name}(num_blocks={num_blocks}): {encoder.model_id} with layers={encoder.layers} runs {top} blocks; "
            "lower num_blocks, choose higher layers, or use Full"
        )
    return top - num_blocks + 1
