from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mmemo.cli.app import TRAINER_VERBS, VERBS, _interruption, _traceback_hint, main
from mmemo.data.manifest import read_manifest
from tests.audio.test_reader import BAD, make_bad

ROOT = Path(__file__).parent.parent.parent


def mmemo(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmemo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


def test_help_and_wrong_options_import_no_heavy_library() -> None:
    """Importing PyTorch and Lightning takes 2 to 10 s, so these commands must not do it."""
    for arguments in (["--help"], ["--version"], ["cache"], ["fit", "--help"], ["fit", "--trainer.max_epoch", "2"]):
        code = "import sys; from mmemo.cli.app import main; main(sys.argv[1:]); print(sorted(sys.modules))"
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
        loaded = set(re.findall(r"'(torch|pytorch_lightning|transformers|pandas|librosa|scipy)'", result.stdout))
        assert not loaded, (arguments, loaded)


@pytest.mark.parametrize("verb", [*VERBS, *TRAINER_VERBS])
def test_every_verb_has_a_help_page(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Usage: mmemo {verb}")
    assert 10 < len(lines) <= 60


def test_an_unknown_verb_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "unknown command trian; did you mean fit?" in capsys.readouterr().err
    assert main(["analyse", "a.wav"]) == 2
    assert "analyze" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "gone.csv"], "mmemo check: gone.csv: no such file"),
        (["corpus", "ravdess", "/no/folder"], "mmemo corpus: /no/folder: no such folder"),
        (["corpus", "table", "demo/clips.csv"], "mmemo corpus: `table` needs --columns"),
        (["transcribe", "gone.csv"], "mmemo transcribe: gone.csv: no such file"),
        (["transcribe", "gone.csv", "--language", "klingon"], "language 'klingon': not supported by Whisper"),
        (["crossval", "--config", "gone.yaml"], "mmemo crossval: gone.yaml: no such file"),
        (["crossval", "--config", "configs/demo.yaml", "--set", "trainer"], "--set trainer: expected KEY=VALUE"),
        (["crossval", "--config", "configs/demo.yaml", "--set", "a=[1"], "--set a=[1: the value is not valid YAML"),
        (["cache", "--clear", "typo"], "mmemo cache: no feature cache 'typo'"),
        (["fit"], "mmemo fit: name the YAML of an experiment"),
    ],
)
def test_invalid_input_gives_a_one_line_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["robustness", "runs", "--noise-db", "loud"], ["--noise-db", "loud"]),
        (["corpus", "radess", "x", "--out", "y.csv"], ["radess", "ravdess"]),
        (["analyze", "a.wav", "--foramt", "csv"], ["--foramt", "--format"]),
        (["analyze", "--separate-chanels", "a.wav"], ["--separate-chanels", "--separate-channels"]),
        (["compare", "runs/a", "runs/b", "--metrc=uar"], ["--metrc", "--metric"]),
        (["check"], ["manifest"]),
        (["fit", "--config", "configs/demo.yaml", "--trainer.max_epoch", "2"], ["did you mean --trainer.max_epochs?"]),
        (["fit", "--config", "configs/demo.yaml", "--overwrit", "true"], ["did you mean --overwrite?"]),
        (["test", "--config", "configs/demo.yaml", "--data.manifst", "x.csv"], ["did you mean --data.manifest?"]),
        (["fit", "--config", "configs/demo.yaml", "--model.init_args.mixupp", "3"], ["--model.init_args.mixup?"]),
    ],
)
def test_the_error_for_a_wrong_option_suggests_the_right_one(
    arguments: list[str], messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    for message in messages:
        assert message.lower() in errors.lower()


def test_classes_are_imported_from_the_current_folder(tiny_config: Path, tmp_path: Path) -> None:
    """`class_path: my_fusion.MyFusion` imports my_fusion.py from the folder in which the command runs."""
    code = "from mmemo.models import Concatenation\n\n\nclass MyFusion(Concatenation):\n    pass\n"
    (tmp_path / "my_fusion.py").write_text(code)
    config = yaml.safe_load(tiny_config.read_text())
    config["model"]["init_args"]["model"]["init_args"]["fusion"] = {"class_path": "my_fusion.MyFusion"}
    tiny_config.write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("mmemo")), "fit", "--config", str(tiny_config)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (tmp_path / "my_fusion.py").unlink()
    result = subprocess.run([*command, "--overwrite", "true"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode in (1, 2)
    assert "my_fusion.py" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_ends_with_a_sentence_and_exit_code_130(tiny_config: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "mmemo", "crossval", "--config", str(tiny_config), "--run", str(tmp_path / "cv")]
    split = ["data.split=mmemo.data.LeaveOneGroupOut", "data.split.init_args.num_val_speakers=1"]
    command = [*program, "--set", *split, "trainer.max_epochs=2000"]
    takes_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=takes_sigint
    )
    while not (tmp_path / "cv" / "fold1" / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert "Interrupted. Finished work is kept; the same command resumes it." in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("tune", "Interrupted. Finished work is kept; the same command resumes it."),
        ("fit", "Interrupted. Finished work is kept; `fit ... --ckpt_path last` resumes it."),
        ("export", "Interrupted."),
    ],
)
def test_an_interrupted_verb_names_its_remedy(verb: str, message: str) -> None:
    assert _interruption(verb) == message


