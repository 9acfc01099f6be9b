from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import average_precision_score, roc_auc_score

from mmemo.cli.app import main
from mmemo.data import splits
from mmemo.data.clinical_study import ClinicalStudy
from mmemo.data.splits import MAYBE_BOTH_SIDES, SHARED_RECORDINGS, TAUGHT_SPEAKERS
from mmemo.evaluation.calibration import reliability, temperature_scaling
from mmemo.report.classification import sample_areas
from mmemo.report.report import write_report
from mmemo.report.reproduction import hide_paths

BOTH_SIDES = splits.BOTH_SIDES.format(first="train", second="test")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CLASSES = ["anger", "neutral", "sadness"]


def write_run(folder: Path, num_speakers: int = 12, num_each: int = 20) -> Path:
    """Predictions of a made-up run, and their manifest."""
    random = np.random.default_rng(0)
    speakers = np.repeat(np.arange(num_speakers), num_each)
    target = random.integers(0, 3, len(speakers))
    logits = random.standard_normal((len(speakers), 3))
    logits[np.arange(len(speakers)), target] += 1.5
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    table = pd.DataFrame(
        {"id": [f"u{number}" for number in range(len(speakers))], "speaker": [f"s{speaker:02}" for speaker in speakers],
         "emotion": np.array(CLASSES)[target], "fold": speakers % 3 + 1,
         **{f"prob_{name}": probs[:, index] for index, name in enumerate(CLASSES)},
         **{f"{kind}_prob_{name}": np.roll(probs, shift, 0)[:, index] for shift, kind in ((0, "audio"), (1, "text"))
            for index, name in enumerate(CLASSES)},
         "weight_audio": 0.7, "weight_text": 0.3}
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "predictions.parquet", index=False)
    table[["id", "speaker", "emotion"]].assign(
        text="SECRET WORDS", path=[f"hidden/{name}.wav" for name in table["id"]],
        gender=np.where(speakers % 2, "female", "male"), age=20 + 3 * speakers,
        session=np.where(np.arange(len(speakers)) % 2, "v1", "v2"),
    ).to_csv(folder / "manifest.csv", index=False)  # fmt: skip
    return folder


