from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from mmemo.cli.main import VERBS, main
from tests.audio.test_reader import BAD, make_bad

ROOT = Path(__file__).parent.parent.parent


def mmemo(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmemo.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


def test_help_answers_in_under_half_a_second() -> None:
    mmemo("--help")  # compiles what is not compiled yet
    started = time.perf_counter()
    result = mmemo("--help")
    assert time.perf_counter() - started < 0.5
    assert all(verb in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = mmemo(verb, "--help")
    assert result.returncode == 0, result.stderr
    assert re.match(rf"usage: mmemo (\[options\] )?{verb}", result.stdout)
    assert "required, type" in result.stdout or "default:" in result.stdout


def test_a_verb_that_is_not_there_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "no verb 'trian', expected one of" in capsys.readouterr().err
    assert main(["analyse", "a.wav"]) == 2
    assert "no verb 'analyse', did you mean analyze?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["check", "gone.csv"], "mmemo check: gone.csv: no such file"),
        (["corpus", "ravdess", "/no/folder"], "mmemo corpus: /no/folder: no such folder"),
        (["corpus", "table", "demo/clips.csv"], "mmemo corpus: `table` needs --columns"),
        (["transcribe", "gone.csv"], "mmemo transcribe: gone.csv: no such file"),
        (["transcribe", "gone.csv", "--language", "klingon"], "Whisper does not know it"),
        (["crossval", "--config", "gone.yaml"], "mmemo crossval: gone.yaml: no such file"),
        (["cache", "--clear", "typo"], "mmemo cache: no feature cache 'typo'"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], complaint: str) -> None:
    result = mmemo(*arguments)
    assert result.returncode == 1
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["robustness", "runs", "--noise_db", "loud"], "noise_db: got loud, expected one of list[float], float; see"),
        (["corpus", "radess", "x", "--out", "y.csv"], "name: got radess, expected one of 'ravdess'"),
        (["analyze", "a.wav", "--foramt", "csv"], "there is no option foramt, did you mean format?"),
        (["analyze", "--separate_chanels", "a.wav"], "there is no option separate_chanels, did you mean"),
        (["compare", "runs/a", "runs/b", "--metrc=uar"], "there is no option metrc, did you mean metric?"),
        (["check"], "the following arguments are required: manifest; see `mmemo check --help`"),
    ],
)
def test_a_wrong_option_of_a_verb_is_one_sentence(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"mmemo {arguments[0]}: {complaint}")


def test_check_lists_every_bad_file_and_fails(tmp_path: Path, tiny_corpus: Path) -> None:
    good = pd.read_csv(tiny_corpus)["path"][0]
    rows = [{"id": "good", "path": tiny_corpus.parent / good, "speaker": "a"}]
    rows += [{"id": kind, "path": make_bad(tmp_path, kind), "speaker": "b"} for kind in BAD]
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    result = mmemo("check", tmp_path / "m.csv", COLUMNS="300")
    assert result.returncode == 1
    assert f"{len(BAD)} broken audio" in result.stdout
    for kind, reason in BAD.items():
        assert any(line.strip().startswith(f"{kind}: ") and reason in line for line in result.stdout.splitlines())
    assert "good: " not in result.stdout
    assert (tmp_path / "m_check.png").stat().st_size > 10_000
    private = mmemo("check", tmp_path / "m.csv", "--private", "true", COLUMNS="300").stdout
    assert f"{len(BAD)} broken audio" in private
    told = [line for line in private.splitlines() if line.strip().startswith(tuple(f"{kind}: " for kind in BAD))]
    assert len(told) == len(BAD)
    assert str(tmp_path) not in "".join(told)


def test_check_finds_leaks(tmp_path: Path, tiny_corpus: Path) -> None:
    frame = pd.read_csv(tiny_corpus)
    frame["path"] = [tiny_corpus.parent / path for path in frame["path"]]
    assert frame["speaker"].iloc[-1] == "s5"
    frame.loc[0, "speaker"] = "s5"
    frame.loc[35, "path"] = frame["path"][1]
    frame.to_csv(tmp_path / "m.csv", index=False)
    result = mmemo("check", tmp_path / "m.csv", COLUMNS="300")
    assert result.returncode == 1
    assert "speaker s5 is in test, train" in result.stdout
    assert "the same audio is in test, train: s0_anger_1, s5_sadness_1" in result.stdout


def test_a_switch_alone_is_switched_on(tiny_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, audited in ((["--leaks"], True), (["--leaks", "on"], True), (["--leaks", "off"], False)):
        assert main(["check", str(tiny_corpus), *arguments]) in (0, 1)  # red flags of a corpus so small are no matter
        assert ("eak audit" in capsys.readouterr().out) == audited
    assert main(["check", "--leaks", str(tiny_corpus)]) in (0, 1)
    assert "eak audit" in capsys.readouterr().out


def test_check_passes_a_good_manifest(tiny_corpus: Path, tmp_path: Path) -> None:
    result = mmemo("check", tiny_corpus, "--picture", tmp_path / "p.png")
    assert result.returncode == 0, result.stdout
    assert "36 utterances, 6 speakers" in result.stdout
    assert (tmp_path / "p.png").exists()


def test_a_corpus_of_ones_own(tmp_path: Path) -> None:
    columns = "{path: file, emotion: label, speaker: voice, split: set}"
    out = tmp_path / "m.csv"
    assert mmemo("corpus", "table", ROOT / "demo/clips.csv", "--columns", columns, "--out", out).returncode == 0
    assert len(pd.read_csv(out)) == 48
    assert (tmp_path / pd.read_csv(out)["path"][0]).exists(), "paths are relative to the manifest"


def test_cache_shows_and_clears(tiny_config: Path, fresh_cache: Path) -> None:
    environment = {"MMEMO_CACHE": str(fresh_cache), "COLUMNS": "200"}
    assert mmemo("fit", "--config", tiny_config, **environment).returncode == 0
    shown = mmemo("cache", **environment).stdout
    assert "whisper-" in shown
    assert "huggingface-text-" in shown
    assert "Freed" in mmemo("cache", "--clear", "all", **environment).stdout
    assert "whisper-" not in mmemo("cache", **environment).stdout


@pytest.mark.weights
@pytest.mark.slow
def test_the_whole_way_on_real_speech_and_real_models(tmp_path: Path) -> None:
    """What `make demo` does, with its figures checked, two epochs long."""
    columns = "{path: file, emotion: label, speaker: voice, gender: sex, split: set}"
    manifest, config = tmp_path / "manifest.csv", ROOT / "configs" / "demo.yaml"
    run = tmp_path / "model"
    options = ["--config", config, "--data.manifest", tmp_path / "manifest_transcribed.csv"]
    options += ["--trainer.default_root_dir", run, "--trainer.max_epochs", 2]
    judged = [*options, "--ckpt_path", run / "checkpoints" / "last.ckpt"]
    for arguments in (
        ["corpus", "table", ROOT / "demo/clips.csv", "--columns", columns, "--out", manifest],
        ["check", manifest],
        ["transcribe", manifest, "--language", "en"],
        ["fit", *options],
        ["test", *judged],
        ["predict", *judged],
    ):
        result = mmemo(*arguments)
        assert result.returncode == 0, result.stderr
    texts = pd.read_csv(tmp_path / "manifest_transcribed.csv").set_index("id")["text"]
    assert texts["ada_sadness_2"] == "I feel so alone since you left."
    assert len(pd.read_csv(run / "predictions.csv")) == 48
    assert (run / "checkpoints" / "best.ckpt").stat().st_size < 5e6, "no backbone in the checkpoint"
