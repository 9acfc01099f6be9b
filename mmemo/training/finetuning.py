"""Fine-tuning strategies: which blocks of a pretrained encoder are trained, when each starts, how fast it learns.

A strategy belongs to one encoder: ``audio_finetuning`` and ``text_finetuning`` of an experiment. Without a strategy the
encoder stays frozen and its features are cached. With one, everything below the lowest trained block is still cached,
the blocks above are trained, and a checkpoint holds only those.
"""

from __future__ import annotations

from typing import Any, Protocol

from pytorch_lightning import Trainer
from torch import nn

from mmemo.models.emotion_model import EmotionModel
from mmemo.models.pretrained_encoder import PretrainedEncoder
from mmemo.training.low_rank import LowRankLinear, replace_modules

LORA_TARGETS = ("q_proj", "v_proj", "query", "value", "q", "v", "q_lin", "v_lin")
"""Names of the query and value projections in the supported encoders."""


class Finetuning(Protocol):
    """A fine-tuning strategy for one encoder. Blocks are numbered from 1; 0 is what lies below the first."""

    def prepare(self, encoder: PretrainedEncoder) -> None:
        """Unfreezes the encoder's upper blocks, once, when the system is built."""

    def learning_rate_ratio(self, block: int, top: int) -> float:
        """Returns a block's learning rate as a share of the optimizer's; ``top`` is the highest block."""

    def first_epoch(self, block: int, top: int) -> int:
        """Returns the epoch, counted from 0, in which a block starts to learn."""