class ExternalUrls(HTMLParser):
    """Collects what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and value and not value.startswith(("#", "data:")):
                self.urls.append(value)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "made_up")
    (run / "robustness").mkdir()
    (run / "robustness" / "robustness.json").write_text(
        json.dumps({"conditions": [{"condition": "clean", "uar": 0.7, "uar_low": 0.6, "uar_high": 0.8, "kept": 1.0},
                                   {"condition": "white 10 dB", "uar": 0.5, "uar_low": None, "uar_high": None,
                                    "kept": 0.6}]})
    )  # fmt: skip
    study = ClinicalStudy(["anger", "sadness"], visit="session", covariates=["gender", "age"], name="A made-up study")
    return write_report(run, manifest=run / "manifest.csv", study=study).html


def test_the_page_has_all_sections_and_loads_nothing(page: Path) -> None:
    text = page.read_text()
    external = ExternalUrls()
    external.feed(text)
    assert external.urls == []
    for title in ("Metrics", "Classes", "Confidence", "Modalities", "Subgroups", "Robustness", "A made-up study",
                  "Data", "How to reproduce"):  # fmt: skip
        assert f">{title}</h2>" in text
    assert text.count("<svg") >= 10
    assert page.stat().st_size < 3_000_000
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_no_file_contains_transcripts_or_paths(page: Path) -> None:
    for file in page.parent.iterdir():
        assert "SECRET" not in file.read_text()
        assert "hidden" not in file.read_text()


def test_json_latex_and_study_documents_agree_with_the_predictions(page: Path) -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

    content = json.loads((page.parent / "report.json").read_text())
    table = pd.read_parquet(page.parent.parent / "predictions.parquet")
    probs = table[[f"prob_{name}" for name in CLASSES]].to_numpy()
    predicted = np.array(CLASSES)[probs.argmax(1)]
    metrics = content["metrics"]
    assert metrics["uar"]["value"] == pytest.approx(balanced_accuracy_score(table["emotion"], predicted))
    assert metrics["macro_f1"]["value"] == pytest.approx(f1_score(table["emotion"], predicted, average="macro"))
    area = roc_auc_score(table["emotion"] == "anger", probs[:, 0])
    assert content["areas"]["anger"]["roc"]["value"] == pytest.approx(area)
    assert content["conformal"]["coverage"] == pytest.approx(0.9, abs=0.03)
    uar = 100 * content["metrics"]["uar"]["value"]
    assert f"{uar:.1f} [" in (page.parent / "report.tex").read_text()
    checklist = (page.parent / "tripod_ai.md").read_text()
    assert f"uar {uar:.1f}" in checklist
    assert "12 participants, 24 visits, 240 utterances" in checklist
    assert "TO FILL IN" in checklist
    assert "not a medical device" in (page.parent / "model_card.md").read_text()
    assert content["modalities"]["audio only"]["value"] == content["metrics"]["uar"]["value"]
    assert content["modalities"]["text only"]["value"] < content["metrics"]["uar"]["value"]


def record_events(tab: Any) -> tuple[list[str], list[str]]:
    """Messages of a browser tab, and URLs that it requests."""
    messages: list[str] = []
    urls: list[str] = []
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("request", lambda request: urls.append(request.url))
    return messages, urls


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_a_browser_shows_the_page_on_phone_and_desktop(page: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (390, 1280):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            messages, urls = record_events(tab)
            tab.goto(page.as_uri())
            assert messages == []
            assert urls == [page.as_uri()]
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            # Nothing is wider than the page except boxes that scroll.
            wide = tab.evaluate(
                "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg') && "
                "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName)"
            )
            assert wide == []
            widths = tab.evaluate("[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().width)")
            assert min(widths) > 250
            if width > 1000:  # on a desktop no table needs to scroll
                cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
                assert tab.evaluate(cut) == 0
        browser.close()


def test_file_names_in_settings_are_hidden() -> None:
    config = {"trainer": {"default_root_dir": "smith_john"}, "data": {"manifest": "table", "split": {"path": "f.txt"}}}
    assert "smith" not in str(hide_paths(config))
    assert "table" not in str(hide_paths(config))
    assert "f.txt" not in str(hide_paths(config))
    assert hide_paths({"model_id": "openai/whisper-base", "lr": 0.1}) == {
        "model_id": "openai/whisper-base",
        "lr": 0.1,
    }


def test_areas_with_tied_scores_equal_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth = random.random(300) < 0.3
    score = (truth * 0.3 + random.random(300)).round(1)
    weights = np.concatenate([np.ones((1, 300)), random.integers(0, 4, (2, 300)).astype(float)])
    for order in (np.argsort(truth), np.argsort(~truth)):
        roc, average = sample_areas(truth[order], score[order], weights[:, order])
        for row, weight in enumerate(weights[:, order]):
            kwargs = {"sample_weight": weight}
            assert roc[row] == pytest.approx(roc_auc_score(truth[order], score[order], **kwargs))
            assert average[row] == pytest.approx(average_precision_score(truth[order], score[order], **kwargs))


def test_calibration_is_fitted_on_validation_rows_if_there_are_any(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    table = pd.read_parquet(run / "predictions.parquet").drop(columns="fold")
    table["side"] = np.where(table["speaker"].isin(["s00", "s01", "s02"]), "val", "test")
    table.to_parquet(run / "predictions.parquet", index=False)
    content = write_report(run, manifest=run / "manifest.csv").content
    assert content.data.num_utterances == (table["side"] == "test").sum()
    assert content.confidence is not None
    calibration = content.confidence.calibration
    assert calibration.method == "temperature fitted on the validation speakers"
    names = [name for name in table if str(name).startswith("prob_")]
    classes = [str(name).removeprefix("prob_") for name in names]
    sides = dict(tuple(table.groupby("side")))
    targets = {side: rows["emotion"].map(classes.index).to_numpy() for side, rows in sides.items()}
    fitted = temperature_scaling(sides["val"][names].to_numpy(), targets["val"])
    calibrated = fitted(sides["test"][names].to_numpy())
    assert calibration.after is not None
    assert calibration.after.ece == pytest.approx(reliability(calibrated, targets["test"]).ece)
    assert calibration.vector is not None
    assert calibration.vector.log_loss > 0


def test_latex_tables_escape_every_special_character(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    table = pd.read_parquet(run / "predictions.parquet")
    name = "a_b & 50 % #1 ${x}~^\\"
    table = table.rename(columns={"prob_anger": f"prob_{name}"}).replace({"emotion": {"anger": name}})
    table.to_parquet(run / "predictions.parquet", index=False)
    latex = (write_report(run).folder / "report.tex").read_text()
    assert r"a\_b \& 50 \% \#1 \$\{x\}\textasciitilde \textasciicircum \textbackslash " in latex


def test_a_study_does_not_reveal_the_name_of_its_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "jane_smith_1961")
    result = write_report(
        run, study=ClinicalStudy(outcome=["anger"], name="ClinicalStudy 7"), manifest=run / "manifest.csv"
    )
    written = [path.read_text() for path in result.folder.iterdir() if path.suffix in (".html", ".json", ".md", ".tex")]
    assert len(written) == 5
    assert not any("jane" in text or "1961" in text for text in written)
    assert "ClinicalStudy 7" in result.html.read_text()


def test_a_file_of_predictions_has_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    file = (run / "predictions.parquet").rename(tmp_path / "elsewhere.parquet")
    result = write_report(file, manifest=run / "manifest.csv")
    assert result.html == tmp_path / "elsewhere_report" / "report.html"
    (command,) = result.content.reproduce.commands
    assert command.endswith("elsewhere.parquet --manifest MANIFEST")
    assert list(result.content.reproduce.sha256) == ["predictions", "manifest"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "disjoint"),
        ({"warning": "6 utterances with broken audio left out"}, "disjoint"),
        ({"warning": f"a note; speakers not separated: 1 speakers {BOTH_SIDES}: s01"}, "overlap"),
        ({"warning": f"{TAUGHT_SPEAKERS}: s01"}, "overlap"),
        ({"warning": f"2 {SHARED_RECORDINGS}: u1 (train and test)"}, "overlap"),
        ({"warning": f"speakers not separated: 3 rows have no speaker, so a speaker {MAYBE_BOTH_SIDES}"}, "unknown"),
        ({"speaker": None}, "unknown"),
        ({"fold": np.arange(240) % 2}, "overlap"),
    ],
    ids=[
        "no warning",
        "other warning",
        "speaker",
        "teacher",
        "recording",
        "row without speaker",
        "no speaker",
        "folds",
    ],
)
def test_the_report_knows_whether_training_used_test_speakers(
    tmp_path: Path, columns: dict[str, Any], expected: str
) -> None:
    run = write_run(tmp_path / "run")
    table = pd.read_parquet(run / "predictions.parquet")
    table.assign(**columns).to_parquet(run / "predictions.parquet", index=False)
    assert write_report(run).content.test_speakers == ("overlap" if expected == "overlap" else "unknown")
    (run / "config.yaml").write_text("trainer: {}\n")
    report = write_report(run)
    assert report.content.test_speakers == expected
    assert ("USED IN TRAINING" in report.summary[0]) == (expected == "overlap")


def test_one_speaker_a_missing_class_and_a_wrong_manifest_are_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    table = pd.read_parquet(run / "predictions.parquet")
    alone = table[(table["speaker"] == "s00") & (table["emotion"] != "sadness")]
    alone.to_parquet(run / "predictions.parquet", index=False)
    result = write_report(run, manifest=run / "manifest.csv")
    warnings = " ".join(result.content.warnings)
    assert "only one speaker was tested" in warnings
    assert "no test utterance is sadness" in warnings
    assert "fewer than 4 test speakers" in warnings
    other = pd.read_csv(run / "manifest.csv").iloc[100:]
    other.to_csv(run / "other.csv", index=False)
    with pytest.raises(ValueError, match="do not match this manifest"):
        write_report(run, manifest=run / "other.csv")
    without = write_report(run)
    assert any("give the manifest" in line for line in without.content.warnings)
    table.assign(emotion=None).to_parquet(run / "predictions.parquet", index=False)
    with pytest.raises(ValueError, match="no test utterance has a label"):
        write_report(run)


def test_a_study_runs_from_its_yaml_to_its_report(
    tiny_config: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    table["path"] = [str(tiny_corpus.parent / path) for path in table["path"]]
    table["session"] = [f"v{number % 2 + 1}" for number in range(len(table))]
    table["role"] = "participant"
    table.loc[table["speaker"] == "s5", "role"] = "interviewer"
    table.to_csv(tmp_path / "study.csv", index=False)
    config = yaml.safe_load(tiny_config.read_text())
    config["offline"] = True
    config["study"] = {"outcome": ["sadness"], "visit": "session", "name": "Tiny"}
    config["data"] |= {
        "manifest": str(tmp_path / "study.csv"), "only": {"role": ["participant"]},
        "split": {"class_path": "mmemo.data.LeaveOneGroupOut", "init_args": {"num_val_speakers": 1}},
    }  # fmt: skip
    tiny_config.write_text(yaml.safe_dump(config))
    run = tmp_path / "cv"
    (tmp_path / "Of Jane Smith").mkdir()
    tiny_config = tiny_config.rename(tmp_path / "Of Jane Smith" / "study.yaml")
    assert main(["crossval", "--config", str(tiny_config), "--run", str(run)]) == 0
    assert len(list(run.glob("fold*"))) == 5  # the interviewer is left out
    assert main(["report", str(run), "--columns", "session"]) == 0
    assert "5 participants" in capsys.readouterr().out
    content = json.loads((run / "report" / "report.json").read_text())
    assert {part["column"] for part in content["subgroups"]} == {"session"}  # all clips have the same length
    assert str(tmp_path) not in (run / "report" / "report.html").read_text()  # a study shows no paths
    assert content["study"]["num_sessions"] == 10
    assert len(pd.read_csv(run / "report" / "sessions.csv")) == 10
    assert content["reproduce"]["commands"][0].startswith("mmemo crossval --config")
    assert "Jane" not in (run / "report" / "report.html").read_text()
    other = tmp_path / "other.yaml"
    other.write_text("study: {outcome: [anger], visit: session}")
    assert main(["report", str(run), "--study", str(other)]) == 0  # another outcome needs no training
    assert json.loads((run / "report" / "report.json").read_text())["study"]["outcome"] == ["anger"]
    for text, complaint in (("study: {outcom: [anger]}", "has outcom; expected"), ("model: {}", "has no block")):
        other.write_text(text)
        assert main(["report", str(run), "--study", str(other)]) == 1
        assert complaint in capsys.readouterr().err
    (tmp_path / "study.csv").rename(tmp_path / "moved.csv")  # the warning must not reveal its path either
    assert main(["report", str(run)]) == 1  # only the manifest has the study's columns
    assert main(["report", str(run), "--manifest", str(tmp_path / "moved.csv")]) == 0
    for file in (run / "report").iterdir():
        assert str(tmp_path) not in file.read_text()


def test_dimensions_have_subgroups_and_comparisons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    random = np.random.default_rng(0)
    true = random.uniform(-1, 1, 200)
    women = np.arange(200) % 20 < 10
    table = pd.DataFrame({"id": [f"u{row}" for row in range(200)], "speaker": [f"s{row % 20:02}" for row in range(200)],
                          "emotion": None, "valence": true, "arousal": -true, "dominance": None})  # fmt: skip
    noise = np.where(women, 0.6, 0.1) * random.standard_normal(200)
    for name, more in (("first", 0.0), ("second", 0.5)):
        (tmp_path / name).mkdir()
        predicted = true + noise + more * random.standard_normal(200)
        columns = {"predicted_valence": predicted, "predicted_arousal": -predicted, "predicted_dominance": predicted}
        table.assign(**columns).to_csv(tmp_path / name / "predictions.csv", index=False)
    frame = table.drop(columns=["dominance"]).assign(text="so", gender=np.where(women, "female", "male"))
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    content = write_report(tmp_path / "first", manifest=tmp_path / "manifest.csv").content
    assert list(content.dimensions or {}) == ["valence", "arousal"]
    (subgroups,) = content.subgroups
    female, male = (group.metrics["ccc_valence"].value for group in subgroups.groups)
    assert subgroups.title == "gender: dimensions"
    assert male - female > 0.1
    assert subgroups.gaps["ccc"].low > 0
    page = (tmp_path / "first" / "report" / "report.html").read_text()
    assert "mean CCC" in page
    assert "UAR" not in page
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    output = capsys.readouterr().out
    assert "ccc; 95 % intervals over 20 speakers" in output
    assert "first, second" in output
    assert "second - first" in output
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "second"), "--metric", "uar"]) == 1
    assert "no metric 'uar'" in capsys.readouterr().err
