from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mmemo.cli.app import main
from mmemo.studies import robustness as robustness_module
from mmemo.studies.conditions import Condition, conditions
from mmemo.studies.robustness import FOLDER, Robustness, RobustnessSettings
from mmemo.training.experiment_cli import ExperimentCLI, read_runs
from tests.conftest import CORPORA


def robustness(
    run: Path, chosen: list[Condition], checkpoint: str | None = None, folds: list[int] | None = None
) -> Robustness:
    settings = RobustnessSettings(checkpoint, progress=False)
    runs = read_runs(str(run), folds or ())  # each folder may be a text or a Path
    return robustness_module.robustness(runs, chosen, str(run / FOLDER), settings=settings)


def test_robustness_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs is empty; expected experiments"):
        robustness_module.robustness([], [], tmp_path)


@pytest.fixture
def run(tiny_config: Path) -> Path:
    ExperimentCLI(["fit", "--config", str(tiny_config), "--trainer.max_epochs", "30"])
    return tiny_config.parent / "run"


def test_the_report_covers_every_condition(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robustness", str(run), "--pgd-steps", "3", "--checkpoint", "last"]) == 0
    output = capsys.readouterr().out
    table = pd.read_csv(run / FOLDER / "robustness.csv").set_index("condition")
    assert len(table) == 1 + 15 + 3 + 6 + 4
    for name in ("white 0 dB", "brown 20 dB", "telephone", "mp3", "fgsm 45 dB", "pgd 25 dB", "words 40 %", "no words"):
        assert name in table.index
        assert name in output
    assert (table["num_utterances"] == 12).all()
    assert table.loc["clean", "kept"] == 1
    assert ((table["uar_low"] <= table["uar"]) & (table["uar"] <= table["uar_high"])).all()
    assert table.loc["pgd 25 dB", "uar"] <= table.loc["fgsm 25 dB", "uar"] <= table.loc["clean", "uar"]
    assert (run / FOLDER / "robustness.png").stat().st_size > 5000
    results = json.loads((run / FOLDER / "robustness.json").read_text())
    assert len(results["conditions"]) == len(table)
    assert results["skipped"] == {}


def test_the_clean_condition_equals_the_test_metrics(run: Path, tiny_config: Path) -> None:
    ExperimentCLI(["test", "--config", str(tiny_config), "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    expected = json.loads((run / "test_metrics.json").read_text())["metrics"]["test/uar"]
    table = robustness(run, [], checkpoint="last").table
    assert table["condition"].tolist() == ["clean"]
    assert table["uar"].iat[0] == pytest.approx(expected, abs=1e-6)


def test_an_interrupted_report_resumes_with_the_same_results(run: Path) -> None:
    names = ("white 5 dB", "pgd 35 dB", "words 20 %")
    chosen = [condition for condition in conditions(pgd_steps=2) if condition.name in names]
    first = robustness(run, chosen).table
    files = sorted((run / FOLDER / "predictions").glob("*.parquet"))
    assert len(files) == 4
    kept = {path: path.stat().st_mtime_ns for path in files[1:]}
    files[0].unlink()
    resumed = robustness(run, chosen).table
    pd.testing.assert_frame_equal(resumed, first)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_conditions_that_do_not_apply_are_skipped_with_a_reason(
    tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    parts = config["model"]["init_args"]["model"]["init_args"]
    del parts["text_encoder"]
    parts["audio_encoder"] = {"class_path": "mmemo.models.AcousticDescriptors", "init_args": {"f0": False}}
    tiny_config.write_text(yaml.safe_dump(config))
    ExperimentCLI(["fit", "--config", str(tiny_config)])
    run = tiny_config.parent / "run"
    assert main(["robustness", str(run), "--kinds", "telephone", "fgsm", "words", "--attack-db", "45"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "AcousticDescriptors" in output
    assert "the model has no text encoder" in output
    table = pd.read_csv(run / FOLDER / "robustness.csv")
    assert table["condition"].tolist() == ["clean", "telephone"]
    assert main(["robustness", str(run), "--kinds", "white", "--noise-db", "10", "10"]) == 0
    extended = pd.read_csv(run / FOLDER / "robustness.csv")
    assert extended["condition"].tolist() == ["clean", "white 10 dB", "telephone"], "other kinds must be kept"


def test_folds_are_pooled_and_attacks_transfer(tiny_config: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    config["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold", "init_args": {"num_folds": 3, "num_val_speakers": 1}
    }  # fmt: skip
    tiny_config.write_text(yaml.safe_dump(config))
    run = tiny_config.parent / "folds"
    assert main(["crossval", "--config", str(tiny_config), "--run", str(run)]) == 0
    chosen = [condition for condition in conditions(attack_db=(35,)) if condition.kind == "fgsm"]
    assert robustness(run, chosen).table["num_utterances"].tolist() == [36, 36]
    two_folds = robustness(run, chosen, folds=[1, 3]).table
    assert two_folds["num_utterances"].tolist() == [24, 24]
    other = tiny_config.parent / "other"
    changes = ["--set", "trainer.max_epochs=1", "seed_everything=5"]
    assert main(["crossval", "--config", str(tiny_config), "--run", str(other), *changes]) == 0
    options = ["--kinds", "fgsm", "--attack-db", "35", "--surrogate", str(other)]
    assert main(["robustness", str(run), *options]) == 0
    assert (run / FOLDER / "from_other" / "robustness.csv").is_file()
    assert len(list((run / "fold1" / FOLDER / "predictions").glob("fgsm*"))) == 2
    with pytest.raises(ValueError, match="has no fold9"):
        robustness(run, chosen, folds=[9])
    with pytest.raises(ValueError, match="another fold's model was trained on this fold's test speakers"):
        robustness(run, chosen, checkpoint=str(run / "fold1/checkpoints/last.ckpt"))


def test_changed_labels_are_evaluated_again(tiny_config: Path, tiny_corpus: Path) -> None:
    path = Path(shutil.copy(tiny_corpus, tiny_corpus.with_name("relabelled.csv")))
    options = ["--data.manifest", str(path), "--trainer.max_epochs", "30"]
    ExperimentCLI(["fit", "--config", str(tiny_config), *options])
    run = tiny_config.parent / "run"
    assert robustness(run, [], checkpoint="last").table["uar"].iat[0] > 0.5
    table = pd.read_csv(path, dtype=str)
    test = table["split"] == "test"
    names = sorted(table["emotion"].unique())
    table.loc[test, "emotion"] = [names[(names.index(name) + 1) % len(names)] for name in table.loc[test, "emotion"]]
    table.to_csv(path, index=False)
    assert robustness(run, [], checkpoint="last").table["uar"].iat[0] < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "not a run of `mmemo fit` or `mmemo crossval`"),
        (["--noise-db", "nan"], "expected numbers"),
        (["--attack-db", "inf"], "expected a number of decibels"),
        (["--word-errors", "1.5"], "error_rate=1.5"),
        (["--pgd-steps", "0"], "expected a whole number, 1 or more"),
    ],
)
def test_invalid_options_are_rejected(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["robustness", str(tmp_path), *options]) == 1
    assert message in capsys.readouterr().err


def test_invalid_choices_are_rejected(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message, status in (
        (["--kinds", "rain"], "rain", 2),
        (["--device", "gpu"], "gpu", 2),
        (["--checkpoint", "worst"], "worst: no such checkpoint", 1),
    ):
        assert main(["robustness", str(run), *options]) == status
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.corpora
def test_an_inaudible_attack_breaks_an_undefended_whisper(tmp_path: Path) -> None:
    """On real speech, noise at 45 dB hardly lowers UAR, while an attack of the same power at least halves it."""
    manifest = tmp_path / "ravdess.csv"
    assert main(["corpus", "ravdess", str(CORPORA / "ravdess"), "--out", str(manifest)]) == 0
    table = pd.read_csv(manifest, dtype=str)
    table = table[table["speaker"].isin(["01", "02", "03", "04", "05", "06"])]
    table["path"] = [str((tmp_path / path).resolve()) for path in table["path"]]
    table["split"] = np.where(table["speaker"].isin(["05", "06"]), "test", "train")
    table.iloc[::3].to_csv(manifest, index=False)
    config = Path(__file__).parents[2] / "configs" / "ravdess_whisper_base.yaml"
    run = tmp_path / "run"
    options = ["--data.manifest", str(manifest), "--data.split", "mmemo.data.OfficialSplit"]
    ExperimentCLI(["fit", "--config", str(config), *options, "--trainer.default_root_dir", str(run)])
    chosen = [condition for condition in conditions((45,), (45,)) if condition.name in ("white 45 dB", "fgsm 45 dB")]
    kept = robustness(run, chosen, checkpoint="last").table.set_index("condition")["kept"]
    assert kept["white 45 dB"] > 0.8
    assert kept["fgsm 45 dB"] < 0.5 * kept["white 45 dB"]
