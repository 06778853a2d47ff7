"""`lethe serve` refuses an older copy of a registry with one line, before it starts anything."""

from __future__ import annotations

import shutil
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from forgetting.data.preprocess import Preprocess
from forgetting.models.backbone import BackboneSpec, build_model, freeze, save_backbone
from registry.publish.declarations import write_note
from serving.cli.main import app
from serving.config.home import (
    Home,
    note_seen,
    open_current_ledger,
    open_ledger,
    prepare_home,
    signer,
)
from tests.ports import free_port


def test_serve_refuses_an_older_copy_of_its_registry(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "home" / "registry")
    prepare_home(home)
    for name in ("ada", "bo"):
        (tmp_path / "images" / name).mkdir(parents=True)
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
    preprocess = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    spec = BackboneSpec("vit_tiny_patch16_224", arguments, ("ada", "bo"), preprocess)
    save_backbone(tmp_path / "vit", freeze(build_model(spec), spec))
    port, operator_port = free_port(), free_port()
    config = tmp_path / "lethe.toml"
    config.write_text(
        f"home = '{home.path}'\nport = {port}\nimages = '{tmp_path / 'images'}'\n"
        f"operator.port = {operator_port}\n"
        f"[backbone]\ndirectory = '{tmp_path / 'vit'}'\n"
    )

    def serve() -> Result:
        return CliRunner().invoke(app, ["serve", "--config", str(config)])

    operator = signer(home, "operator")
    for text in ("one", "two"):
        if text == "two":
            shutil.copytree(home.registry, tmp_path / "older")
        write_note(open_ledger(home), operator, text=text, actor="ops", reason="", request_id=text)
    note_seen(home, open_current_ledger(home), operator)
    shutil.rmtree(home.registry)
    shutil.copytree(tmp_path / "older", home.registry)
    refused = serve()
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert "record 2 was seen before" in refused.stderr
    assert "Put the newest copy back" in refused.stderr
