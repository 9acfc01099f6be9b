from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from mmemo.export.analysis import student_folder
from mmemo.export.card import hub_license, render_model_card
from mmemo.export.runtime import Recognizer


def test_the_card_has_valid_hub_metadata() -> None:
    metadata = ModelCard.load(student_folder() / "README.md").data.to_dict()
    assert metadata["license"] == "cc-by-nc-sa-4.0"
    assert metadata["library_name"] == "mmemo"
    assert metadata["pipeline_tag"] == "audio-classification"
    assert metadata["language"] == ["en", "de"]
    assert "speech-emotion-recognition" in metadata["tags"]


def test_unknown_metadata_is_left_out() -> None:
    folder: Path = student_folder()
    config = {**Recognizer(folder).config, "license": "", "language": None}
    metadata = ModelCard(render_model_card(config, folder)).data.to_dict()
    assert not {"license", "language"} & set(metadata)


@pytest.mark.parametrize(
    ("statement", "license_id"),
    [("CC0", "cc0-1.0"), ("Apache-2.0", "apache-2.0"), ("CC BY 4.0. Name us.", "cc-by-4.0"), ("ask us", "other")],
)
def test_a_license_statement_becomes_the_hubs_id(statement: str, license_id: str) -> None:
    assert hub_license(statement) == license_id
