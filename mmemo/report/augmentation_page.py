"""A page that shows what augmentation does to one clip: a spectrogram and a player for each effect."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import numpy as np

from mmemo.audio import effects
from mmemo.audio.effects import Effect, described
from mmemo.audio.reader import read_audio
from mmemo.data.augmentation import Soundalikes, WordAugmentation, drawing
from mmemo.files import replacing
from mmemo.settings import SAMPLE_RATE

_STYLE = """
body { font: 15px system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222 }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1.2em }
figure { margin: 0; border: 1px solid #ddd; border-radius: 6px; padding: .7em }
img { width: 100% } audio { width: 100%; height: 32px } code { font-size: 12px; color: #666; overflow-wrap: anywhere }
"""


def shown_effects(background: str | None = None, rooms: str | None = None) -> list[Effect]:
    """One of each effect, strong enough to be heard.

    Args:
        background: Folder of background noises; left out when not given.
        rooms: Folder of room impulse responses; left out when not given.
    """
    found: list[Effect] = [
        effects.Noise("white", 10, 10), effects.Noise("pink", 10, 10), effects.Noise("brown", 10, 10),
        effects.Reverb(0.6, 0.6), effects.PitchShift(), effects.TimeStretch(), effects.TimeShift(), effects.Gain(),
        effects.Equaliser(), effects.VocalTract(), effects.Reverse(), effects.Clipping(), effects.Telephone(),
        effects.MuLaw(6), effects.Mp3(16, 16), effects.TimeMask(0.3), effects.FrequencyMask(30),
    ]  # fmt: skip
    if background is not None:
        found.append(effects.Background(background, 10, 10))
    if rooms is not None:
        found.append(effects.RoomResponse(rooms))
    return found


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
        config: YAML of an experiment, whose own views come first; none when not given.
        num_views: How many of them.
        background: Folder of background noises; not shown when not given.
        rooms: Folder of room impulse responses; not shown when not given.
        text: The clip's words, shown as the config's word augmentation (the usual one without a config) mishears them;
            not shown when not given.

    Returns:
        How many versions of the clip are on it.

    Raises:
        AudioError: The clip cannot be read.
        ValueError: The config has no augmentation, or a folder no audio.
    """
    waveform = read_audio(audio)
    versions: list[tuple[str, str, np.ndarray]] = [("As recorded", "", waveform)]
    lines: list[str] = []
    mishears: WordAugmentation | None = None
    if config is not None:
        from mmemo.training.experiment import Experiment

        data = Experiment(["--config", str(config)], run=False).datamodule
        if data.augmentation is None and data.word_augmentation is None:
            raise ValueError(f"{config}: has no data.augmentation and no data.word_augmentation to show")
        if data.augmentation is not None:
            for view in range(1, num_views + 1):
                changed, used = data.augmentation.traced(waveform, audio.name, view)
                chain = ", ".join(_settings(one) for one in used) or "no effect was drawn"
                versions.append((f"View {view} of the config", chain, changed))
        mishears = data.word_augmentation
    if text:
        mishears = mishears or WordAugmentation()
        alike = Soundalikes([text])
        lines = [mishears(text, audio.name, view, alike) or "(no words at all)" for view in range(1, 6)]
    for effect in shown_effects(background, rooms):
        title = f"{type(effect).__name__} {getattr(effect, 'colour', '')}".strip()
        versions.append((title, _settings(effect), effect.change(waveform, drawing(0, audio.name, 1))))
    body = "".join(_figure(*version) for version in versions)
    words = ""
    if text:
        misheard = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        words = f"<h2>Words</h2><p>{html.escape(text)}</p><ul>{misheard}</ul>"
    title = f"Augmentations of {html.escape(audio.name)}"
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title>"
        f"<style>{_STYLE}</style><h1>{title}</h1>{words}"
        f"<div class='grid'>{body}</div></html>"
    )
    with replacing(out) as partial:
        partial.write_text(page)
    return len(versions)


def _settings(effect: Effect) -> str:
    """An effect's settings; not its chance, which has been drawn, and not every file of a folder."""
    return re.sub(r"(, )?(chance=[\d.]+|files=\[[^]]*\])", "", described(effect))


def _figure(title: str, settings: str, waveform: np.ndarray) -> str:
    import soundfile

    sound = io.BytesIO()
    soundfile.write(sound, np.clip(waveform, -1, 1), SAMPLE_RATE, format="FLAC")
    return (
        f"<figure><b>{html.escape(title)}</b><img alt='spectrogram: {html.escape(title)}' "
        f"src='data:image/png;base64,{_encoded(_spectrogram(waveform))}'>"
        f"<audio controls preload='none' src='data:audio/flac;base64,{_encoded(sound.getvalue())}'></audio>"
        f"<code>{html.escape(settings)}</code></figure>"
    )


def _encoded(data: bytes) -> str:
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
