"""What training never changes, computed once: the frozen half of an encoder, cached on disk by content."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import RunningStage
from pytorch_lightning.utilities.seed import isolate_rng
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from mmemo.audio.reader import read_audio
from mmemo.data.audio_facts import audio_facts
from mmemo.data.augmentation import Soundalikes, WaveformAugmentation, WordAugmentation
from mmemo.data.datamodule import EmotionDataModule, Source, Sources
from mmemo.data.manifest import Utterance
from mmemo.files import replacing
from mmemo.models.emotion_model import EmotionModel
from mmemo.settings import SAMPLE_RATE, cache_folder

BATCH_SECONDS = 30.0  # audio encoded at once; bounds memory
BATCH_CHARACTERS = 4000  # likewise for text
FINGERPRINT_FILE = "fingerprint.txt"
MODALITIES = ("audio", "descriptors", "text")


class FeatureCache:
    """Features on disk, one file per content, in half precision; read by memory map.

    Files appear whole or not at all, so any number of processes may share a cache and any may be killed.

    Args:
        fingerprint: What the features depend on besides the content: model, layers, options.
        root: Folder of all feature caches; ``features`` in ``MMEMO_CACHE`` when not given.
    """

    def __init__(self, fingerprint: str, root: Path | None = None) -> None:
        self.folder = (root or features_root()) / sha256(fingerprint.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / FINGERPRINT_FILE
        if not note.exists():
            note.write_text(fingerprint)

    def path(self, content: str) -> Path:
        """Where the features of a content are, or would be."""
        return self.folder / content[:2] / f"{content}.npy"

    def __contains__(self, content: str) -> bool:
        return self.path(content).exists()

    def read(self, content: str) -> np.ndarray:
        """Features ``(layer, time, dim)``, memory-mapped; writing to them changes nothing on disk."""
        return np.load(self.path(content), mmap_mode="c")

    def write(self, content: str, features: np.ndarray) -> None:
        """Stores features ``(layer, time, dim)``; in single precision where half overflows."""
        path = self.path(content)
        with np.errstate(over="ignore"):
            half = features.astype(np.float16)
        with replacing(path) as partial:
            np.save(partial, half if np.isfinite(half).all() else features.astype(np.float32))


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Size of one feature cache on disk.

    Args:
        name: Its folder.
        fingerprint: What the features depend on.
        num_files: Contents stored.
        num_bytes: Bytes on disk.
    """

    name: str
    fingerprint: str
    num_files: int
    num_bytes: int


def features_root() -> Path:
    """Folder of all feature caches."""
    return cache_folder() / "features"


def cache_sizes(root: Path | None = None) -> list[CacheSize]:
    """Size of each feature cache, largest first."""
    sizes = []
    for folder in sorted((root or features_root()).glob("*/")):
        files = [path.stat().st_size for path in folder.glob("*/*.npy")]
        note = folder / FINGERPRINT_FILE
        sizes.append(CacheSize(folder.name, note.read_text() if note.exists() else "", len(files), sum(files)))
    return sorted(sizes, key=lambda size: -size.num_bytes)


def clear_cache(name: str | None = None, root: Path | None = None) -> int:
    """Deletes one feature cache, or all.

    Args:
        name: Its folder name; all when not given.
        root: Folder of all feature caches.

    Returns:
        Bytes freed.

    Raises:
        ValueError: There is no cache of that name.
    """
    sizes = [size for size in cache_sizes(root) if name in (None, size.name)]
    if name is not None and not sizes:
        raise ValueError(f"no feature cache {name!r} in {root or features_root()}; `mmemo cache` lists them")
    for size in sizes:
        shutil.rmtree((root or features_root()) / size.name)
    return sum(size.num_bytes for size in sizes)


@dataclass(frozen=True)
class CachedFeatures:
    """A source that reads precomputed features.

    Args:
        cache: Where they are.
        views: For each view, the content of each row of the manifest; empty where the modality is missing, or where
            that view of the row was not made.
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
    """A source that reads waveforms, for encoders that run inside the training graph.

    Args:
        utterances: Rows of the manifest.
        contents: Checksum of each row's audio; empty where there is none.
        augmentation: Changes every view but the first.
        redraw: Whether a view is a new change each time, as in training; else it is always the same.
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
class Words:
    """What is heard of each utterance: its transcript, or views of it with other mistakes.

    Args:
        texts: Transcript of each row of the manifest.
        names: Id of each row.
        augmentation: Changes every view but the first.
        soundalikes: What it mistakes words for.
    """

    texts: Sequence[str]
    names: Sequence[str]
    augmentation: WordAugmentation | None = None
    soundalikes: Soundalikes | None = None

    def __call__(self, row: int, view: int) -> str:
        text = self.texts[row]
        if self.augmentation is None or self.soundalikes is None:
            return text
        return self.augmentation(text, self.names[row], view, self.soundalikes)


