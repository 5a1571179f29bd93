"""A model is opened as what its weights are, and nothing random is measured."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedTokenizerBase,
)

from conftest import WORDS
from homodistil.errors import UserError
from homodistil.evaluation.evaluation import evaluate
from homodistil.evaluation.models import open_model
from homodistil.evaluation.records import identity
from homodistil.evaluation.speed import size
from zoo import tiny


@pytest.fixture
def saved(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Callable[..., Path]:
    """Saves a model of the zoo with the tokenizer, and returns the folder."""

    def save(name: str, **changes: Any) -> Path:
        tiny(name, **changes).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def _called(folder: Path, name: str) -> Path:
    """The folder, with another class in its configuration."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
    return folder


def test_a_discriminator_is_no_language_model(saved: Callable[..., Path]) -> None:
    """It has no head that predicts tokens, and none is made up."""
    opened = open_model(str(saved("ELECTRA")))
    assert opened.head == "none"
    assert type(opened.model).__name__ == "ElectraForPreTraining"


def test_a_sentence_encoder_is_an_encoder_whatever_head_its_configuration_names(encoder: Path, tmp_path: Path) -> None:
    """Its users call its embedding."""
    SentenceTransformer(str(encoder)).save_pretrained(str(tmp_path))
    assert open_model(str(_called(tmp_path, "BertForMaskedLM"))).head == "none"


@pytest.mark.parametrize("labels", [1, 3])
def test_a_cross_encoder_is_a_classifier(labels: int, save_teacher: Callable[..., Path], tmp_path: Path) -> None:
    """It is saved with modules, and measured as the same folder without them."""
    plain = save_teacher(BertForSequenceClassification, num_labels=labels)
    CrossEncoder(str(plain)).save_pretrained(str(tmp_path / "cross"))
    assert open_model(str(tmp_path / "cross")).head == "classes"
    rows = [{"a": a, "b": b, "label": k / 3} for k, (a, b) in enumerate(itertools.pairwise(WORDS))]
    task = tmp_path / "own.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(WORDS[k % 9 :]) for k in range(40)))
    made = [
        evaluate(
            str(folder),
            against=str(plain),
            text=str(text),
            tasks=[str(task)],
            pairs=[str(task)],
            probes=[str(task)],
            seeds=1,
            time=False,
        )
        for folder in (plain, tmp_path / "cross")
    ]
    own = [[(r["measure"], r["values"]) for r in records if r["measure"] != "size"] for records in made]
    assert own[0] == own[1]


@pytest.mark.parametrize(
    "model_class",
    [
        BertForMaskedLM,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertModel,
    ],
)
def test_a_models_parameters_are_those_of_its_file(model_class: Any, save_teacher: Callable[..., Path]) -> None:
    """Its classifier is counted, and no pooler that it lacks."""
    folder = save_teacher(model_class)
    assert size(open_model(str(folder)))["parameters"] == model_class.from_pretrained(folder).num_parameters()


def test_a_sentence_encoder_is_as_large_as_all_of_its_modules(encoder: Path, tmp_path: Path) -> None:
    """What stands behind its pooling lies in files, has parameters, and is computed with once a sequence."""
    layers = (Dense(48, 64), Dense(64, 20, bias=False))
    modules = [Transformer(str(encoder)), Pooling(48, "mean"), *layers, Normalize()]
    SentenceTransformer(modules=modules).save(str(tmp_path))
    made, plain = (size(open_model(str(folder)), length=16) for folder in (tmp_path, encoder))
    assert made["parameters"] - plain["parameters"] == 48 * 64 + 64 + 64 * 20
    assert made["file_bytes"] == sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert made["flops_per_token"] - plain["flops_per_token"] == 2 * (48 * 64 + 64 * 20) / 16


@pytest.mark.parametrize("parts", [1, 3])
def test_weights_that_are_not_read_are_not_counted(parts: int, save_teacher: Callable[..., Path]) -> None:
    """Pickles beside safetensors, another precision, or parts of another save are no part of what a model is."""
    folder = save_teacher(BertModel)
    if parts > 1:
        (folder / "model.safetensors").unlink()
        BertModel.from_pretrained(save_teacher(BertModel)).save_pretrained(folder, max_shard_size="60KB")
    read = list(folder.glob("model*.safetensors"))
    assert len(read) >= parts
    known = identity(str(folder))
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "model.fp16.safetensors",
        "model-00001-of-00099.safetensors",
    ):
        (folder / name).write_bytes(bytes(1000))
    assert size(open_model(str(folder)))["file_bytes"] == sum(file.stat().st_size for file in read)
    assert identity(str(folder)) == known


def test_a_torn_index_of_weights_is_refused(tmp_path: Path) -> None:
    """A model whose files nobody knows has no identity."""
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json cannot be read"):
        identity(str(tmp_path))


def test_positions_that_padding_takes_are_not_read(saved: Callable[..., Path]) -> None:
    """RoBERTa has fewer positions than its table has rows, also where its tokenizer knows of no limit."""
    folder = saved("RoBERTa", pad_token_id=1)
    AutoTokenizer.from_pretrained(folder, model_max_length=int(1e30)).save_pretrained(folder)
    opened = open_model(str(folder))
    assert opened.longest == 64
    opened.model(input_ids=torch.full((1, 64), 5))
    with pytest.raises((IndexError, RuntimeError)):
        opened.model(input_ids=torch.full((1, 65), 5))


def test_a_tokenizer_that_is_not_the_models_own_is_refused(save_teacher: Callable[..., Path]) -> None:
    """Of some of its tokens there would be no embedding."""
    folder = save_teacher(BertModel, vocab_size=20)
    with pytest.raises(UserError, match="has 27 tokens, its embeddings 20"):
        open_model(str(folder))


def test_code_that_comes_with_a_model_is_run_for_its_embeddings_too(encoder: Path, tmp_path: Path) -> None:
    """Where it is trusted: for probes, pairs and agreement as well as for size."""
    folder = Path(shutil.copytree(encoder, tmp_path / "model"))
    (folder / "modeling_own.py").write_text(
        "from transformers import BertConfig, BertModel\n\n\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own_bert'\n\n\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    config |= {"model_type": "own_bert", "architectures": ["OwnModel"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"a": f"{a} cat", "b": f"{b} dog", "label": k / 3} for k, (a, b) in enumerate(itertools.pairwise(WORDS))]
    task = tmp_path / "own.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = [
        evaluate(str(model), probes=[str(task)], pairs=[str(task)], time=False, trust_remote_code=True)
        for model in (encoder, folder)
    ]
    assert [r["values"] for r in made[1][1:]] == [r["values"] for r in made[0][1:]]


def test_a_tokenizer_that_cannot_pad_is_refused(saved: Callable[..., Path]) -> None:
    """One that knows of no end of a text either."""
    folder = saved("GPT-2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"neither padding nor the end of a text(?s:.*)pad_token"):
        open_model(str(folder))


def test_a_model_that_answers_in_tuples_is_measured_as_one_that_names_its_answers(
    save_teacher: Callable[..., Path], corpus: Path
) -> None:
    """Its configuration says return_dict: false; distilling takes it, and so does measuring."""
    folder = save_teacher(BertForMaskedLM)
    made = [evaluate(folder, against=folder, text=corpus, time=False)]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"return_dict": False}))
    made.append(evaluate(folder, against=folder, text=corpus, time=False))
    assert [r["values"] for r in made[0]] == [r["values"] for r in made[1]]
