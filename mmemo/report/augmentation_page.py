"""A page on which each augmentation of a clip can be seen and heard: a spectrogram and a player for each effect."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import numpy as np

from mmemo.audio import effects
from mmemo.audio.effects import Effect, describe_effect
from mmemo.audio.reader import read_audio
from mmemo.data.augmentation import Soundalikes, WordAugmentation, view_generator
from mmemo.files import replacing
from mmemo.settings import SAMPLE_RATE

_STYLE = """
body { font: 15px system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222 }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1.2em }
figure { margin: 0; border: 1px solid #ddd; border-radius: 6px; padding: .7em }
img { width: 100% } audio { width: 100%; height: 32px } code { font-size: 12px; color: #666; overflow-wrap: anywhere }
"""


def example_effects(background: str | None = None, rooms: str | None = None) -> list[Effect]:
    """One of each effect, strong enough to be audible.

    Args:
        background: Folder of background noises. Defaults to none, without their effect.
        rooms: Folder of room impulse responses. Defaults to none, without their effect.
    """
    examples: list[Effect] = [
        effects.Noise("white", 10, 10), effects.Noise("pink", 10, 10), effects.Noise("brown", 10, 10),
        effects.Reverb(0.6, 0.6), effects.PitchShift(), effects.TimeStretch(), effects.TimeShift(), effects.Gain(),
        effects.Equaliser(), effects.VocalTract(), effects.Reverse(), effects.Clipping(), effects.Telephone(),
        effects.MuLaw(6), effects.Mp3(16, 16), effects.TimeMask(0.3), effects.FrequencyMask(30),
    ]  # fmt: skip
    if background is not None:
        examples.append(effects.Background(background, 10, 10))
    if rooms is not None:
        examples.append(effects.RoomResponse(rooms))
    return examples


def write_page(
    audio: Path,
    out: Path,
    config: Path | None = None,
    num_views: int = 3,
    background: str | None = None,
    rooms: str | None = None,
    text: str | None = None,
) -> int:
    """Writes the page.

    Args:
        audio: The clip.
        out: Page to write.
        config: YAML of an experiment; views from its augmentation come first. Defaults to none.
        num_views: Number of these views.
        background: Folder of background noises. Defaults to none.
        rooms: Folder of room impulse responses. Defaults to none.
        text: Transcript of the clip, shown with the recognition errors of the config's word augmentation, or of the
            default one. Defaults to none.

    Returns:
        Number of versions of the clip on the page.

    Raises:
        AudioError: The clip cannot be read.
        ValueError: The config has no augmentation, or a folder contains no audio.
    """
    waveform = read_audio(audio)
    versions: list[tuple[str, str, np.ndarray]] = [("As recorded", "", waveform)]
    word_augmentation: WordAugmentation | None = None
    if config is not None:
        from mmemo.training.experiment_cli import read_experiment

        data = read_experiment(config).data
        if data.augmentation is None and data.word_augmentation is None:
            raise ValueError(f"{config}: has no data.augmentation and no data.word_augmentation")
        if data.augmentation is not None:
            for view in range(1, num_views + 1):
                changed, used = data.augmentation.trace(waveform, audio.name, view)
                chain = ", ".join(map(_settings, used)) or "no effect was drawn"
                versions.append((f"View {view} of the config", chain, changed))
        word_augmentation = data.word_augmentation
    for effect in example_effects(background, rooms):
        title = f"{type(effect).__name__} {getattr(effect, 'colour', '')}".strip()
        versions.append((title, _settings(effect), effect.apply(waveform, view_generator(0, audio.name, 1))))
    body = "".join(_figure(*version) for version in versions)
    words = _words(text, audio.name, word_augmentation or WordAugmentation()) if text else ""
    title = f"Augmentations of {html.escape(audio.name)}"
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title>"
        f"<style>{_STYLE}</style><h1>{title}</h1>{words}"
        f"<div class='grid'>{body}</div></html>"
    )
    with replacing(out) as partial:
        partial.write_text(page)
    return len(versions)


def _words(text: str, clip: str, augmentation: WordAugmentation) -> str:
    """The transcript and five augmented versions of it."""
    soundalikes = Soundalikes([text])
    lines = [augmentation(text, clip, view, soundalikes) or "(no words)" for view in range(1, 6)]
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<h2>Words</h2><p>{html.escape(text)}</p><ul>{items}</ul>"


def _settings(effect: Effect) -> str:
    """An effect's settings, without its probability and without the list of files in a folder."""
    return re.sub(r"(, )?(chance=[\d.]+|files=\[[^]]*\])", "", describe_effect(effect))


def _figure(title: str, settings: str, waveform: np.ndarray) -> str:
    import soundfile

    sound = io.BytesIO()
    soundfile.write(sound, np.clip(waveform, -1, 1), SAMPLE_RATE, format="FLAC")
    return (
        f"<figure><b>{html.escape(title)}</b><img alt='spectrogram: {html.escape(title)}' "
        f"src='data:image/png;base64,{_base64(_spectrogram(waveform))}'>"
        f"<audio controls preload='none' src='data:audio/flac;base64,{_base64(sound.getvalue())}'></audio>"
        f"<code>{html.escape(settings)}</code></figure>"
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _spectrogram(waveform: np.ndarray) -> bytes:
    import librosa
    from matplotlib.figure import Figure

    power = librosa.feature.melspectrogram(y=waveform, sr=SAMPLE_RATE, n_fft=512, hop_length=160, n_mels=80)
    figure = Figure(figsize=(4.2, 1.9), layout="constrained")
    axes = figure.subplots()
    decibels = librosa.power_to_db(power, ref=1.0, top_db=80)
    axes.imshow(decibels, origin="lower", aspect="auto", extent=(0, len(waveform) / SAMPLE_RATE, 0, 80), cmap="magma")
    axes.set_xlabel("seconds", fontsize=7)
    axes.set_ylabel("mel band", fontsize=7)
    axes.tick_params(labelsize=7)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    return picture.getvalue()
