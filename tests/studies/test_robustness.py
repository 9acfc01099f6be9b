from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mmemo.cli.main import main
from mmemo.studies.robustness import FOLDER, conditions, robustness
from mmemo.training.experiment import Experiment
from tests.conftest import CORPORA


@pytest.fixture
def run(tiny_config: Path) -> Path:
    Experiment(["fit", "--config", str(tiny_config), "--trainer.max_epochs", "30"])
    return tiny_config.parent / "run"


def test_the_report_covers_every_condition(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robustness", str(run), "--pgd_steps", "3", "--checkpoint", "last"]) == 0
    shown = capsys.readouterr().out
    table = pd.read_csv(run / FOLDER / "robustness.csv").set_index("condition")
    assert len(table) == 1 + 15 + 3 + 6 + 4
    for name in ("white 0 dB", "brown 20 dB", "telephone", "mp3", "fgsm 45 dB", "pgd 25 dB", "words 40 %", "no words"):
        assert name in table.index
        assert name in shown
    assert (table["num_utterances"] == 12).all()
    assert table.loc["clean", "kept"] == 1
    assert ((table["uar_low"] <= table["uar"]) & (table["uar"] <= table["uar_high"])).all()
    assert table.loc["pgd 25 dB", "uar"] <= table.loc["fgsm 25 dB", "uar"] <= table.loc["clean", "uar"]
    assert (run / FOLDER / "robustness.png").stat().st_size > 5000
    found = json.loads((run / FOLDER / "robustness.json").read_text())
    assert len(found["conditions"]) == len(table)
    assert found["skipped"] == {}


def test_clean_is_what_test_finds(run: Path, tiny_config: Path) -> None:
    Experiment(["test", "--config", str(tiny_config), "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    tested = json.loads((run / "test_metrics.json").read_text())["metrics"]["test/uar"]
    found = robustness(run, [], checkpoint="last", progress=False).table
    assert found["condition"].tolist() == ["clean"]
    assert found["uar"].iat[0] == pytest.approx(tested, abs=1e-6)


def test_a_killed_report_goes_on_and_repeats_itself_to_the_digit(run: Path) -> None:
    chosen = [one for one in conditions(pgd_steps=2) if one.name in ("white 5 dB", "pgd 35 dB", "words 20 %")]
    first = robustness(run, chosen, progress=False).table
    parts = sorted((run / FOLDER / "predictions").glob("*.parquet"))
    assert len(parts) == 4
    kept = {path: path.stat().st_mtime_ns for path in parts[1:]}
    parts[0].unlink()
    again = robustness(run, chosen, progress=False).table
    pd.testing.assert_frame_equal(again, first)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_what_a_model_cannot_be_put_to_is_left_out_and_said(
    tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    parts = config["model"]["init_args"]["model"]["init_args"]
    del parts["text_encoder"]
    parts["audio_encoder"] = {"class_path": "mmemo.models.AcousticDescriptors", "init_args": {"f0": False}}
    tiny_config.write_text(yaml.safe_dump(config))
    Experiment(["fit", "--config", str(tiny_config)])
    run = tiny_config.parent / "run"
    assert main(["robustness", str(run), "--kinds", "[telephone, fgsm, words]", "--attack_db", "[45]"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no gradient comes back through AcousticDescriptors" in shown
    assert "Left out (the model reads no words): words 10 %" in shown
    table = pd.read_csv(run / FOLDER / "robustness.csv")
    assert table["condition"].tolist() == ["clean", "telephone"]
    assert main(["robustness", str(run), "--kinds", "white", "--noise_db", "[10, 10]"]) == 0
    again = pd.read_csv(run / FOLDER / "robustness.csv")
    assert again["condition"].tolist() == ["clean", "white 10 dB", "telephone"], "other kinds are added"


def test_folds_are_pooled_and_attacks_transfer(tiny_config: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    config["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold", "init_args": {"num_folds": 3, "num_val_speakers": 1}
    }  # fmt: skip
    tiny_config.write_text(yaml.safe_dump(config))
    run = tiny_config.parent / "folds"
    assert main(["crossval", "--config", str(tiny_config), "--run", str(run)]) == 0
    chosen = [one for one in conditions(attack_db=(35,)) if one.kind == "fgsm"]
    assert robustness(run, chosen, progress=False).table["num_utterances"].tolist() == [36, 36]
    two = robustness(run, chosen, folds=[1, 3], progress=False).table
    assert two["num_utterances"].tolist() == [24, 24]
    other = tiny_config.parent / "other"
    again = ["--trainer.max_epochs", "1", "--seed_everything", "5"]
    assert main(["crossval", "--config", str(tiny_config), "--run", str(other), *again]) == 0
    found = robustness(run, chosen, surrogate=other, progress=False)
    assert found.folder == run / FOLDER / "from_other"
    assert len(list((run / "fold1" / FOLDER / "predictions").glob("fgsm*"))) == 2
    with pytest.raises(ValueError, match="has no fold9"):
        robustness(run, chosen, folds=[9])
    with pytest.raises(ValueError, match="the one of another fold was trained on speakers that this one judges"):
        robustness(run, chosen, checkpoint=str(run / "fold1/checkpoints/last.ckpt"))


def test_other_labels_are_judged_anew(tiny_config: Path, tiny_corpus: Path) -> None:
    path = Path(shutil.copy(tiny_corpus, tiny_corpus.with_name("relabelled.csv")))
    options = ["--data.manifest", str(path), "--trainer.max_epochs", "30"]
    Experiment(["fit", "--config", str(tiny_config), *options])
    run = tiny_config.parent / "run"
    assert robustness(run, [], checkpoint="last", progress=False).table["uar"].iat[0] > 0.5
    table = pd.read_csv(path, dtype=str)
    test = table["split"] == "test"
    names = sorted(table["emotion"].unique())
    table.loc[test, "emotion"] = [names[(names.index(name) + 1) % len(names)] for name in table.loc[test, "emotion"]]
    table.to_csv(path, index=False)
    assert robustness(run, [], checkpoint="last", progress=False).table["uar"].iat[0] < 0.5


def test_mistakes_are_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        ([str(tmp_path)], "no run of `mmemo fit` or `mmemo crossval` there"),
        ([str(tmp_path), "--kinds", "[rain]"], "--kinds rain: expected some of white, pink"),
        ([str(tmp_path), "--noise_db", "[.nan]"], "expected numbers"),
        ([str(tmp_path), "--attack_db", "[.inf]"], "expected a number of decibels"),
        ([str(tmp_path), "--word_errors", "[1.5]"], "error_rate=1.5"),
        ([str(tmp_path), "--pgd_steps", "0"], "expected a whole number, 1 or more"),
        ([str(tmp_path / "none")], "no run of"),
        ([str(run), "--device", "gpu"], "device 'gpu': expected cpu or cuda"),
        ([str(run), "--noise_db", "[]"], "--noise_db []: name at least one strength"),
        ([str(run), "--checkpoint", "worst"], "--checkpoint worst: expected best, last or a file"),
    ):
        assert main(["robustness", *options]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.corpora
def test_an_undefended_whisper_falls_to_an_attack_that_nobody_hears(tmp_path: Path) -> None:
    """Real voices, real weights: noise at 45 dB does little, the same power along the gradient a great deal."""
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
    Experiment(["fit", "--config", str(config), *options, "--trainer.default_root_dir", str(run)])
    chosen = [one for one in conditions((45,), (45,)) if one.name in ("white 45 dB", "fgsm 45 dB")]
    found = robustness(run, chosen, checkpoint="last", progress=False).table.set_index("condition")["kept"]
    assert found["white 45 dB"] > 0.8
    assert found["fgsm 45 dB"] < 0.5 * found["white 45 dB"]
