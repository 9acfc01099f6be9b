"""Model + loss + metrics + optimizer, as a LightningModule; and the way back from a checkpoint."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from einops import reduce
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule
from mmemo.labels import DIMENSIONS
from mmemo.losses import CrossEntropy, count_classes
from mmemo.metrics import DimensionMetrics, confusion_matrix, emotion_metrics
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.training.adversarial import Step, hook_term
from mmemo.training.attacks import RAW, Entry
from mmemo.training.exposure import Heard
from mmemo.training.features import attach_sources
from mmemo.training.finetuning import Finetuning, last_first_epoch, parameter_groups

log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", ".*is an instance of `nn.Module` and is already saved.*")


class Prediction(NamedTuple):
    """What the system says of a batch of utterances.

    Args:
        row: Rows of the manifest ``(batch,)``.
        probs: Class probabilities ``(batch, num_classes)``; None for a model of dimensions alone.
        dimensions: Valence, arousal, dominance ``(batch, 3)``; None without a dimension head.
        audio_probs: Class probabilities from the voice alone; None unless asked for and the model has both.
        text_probs: The same from the words alone.
        modality_weights: How far each modality was believed ``(batch, modality)``; None for a fusion that does not
            weigh them.
        gates: How far each feature of all modalities was let through ``(batch, dim)``.
        embedding: The fused vector ``(batch, dim)``.
    """

    row: Tensor
    probs: Tensor | None
    dimensions: Tensor | None = None
    audio_probs: Tensor | None = None
    text_probs: Tensor | None = None
    modality_weights: Tensor | None = None
    gates: Tensor | None = None
    embedding: Tensor | None = None


class EmotionSystem(LightningModule):
    """Trains an :class:`EmotionModel` and reports UAR, accuracy and F1 of classes, CCC and MAE of dimensions.

    Frozen weights are not saved, so a checkpoint holds what was trained and no more.

    Args:
        classes: Emotion classes in the order of the model's outputs; on the command line, those of the data.
        model: The parts, given as a class with its options; built from the classes.
        loss: What is minimised; see ``mmemo.losses``.
        optimizer: Builds the optimizer from the parameters.
        audio_finetuning: How far the audio encoder is trained, such as ``mmemo.training.LastBlocks``; frozen when
            not given.
        text_finetuning: The same for the text encoder.
        one_cycle: Warm the learning rate up, then anneal it to zero (Smith and Topin 2018,
            <https://arxiv.org/abs/1708.07120>); else it stays constant.
        cache_features: Read what training never changes from the cache; else compute it in every step.
        by_modality: Also test and predict from the voice alone and the words alone.
        modality_dropout: Chance that a training utterance loses its words, and the same for its voice, in
            [0, 0.5]; only for a model with both, and never the last modality an utterance has.
        mixup: Training batches are mixed with themselves in another order, inputs and loss alike, by shares drawn
            from Beta(mixup, mixup) (Zhang et al. 2018, <https://arxiv.org/abs/1710.09412>); 0 leaves them as they
            are. Where features are cached, it is they that are mixed.
        hooks: Terms minimised beside the loss, such as ``mmemo.training.AdversarialTraining`` or
            ``mmemo.training.DomainAdversarial``; see ``mmemo.training.adversarial``.
    """

    def __init__(
        self,
        classes: list[str],
        model: Callable[[list[str]], EmotionModel],
        loss: nn.Module = CrossEntropy(),  # noqa: B008 - jsonargparse shows it in --help; it has no state
        optimizer: OptimizerCallable = torch.optim.AdamW,
        audio_finetuning: Finetuning | None = None,
        text_finetuning: Finetuning | None = None,
        one_cycle: bool = True,
        cache_features: bool = True,
        by_modality: bool = False,
        modality_dropout: float = 0.0,
        mixup: float = 0.0,
        hooks: list[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= modality_dropout <= 0.5:
            raise ValueError(f"modality_dropout={modality_dropout}, expected 0 to 0.5")
        if mixup < 0:
            raise ValueError(f"mixup={mixup}, expected 0 or more")
        self.save_hyperparameters()  # under the command line: plain settings, not the modules
        self.model = model(classes)
        self.loss = loss
        self.optimizer = optimizer
        self.finetuning = {
            name: strategy
            for name, strategy in (("audio", audio_finetuning), ("text", text_finetuning))
            if strategy is not None
        }
        for name, strategy in self.finetuning.items():
            if self.model.encoder(name) is None:
                raise ValueError(f"{name}_finetuning is given, but the model has no {name}_encoder")
            strategy.prepare(self.model.encoder(name))
            self.model.encoder(name).trained.train()  # pretrained models come in eval mode, their dropout off
        # Block -> the parameters that will be trained, noted before a schedule first freezes some of them.
        self._learning = {name: _learning(self.model.encoder(name)) for name in self.finetuning}
        self.one_cycle = one_cycle
        self.cache_features = cache_features
        self.modality_dropout = modality_dropout
        self.mixup = mixup
        self.hooks = nn.ModuleList(hooks or [])
        for hook in self.hooks:
            if not hasattr(hook, "levels"):
                raise ValueError(
                    f"{type(hook).__name__} is not a hook; expected one of mmemo.training: AdversarialTraining, "
                    "FreeLB, TRADES, VirtualAdversarial, DomainAdversarial (FGSM, FGM and PGD are their attack)"
                )
            for level in cast("tuple[Any, ...]", hook.levels):
                Entry(self.model, level, type(hook).__name__)
        reader = self.model.encoder("text")
        if mixup and reader is not None and not (self._caches("text", fitting=True) and reader.caches):
            raise ValueError(
                "mixup mixes features, but this text encoder is trained or attacked from its token numbers, which "
                "cannot be mixed; set mixup: 0, text_finetuning LastBlocks, or level text_features"
            )
        both = "text" in self.model.modalities and len(self.model.modalities) > 1
        self.views = ("", "audio_only", "text_only") if by_modality and both else ("",)
        self.val_metrics = Scores(self.model, "val/")
        self.test_metrics = nn.ModuleList(
            Scores(self.model, f"test_{view}/" if view else "test/") for view in self.views
        )
        self.test_confusion = confusion_matrix(len(classes)) if classes else None
        self.confusion: Tensor | None = None
        self._heard: Heard | None = None
        self._check_heads()

    def _check_heads(self) -> None:
        """Each head is trained by the loss, and the loss reads nothing that no head predicts."""
        trains = set(cast("tuple[str, ...]", self.loss.trains))
        learned = " and ".join(sorted(trains)) or "no head"
        name = type(self.loss).__name__
        if self.model.head is not None and "classes" not in trains:
            raise ValueError(
                f"the model scores classes, but loss {name} trains {learned}; join it with a loss of "
                "classes in mmemo.losses.WeightedSum, or set data.classes: []"
            )
        if self.model.head is None and "classes" in trains:
            raise ValueError(f"loss {name} trains classes, but data.classes is empty; name them, or use CCCLoss")
        if (self.model.dimension_head is None) != ("dimensions" not in trains):
            has, lacks = ("a dimension_head", "loss") if self.model.dimension_head else ("no dimension_head", "model")
            raise ValueError(
                f"the model has {has} and loss {name} trains {learned}; give the {lacks} its part: say "
                "how classes and dimensions count with mmemo.losses.WeightedSum or UncertaintyWeighted"
            )

    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, EmotionDataModule):
            if datamodule.classes != self.model.classes:
                raise ValueError(
                    f"the model tells {list(self.model.classes)} apart, data.classes is "
                    f"{list(datamodule.classes)}; they must agree, order included"
                )
            datamodule.use_labels(
                cast("tuple[str, ...]", self.loss.reads),
                fitting=stage == "fit",
                unlabelled=self.learns_unlabelled,
            )
            listens = bool({"audio", "descriptors"} & set(self.model.modalities))
            datamodule.refuse_empty(listens, "text" in self.model.modalities, predicting=stage == "predict")
            if stage == "fit":
                self._check_schedule()
            if stage in ("fit", "validate") and self.model.classes:
                count_classes(self.loss, datamodule.class_counts())
            if stage == "fit":
                if self.hooks and self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
                    raise ValueError("hooks follow the progress of a training that ends: set trainer.max_epochs")
                for hook in self.hooks:
                    if hasattr(hook, "prepare"):
                        cast(Any, hook).prepare(datamodule, self.model)
                        hook.to(self.device)
            cached = {name for name in self.model.modalities if self._caches(name, fitting=stage == "fit")}
            attach_sources(datamodule, self.model, self.trainer, cached)

    def _caches(self, modality: str, fitting: bool) -> bool:
        """Whether a modality may come from the cache: not while a hook changes it further down."""
        levels = [level for hook in self.hooks for level in cast("tuple[Any, ...]", hook.levels)] if fitting else []
        heard = "text" if modality == "text" else "audio"  # descriptors hear what the audio encoder hears
        return self.cache_features and all(RAW.get(level) != heard for level in levels)

    def _check_schedule(self) -> None:
        epochs = self.trainer.max_epochs
        for name, strategy in self.finetuning.items():
            last = last_first_epoch(self.model.encoder(name), strategy)
            if last and epochs is not None and 0 <= epochs <= last:
                raise ValueError(
                    f"{name}_finetuning {type(strategy).__name__} unfreezes its last block in epoch {last + 1}, but "
                    f"trainer.max_epochs is {epochs}; train longer, or unfreeze sooner"
                )
            if last and self.trainer.world_size > 1 and not _finds_unused(self.trainer):
                raise ValueError(
                    f"{name}_finetuning {type(strategy).__name__} leaves blocks out in the first epochs, which "
                    "--trainer.strategy ddp cannot do; use ddp_find_unused_parameters_true"
                )

    def on_train_epoch_start(self) -> None:
        for name, strategy in self.finetuning.items():
            groups = self._learning[name]
            for block, parameters in groups.items():
                learns = self.current_epoch >= strategy.first_epoch(block, max(groups))
                for parameter in parameters:
                    parameter.requires_grad_(learns)

    def on_train_end(self) -> None:
        for name in self.finetuning:
            for parameters in self._learning[name].values():
                for parameter in parameters:
                    parameter.requires_grad_(True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["classes"] = list(self.model.classes)
        checkpoint["encoders"] = self._fingerprints()
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, EmotionDataModule):
            self.heard(datamodule).write(checkpoint)
        for name in self._frozen_names():
            checkpoint["state_dict"].pop(name, None)

    def heard(self, datamodule: EmotionDataModule) -> Heard:
        """Whom this run hears in training.

        Args:
            datamodule: That of the run.
        """
        if self._heard is None:
            self._heard = Heard.training(datamodule, bool({"audio", "descriptors"} & set(self.model.modalities)))
        return self._heard

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = tuple(checkpoint.get("classes", ()))
        if trained != self.model.classes:
            raise ValueError(
                f"the checkpoint tells {list(trained)} apart, in this order, and data.classes is "
                f"{list(self.model.classes)}; name the same classes in the same order"
            )
        own = self.state_dict()
        given = checkpoint["state_dict"]
        for name in [name for name in given if name.startswith("hooks.") and name not in own]:
            del given[name]  # of use to training alone
        for name, there in checkpoint.get("encoders", {}).items():
            kind, weights, options = _described(self._fingerprints().get(name, ""))
            other_kind, other_weights, other_options = _described(there)
            if (kind, options) != (other_kind, other_options):
                raise ValueError(
                    f"the checkpoint was trained on another {name} encoder ({other_kind} {other_options}) than the "
                    f"config's ({kind} {options}); use the YAML that it was trained with"
                )
            if weights != other_weights:
                log.warning(
                    "the checkpoint was trained on other weights of the %s encoder than those of the config's model_id",
                    name,
                )
        other = [name for name in given if name not in own or own[name].shape != given[name].shape]
        tuned = ("hooks.", "distillation.", *(f"model.modalities.{name}.encoder.trained." for name in self.finetuning))
        missing = [name for name in own if name not in given and not name.startswith(tuned)]
        if other or missing:
            raise ValueError(
                f"the checkpoint is of another architecture: it has {len(other)} tensors that the model has not in "
                f"that shape{_for_example(other)} and lacks {len(missing)}{_for_example(missing)}; use the YAML it was "
                "trained with"
            )
        for name in own.keys() - given.keys():
            given[name] = own[name]  # pretrained and never trained

    def _fingerprints(self) -> dict[str, str]:
        """What each encoder's outputs depend on besides what a checkpoint holds."""
        return {name: self.model.encoder(name).fingerprint() for name in self.model.modalities}

    def _frozen_names(self) -> set[str]:
        """Weights of fine-tuned encoders that are as they were: they come from the pretrained model again."""
        frozen = set()
        for name in self.finetuning:
            encoder = self.model.encoder(name)
            prefix = f"model.modalities.{name}.encoder.trained."
            learned = {id(part) for parts in self._learning[name].values() for part in parts}
            for key, parameter in encoder.trained.named_parameters():
                if not (parameter.requires_grad and id(parameter) in learned):
                    frozen.add(prefix + key)
        return frozen

    def forward(self, batch: EmotionBatch) -> EmotionOutput:
        return self.model(
            batch.audio, batch.audio_mask, batch.text, batch.text_mask, batch.descriptors, batch.descriptors_mask
        )

    def criterion(self, output: EmotionOutput, batch: EmotionBatch) -> Tensor:
        """What training minimises, besides what gates and hooks ask for."""
        return self.loss(output, batch)

    @property
    def learns_unlabelled(self) -> bool:
        """Whether training learns from utterances without a label too."""
        return any(cast(bool, hook.unlabelled) for hook in self.hooks)

    def training_step(self, batch: EmotionBatch, batch_idx: int) -> Tensor:
        batch = self._drop_modalities(batch)
        if self.mixup:
            share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
            other = _reordered(batch, torch.randperm(len(batch.row), device=batch.row.device))
            mixed = _mixed(batch, other, share)

            def plain(output: EmotionOutput) -> Tensor:
                return share * self.criterion(output, batch) + (1 - share) * self.criterion(output, other)
        else:
            mixed, plain = batch, partial(self.criterion, batch=batch)
        output = self(mixed)
        loss = plain(output) + output.penalty
        if self.hooks:
            progress = self.global_step / max(float(self.trainer.estimated_stepping_batches), 1.0)
            step = Step(self.model, self.forward, mixed, output, plain, min(progress, 1.0), self.global_step)
            for place, hook in enumerate(self.hooks):
                term = hook_term(hook, step, place)
                self._log_hook(hook, term, len(batch.row))
                loss = loss + term
        if not loss.isfinite():
            raise FloatingPointError(
                f"the training loss became {float(loss):g} in epoch {self.current_epoch + 1} on utterances "
                f"{', '.join(self._ids(batch)[:5])}, ...; lower the optimizer's lr, or set trainer.gradient_clip_val: 1"
            )
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True, sync_dist=True,
                 batch_size=len(batch.row))  # fmt: skip
        return loss

    def _log_hook(self, hook: nn.Module, term: Tensor, size: int) -> None:
        name = f"train/{type(hook).__name__}"
        same = [other for other in self.hooks if type(other) is type(hook)]
        if len(same) > 1:
            name += f"_{[other is hook for other in same].index(True) + 1}"
        log: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": size}
        self.log(name, term.detach(), **log)
        accuracy = getattr(hook, "accuracy", None)
        if accuracy is not None:
            self.log(f"{name}/accuracy", accuracy, **log)

    def _ids(self, batch: EmotionBatch) -> list[str]:
        datamodule = getattr(self.trainer, "datamodule", None)
        rows = batch.row.tolist()
        if not isinstance(datamodule, EmotionDataModule):
            return [str(row) for row in rows]
        return [str(name) for name in datamodule.manifest.frame["id"].iloc[rows]]

    def validation_step(self, batch: EmotionBatch, batch_idx: int) -> None:
        output = self(batch)
        self.log("val/loss", self.loss(output, batch), batch_size=len(batch.row), sync_dist=True)
        self.val_metrics.update(output, batch)

    def on_validation_epoch_end(self) -> None:
        metrics = self.val_metrics.compute()
        chief = monitored(self.model.classes)
        self.log(chief, metrics.pop(chief), prog_bar=True, sync_dist=True)  # the same on every process already
        self.log_dict(metrics, sync_dist=True)
        self.val_metrics.reset()

    def test_step(self, batch: EmotionBatch, batch_idx: int) -> None:
        utterances = self._once(batch)
        for view, metrics in zip(self.views, self.test_metrics, strict=True):
            output = self._judge(_view(batch, view))
            cast(Scores, metrics).update(output, utterances)
            if not view and self.test_confusion is not None and output.logits is not None:
                self.test_confusion.update(output.logits, utterances.target)

    def on_test_epoch_end(self) -> None:
        for metrics in self.test_metrics:
            self.log_dict(cast(Scores, metrics).compute(), sync_dist=True)
            cast(Scores, metrics).reset()
        if self.test_confusion is not None:
            self.confusion = self.test_confusion.compute().cpu()  # (true class, predicted class)
            self.test_confusion.reset()

    def predict_step(self, batch: EmotionBatch, batch_idx: int) -> Prediction:
        outputs = {view: self._judge(_view(batch, view)) for view in self.views}
        probs = {view: None if one.logits is None else one.logits.float().softmax(-1) for view, one in outputs.items()}
        output = outputs[""]
        return Prediction(
            row=self._once(batch).row,
            probs=probs[""],
            dimensions=output.dimensions,
            audio_probs=probs.get("audio_only"),
            text_probs=probs.get("text_only"),
            modality_weights=output.modality_weights,
            gates=torch.cat(output.gates, dim=-1),
            embedding=output.embedding,
        )

    @property
    def _num_repeats(self) -> int:
        return getattr(getattr(self.trainer, "datamodule", None), "test_views", 1)

    def _once(self, batch: EmotionBatch) -> EmotionBatch:
        """Each utterance once, where a test batch holds several views of it one after the other."""
        num = self._num_repeats
        return batch if num == 1 else _reordered(batch, torch.arange(0, len(batch.row), num, device=batch.row.device))

    def _judge(self, batch: EmotionBatch) -> EmotionOutput:
        """The model's output for each utterance, averaged over its views: probabilities, not scores."""
        output = self(batch)
        num = self._num_repeats
        if num == 1:
            return output
        mean = partial(reduce, pattern="(utterance view) ... -> utterance ...", reduction="mean", view=num)
        return output._replace(
            embedding=mean(output.embedding),
            logits=None if output.logits is None else mean(output.logits.float().softmax(-1)).log(),
            dimensions=None if output.dimensions is None else mean(output.dimensions),
            gates=tuple(mean(gate) for gate in output.gates),
            modality_weights=None if output.modality_weights is None else mean(output.modality_weights),
            attention=(),  # maps of views differ in length
            heard=(),
        )

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = []
        for name, strategy in self.finetuning.items():
            groups += parameter_groups(self.model.encoder(name), strategy)
        tuned = {id(parameter) for group in groups for parameter in group["params"]}
        rest = [parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in tuned]
        optimizer = self.optimizer(cast(Any, [{"params": rest, "lr_ratio": 1.0}, *groups]))
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_ratio"]
        if not self.one_cycle:
            return optimizer
        rates = [group["lr"] for group in optimizer.param_groups]
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("one_cycle needs an end: set trainer.max_epochs or max_steps, or one_cycle: false")
        scheduler = OneCycleLR(optimizer, rates, total_steps=int(steps), cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _drop_modalities(self, batch: EmotionBatch) -> EmotionBatch:
        masks = [mask for mask in (batch.audio_mask, batch.descriptors_mask) if mask is not None]
        if not self.modality_dropout or not masks or batch.text_mask is None:
            return batch
        both = masks[0].any(1) & batch.text_mask.any(1)
        chance = torch.rand(len(batch.row), device=both.device)
        no_audio = (both & (chance < self.modality_dropout))[:, None]
        no_text = (both & (chance > 1 - self.modality_dropout))[:, None]
        return batch._replace(
            audio_mask=None if batch.audio_mask is None else batch.audio_mask & ~no_audio,
            descriptors_mask=None if batch.descriptors_mask is None else batch.descriptors_mask & ~no_audio,
            text_mask=batch.text_mask & ~no_text,
        )


class Scores(nn.Module):
    """The metrics of whatever heads a model has.

    Args:
        model: Whose heads are meant.
        prefix: Put before each name, such as ``val/``.
    """

    def __init__(self, model: EmotionModel, prefix: str) -> None:
        super().__init__()
        self.classes = emotion_metrics(len(model.classes), prefix) if model.head is not None else None
        self.dimensions = DimensionMetrics(prefix) if model.dimension_head is not None else None

    def update(self, output: EmotionOutput, batch: EmotionBatch) -> None:
        """Takes a batch in."""
        if self.classes is not None:
            self.classes.update(output.logits, batch.target)
        if self.dimensions is not None:
            assert output.dimensions is not None
            self.dimensions.update(output.dimensions, batch.dimensions)

    def compute(self) -> dict[str, Tensor]:
        """Name -> value, over all processes."""
        values = {} if self.classes is None else dict(self.classes.compute())
        return values | ({} if self.dimensions is None else self.dimensions.compute())

    def reset(self) -> None:
        """Forgets all batches."""
        for part in (self.classes, self.dimensions):
            if part is not None:
                part.reset()


def _learning(encoder: Any) -> dict[int, list[nn.Parameter]]:
    blocks = encoder.block_parameters()
    learning = {block: [part for part in parts if part.requires_grad] for block, parts in blocks.items()}
    return {block: parts for block, parts in learning.items() if parts}


def monitored(classes: Sequence[str]) -> str:
    """The metric that chooses the best epoch.

    Args:
        classes: Those of the model; none for one of dimensions alone.
    """
    return "val/uar" if classes else "val/ccc"


def _described(fingerprint: str) -> tuple[str, str, str]:
    """Kind, weights and options of an encoder."""
    kind, weights, options = (*fingerprint.split(":", 2), "", "")[:3]
    return kind, weights, options


def _finds_unused(trainer: Any) -> bool:
    return bool(getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters"))


def _for_example(names: Sequence[str]) -> str:
    return f" ({names[0]}, ...)" if names else ""


def _reordered(batch: EmotionBatch, order: Tensor) -> EmotionBatch:
    return EmotionBatch(*(None if values is None else values[order] for values in batch))  # type: ignore[arg-type]


def _mixed(batch: EmotionBatch, other: EmotionBatch, share: float) -> EmotionBatch:
    """Inputs of one batch, and of another in the share that is left; a step is real where it is in either."""
    mixed = {}
    for name in ("audio", "descriptors", "text"):
        values, others = getattr(batch, name), getattr(other, name)
        if values is not None:
            mask, other_mask = getattr(batch, f"{name}_mask"), getattr(other, f"{name}_mask")
            axes = (slice(None),) if values.ndim == 2 else (slice(None), None, slice(None), None)
            mixed[name] = share * values * mask[axes] + (1 - share) * others * other_mask[axes]
            mixed[f"{name}_mask"] = mask | other_mask
    return batch._replace(**mixed)


def _view(batch: EmotionBatch, view: str) -> EmotionBatch:
    return getattr(batch, view)() if view else batch


def checked_checkpoint(path: Path) -> Path:
    """A checkpoint's path, if it is there.

    Args:
        path: ``.ckpt`` file that ``mmemo fit`` wrote.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if path.is_dir():
        inside = sorted(path.glob("checkpoints/*.ckpt"))
        named = f"name the checkpoint, such as {inside[-1]}" if inside else "expected a checkpoint of `mmemo fit`"
        raise FileNotFoundError(f"{path}: a folder; {named}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; `mmemo fit` writes them to RUN/checkpoints")
    return path


def load_model(checkpoint: str | os.PathLike[str]) -> EmotionModel:
    """Loads a trained model from a checkpoint, in eval mode, on the CPU.

    Args:
        checkpoint: ``.ckpt`` file that ``mmemo fit`` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a checkpoint of mmemo.
    """
    path = checked_checkpoint(Path(checkpoint))
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: not a checkpoint of `mmemo fit`, which writes them to RUN/checkpoints, or a copy of one that was "
            "broken off"
        )
    try:
        system = EmotionSystem.load_from_checkpoint(path, map_location="cpu")
    except (pickle.UnpicklingError, KeyError, EOFError):
        raise ValueError(f"{path}: not a checkpoint of `mmemo fit`, which writes them to RUN/checkpoints") from None
    except TypeError as error:
        raise ValueError(
            f"{path}: cannot be reloaded ({str(error).splitlines()[0]}); a system built by hand around module objects "
            "keeps no settings, build it from a YAML"
        ) from None
    return system.model.eval()


def prediction_columns(
    classes: Sequence[str], modalities: Sequence[str], prediction: Prediction
) -> dict[str, Tensor]:  # fmt: skip
    """Names the numbers of a prediction as columns.

    Args:
        classes: In the order of the probabilities.
        modalities: In the order of the weights.
        prediction: Of a batch.
    """
    columns: dict[str, Tensor] = {}
    for prefix, probs in (("", prediction.probs), ("audio_", prediction.audio_probs), ("text_", prediction.text_probs)):
        if probs is not None:
            columns |= {f"{prefix}prob_{name}": probs[:, number] for number, name in enumerate(classes)}
    if prediction.dimensions is not None:
        columns |= {f"predicted_{name}": prediction.dimensions[:, number] for number, name in enumerate(DIMENSIONS)}
    if prediction.modality_weights is not None:
        weights = prediction.modality_weights
        columns |= {f"weight_{name}": weights[:, number] for number, name in enumerate(modalities)}
    return columns
