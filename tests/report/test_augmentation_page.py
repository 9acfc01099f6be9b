from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
import soundfile
import yaml

from mmemo.cli.app import main
from mmemo.settings import SAMPLE_RATE
from tests.conftest import tone


def test_the_page_shows_and_plays_each_augmentation(tmp_path: Path, tiny_config: Path) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, tone(1.0).numpy(), SAMPLE_RATE)
    config = yaml.safe_load(tiny_config.read_text())
    config["data"]["augmentation"] = "mmemo.data.WaveformAugmentation"
    config["data"]["word_augmentation"] = "mmemo.data.WordAugmentation"
    tiny_config.write_text(yaml.safe_dump(config))
    out = tmp_path / "page.html"
    options = ["--config", str(tiny_config), "--num_views", "2", "--background", str(tmp_path), "--text", "a <b> c"]
    assert main(["augment", str(clip), "--out", str(out), *options]) == 0
    page = out.read_text()
    for name in ("As recorded", "View 2 of the config", "Telephone", "Background", "VocalTract", "FrequencyMask"):
        assert f"<b>{name}</b>" in page
    assert "a &lt;b&gt; c" in page
    assert not re.findall(r"(?:src|href)='(?!data:)", page), "loads nothing from elsewhere"
    sounds = re.findall(r"data:audio/flac;base64,([^']+)'", page)
    assert len(sounds) == page.count("<figure>") == page.count("data:image/png") == 21
    waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0])))
    assert (len(waveform), rate) == (SAMPLE_RATE, SAMPLE_RATE)


def test_wrong_options_are_reported(tmp_path: Path, tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "clip.wav"
    assert main(["augment", str(clip)]) == 1
    assert "clip.wav" in capsys.readouterr().err
    soundfile.write(clip, tone(0.5).numpy(), SAMPLE_RATE)
    out = ["--out", str(tmp_path / "page.html")]
    for options, message in (
        (["--config", str(tiny_config)], "no data.augmentation and no data.word_augmentation"),
        (["--rooms", str(tmp_path / "none")], "no audio there"),
        (["--num_views", "0"], "expected 1 or more"),
    ):
        assert main(["augment", str(clip), *out, *options]) == 1
        assert message in capsys.readouterr().err
