"""The parts of a model in order: encoders, speaker normalisation, layer mix, gates, fusion, heads.

Tensors in, tensors out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mmemo.models.encoder import HasLayers, NamesFeatures
from mmemo.models.fusion import AttentionMap, CrossModalAttention
from mmemo.models.gates import FeatureGate
from mmemo.models.heads import ClassHead
from mmemo.models.layer_mix import LayerConcat, LayerMix, WeighsLayers
from mmemo.models.speaker_mixture import SpeakerMixture


class EmotionOutput(NamedTuple):
    """Output of an :class:`EmotionModel` for a batch.

    Args:
        embedding: Fused vector ``(batch, dim)``.
        logits: Class scores ``(batch, num_classes)``; None without a class head.
        dimensions: Valence, arousal and dominance ``(batch, 3)``; None without a dimension head.
        gates: Gate of each feature of each modality ``(batch, dim)``, in [0, 1], in the order of
            ``EmotionModel.modalities``.
        modality_weights: Weight of each modality ``(batch, modality)``; None for a fusion without weights.
        attention: Attention maps of the fusion.
        penalty: Penalty of the gates, added to the loss; a scalar.
        encoded: Each modality as it reaches the fusion.
    """

    embedding: Tensor
    logits: Tensor | None
    dimensions: Tensor | None
    gates: tuple[Tensor, ...]
    modality_weights: Tensor | None
    attention: tuple[AttentionMap, ...]
    penalty: Tensor
    encoded: tuple[EncodedModality, ...] = ()


class EmotionModel(nn.Module):
    """Predicts emotion from audio, text or both.

    The parts after the encoders are given as classes or as ``functools.partial`` of classes. The model builds them to
    fit the encoders, so that exchanging one part leaves the others unchanged.

    Args:
        classes: Emotion classes in the order of the logits; empty for a model of dimensions only.
        audio_encoder: Encoder of waveforms; None for a model of text only.
        text_encoder: Encoder of transcripts; None for a model of audio only.
        descriptors: Second encoder of the waveform, such as ``AcousticDescriptors``.
        layer_mix: Combines an encoder's layers; built from their number and feature size. Defaults to ``LayerMix``.
        gate: Selects features; built from the sizes of their groups (layers side by side, families of descriptors).
            Defaults to ``FeatureGate``.
        fusion: Combines the modalities; built from the list of their feature sizes. Defaults to
            ``CrossModalAttention``.
        head: Predicts the classes; built from the size of the fused vector and the number of classes. Defaults to
            ``ClassHead``.
        dimension_head: Predicts valence, arousal and dominance; built from the size of the fused vector.
        speaker_norm: Calibrates audio features to the speaker, such as ``SpeakerNorm``; built from the number of layers
            and their feature size. Defaults to none.
        speaker_mixture: Rescores the classes for the speaker, such as ``SpeakerMixture``; built from the number of
            classes. Defaults to none.

    Raises:
        ValueError: There is no encoder, nothing to predict, a single class, or a repeated class; or an input of
            ``forward`` is missing.

    Shape:
        audio, descriptors: waveform ``(batch, samples)`` at 16 kHz, or the output of the encoder's ``precompute``
        ``(batch, layer, time, dim)``; text: token ids ``(batch, token)``, or precomputed
        ``(batch, layer, token, dim)``; each with its mask. Of the speakers: ``audio_speaker`` and
        ``descriptors_speaker`` ``(batch, 2, layer, dim)``, mean and deviation; ``speaker_offsets``
        ``(batch, num_classes + 1, num_classes)``. Without them the model is uncalibrated. -> :class:`EmotionOutput`

    Example:
        >>> from mmemo.models import ConvNeXtEncoder
        >>> model = EmotionModel(["anger", "sadness"], audio_encoder=ConvNeXtEncoder(hidden_dim=8)).eval()
        >>> waveform = torch.randn(2, 16_000)
        >>> model(waveform, torch.ones_like(waveform, dtype=torch.bool)).logits.shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        classes: Sequence[str],
        audio_encoder: nn.Module | None = None,
        text_encoder: nn.Module | None = None,
        descriptors: nn.Module | None = None,
        layer_mix: Callable[[int, int], nn.Module] | None = None,
        gate: Callable[[Sequence[int]], nn.Module] | None = None,
        fusion: Callable[[Sequence[int]], nn.Module] | None = None,
        head: Callable[[int, int], nn.Module] | None = None,
        dimension_head: Callable[[int], nn.Module] | None = None,
        speaker_norm: Callable[[int, int], nn.Module] | None = None,
        speaker_mixture: Callable[[int], SpeakerMixture] | None = None,
    ) -> None:
        super().__init__()
        encoders = {"audio": audio_encoder, "descriptors": descriptors, "text": text_encoder}
        encoders = {name: encoder for name, encoder in encoders.items() if encoder is not None}
        if not encoders:
            raise ValueError("EmotionModel needs an audio_encoder, descriptors or a text_encoder")
        if isinstance(classes, str):
            raise ValueError(f"classes={classes!r}: expected a list of names, such as ['anger', 'neutral']")
        if len(classes) == 1 or len(set(classes)) < len(classes):
            raise ValueError(f"classes={list(classes)}: expected two or more, each named once")
        if not classes and dimension_head is None:
            raise ValueError("EmotionModel has nothing to predict: name classes, or set a dimension_head")
        self.arguments = {  # the parts that are built below, as they were given
            "classes": list(classes), "audio_encoder": audio_encoder, "descriptors": descriptors,
            "text_encoder": text_encoder, "layer_mix": layer_mix, "gate": gate, "fusion": fusion, "head": head,
            "dimension_head": dimension_head, "speaker_norm": speaker_norm, "speaker_mixture": speaker_mixture,
        }  # fmt: skip
        self.classes = tuple(classes)
        self.modalities = nn.ModuleDict(
            {
                name: ModalityBranch(
                    encoder, layer_mix or LayerMix, gate or FeatureGate, None if name == "text" else speaker_norm
                )
                for name, encoder in encoders.items()
            }
        )
        self.fusion = cast(Any, (fusion or CrossModalAttention)([part.dim for part in self.branches]))
        self.head = (head or ClassHead)(self.fusion.dim, len(classes)) if classes else None
        self.dimension_head = None if dimension_head is None else dimension_head(self.fusion.dim)
        build_mixture = speaker_mixture if classes else None
        self.speaker_mixture = None if build_mixture is None else build_mixture(len(classes))

    @property
    def branches(self) -> list[ModalityBranch]:
        """The branches of all modalities, in order."""
        return cast("list[ModalityBranch]", list(self.modalities.values()))

    @property
    def takes_audio(self) -> bool:
        """Whether any encoder takes the waveform."""
        return "audio" in self.modalities or "descriptors" in self.modalities

    @property
    def takes_text(self) -> bool:
        """Whether there is a text encoder."""
        return "text" in self.modalities

    @property
    def speaker_norms(self) -> dict[str, Any]:
        """Modality -> its speaker normalisation; empty for a model that is not calibrated to speakers."""
        branches = zip(self.modalities, self.branches, strict=True)
        return {name: branch.speaker_norm for name, branch in branches if branch.speaker_norm is not None}

    def fingerprints(self) -> dict[str, str]:
        """Returns modality -> what its encoder's cached features depend on."""
        return {name: self.encoder(name).fingerprint() for name in self.modalities}

    @property
    def layer_weights(self) -> dict[str, Tensor]:
        """Weight of each layer, named ``modality/layer mix N/0``, of layer mixes that have weights."""
        parts = zip(self.modalities, self.branches, strict=True)
        return {
            f"{modality}/layer mix {layer}/0": weight
            for modality, part in parts
            for layer, weight in part.layer_weights.items()
        }

    def encoder(self, modality: str) -> Any:
        """Returns the encoder of ``audio``, ``descriptors`` or ``text``; None if the model has none."""
        return cast(ModalityBranch, self.modalities[modality]).encoder if modality in self.modalities else None

    @property
    def feature_names(self) -> list[str]:
        """Name of each gated feature, ``modality/group/feature``, in the order of ``gates``."""
        parts = zip(self.modalities, self.branches, strict=True)
        return [f"{modality}/{name}" for modality, part in parts for name in part.feature_names]

    def forward(
        self,
        audio: Tensor | None = None,
        audio_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        descriptors: Tensor | None = None,
        descriptors_mask: Tensor | None = None,
        audio_speaker: Tensor | None = None,
        descriptors_speaker: Tensor | None = None,
        speaker_offsets: Tensor | None = None,
    ) -> EmotionOutput:
        given = {
            "audio": (audio, audio_mask), "descriptors": (descriptors, descriptors_mask), "text": (text, text_mask)
        }  # fmt: skip
        for name in self.modalities:
            if given[name][0] is None or given[name][1] is None:
                raise ValueError(
                    f"this model needs {name}= and {name}_mask=; the mask is all False for an utterance without {name}"
                )
        speakers = {"audio": audio_speaker, "descriptors": descriptors_speaker}
        encoded: list[EncodedModality] = [
            part(*given[name], speakers.get(name)) for name, part in self.modalities.items()
        ]
        fused = self.fusion([part.features for part in encoded], [part.mask for part in encoded])
        penalties = [part.penalty for part in encoded if part.penalty is not None]
        logits = None if self.head is None else self.head(fused.vector)
        if self.speaker_mixture is not None:
            logits = self.speaker_mixture(logits, speaker_offsets)
        return EmotionOutput(
            embedding=fused.vector,
            logits=logits,
            dimensions=None if self.dimension_head is None else self.dimension_head(fused.vector),
            gates=tuple(part.gate for part in encoded),
            modality_weights=fused.weights,
            attention=fused.attention,
            penalty=torch.stack(penalties).sum() if penalties else fused.vector.new_zeros(()),
            encoded=tuple(encoded),
        )