@dataclass(frozen=True)
class TokenIds:
    """A source that tokenises transcripts, for encoders that run inside the training graph.

    Args:
        tokenize: Text -> token ids ``(token,)``.
        words: Transcript of each row of the manifest, as each view hears it.
        redraw: Whether a view is a new change each time, as in training.
    """

    tokenize: Callable[[str], Tensor]
    words: Words
    redraw: bool = False

    def __call__(self, row: int, view: int) -> Tensor:
        if view and self.redraw:
            view = int(torch.randint(1, 2**31 - 1, ()))
        return self.tokenize(self.words(row, view))


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


def attach_sources(
    datamodule: EmotionDataModule,
    model: EmotionModel,
    trainer: Trainer,
    cached: Collection[str] = MODALITIES,
    redraw: bool | None = None,
) -> None:
    """Gives the data module what the model's encoders start from: cached features, or raw input.

    Under several processes each computes its share of the missing features; the processes of several machines
    need one ``MMEMO_CACHE`` that all of them see.

    Args:
        datamodule: After its ``setup``.
        model: Whose encoders are meant.
        trainer: Knows device and processes.
        cached: Modalities for which the frozen half of the encoder is read from the cache; for the others it runs in
            every step.
        redraw: Whether views that are not cached are new ones each time; in training when not given.
    """
    redraw = trainer.state.fn == "fit" if redraw is None else redraw
    with isolate_rng():  # a run must not depend on whether its features were cached already
        _attach_sources(datamodule, model, trainer, cached, redraw)


def _attach_sources(
    datamodule: EmotionDataModule, model: EmotionModel, trainer: Trainer, cached: Collection[str], redraw: bool
) -> None:
    def precompute_cache(encoder: Any) -> FeatureCache:
        exact = str(trainer.precision) in ("32-true", "32")
        return FeatureCache(encoder.fingerprint() + ("" if exact else f":{trainer.precision}"))

    listeners = {name: model.encoder(name) for name in ("audio", "descriptors") if model.encoder(name) is not None}
    sources: dict[str, Source] = {}
    share = slice(trainer.global_rank, None, trainer.world_size)
    if listeners:
        utterances = list(datamodule.manifest)
        if trainer.world_size > 1:  # each looks at its share of the recordings; then all is remembered
            audio_facts(utterances[share], progress=trainer.is_global_zero)
            trainer.strategy.barrier("all audio has been looked at")
        contents = datamodule.inspect_audio(progress=trainer.is_global_zero)
        changed = {
            RunningStage.TRAINING: (datamodule.num_views, datamodule.split.train),
            RunningStage.SANITY_CHECKING: (datamodule.num_views, datamodule.split.train),
            RunningStage.TESTING: (datamodule.test_views, datamodule.split.test),
            RunningStage.PREDICTING: (datamodule.test_views, datamodule.predicted_rows),
        }
        num_views, rows = changed.get(cast(RunningStage, trainer.state.stage), (1, datamodule.split.val))
        views = _views(contents, datamodule.augmentation, num_views, set(rows.tolist()))
        for name, encoder in listeners.items():
            if name not in cached or not encoder.caches:
                sources[name] = Waveforms(utterances, contents, datamodule.augmentation, redraw)
                continue
            cache = precompute_cache(encoder)
            jobs = {
                key: Clip(utterance, view, content)
                for view, keys in enumerate(views)
                for key, utterance, content in zip(keys, utterances, contents, strict=True)
                if key
            }
            mine = dict(list(jobs.items())[share])
            device = trainer.strategy.root_device
            with trainer.precision_plugin.forward_context():  # what a step without a cache would compute
                cache_audio(encoder, mine, cache, device, trainer.is_global_zero, datamodule.augmentation)
            sources[name] = CachedFeatures(cache, views, empty_features(encoder, cache, jobs))
    reader = model.encoder("text")
    if reader is not None:
        fitting = trainer.state.stage in (RunningStage.TRAINING, RunningStage.SANITY_CHECKING)
        words = words_of(datamodule, changed=fitting)
        if "text" not in cached or not reader.caches:
            sources["text"] = TokenIds(reader.tokenize, words, redraw)
        else:
            cache = precompute_cache(reader)
            texts = [[words(row, 0) for row in range(len(datamodule.manifest))]]
            if words.augmentation is not None:
                train = set(datamodule.split.train.tolist())
                texts += [
                    [words(row, view) if row in train else "" for row in range(len(datamodule.manifest))]
                    for view in range(1, datamodule.num_views)
                ]
            keys = [[text_content(text) for text in heard] for heard in texts]
            unique = {text_content(text): text for heard in texts for text in heard if text}
            device = trainer.strategy.root_device
            with trainer.precision_plugin.forward_context():
                cache_text(reader, dict(list(unique.items())[share]), cache, device, trainer.is_global_zero)
            trainer.strategy.barrier("texts are cached")
            sources["text"] = CachedFeatures(cache, keys, empty_features(reader, cache, unique))
    trainer.strategy.barrier("all features are cached")
    datamodule.attach(Sources(**sources))


