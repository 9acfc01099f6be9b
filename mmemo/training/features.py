"""Features of frozen blocks, computed once and cached on disk by content."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple, cast

import numpy as np
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import RunningStage
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from mmemo.audio.reader import read_audio
from mmemo.data.augmentation import Soundalikes, WaveformAugmentation, WordAugmentation
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.dataset import Source, Sources
from mmemo.data.manifest import Utterance
from mmemo.models.emotion_model import EmotionModel
from mmemo.models.encoder import Encoder, TextEncoder
from mmemo.progress import progress as show_progress
from mmemo.settings import SAMPLE_RATE
from mmemo.training.feature_cache import FeatureCache

BATCH_SECONDS = 30.0  # audio encoded at once; bounds memory
BATCH_CHARACTERS = 4000  # likewise for text
MODALITIES = ("audio", "descriptors", "text")


@dataclass(frozen=True)
class CachedFeatures:
    """A source that reads precomputed features.

    Args:
        cache: Cache that holds them.
        views: For each view, the content of each row of the manifest; empty if the row lacks the modality or that
            view.
        empty: Features of a missing modality ``(layer, 0, dim)``.
    """

    cache: FeatureCache
    views: Sequence[Sequence[str]]
    empty: Tensor

    def __call__(self, row: int, view: int) -> Tensor:
        content = self.views[view % len(self.views)][row]
        return torch.from_numpy(self.cache.read(content)) if content else self.empty


@dataclass(frozen=True)
class Waveforms:
    """A source of waveforms, for encoders that run in every step.

    Args:
        utterances: Rows of the manifest.
        contents: Checksum of each row's audio; empty without audio.
        augmentation: Changes every view but the first.
        redraw: Whether an augmented view is drawn anew each time, as in training.

    Shape:
        row, view -> waveform ``(samples,)`` float32 at 16 kHz; no samples without audio
    """

    utterances: Sequence[Utterance]
    contents: Sequence[str]
    augmentation: WaveformAugmentation | None = None
    redraw: bool = False

    def __call__(self, row: int, view: int) -> Tensor:
        if not self.contents[row]:
            return torch.zeros(0)
        if view and self.redraw:
            view = int(torch.randint(1, 2**31 - 1, ()))
        return _waveform(Clip(self.utterances[row], view, self.contents[row]), self.augmentation)


@dataclass(frozen=True)
class Transcripts:
    """The transcript of each utterance, or an augmented view of it with recognition errors.

    Args:
        texts: Transcript of each row of the manifest.
        ids: Id of each row.
        augmentation: Changes every view but the first.
        soundalikes: Vocabulary of misheard words.
    """

    texts: Sequence[str]
    ids: Sequence[str]
    augmentation: WordAugmentation | None = None
    soundalikes: Soundalikes | None = None

    def __call__(self, row: int, view: int) -> str:
        text = self.texts[row]
        if self.augmentation is None or self.soundalikes is None:
            return text
        return self.augmentation(text, self.ids[row], view, self.soundalikes)


@dataclass(frozen=True)
class TokenIds:
    """A source of token ids, for encoders that run in every step.

    Args:
        tokenize: Text -> token ids ``(token,)``.
        transcripts: Transcript of each row, for each view.
        redraw: Whether an augmented view is drawn anew each time, as in training.
    """

    tokenize: Callable[[str], Tensor]
    transcripts: Transcripts
    redraw: bool = False

    def __call__(self, row: int, view: int) -> Tensor:
        if view and self.redraw:
            view = int(torch.randint(1, 2**31 - 1, ()))
        return self.tokenize(self.transcripts(row, view))


class Clip(NamedTuple):
    """One view of an utterance's audio.

    Args:
        utterance: Row of the manifest.
        view: 0 is the audio itself.
        content: Checksum of the audio.
    """

    utterance: Utterance
    view: int = 0
    content: str = ""


class FeatureJob(NamedTuple):
    """Where and by which processes features are computed.

    Args:
        trainer: Lightning trainer: device, precision and processes.
        redraw: Whether an augmented view that is not cached is drawn anew each time, as in training.
    """

    trainer: Trainer
    redraw: bool

    @property
    def share(self) -> slice:
        """Which of the missing features this process computes."""
        return slice(self.trainer.global_rank, None, self.trainer.world_size)

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self.trainer.strategy.root_device

    def cache(self, encoder: Encoder) -> FeatureCache:
        """Returns the cache of an encoder at the trainer's precision."""
        is_exact = str(self.trainer.precision) in ("32-true", "32")
        return FeatureCache(encoder.fingerprint() + ("" if is_exact else f":{self.trainer.precision}"))