class EncoderTuning:
    """A fine-tuned encoder of a model, with the schedule of its blocks.

    Args:
        modality: ``audio`` or ``text``.
        model: Model that holds the encoder.
        strategy: Which blocks are trained, when, and how fast.

    Raises:
        ValueError: The model has no such encoder, or the strategy does not fit it.
    """

    def __init__(self, modality: str, model: EmotionModel, strategy: Finetuning) -> None:
        encoder = model.encoder(modality)
        if encoder is None:
            raise ValueError(f"{modality}_finetuning is set, but the model has no {modality}_encoder")
        self.name = f"{modality}_finetuning {type(strategy).__name__}"
        self.encoder = check_pretrained(type(strategy).__name__, encoder)
        self.strategy = strategy
        self.prefix = f"model.modalities.{modality}.encoder.trained."
        strategy.prepare(self.encoder)
        self.encoder.trained_blocks.train()  # pretrained models are loaded in eval mode, with dropout off
        # Noted before the schedule freezes some of them for the first epochs.
        self._learning = self._learning_parameters()

    def _learning_parameters(self) -> dict[int, list[nn.Parameter]]:
        blocks = self.encoder.block_parameters()
        learning = {
            block: [parameter for parameter in parameters if parameter.requires_grad]
            for block, parameters in blocks.items()
        }
        return {block: parameters for block, parameters in learning.items() if parameters}

    def start_epoch(self, epoch: int) -> None:
        """Unfreezes the blocks that learn in an epoch, and freezes the others."""
        for block, parameters in self._learning.items():
            learns = epoch >= self.strategy.first_epoch(block, max(self._learning))
            for parameter in parameters:
                parameter.requires_grad_(learns)

    def train_all(self) -> None:
        """Unfreezes every block that the strategy trains."""
        for parameters in self._learning.values():
            for parameter in parameters:
                parameter.requires_grad_(True)

    def check_schedule(self, trainer: Trainer) -> None:
        """Checks that training is long enough to reach every block.

        Raises:
            ValueError: It ends before the last block starts, or DDP cannot leave out the blocks that wait.
        """
        top = max(self._learning)
        last = max(self.strategy.first_epoch(block, top) for block in self._learning)
        epochs = trainer.max_epochs
        if last and epochs is not None and 0 <= epochs <= last:
            raise ValueError(
                f"{self.name} unfreezes its last block in epoch {last + 1}, but trainer.max_epochs is {epochs}; train "
                "longer, or unfreeze sooner"
            )
        finds_unused = bool(getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters"))
        if last and trainer.world_size > 1 and not finds_unused:
            raise ValueError(
                f"{self.name} leaves out blocks in the first epochs, which trainer.strategy ddp does not support; "
                "use ddp_find_unused_parameters_true"
            )

    def frozen_names(self) -> list[str]:
        """Returns the names, in the system's state, of weights that never change: the pretrained model has them."""
        learning = {id(parameter) for parameters in self._learning.values() for parameter in parameters}
        return [
            self.prefix + name
            for name, parameter in self.encoder.trained_blocks.named_parameters()
            if not (parameter.requires_grad and id(parameter) in learning)
        ]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns one optimizer group per block, with ``lr_ratio`` and the number of the ``block``."""
        blocks = self.encoder.block_parameters()
        groups = [
            {
                "params": [parameter for parameter in parameters if parameter.requires_grad],
                "lr_ratio": self.strategy.learning_rate_ratio(block, max(blocks)),
                "block": block,
            }
            for block, parameters in blocks.items()
        ]
        return [group for group in groups if group["params"]]


def encoder_tunings(model: EmotionModel, audio: Finetuning | None, text: Finetuning | None) -> list[EncoderTuning]:
    """Returns the fine-tuned encoders of a model; strategies that are None are left out.

    Args:
        model: Model whose encoders are tuned.
        audio: Strategy of the audio encoder.
        text: Strategy of the text encoder.

    Raises:
        ValueError: The model has no such encoder, or the strategy does not fit it.
    """
    given = {"audio": audio, "text": text}
    return [EncoderTuning(name, model, strategy) for name, strategy in given.items() if strategy is not None]


class LastBlocks:
    """Trains the last blocks; everything below stays frozen and cached.

    Args:
        num_blocks: Number of trained blocks, counted down from the highest chosen layer.
        lr_ratio: Learning rate of the highest block as a share of the optimizer's, above 0.
        layer_decay: Learning rate of each block as a share of the next higher block's, in (0, 1] (Clark et al. 2020,
            <https://arxiv.org/abs/2003.10555>).

    Raises:
        ValueError: A value is out of range, or the encoder runs fewer blocks.

    Example:
        >>> LastBlocks(num_blocks=2, lr_ratio=0.1, layer_decay=0.5).learning_rate_ratio(block=3, top=4)
        0.05
    """

    def __init__(self, num_blocks: int = 2, lr_ratio: float = 0.1, layer_decay: float = 1.0) -> None:
        _check(type(self).__name__, num_blocks, lr_ratio, layer_decay)
        self.num_blocks = num_blocks
        self.lr_ratio = lr_ratio
        self.layer_decay = layer_decay

    def prepare(self, encoder: PretrainedEncoder) -> None:
        encoder.unfreeze(_lowest(type(self).__name__, encoder, self.num_blocks))

    def learning_rate_ratio(self, block: int, top: int) -> float:
        return self.lr_ratio * self.layer_decay ** (top - block)

    def first_epoch(self, block: int, top: int) -> int:
        return 0


class Full(LastBlocks):
    """Trains the whole encoder, including its embeddings or convolutions; nothing is cached.

    Args:
        lr_ratio: Learning rate of the highest block as a share of the optimizer's, above 0.
        layer_decay: Learning rate of each block as a share of the next higher block's, in (0, 1].

    Example:
        >>> print(f"{Full(lr_ratio=0.1, layer_decay=0.5).learning_rate_ratio(block=5, top=6):.2f}")
        0.05
    """

    def __init__(self, lr_ratio: float = 0.1, layer_decay: float = 0.9) -> None:
        super().__init__(1, lr_ratio, layer_decay)

    def prepare(self, encoder: PretrainedEncoder) -> None:
        encoder.unfreeze(0)


class ProgressiveUnfreezing(LastBlocks):
    """Trains the parts after the encoder first, then one more block at a time from the top.

    Follows Howard and Ruder 2018, section 3.3, <https://arxiv.org/abs/1801.06146>.

    Args:
        num_blocks: Number of blocks that are trained in the end.
        epochs_per_block: Epochs before each further block joins, 1 or more; the highest joins after the same number.
        lr_ratio: Learning rate of the highest block as a share of the optimizer's, above 0.
        layer_decay: Learning rate of each block as a share of the next higher block's, in (0, 1].

    Raises:
        ValueError: A value is out of range, or the encoder runs fewer blocks.

    Example:
        >>> strategy = ProgressiveUnfreezing(num_blocks=2, epochs_per_block=3)
        >>> [strategy.first_epoch(block, top=6) for block in (6, 5)]
        [3, 6]
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
    """Trains the parts after the encoder alone, then everything together (LP-FT).

    A trained head distorts the pretrained features less than a random one (Kumar et al. 2022,
    <https://arxiv.org/abs/2202.10054>).

    Args:
        probe_epochs: Epochs before the encoder joins, 1 or more.
        num_blocks: Number of blocks that are trained then.
        lr_ratio: Learning rate of the highest block as a share of the optimizer's, above 0.
        layer_decay: Learning rate of each block as a share of the next higher block's, in (0, 1].

    Raises:
        ValueError: A value is out of range, or the encoder runs fewer blocks.

    Example:
        >>> LinearProbeFirst(probe_epochs=7).first_epoch(block=6, top=6)
        7
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
    """Trains low-rank updates of some matrices instead of the matrices themselves, with the peft library.

    Follows Hu et al. 2021, <https://arxiv.org/abs/2106.09685>. A checkpoint holds only the updates.

    Args:
        rank: Rank of the updates, 1 or more.
        alpha: Scale of the updates; they are multiplied by ``alpha / rank``.
        targets: Names of the linear modules that get an update. Defaults to the attention's query and value
            projections, or to the feed-forward layers of WavLM.
        dropout: Share of the updates' inputs dropped in training, in [0, 1).
        num_blocks: Number of blocks with updates, counted down from the highest chosen layer.
        lr_ratio: Learning rate of the updates as a share of the optimizer's, above 0.

    Raises:
        ValueError: A value is out of range, the encoder runs fewer blocks, or no module has the name of a target.

    Example:
        >>> import tempfile
        >>> from mmemo.models import HuggingFaceTextEncoder
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     BertModel(config).save_pretrained(folder)
        ...     encoder = HuggingFaceTextEncoder(folder)
        ...     LoRA(rank=4, num_blocks=1).prepare(encoder)
        >>> trained = [parameter for parameter in encoder.trained_blocks.parameters() if parameter.requires_grad]
        >>> sum(parameter.numel() for parameter in trained)  # two updates of two 64 x 4 matrices
        1024
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

    def prepare(self, encoder: PretrainedEncoder) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        super().prepare(encoder)
        blocks = encoder.trained_blocks
        linear = {name for name, part in blocks.named_modules() if isinstance(part, nn.Linear)}
        names = {name.rsplit(".", 1)[-1] for name in linear}
        names = names & set(encoder.replaceable) if encoder.replaceable else names
        default = encoder.replaceable or LORA_TARGETS
        unknown = sorted(set(self.targets or ()) - names)
        targets = sorted(names & set(self.targets or default))
        if unknown or not targets:
            raise ValueError(
                f"LoRA(targets={unknown or list(default)}): {encoder.model_id} has no such linear module in the "
                f"trained blocks, expected some of {sorted(names)}"
            )
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=targets, lora_dropout=self.dropout)
        matrices = list(blocks.parameters())
        inject_adapter_in_model(config, blocks)
        for parameter in matrices:
            parameter.requires_grad_(False)


