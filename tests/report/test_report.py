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

from mmemo.cli.main import main
from mmemo.data.clinical_study import Study
from mmemo.evaluation.calibration import reliability, temperature_scaling
from mmemo.report.content import area_draws
from mmemo.report.report import report
from mmemo.report.reproduction import without_paths

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
        {"id": [f"u{number}" for number in range(len(speakers))], "speaker": [f"s{one:02}" for one in speakers],
         "emotion": np.array(CLASSES)[target], "fold": speakers % 3 + 1,
         **{f"prob_{name}": probs[:, place] for place, name in enumerate(CLASSES)},
         **{f"{kind}_prob_{name}": np.roll(probs, shift, 0)[:, place] for shift, kind in ((0, "audio"), (1, "text"))
            for place, name in enumerate(CLASSES)},
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


class Outside(HTMLParser):
    """What a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and value and not value.startswith(("#", "data:")):
                self.found.append(value)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "made_up")
    (run / "robustness").mkdir()
    (run / "robustness" / "robustness.json").write_text(
        json.dumps({"conditions": [{"condition": "clean", "uar": 0.7, "uar_low": 0.6, "uar_high": 0.8, "kept": 1.0},
                                   {"condition": "white 10 dB", "uar": 0.5, "uar_low": None, "uar_high": None,
                                    "kept": 0.6}]})
    )  # fmt: skip
    study = Study(["anger", "sadness"], visit="session", covariates=["gender", "age"], name="A made-up study")
    return report(run, manifest=run / "manifest.csv", study=study).html


def test_the_page_says_everything_and_loads_nothing(page: Path) -> None:
    text = page.read_text()
    outside = Outside()
    outside.feed(text)
    assert outside.found == []
    for title in ("Figures", "Classes", "Confidence", "Voice and words", "Subgroups", "Robustness", "A made-up study",
                  "Data", "How to reproduce"):  # fmt: skip
        assert f">{title}</h2>" in text
    assert text.count("<svg") >= 10
    assert page.stat().st_size < 3_000_000
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_no_words_and_no_paths_get_out(page: Path) -> None:
    for file in page.parent.iterdir():
        assert "SECRET" not in file.read_text()
        assert "hidden" not in file.read_text()


def test_json_latex_and_study_papers_agree_with_the_predictions(page: Path) -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

    content = json.loads((page.parent / "report.json").read_text())
    table = pd.read_parquet(page.parent.parent / "predictions.parquet")
    probs = table[[f"prob_{name}" for name in CLASSES]].to_numpy()
    said = np.array(CLASSES)[probs.argmax(1)]
    assert content["metrics"]["uar"]["value"] == pytest.approx(balanced_accuracy_score(table["emotion"], said))
    assert content["metrics"]["macro_f1"]["value"] == pytest.approx(f1_score(table["emotion"], said, average="macro"))
    area = roc_auc_score(table["emotion"] == "anger", probs[:, 0])
    assert content["areas"]["anger"]["roc"]["value"] == pytest.approx(area)
    assert content["conformal"]["coverage"] == pytest.approx(0.9, abs=0.03)
    uar = 100 * content["metrics"]["uar"]["value"]
    assert f"{uar:.1f} [" in (page.parent / "report.tex").read_text()
    checklist = (page.parent / "tripod_ai.md").read_text()
    assert f"uar {uar:.1f}" in checklist
    assert "12 participants, 24 visits, 240 utterances" in checklist
    assert "TO FILL IN" in checklist
    assert "no medical device" in (page.parent / "model_card.md").read_text()
    assert content["modalities"]["voice alone"]["value"] == content["metrics"]["uar"]["value"]
    assert content["modalities"]["words alone"]["value"] < content["metrics"]["uar"]["value"]


def listening(tab: Any) -> tuple[list[str], list[str]]:
    """What a browser's tab complains of, and what it asks for."""
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    return said, asked


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_browser_shows_it_on_a_telephone_and_on_a_desk(page: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (390, 1280):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            said, asked = listening(tab)
            tab.goto(page.as_uri())
            assert said == []
            assert asked == [page.as_uri()]
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            # Nothing sticks out of the page but what scrolls inside a box of its own.
            wide = tab.evaluate(
                "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg') && "
                "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName)"
            )
            assert wide == []
            widths = tab.evaluate("[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().width)")
            assert min(widths) > 250
            if width > 1000:  # on a desk nothing has to be scrolled but settings
                cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
                assert tab.evaluate(cut) == 0
        browser.close()


def test_a_command_in_a_study_names_no_file() -> None:
    config = {"trainer": {"default_root_dir": "smith_john"}, "data": {"manifest": "table", "split": {"path": "f.txt"}}}
    assert "smith" not in str(without_paths(config))
    assert "table" not in str(without_paths(config))
    assert "f.txt" not in str(without_paths(config))
    assert without_paths({"model_id": "openai/whisper-base", "lr": 0.1}) == {
        "model_id": "openai/whisper-base",
        "lr": 0.1,
    }


def test_areas_of_tied_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth = random.random(300) < 0.3
    score = (truth * 0.3 + random.random(300)).round(1)
    weights = np.concatenate([np.ones((1, 300)), random.integers(0, 4, (2, 300)).astype(float)])
    for order in (np.argsort(truth), np.argsort(~truth)):
        roc, average = area_draws(truth[order], score[order], weights[:, order])
        for row, weight in enumerate(weights[:, order]):
            given = {"sample_weight": weight}
            assert roc[row] == pytest.approx(roc_auc_score(truth[order], score[order], **given))
            assert average[row] == pytest.approx(average_precision_score(truth[order], score[order], **given))


def test_validation_rows_calibrate_where_the_file_holds_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    table = pd.read_parquet(run / "predictions.parquet").drop(columns="fold")
    table["side"] = np.where(table["speaker"].isin(["s00", "s01", "s02"]), "val", "test")
    table.to_parquet(run / "predictions.parquet", index=False)
    found = report(run, manifest=run / "manifest.csv").content
    assert found["data"]["num_utterances"] == (table["side"] == "test").sum()
    calibration = found["calibration"]
    assert calibration["how"] == "temperature fitted on the validation speakers"
    names = [name for name in table if str(name).startswith("prob_")]
    classes = [str(name).removeprefix("prob_") for name in names]
    sides = dict(tuple(table.groupby("side")))
    targets = {side: rows["emotion"].map(classes.index).to_numpy() for side, rows in sides.items()}
    fitted = temperature_scaling(sides["val"][names].to_numpy(), targets["val"])
    honest = fitted(sides["test"][names].to_numpy())
    assert calibration["after"]["ece"] == pytest.approx(reliability(honest, targets["test"]).ece)
    assert calibration["vector"]["log_loss"] > 0


def test_a_study_is_not_called_after_its_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "jane_smith_1961")
    found = report(run, study=Study(outcome=["anger"], name="Study 7"), manifest=run / "manifest.csv")
    written = [path.read_text() for path in found.folder.iterdir() if path.suffix in (".html", ".json", ".md", ".tex")]
    assert len(written) == 5
    assert not any("jane" in text or "1961" in text for text in written)
    assert "Study 7" in found.html.read_text()


def test_a_file_of_predictions_has_a_page_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    file = (run / "predictions.parquet").rename(tmp_path / "elsewhere.parquet")
    found = report(file, manifest=run / "manifest.csv")
    assert found.html == tmp_path / "elsewhere_report" / "report.html"
    (command,) = found.content["reproduce"]["commands"]
    assert command.endswith("elsewhere.parquet --manifest MANIFEST")
    assert list(found.content["reproduce"]["sha256"]) == ["predictions", "manifest"]


def test_one_speaker_a_missing_class_and_another_manifest_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    table = pd.read_parquet(run / "predictions.parquet")
    alone = table[(table["speaker"] == "s00") & (table["emotion"] != "sadness")]
    alone.to_parquet(run / "predictions.parquet", index=False)
    found = report(run, manifest=run / "manifest.csv")
    warnings = " ".join(found.content["warnings"])
    assert "one speaker alone was tested" in warnings
    assert "no test utterance is sadness" in warnings
    assert "fewer than four test speakers" in warnings
    other = pd.read_csv(run / "manifest.csv").iloc[100:]
    other.to_csv(run / "other.csv", index=False)
    with pytest.raises(ValueError, match="do not match this manifest"):
        report(run, manifest=run / "other.csv")
    without = report(run)
    assert any("give --manifest" in line for line in without.content["warnings"])
    table.assign(emotion=None).to_parquet(run / "predictions.parquet", index=False)
    with pytest.raises(ValueError, match="no test utterance has a label"):
        report(run)


def test_a_study_from_its_yaml_to_its_page(
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
    assert len(list(run.glob("fold*"))) == 5  # nobody asks the interviewer
    assert main(["report", str(run), "--columns", "session"]) == 0
    assert "5 participants" in capsys.readouterr().out
    content = json.loads((run / "report" / "report.json").read_text())
    assert {part["column"] for part in content["subgroups"]} == {"session"}  # all clips are of one length
    assert str(tmp_path) not in (run / "report" / "report.html").read_text()  # a study shows no paths
    assert content["study"]["num_sessions"] == 10
    assert len(pd.read_csv(run / "report" / "sessions.csv")) == 10
    assert content["reproduce"]["commands"][0].startswith("mmemo crossval --config")
    assert "Jane" not in (run / "report" / "report.html").read_text()
    other = tmp_path / "other.yaml"
    other.write_text("study: {outcome: [anger], visit: session}")
    assert main(["report", str(run), "--study", str(other)]) == 0  # another outcome needs no training
    assert json.loads((run / "report" / "report.json").read_text())["study"]["outcome"] == ["anger"]
    for written, complaint in (("study: {outcom: [anger]}", "has outcom; expected"), ("model: {}", "has no block")):
        other.write_text(written)
        assert main(["report", str(run), "--study", str(other)]) == 1
        assert complaint in capsys.readouterr().err
    (tmp_path / "study.csv").rename(tmp_path / "moved.csv")  # its path must not get out through the warning either
    assert main(["report", str(run)]) == 1  # the study's columns are in the manifest alone
    assert main(["report", str(run), "--manifest", str(tmp_path / "moved.csv")]) == 0
    for file in (run / "report").iterdir():
        assert str(tmp_path) not in file.read_text()


def test_dimensions_have_subgroups_and_comparisons_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    true = random.uniform(-1, 1, 200)
    women = np.arange(200) % 20 < 10
    table = pd.DataFrame({"id": [f"u{one}" for one in range(200)], "speaker": [f"s{one % 20:02}" for one in range(200)],
                          "emotion": None, "valence": true, "arousal": -true, "dominance": None})  # fmt: skip
    noise = np.where(women, 0.6, 0.1) * random.standard_normal(200)
    for name, more in (("first", 0.0), ("second", 0.5)):
        (tmp_path / name).mkdir()
        said = true + noise + more * random.standard_normal(200)
        columns = {"predicted_valence": said, "predicted_arousal": -said, "predicted_dominance": said}
        table.assign(**columns).to_csv(tmp_path / name / "predictions.csv", index=False)
    described = table.drop(columns=["dominance"]).assign(text="so", gender=np.where(women, "female", "male"))
    described.to_csv(tmp_path / "manifest.csv", index=False)
    found = report(tmp_path / "first", manifest=tmp_path / "manifest.csv").content
    assert list(found["dimensions"]) == ["valence", "arousal"]
    (part,) = found["subgroups"]
    female, male = (group["figures"]["ccc_valence"].value for group in part["groups"])
    assert part["title"] == "gender: dimensions"
    assert male - female > 0.1
    assert part["gaps"]["ccc"].low > 0
    page = (tmp_path / "first" / "report" / "report.html").read_text()
    assert "mean CCC" in page
    assert "UAR" not in page
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    told = capsys.readouterr().out
    assert "ccc; 95 % over 20 speakers" in told
    assert "first, second" in told
    assert "second less first" in told
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "second"), "--metric", "uar"]) == 1
    assert "no figure 'uar'" in capsys.readouterr().err