def attach_sources(
    datamodule: EmotionDataModule,
    model: EmotionModel,
    trainer: Trainer,
    cached: Collection[str] = MODALITIES,
    redraw: bool | None = None,
) -> None:
    """Gives the data module what the model's encoders start from: cached features, or raw input.

    Under several processes, each computes its share of the missing features. Processes on several machines need one
    ``MMEMO_CACHE`` that all of them see.

    Args:
        datamodule: After its ``setup``.
        model: Model that the data is for.
        trainer: Lightning trainer: device, precision and processes.
        cached: Modalities whose frozen blocks are read from the cache; for the others they run in every step.
        redraw: Whether augmented views that are not cached are drawn anew each time. Defaults to True in training.
    """
    job = FeatureJob(trainer, trainer.state.fn == "fit" if redraw is None else redraw)
    sources: dict[str, Source] = {}
    with isolate_rng():  # a run must not depend on whether its features were cached before
        for name in ("audio", "descriptors"):
            encoder = model.encoder(name)
            if encoder is not None:
                sources[name] = _audio_source(datamodule, encoder, job, name in cached and encoder.caches)
        encoder = model.encoder("text")
        if encoder is not None:
            sources["text"] = _text_source(datamodule, encoder, job, "text" in cached and encoder.caches)
        trainer.strategy.barrier("all features are cached")
    datamodule.attach(Sources(**sources))


def _audio_source(datamodule: EmotionDataModule, encoder: Encoder, job: FeatureJob, from_cache: bool) -> Source:
    table = datamodule.table
    utterances, contents = list(table.manifest), table.contents
    if not from_cache:
        return Waveforms(utterances, contents, datamodule.augmentation, job.redraw)
    num_views, rows = _views_needed(datamodule, job.trainer)
    views = _view_keys(contents, datamodule.augmentation, num_views, set(rows.tolist()))
    clips = {
        key: Clip(utterance, view, content)
        for view, keys in enumerate(views)
        for key, utterance, content in zip(keys, utterances, contents, strict=True)
        if key
    }
    cache = job.cache(encoder)
    share = dict(list(clips.items())[job.share])
    with job.trainer.precision_plugin.forward_context():  # the same precision as a step without a cache
        cache_audio(encoder, share, cache, job.device, job.trainer.is_global_zero, datamodule.augmentation)
    return CachedFeatures(cache, views, empty_features(encoder, cache, clips))


def _views_needed(datamodule: EmotionDataModule, trainer: Trainer) -> tuple[int, np.ndarray]:
    """Returns how many views are needed, and of which rows; other rows need only themselves."""
    split = datamodule.table.split
    stage = trainer.state.stage
    if stage in (RunningStage.TRAINING, RunningStage.SANITY_CHECKING):
        return datamodule.num_views, split.train
    if stage == RunningStage.TESTING:
        return datamodule.test_views, split.test
    if stage == RunningStage.PREDICTING:
        return datamodule.test_views, datamodule.predicted_rows
    return 1, split.val


def _text_source(datamodule: EmotionDataModule, encoder: TextEncoder, job: FeatureJob, from_cache: bool) -> Source:
    fitting = job.trainer.state.stage in (RunningStage.TRAINING, RunningStage.SANITY_CHECKING)
    transcripts = transcripts_of(datamodule, augmented=fitting)
    if not from_cache:
        return TokenIds(encoder.tokenize, transcripts, job.redraw)
    rows = range(len(datamodule.table.manifest))
    views = [[transcripts(row, 0) for row in rows]]
    if transcripts.augmentation is not None:
        train = set(datamodule.table.split.train.tolist())
        for view in range(1, datamodule.num_views):
            views.append([transcripts(row, view) if row in train else "" for row in rows])
    keys = [[text_content(text) for text in texts] for texts in views]
    unique = {text_content(text): text for texts in views for text in texts if text}
    cache = job.cache(encoder)
    share = dict(list(unique.items())[job.share])
    with job.trainer.precision_plugin.forward_context():
        cache_text(encoder, share, cache, job.device, job.trainer.is_global_zero)
    job.trainer.strategy.barrier("texts are cached")  # before one is read for its shape
    return CachedFeatures(cache, keys, empty_features(encoder, cache, unique))


def transcripts_of(datamodule: EmotionDataModule, augmented: bool) -> Transcripts:
    """Returns the transcripts of a table.

    Args:
        datamodule: After its ``setup``.
        augmented: Whether views other than the first are changed by its ``word_augmentation``.
    """
    table = datamodule.table
    ids = table.manifest.frame["id"].tolist()
    if not augmented or datamodule.word_augmentation is None:
        return Transcripts(table.texts(), ids)
    return Transcripts(table.texts(), ids, datamodule.word_augmentation, table.soundalikes(training_only=True))


def empty_features(encoder: Encoder, cache: FeatureCache, keys: Iterable[str]) -> Tensor:
    """Returns the features of a missing modality ``(layer, 0, dim)``.

    Args:
        encoder: Encoder of the modality.
        cache: Its cache.
        keys: Contents; the first one in the cache gives the shape.
    """
    for key in keys:
        if key in cache:
            num_layers, _, dim = cache.read(key).shape
            return torch.zeros(num_layers, 0, dim)
    return torch.zeros(encoder.num_layers, 0, encoder.dim)