def test_the_traceback_is_offered_for_errors_that_mmemo_did_not_raise() -> None:
    with pytest.raises(ValueError, match="broadcast") as raised:
        np.ones(2) + np.ones(3)
    assert _traceback_hint(raised.value) == " (MMEMO_DEBUG=1 shows the traceback)"
    with pytest.raises(ValueError, match="no such file") as raised:
        read_manifest(Path("gone.csv"))
    assert _traceback_hint(raised.value) == ""


def test_check_lists_every_unreadable_file_and_fails(tmp_path: Path, tiny_corpus: Path) -> None:
    path = pd.read_csv(tiny_corpus)["path"][0]
    rows = [{"id": "good", "path": tiny_corpus.parent / path, "speaker": "a"}]
    rows += [{"id": kind, "path": make_bad(tmp_path, kind), "speaker": "b"} for kind in BAD]
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    result = mmemo("check", tmp_path / "m.csv", COLUMNS="300")
    assert result.returncode == 1
    assert f"{len(BAD)} broken" in result.stdout
    for kind, reason in BAD.items():
        assert any(line.strip().startswith(f"{kind}: ") and reason in line for line in result.stdout.splitlines())
    assert "good: " not in result.stdout
    assert (tmp_path / "m_check.png").stat().st_size > 10_000
    private = mmemo("check", tmp_path / "m.csv", "--private", COLUMNS="300").stdout
    assert f"{len(BAD)} broken" in private
    listed = [line for line in private.splitlines() if line.strip().startswith(tuple(f"{kind}: " for kind in BAD))]
    assert len(listed) == len(BAD)
    assert str(tmp_path) not in "".join(listed)


def test_check_finds_leaks(tmp_path: Path, tiny_corpus: Path) -> None:
    table = pd.read_csv(tiny_corpus)
    table["path"] = [tiny_corpus.parent / path for path in table["path"]]
    assert table["speaker"].iloc[-1] == "s5"
    table.loc[0, "speaker"] = "s5"
    table.loc[35, "path"] = table["path"][1]
    table.to_csv(tmp_path / "m.csv", index=False)
    result = mmemo("check", tmp_path / "m.csv", COLUMNS="300")
    assert result.returncode == 1
    assert "speaker s5 is in test, train" in result.stdout
    assert "the same audio is in test, train: s0_anger_1, s5_sadness_1" in result.stdout


def test_check_audits_leaks_only_if_asked(tiny_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, audited in (["--leaks"], True), (["--no-leaks"], False), ([], False):
        assert main(["check", str(tiny_corpus), *arguments]) in (0, 1)  # such a small corpus causes warnings
        assert ("eak audit" in capsys.readouterr().out) == audited


def test_check_passes_a_good_manifest(tiny_corpus: Path, tmp_path: Path) -> None:
    result = mmemo("check", tiny_corpus, "--picture", tmp_path / "p.png")
    assert result.returncode == 0, result.stdout
    assert "36 utterances, 6 speakers" in result.stdout
    assert (tmp_path / "p.png").exists()


def test_a_table_is_converted_to_a_manifest(tmp_path: Path) -> None:
    columns = ["path=file", "emotion=label", "speaker=voice", "split=set"]
    out = tmp_path / "m.csv"
    assert mmemo("corpus", "table", ROOT / "demo/clips.csv", "--columns", *columns, "--out", out).returncode == 0
    assert len(pd.read_csv(out)) == 80
    assert (tmp_path / pd.read_csv(out)["path"][0]).exists(), "paths must be relative to the manifest"


def test_cache_lists_and_clears_features(tiny_config: Path, fresh_cache: Path) -> None:
    environment = {"MMEMO_CACHE": str(fresh_cache), "COLUMNS": "200"}
    assert mmemo("fit", "--config", tiny_config, **environment).returncode == 0
    listing = mmemo("cache", **environment).stdout
    assert "whisper-" in listing
    assert "huggingface-text-" in listing
    assert "Freed" in mmemo("cache", "--clear", "all", **environment).stdout
    assert "whisper-" not in mmemo("cache", **environment).stdout
