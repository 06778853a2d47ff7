from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forgetting.models.backbone import load_backbone
from forgetting.models.face_transformer import FaceTransformer
from serving.cli.main import app
from serving.cli.pretraining import PretrainingError, read_model_args

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}


def test_face_transformer_is_trained_by_its_name(tmp_path: Path) -> None:
    to = tmp_path / "backbone"
    words = ["pretrain", "--data", "digits", "--out", str(to), "--steps", "2", "--json"]
    words += ["--model", "face_transformer_p8s8", "--model-args", json.dumps(TINY)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    backbone = load_backbone(to)
    assert isinstance(backbone.model, FaceTransformer)
    assert len(backbone.model.blocks) == 1
    assert backbone.spec.preprocess.input_size == (3, 8, 8)


@pytest.mark.parametrize(
    ("text", "message"), [("depth=2", "is not JSON"), ("[1]", "is no object such as")]
)
def test_arguments_that_are_no_object_are_refused(text: str, message: str) -> None:
    with pytest.raises(PretrainingError, match=message):
        read_model_args(text)


def test_wrong_argument_is_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    words = [
        "pretrain",
        "--data",
        "digits",
        "--out",
        str(tmp_path / "b"),
        "--model-args",
        "nonsense",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code != 0
    assert "--model-args 'nonsense' is not JSON" in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_output_says_which_input_was_chosen_and_that_the_accuracy_is_poor(tmp_path: Path) -> None:
    words = ["pretrain", "--data", "digits", "--out", str(tmp_path / "b"), "--steps", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "input: 16x16 pixels, grey: all 1438 images are smaller than 32 pixels" in done.output
    assert "warning: the held-out accuracy, " in done.output
    assert "is below 80%" in done.output