class LowRank(LastBlocks):
    """Trains blocks whose matrices are factored into two narrow ones, so that an encoder fits a student.

    The factors are fitted to the first training batch (Chen et al. 2021, "DRONE: Data-aware Low-rank Compression for
    Large NLP Models", NeurIPS, section 3). The inputs of a pretrained encoder are far from white, so this loses much
    less than the best approximation of the matrix itself. Training recovers the rest.

    Args:
        rank: Rank of each matrix, 1 or more; a matrix that would not become smaller is left unchanged.
        num_blocks: Number of blocks, counted down from the highest chosen layer; everything below stays frozen and
            cached.
        lr_ratio: Learning rate of the highest block as a share of the optimizer's, above 0.
        layer_decay: Learning rate of each block as a share of the next higher block's, in (0, 1].

    Raises:
        ValueError: A value is out of range, or the encoder runs fewer blocks.

    Example:
        >>> import tempfile
        >>> from mmemo.models import HuggingFaceTextEncoder
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     BertModel(config).save_pretrained(folder)
        ...     encoder = HuggingFaceTextEncoder(folder)
        ...     LowRank(rank=8, num_blocks=1).prepare(encoder)
        >>> sum(parameter.numel() for parameter in encoder.trained_blocks.parameters())  # 33 472 in the original block
        7872
    """

    def __init__(self, rank: int = 64, num_blocks: int = 2, lr_ratio: float = 0.3, layer_decay: float = 1.0) -> None:
        super().__init__(num_blocks, lr_ratio, layer_decay)
        if rank < 1:
            raise ValueError(f"LowRank(rank={rank}), expected 1 or more")
        self.rank = rank

    def prepare(self, encoder: PretrainedEncoder) -> None:
        super().prepare(encoder)
        names = encoder.replaceable
        replace_modules(
            encoder.trained_blocks, nn.Linear, lambda linear: LowRankLinear.factored(linear, self.rank), names
        )


def _check(name: str, num_blocks: int, lr_ratio: float, layer_decay: float) -> None:
    if num_blocks < 1 or lr_ratio <= 0 or not 0 < layer_decay <= 1:
        raise ValueError(
            f"{name}(num_blocks={num_blocks}, lr_ratio={lr_ratio}, layer_decay={layer_decay}): expected 1 block or "
            "more, a ratio above 0 and a decay in (0, 1]"
        )


def check_pretrained(name: str, encoder: nn.Module) -> PretrainedEncoder:
    """Returns an encoder that has pretrained blocks.

    Args:
        name: Part that asks, for the error message.
        encoder: Any encoder.

    Raises:
        ValueError: The encoder is trained from scratch.
    """
    if not isinstance(encoder, PretrainedEncoder):
        raise ValueError(
            f"{name}: {type(encoder).__name__} is trained from scratch and has no pretrained blocks; remove the "
            "fine-tuning"
        )
    return encoder


def _lowest(name: str, encoder: PretrainedEncoder, num_blocks: int) -> int:
    top = encoder.layers[-1]
    if num_blocks > top:
        raise ValueError(
            f"{name}(num_blocks={num_blocks}): {encoder.model_id} with layers={encoder.layers} runs {top} blocks; "
            "lower num_blocks, choose higher layers, or use Full"
        )
    return top - num_blocks + 1
