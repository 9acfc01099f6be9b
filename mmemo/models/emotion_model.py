"""The parts in order: encoders, layer mix, gates, fusion, heads. Tensors in, tensors out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mmemo.models.fusion import AttentionMap, CrossModalAttention
from mmemo.models.gates import FeatureGate
from mmemo.models.heads import ClassHead
from mmemo.models.layer_mix import LayerConcat, LayerMix


class EmotionOutput(NamedTuple):
    """What an :class:`EmotionModel` says of a batch.

    Args:
        embedding: The fused vector ``(batch, dim)``.
        logits: Scores ``(batch, num_classes)``; None without a class head.
        dimensions: Valence, arousal, dominance ``(batch, 3)``; None without a dimension head.
        gates: How far each feature of each modality was let through ``(batch, dim)``, in [0, 1], in the order
            of ``EmotionModel.modalities``.
        modality_weights: How far each modality was believed ``(batch, modality)``; None for a fusion that does
            not weigh them.
        attention: The fusion's attention maps.
        penalty: What the gates ask to be minimised beside the loss; a scalar.
        heard: Each modality as it reached the fusion.
    """

    embedding: Tensor
    logits: Tensor | None
    dimensions: Tensor | None
    gates: tuple[Tensor, ...]
    modality_weights: Tensor | None
    attention: tuple[AttentionMap, ...]
    penalty: Tensor
    heard: tuple[Heard, ...] = ()


class EmotionModel(nn.Module):
    """Recognises emotion from voice, words or both.

    The parts after the encoders are given as classes with their options; the model builds them to fit the
    encoders, so that exchanging one part leaves the others as they are.

    Args:
        classes: Emotion classes in the order of the logits; none for a model of dimensions alone.
        audio_encoder: Turns waveforms into hidden states; none for a model that does not listen.
        descriptors: A second encoder of the waveform beside the first, such as ``AcousticDescriptors``.
        text_encoder: Turns transcripts into hidden states; none for a model that only listens.
        layer_mix: Joins an encoder's layers, built from their number and feature size; ``LayerMix`` when not given.
        gate: Selects features, built from the sizes of their groups (layers side by side, families of descriptors);
            ``FeatureGate`` when not given.
        fusion: Joins the modalities, built from the list of their feature sizes; ``CrossModalAttention`` when not
            given.
        head: Scores the classes, built from the fused size and the number of classes; ``ClassHead`` when not given.
        dimension_head: Predicts valence, arousal and dominance, built from the fused size.

    Raises:
        ValueError: Without any encoder, without anything to predict, or with one class alone or one twice.

    Shape:
        audio, descriptors: waveform ``(batch, samples)`` at 16 kHz, or what the encoder's ``precompute`` made of
        it ``(batch, layer, time, dim)``; text: token ids ``(batch, token)``, or precomputed
        ``(batch, layer, token, dim)``; each with its mask -> :class:`EmotionOutput`
    """

    def __init__(
        self,
        classes: Sequence[str],
        audio_encoder: nn.Module | None = None,
        descriptors: nn.Module | None = None,
        text_encoder: nn.Module | None = None,
        layer_mix: Callable[[int, int], nn.Module] | None = None,
        gate: Callable[[Sequence[int]], nn.Module] | None = None,
        fusion: Callable[[Sequence[int]], nn.Module] | None = None,
        head: Callable[[int, int], nn.Module] | None = None,
        dimension_head: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        encoders = {"audio": audio_encoder, "descriptors": descriptors, "text": text_encoder}
        encoders = {name: encoder for name, encoder in encoders.items() if encoder is not None}
        if not encoders:
            raise ValueError("EmotionModel has no audio_encoder, descriptors or text_encoder; give it one, or several")
        if len(classes) == 1 or len(set(classes)) < len(classes):
            raise ValueError(f"classes={list(classes)}: expected at least two, each named once")
        if not classes and dimension_head is None:
            raise ValueError("EmotionModel has nothing to predict: name classes, or give it a dimension_head")
        self.classes = tuple(classes)
        self.modalities = nn.ModuleDict(
            {name: Modality(encoder, layer_mix or LayerMix, gate or FeatureGate) for name, encoder in encoders.items()}
        )
        self.fusion = cast(Any, (fusion or CrossModalAttention)([part.dim for part in self._parts]))
        self.head = (head or ClassHead)(self.fusion.dim, len(classes)) if classes else None
        self.dimension_head = None if dimension_head is None else dimension_head(self.fusion.dim)

    @property
    def _parts(self) -> list[Modality]:
        return cast("list[Modality]", list(self.modalities.values()))

    @property
    def layer_weights(self) -> dict[str, Tensor]:
        """Share of each layer, called ``modality/layer mix N/0``, where the layer mix weighs them."""
        parts = zip(self.modalities, self._parts, strict=True)
        return {
            f"{modality}/layer mix {layer}/0": weight
            for modality, part in parts
            for layer, weight in part.layer_weights.items()
        }

    def encoder(self, modality: str) -> Any:
        """The encoder of ``audio``, ``descriptors`` or ``text``; None where the model has none."""
        return cast(Modality, self.modalities[modality]).encoder if modality in self.modalities else None

    @property
    def feature_names(self) -> list[str]:
        """What each feature that has a gate is, as ``modality/group/feature``, in the order of ``gates``."""
        parts = zip(self.modalities, self._parts, strict=True)
        return [f"{modality}/{name}" for modality, part in parts for name in part.feature_names]

    def forward(
        self,
        audio: Tensor | None = None,
        audio_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        descriptors: Tensor | None = None,
        descriptors_mask: Tensor | None = None,
    ) -> EmotionOutput:
        given = {
            "audio": (audio, audio_mask), "descriptors": (descriptors, descriptors_mask), "text": (text, text_mask)
        }  # fmt: skip
        for name in self.modalities:
            if given[name][0] is None or given[name][1] is None:
                raise ValueError(
                    f"this model takes {name}: give it {name}= and {name}_mask=, with a mask that is all False where "
                    "an utterance has none"
                )
        heard = [part(*given[name]) for name, part in self.modalities.items()]
        fused = self.fusion([one.features for one in heard], [one.mask for one in heard])
        penalties = [one.penalty for one in heard if one.penalty is not None]
        return EmotionOutput(
            embedding=fused.vector,
            logits=None if self.head is None else self.head(fused.vector),
            dimensions=None if self.dimension_head is None else self.dimension_head(fused.vector),
            gates=tuple(one.gate for one in heard),
            modality_weights=fused.weights,
            attention=fused.attention,
            penalty=torch.stack(penalties).sum() if penalties else fused.vector.new_zeros(()),
            heard=tuple(heard),
        )


class Heard(NamedTuple):
    """One modality, ready to be fused.

    Args:
        features: ``(batch, time, dim)``.
        mask: ``(batch, time)`` bool.
        gate: How far each feature was let through ``(batch, dim)``.
        penalty: What the gate asks to be minimised; a scalar, or None.
    """

    features: Tensor
    mask: Tensor
    gate: Tensor
    penalty: Tensor | None


class Modality(nn.Module):
    """One modality up to the fusion: encoder, layer mix, gate.

    Args:
        encoder: Turns raw input into hidden states; see ``audio_encoder``.
        layer_mix: Builds the layer mix.
        gate: Builds the gate.

    Shape:
        raw or precomputed input, mask -> :class:`Heard`
    """

    def __init__(
        self,
        encoder: Any,
        layer_mix: Callable[[int, int], nn.Module],
        gate: Callable[[Sequence[int]], nn.Module],
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        mix = layer_mix if encoder.num_layers > 1 else LayerConcat  # one layer alone has nothing to mix
        self.layer_mix = cast(Any, mix(encoder.num_layers, encoder.dim))
        self.dim: int = self.layer_mix.dim
        groups = Counter(name.rsplit("/", 1)[0] for name in self.feature_names)  # in order
        self.gate = gate(list(groups.values()))

    @property
    def feature_names(self) -> list[str]:
        """What each feature after the layer mix is, as ``group/feature``: ``layer 2/17``, ``mfcc/3``."""
        inner: list[str] = getattr(self.encoder, "feature_names", None) or [str(n) for n in range(self.encoder.dim)]
        layers: list[int] = getattr(self.encoder, "layers", None) or []
        if self.dim == self.encoder.dim * len(layers):
            return [f"layer {layer}/{name}" for layer in layers for name in inner]
        if layers:
            return [f"layers {', '.join(map(str, layers))}/{number}" for number in range(self.dim)]
        return inner if "/" in inner[0] else [f"features/{name}" for name in inner]

    @property
    def layer_weights(self) -> dict[int, Tensor]:
        """Share of each layer in a mix that weighs them; empty for one that does not."""
        weights = getattr(self.layer_mix, "weights", None)
        return {} if weights is None else dict(zip(self.encoder.layers, weights.detach(), strict=True))

    def forward(self, features: Tensor, mask: Tensor) -> Heard:
        if features.ndim == 2:  # waveforms or token ids: nothing has been precomputed
            features, mask = self.encoder.precompute(features, mask)
        features, mask = self.encoder(features, mask)
        gated = self.gate(self.layer_mix(features), mask)
        return Heard(gated.features, mask, gated.gate, gated.penalty)