def _view_keys(
    contents: Sequence[str], augmentation: WaveformAugmentation | None, num_views: int, rows: set[int]
) -> list[list[str]]:
    """Returns the cache key of each row for each view; only some rows have augmented views."""
    views = [list(contents)]
    if augmentation is not None and num_views > 1:
        changed = augmentation.fingerprint()
        for view in range(1, num_views):
            keys = [
                sha256(f"{content}:{changed}:{view}".encode()).hexdigest()[:40] if content and row in rows else ""
                for row, content in enumerate(contents)
            ]
            views.append(keys)
    return views


def text_content(text: str) -> str:
    """Returns the cache key of a transcript; empty for an empty one."""
    return sha256(text.encode()).hexdigest()[:40] if text else ""


def cache_audio(
    encoder: Encoder,
    clips: Mapping[str, Clip],
    cache: FeatureCache,
    device: torch.device | str = "cpu",
    progress: bool = True,
    augmentation: WaveformAugmentation | None = None,
) -> int:
    """Computes the audio features that are missing from the cache.

    Args:
        encoder: Audio encoder whose ``precompute`` is cached.
        clips: Cache key -> clip.
        cache: Cache to fill.
        device: Device of the encoder.
        progress: Whether to show a progress bar.
        augmentation: Makes the augmented views.

    Returns:
        Number of computed features.
    """
    missing = [content for content in clips if content not in cache]
    with ThreadPoolExecutor(2) as threads:
        reading: list[tuple[str, Future[Tensor]]] = []
        ahead = iter(missing)

        def waveforms() -> Iterator[tuple[str, Tensor, float]]:
            """Reads a few files ahead of the encoder, in other threads."""
            for content in ahead:
                reading.append((content, threads.submit(_waveform, clips[content], augmentation)))
                if len(reading) > 8:
                    yield _finished(reading.pop(0))
            while reading:
                yield _finished(reading.pop(0))

        _precompute(
            cast(nn.Module, encoder),
            waveforms(),
            BATCH_SECONDS,
            cache,
            device,
            len(missing),
            "Audio features",
            progress,
        )
    return len(missing)


def cache_text(
    encoder: TextEncoder,
    texts: dict[str, str],
    cache: FeatureCache,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> int:
    """Computes the text features that are missing from the cache.

    Args:
        encoder: Text encoder whose ``precompute`` is cached.
        texts: Cache key -> transcript.
        cache: Cache to fill.
        device: Device of the encoder.
        progress: Whether to show a progress bar.

    Returns:
        Number of computed features.
    """
    missing = sorted((content for content in texts if content not in cache), key=lambda name: len(texts[name]))
    inputs = ((name, encoder.tokenize(texts[name]), float(len(texts[name]))) for name in missing)
    _precompute(
        cast(nn.Module, encoder), inputs, BATCH_CHARACTERS, cache, device, len(missing), "Text features", progress
    )
    return len(missing)


def _finished(job: tuple[str, Future[Tensor]]) -> tuple[str, Tensor, float]:
    content, future = job
    waveform = future.result()
    return content, waveform, len(waveform) / SAMPLE_RATE


def _precompute(
    encoder: nn.Module,
    inputs: Iterable[tuple[str, Tensor, float]],
    max_cost: float,
    cache: FeatureCache,
    device: torch.device | str,
    total: int,
    name: str,
    progress: bool,
) -> None:
    """Encodes inputs (key, tensor, cost) in batches whose padded cost stays below ``max_cost``."""
    was_training = encoder.training
    encoder.eval().to(device)
    with show_progress(name, total, progress) as advance, torch.inference_mode():
        batch: list[tuple[str, Tensor]] = []
        longest = 0.0
        for content, tensor, cost in inputs:
            longest = max(longest, cost)
            if batch and longest * (len(batch) + 1) > max_cost:
                _encode(encoder, batch, cache, device)
                advance(len(batch))
                batch, longest = [], cost
            batch.append((content, tensor))
        if batch:
            _encode(encoder, batch, cache, device)
            advance(len(batch))
    encoder.train(was_training)


def _encode(
    encoder: nn.Module, batch: Sequence[tuple[str, Tensor]], cache: FeatureCache, device: torch.device | str
) -> None:
    lengths = torch.tensor([len(tensor) for _, tensor in batch])
    padded = nn.utils.rnn.pad_sequence([tensor for _, tensor in batch], batch_first=True)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    features, feature_mask = cast(Encoder, encoder).precompute(padded.to(device), mask.to(device))
    for (content, _), states, length in zip(
        batch, features.float().cpu().numpy(), feature_mask.sum(1).tolist(), strict=True
    ):
        cache.write(content, states[:, :length])


def _waveform(clip: Clip, augmentation: WaveformAugmentation | None) -> Tensor:
    utterance = clip.utterance
    assert utterance.path is not None
    waveform = read_audio(utterance.path, utterance.start, utterance.end, utterance.channel)
    if augmentation is not None:
        waveform = augmentation(waveform, clip.content, clip.view)
    return torch.from_numpy(waveform)
