"""A model's identity is all that its numbers come from, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from homodistil.errors import UserError
from homodistil.evaluation.records import Records, identity
from homodistil.evaluation.similarity import open_encoder


@pytest.fixture(scope="module")
def sentence_encoder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a transformer, its pooling and a linear layer."""
    folder = tmp_path_factory.mktemp("sentences")
    SentenceTransformer(str(encoder)).save_pretrained(str(folder))
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))
    (folder / "2_Dense").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "2_Dense" / name).write_text("layer")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    ],
)
def test_whatever_an_embedding_comes_from_is_part_of_a_models_identity(
    name: str, sentence_encoder: Path, tmp_path: Path
) -> None:
    """Numbers of another pooling, prompt, tokenizer or layer are not taken for this one's."""
    changed = Path(shutil.copytree(sentence_encoder, tmp_path / "changed"))
    assert identity(str(changed)) == identity(str(sentence_encoder))
    with (changed / name).open("a") as file:
        file.write(" ")
    assert identity(str(changed)) != identity(str(sentence_encoder))


def test_what_is_not_read_is_no_part_of_a_models_identity(sentence_encoder: Path, tmp_path: Path) -> None:
    """A card, and numbers that are kept beside the model."""
    changed = Path(shutil.copytree(sentence_encoder, tmp_path / "changed"))
    for name in ("README.md", "numbers.json", "training_args.bin"):
        (changed / name).write_text("words")
    assert identity(str(changed)) == identity(str(sentence_encoder))


def test_a_name_on_the_hub_is_its_own_identity() -> None:
    """There is no folder to read."""
    assert identity("some/name") != identity("other/name")


def test_torn_modules_are_refused(sentence_encoder: Path, tmp_path: Path) -> None:
    """A sentence encoder is not measured as something else."""
    torn = Path(shutil.copytree(sentence_encoder, tmp_path / "torn"))
    (torn / "modules.json").write_text("[{")
    with pytest.raises(UserError, match=r"Cannot read .*modules\.json of the sentence encoder"):
        identity(str(torn))
    with pytest.raises(UserError, match="Cannot open the sentence encoder"):
        open_encoder(torn)


def test_a_folder_is_kept_under_one_name_wherever_it_is_evaluated_from(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its absolute path; a name on the hub stays what it is."""
    shutil.copytree(encoder, tmp_path / "run" / "student")
    file, asked = tmp_path / "numbers.json", list[str]()

    def measured(place: Path, name: str) -> str:
        monkeypatch.chdir(place)
        records = Records(file, None, asked.append)
        records.measure(name, "size", {}, lambda: {"parameters": 1.0})
        return str(records.used[0]["model"])

    absolute = str(tmp_path / "run" / "student")
    assert measured(tmp_path / "run", "student") == absolute
    assert measured(tmp_path, "run/../run/student") == absolute
    assert measured(tmp_path, "some/name") == "some/name"
    assert asked == ["student: size", "name: size"]
    assert [r["model"] for r in json.loads(file.read_text())["records"]] == [absolute, "some/name"]