class EncodedModality(NamedTuple):
    """One modality, ready for the fusion.

    Args:
        features: ``(batch, time, dim)``.
        mask: ``(batch, time)`` bool.
        gate: Gate of each feature ``(batch, dim)``, in [0, 1].
        penalty: Penalty of the gate, a scalar; or None.
    """

    features: Tensor
    mask: Tensor
    gate: Tensor
    penalty: Tensor | None


class ModalityBranch(nn.Module):
    """One modality up to the fusion: encoder, speaker normalisation, layer mix, gate.

    Args:
        encoder: An :class:`~mmemo.models.encoder.Encoder`.
        layer_mix: Builds the layer mix.
        gate: Builds the gate.
        speaker_norm: Builds the speaker normalisation. Defaults to none.

    Shape:
        waveform ``(batch, samples)``, token ids ``(batch, token)`` or precomputed ``(batch, layer, time, dim)``, with
        mask ``(batch, samples)``, ``(batch, token)`` or ``(batch, time)`` bool, and the statistics of the speakers
        ``(batch, 2, layer, dim)`` or None -> :class:`EncodedModality`
    """

    def __init__(
        self,
        encoder: Any,
        layer_mix: Callable[[int, int], nn.Module],
        gate: Callable[[Sequence[int]], nn.Module],
        speaker_norm: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.speaker_norm = None if speaker_norm is None else speaker_norm(encoder.num_layers, encoder.dim)
        mix = layer_mix if encoder.num_layers > 1 else LayerConcat  # a single layer has nothing to mix
        self.layer_mix = cast(Any, mix(encoder.num_layers, encoder.dim))
        self.dim: int = self.layer_mix.dim
        groups = Counter(name.rsplit("/", 1)[0] for name in self.feature_names)  # in order
        self.gate = gate(list(groups.values()))

    @property
    def feature_names(self) -> list[str]:
        """Name of each feature after the layer mix, ``group/feature``, such as ``layer 2/17`` or ``mfcc/3``."""
        named = isinstance(self.encoder, NamesFeatures)
        inner = list(self.encoder.feature_names) if named else [str(index) for index in range(self.encoder.dim)]
        layers = list(self.encoder.layers) if isinstance(self.encoder, HasLayers) else []
        if self.dim == self.encoder.dim * len(layers):
            return [f"layer {layer}/{name}" for layer in layers for name in inner]
        if layers:
            return [f"layers {', '.join(map(str, layers))}/{number}" for number in range(self.dim)]
        return inner if "/" in inner[0] else [f"features/{name}" for name in inner]

    @property
    def layer_weights(self) -> dict[int, Tensor]:
        """Layer number -> its weight, a scalar ``()``; empty for a layer mix without weights."""
        if not isinstance(self.layer_mix, WeighsLayers):
            return {}
        return dict(zip(self.encoder.layers, self.layer_mix.weights.detach(), strict=True))

    def forward(self, features: Tensor, mask: Tensor, speaker: Tensor | None = None) -> EncodedModality:
        if features.ndim == 2:  # waveforms or token ids, not precomputed
            features, mask = self.encoder.precompute(features, mask)
        features, mask = self.encoder(features, mask)
        if self.speaker_norm is not None:
            features = self.speaker_norm(features, mask, speaker)
        gated = self.gate(self.layer_mix(features), mask)
        return EncodedModality(gated.features, mask, gated.gate, gated.penalty)