def words_of(datamodule: EmotionDataModule, changed: bool) -> Words:
    """The transcripts of a table.

    Args:
        datamodule: After its ``setup``.
        changed: Whether views but the first are changed by its ``word_augmentation``.
    """
    texts = datamodule.manifest.frame["text"].fillna("").str.strip().tolist()
    names = datamodule.manifest.frame["id"].tolist()
    if not changed or datamodule.word_augmentation is None:
        return Words(texts, names)
    return Words(texts, names, datamodule.word_augmentation, datamodule.soundalikes(fitting=True))


def empty_features(encoder: Any, cache: FeatureCache, keys: Iterable[str]) -> Tensor:
    """Features of a missing modality ``(layer, 0, dim)``, shaped as those that are there.

    Args:
        encoder: Whose features are meant.
        cache: Where they are.
        keys: Contents; the first that is cached says the shape.
    """
    for key in keys:
        if key in cache:
            num_layers, _, dim = cache.read(key).shape
            return torch.zeros(num_layers, 0, dim)
    return torch.zeros(encoder.num_layers, 0, encoder.dim)


def _views(
    contents: Sequence[str], augmentation: WaveformAugmentation | None, num_views: int, rows: set[int]
) -> list[list[str]]:
    """For each view, the cache key of each row; views but the first are made of some rows alone."""
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
    """Key of a transcript; empty for an empty one."""
    return sha256(text.encode()).hexdigest()[:40] if text else ""


def cache_audio(
    encoder: Any,
    clips: Mapping[str, Clip],
    cache: FeatureCache,
    device: torch.device | str = "cpu",
    progress: bool = True,
    augmentation: WaveformAugmentation | None = None,
) -> int:
    """Computes the audio features that the cache lacks.

    Args:
        encoder: An audio encoder; its ``precompute`` is what gets cached.
        clips: Cache key -> what it is the key of.
        cache: Where features go.
        device: Where the encoder runs.
        progress: Whether to draw a progress bar.
        augmentation: Makes the views.

    Returns:
        How many were computed.
    """
    missing = [content for content in clips if content not in cache]
    with ThreadPoolExecutor(2) as threads:
        reading: list[tuple[str, Future[Tensor]]] = []
        ahead = iter(missing)

        def waveforms() -> Iterator[tuple[str, Tensor, float]]:
            """Reads a few files ahead of the encoder."""
            for content in ahead:
                reading.append((content, threads.submit(_waveform, clips[content], augmentation)))
                if len(reading) > 8:
                    yield _finished(reading.pop(0))
            while reading:
                yield _finished(reading.pop(0))

        _precompute(encoder, waveforms(), BATCH_SECONDS, cache, device, len(missing), "Audio features", progress)
    return len(missing)


def cache_text(
    encoder: Any,
    texts: dict[str, str],
    cache: FeatureCache,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> int:
    """Computes the text features that the cache lacks.

    Args:
        encoder: A text encoder.
        texts: Content key -> transcript.
        cache: Where features go.
        device: Where the encoder runs.
        progress: Whether to draw a progress bar.

    Returns:
        How many were computed.
    """
    missing = sorted((content for content in texts if content not in cache), key=lambda name: len(texts[name]))
    inputs = ((name, encoder.tokenize(texts[name]), float(len(texts[name]))) for name in missing)
    _precompute(encoder, inputs, BATCH_CHARACTERS, cache, device, len(missing), "Text features", progress)
    return len(missing)


def _finished(job: tuple[str, Future[Tensor]]) -> tuple[str, Tensor, float]:
    content, future = job
    waveform = future.result()
    return content, waveform, len(waveform) / SAMPLE_RATE


def _precompute(
    encoder: Any,
    inputs: Iterable[tuple[str, Tensor, float]],
    max_cost: float,
    cache: FeatureCache,
    device: torch.device | str,
    total: int,
    name: str,
    progress: bool,
) -> None:
    """Encodes inputs (content, tensor, cost) in batches whose padded cost stays under ``max_cost``."""
    was_training = encoder.training
    encoder.eval().to(device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress or total == 0) as bar, torch.inference_mode():
        task = bar.add_task(name, total=total)
        batch: list[tuple[str, Tensor]] = []
        longest = 0.0
        for content, tensor, cost in inputs:
            longest = max(longest, cost)
            if batch and longest * (len(batch) + 1) > max_cost:
                _encode(encoder, batch, cache, device)
                bar.advance(task, len(batch))
                batch, longest = [], cost
            batch.append((content, tensor))
        if batch:
            _encode(encoder, batch, cache, device)
            bar.advance(task, len(batch))
    encoder.train(was_training)


def _encode(encoder: Any, batch: Sequence[tuple[str, Tensor]], cache: FeatureCache, device: torch.device | str) -> None:
    lengths = torch.tensor([len(tensor) for _, tensor in batch])
    padded = nn.utils.rnn.pad_sequence([tensor for _, tensor in batch], batch_first=True)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    features, feature_mask = encoder.precompute(padded.to(device), mask.to(device))
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
