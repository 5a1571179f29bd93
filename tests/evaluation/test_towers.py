"""A sentence encoder learns labelled tasks through its embedding, the texts of a pair one by one."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer, BertModel, BertTokenizer, PreTrainedTokenizerBase

from conftest import WORDS, tiny_config
from homodistil.errors import UserError
from homodistil.evaluation import finetune as finetuning
from homodistil.evaluation import probe as probing
from homodistil.evaluation import training
from homodistil.evaluation.evaluation import evaluate
from homodistil.evaluation.finetune import finetune
from homodistil.evaluation.models import open_model, right_padding_tokenizer
from homodistil.evaluation.probe import probe
from homodistil.evaluation.similarity import embed, is_sentence_encoder
from homodistil.evaluation.tasks import Splits, Task
from homodistil.evaluation.towers import Towers, TowersCollator
from homodistil.evaluation.training import Settings
from zoo import tiny

STILL = Settings(learning_rate=0.0, epochs=1, length=32)


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A tiny sentence-transformers folder."""
    bare, folder = tmp_path_factory.mktemp("bare"), tmp_path_factory.mktemp("sentences")
    torch.manual_seed(0)
    BertModel(tiny_config(initializer_range=0.05)).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    # a model without instructions gets the mean of its token states
    SentenceTransformer(str(bare)).save_pretrained(str(folder))
    return folder


def _splits(label: Any, *columns: str, rows: int = 300, **task: Any) -> Splits:
    values = {"name": "own", "columns": columns, "labels": "classes", "metrics": ("accuracy",), **task}
    return Splits(Task(**values), _rows(rows, 0, label), {"validation": _rows(100, 1, label)})


def _rows(count: int, seed: int, label: Any) -> Dataset:
    draw = random.Random(seed)
    texts = [
        (" ".join(draw.choices(WORDS, k=4)), " ".join(draw.choices(WORDS, k=draw.randint(2, 9)))) for _ in range(count)
    ]
    columns = {"one": [a for a, _ in texts], "other": [b for _, b in texts]}
    return Dataset.from_dict({**columns, "label": [label(a, b) for a, b in texts]})


def _shared(a: str, b: str) -> float:
    return float(len(set(a.split()) & set(b.split())))


KINDS: list[tuple[Any, tuple[str, ...], dict[str, Any]]] = [
    (lambda a, _: "cat" if "cat" in a.split() else "none", ("one",), {}),
    (lambda a, b: min(2, _shared(a, b)), ("one", "other"), {}),
    (_shared, ("one", "other"), {"labels": "number", "metrics": ("pearson", "r2")}),
]


@pytest.mark.parametrize(("label", "columns", "task"), KINDS, ids=["two classes", "three classes", "number"])
def test_fine_tuning_starts_where_the_probe_ends(
    label: Any, columns: tuple[str, ...], task: dict[str, Any], sentence_encoder: Path
) -> None:
    """At a learning rate of 0 the scores are the probe's."""
    splits = _splits(label, *columns, **task)
    tuned, probed = finetune(sentence_encoder, splits, STILL, seed=0), probe(sentence_encoder, splits)
    assert tuned.keys() == probed.keys()
    # fine-tuning computes in bf16 where the machine does
    assert all(tuned[name] == pytest.approx(probed[name], abs=0.02) for name in splits.task.metrics)


@pytest.mark.parametrize(("offset", "scale"), [(2000.0, 3.0), (-7.4, 0.05)])
def test_numbers_start_where_the_probe_ends_wherever_they_lie(
    offset: float, scale: float, sentence_encoder: Path
) -> None:
    """Also far from zero, where bf16 knows even numbers alone, or fewer."""
    splits = _splits(lambda a, b: offset + scale * _shared(a, b), "one", "other", labels="number", metrics=("r2",))
    tuned, probed = finetune(sentence_encoder, splits, STILL, seed=0), probe(sentence_encoder, splits)
    assert tuned["r2"] == pytest.approx(probed["r2"], abs=0.02)


def test_capitals_are_fine_tuned_and_compared_as_the_library_reads_them(sentence_encoder: Path, tmp_path: Path) -> None:
    """As small letters where the folder says so, by a tokenizer that tells them apart."""
    shutil.copytree(sentence_encoder, folder := tmp_path / "lowering")
    vocab = AutoTokenizer.from_pretrained(folder).get_vocab()
    BertTokenizer(vocab=vocab, do_lower_case=False, model_max_length=64).save_pretrained(folder)
    options = folder / "sentence_bert_config.json"
    options.write_text(json.dumps(json.loads(options.read_text()) | {"do_lower_case": True}))
    splits = _splits(_shared, "one", "other", labels="number", metrics=("r2",))
    loud = replace(splits, train=_loud(splits.train), evaluated={"validation": _loud(splits.evaluated["validation"])})
    assert finetune(folder, loud, STILL, seed=0) == finetune(folder, splits, STILL, seed=0)
    opened = open_model(str(folder)).tokenizer
    assert opened("The CAT", "A Dog")["input_ids"] == opened("the cat", "a dog")["input_ids"]
    assert opened.unk_token_id not in opened("The CAT")["input_ids"]


def test_an_encoder_by_its_last_token_is_fine_tuned_by_it(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Whichever side its own tokenizer pads, an embedding of a batch is the one that its users have."""
    tiny("Llama encoder").save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    reads = {"padding_side": "left", "model_input_names": ["input_ids", "attention_mask"]}
    AutoTokenizer.from_pretrained(tmp_path / "plain", **reads).save_pretrained(tmp_path / "plain")
    modules = [Transformer(str(tmp_path / "plain")), Pooling(48, "lasttoken")]
    SentenceTransformer(modules=modules).save(str(folder := tmp_path / "encoder"))
    splits = _splits(_shared, "one", "other", rows=40, labels="number", metrics=("r2",))
    net, reader = Towers(folder, splits, []).eval(), right_padding_tokenizer(folder, False)
    rows = net.encoded(splits.train, splits.task, reader, 32, float)
    batch = TowersCollator(reader)([rows[k] for k in range(len(rows))])
    with torch.no_grad():
        made = net._embedded(batch["input_ids"][:, 1], batch["attention_mask"][:, 1])
    np.testing.assert_allclose(made, embed(folder, splits.train["other"]), atol=1e-5)


def _loud(rows: Dataset) -> Dataset:
    return rows.map(lambda row: {"one": row["one"].upper(), "other": row["other"].title()})


@pytest.mark.parametrize("counts", [True, False], ids=["in the mean", "left out of the mean"])
def test_an_encoders_prompt_is_read_in_fine_tuning_as_in_use(
    counts: bool, sentence_encoder: Path, tmp_path: Path
) -> None:
    """With a prompt by default too, an embedding of `Towers` is that of `encode`."""
    made = SentenceTransformer(str(sentence_encoder), prompts={"query": "dog tree "}, default_prompt_name="query")
    plain = made.encode("cat", prompt="")
    assert abs(made.encode("cat") - plain).max() > 1e-3
    made[1].include_prompt = counts
    made.save_pretrained(str(tmp_path))
    splits = _splits(lambda a, _: "cat" if "cat" in a.split() else "none", "one")
    net = Towers(tmp_path, splits, ["cat", "none"]).eval()
    rows = net.encoded(splits.train, splits.task, net.tokenizer, 32, lambda _: 0)
    with torch.no_grad():
        logits = net(**TowersCollator(net.tokenizer)([rows[k] for k in range(8)]))["logits"]
        used = SentenceTransformer(str(tmp_path)).encode(splits.train["one"][:8], normalize_embeddings=True)
        expected = net.head((torch.from_numpy(used) - net.mean) / net.scale)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", [("one",), ("one", "other")])
def test_a_head_reads_features_of_unit_variance(columns: tuple[str, ...], sentence_encoder: Path) -> None:
    """Those of an embedding of length 1 are so small that a head's weights would never grow to what they ask for."""
    splits = _splits(lambda a, _: "cat" in a.split(), *columns)
    net = Towers(sentence_encoder, splits, [False, True]).eval()
    seen: list[torch.Tensor] = []
    net.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rows = net.encoded(splits.train, splits.task, net.tokenizer, 32, int)
    with torch.no_grad():
        net(**TowersCollator(net.tokenizer)(rows.to_list()))
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(seen[0].shape[1]), atol=1e-3, rtol=0)
    spread = seen[0].std(0, correction=0)
    # those that vary by less than a tenth of what the median one does stay as small beside the others
    raw = spread * net.scale
    expected = (raw / (0.1 * raw.quantile(0.5))).clamp(max=1)
    assert (expected == 1).float().mean() > 0.9
    torch.testing.assert_close(spread, expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize("columns", [("one",), ("one", "other")])
def test_an_encoder_learns_where_a_unit_of_its_embedding_says_nothing(
    columns: tuple[str, ...], sentence_encoder: Path, tmp_path: Path
) -> None:
    """all-MiniLM-L6-v2 has three whose last norm multiplies by next to nothing; all else would be clipped away."""
    splits = _splits(lambda a, _: "cat" in a.split(), *columns)
    net = Towers(_with_a_dead_unit(sentence_encoder, tmp_path), splits, [False, True])
    rows = net.encoded(splits.train, splits.task, net.tokenizer, 32, int)
    net(**TowersCollator(net.tokenizer)(rows.to_list()))["loss"].backward()
    others = torch.arange(net.encoder.get_embedding_dimension()) != 3
    slope = next(p.grad for n, p in net.named_parameters() if n.endswith("layer.1.output.LayerNorm.bias"))
    assert slope is not None
    assert slope[others].norm() > slope[3].abs()


def test_gradients_that_are_not_finite_are_refused_and_not_clipped_to_nothing(
    sentence_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model would be scored as it came."""
    monkeypatch.setattr(probing, "FLOOR", 0.0)
    dead = _with_a_dead_unit(sentence_encoder, tmp_path)
    splits = _splits(lambda a, _: "cat" in a.split(), "one", "other")
    with pytest.raises(UserError, match=r"norm of its gradients was (inf|nan)"):
        finetune(dead, splits, Settings(learning_rate=1e-3, epochs=1, length=32), seed=0)


def _with_a_dead_unit(sentence_encoder: Path, place: Path) -> Path:
    """The encoder with an embedding of which one unit is as good as zero."""
    encoder = SentenceTransformer(str(sentence_encoder))
    norm = encoder[0].model.encoder.layer[-1].output.LayerNorm
    with torch.no_grad():
        norm.weight[3] = norm.bias[3] = 1e-33
    encoder.save(str(place / "dead"))
    return place / "dead"


def test_fine_tuning_learns_more_than_the_probe(sentence_encoder: Path) -> None:
    """Whether the number of three words in a text is odd is no linear function of them."""
    splits = _splits(lambda _, b: len({"cat", "dog", "tree"} & set(b.split())) % 2, "other", rows=1000)
    learnt = finetune(sentence_encoder, splits, Settings(learning_rate=2e-3, epochs=10, batch=16, length=32), seed=0)
    assert learnt["accuracy"] > probe(sentence_encoder, splits)["accuracy"] + 0.1


def test_padding_and_other_rows_change_no_logit(sentence_encoder: Path) -> None:
    """A row alone and beside longer ones says the same."""
    splits = _splits(_shared, "one", "other", labels="number")
    net = Towers(sentence_encoder, splits, []).eval()
    rows = net.encoded(splits.train, splits.task, net.tokenizer, 32, float)
    collate = TowersCollator(net.tokenizer)
    batch = [rows[k] for k in range(8)]
    with torch.no_grad():
        together = net(**collate(batch))["logits"]
        alone = torch.cat([net(**collate([row]))["logits"] for row in batch])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_texts_are_read_as_far_as_positions_reach_also_where_eight_does_not_divide_them(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 36 positions 36 are read, and no padding beyond them; that texts are cut is said."""
    BertModel(tiny_config(max_position_embeddings=36)).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    SentenceTransformer(str(tmp_path / "bare")).save_pretrained(str(tmp_path / "sentences"))
    rows = Dataset.from_dict({"one": ["a cat " * 40, "two dog " * 16] * 16, "label": [0, 1] * 16})
    task = Task(name="own", columns=("one",), labels="classes", metrics=("accuracy",))
    settings = Settings(learning_rate=1e-3, epochs=1, length=64)
    longest: list[int] = []
    learn = training.train_and_predict

    def spied(net: Any, collate: Any, train: Any, *rest: Any) -> Any:
        # a tower reads each column by itself
        read = [ids for row in train["input_ids"][:] for ids in (row if isinstance(row[0], list) else [row])]
        longest.append(max(map(len, read)))
        return learn(net, collate, train, *rest)

    monkeypatch.setattr(finetuning, "train_and_predict", spied)
    for folder in ("bare", "sentences"):
        with pytest.warns(UserWarning, match=r"32 of 64 rows of own fill all 36 tokens that are read"):
            finetune(tmp_path / folder, Splits(task, rows, {"validation": rows}), settings, seed=0)
    assert longest == [36, 36]


def test_a_short_text_is_not_padded_to_its_partner(sentence_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each column is read as far as its own longest text."""
    splits = _splits(_shared, "one", "other", labels="number")
    net = Towers(sentence_encoder, splits, []).eval()
    long = torch.tensor([[2, 5, 6, 7, 8, 3], [2, 5, 6, 7, 3, 0]])
    short = torch.tensor([[2, 5, 3, 0, 0, 0], [2, 5, 6, 3, 0, 0]])
    seen = []
    read = net.encoder.forward

    def spy(inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        seen.append(tuple(inputs["input_ids"].shape))
        return read(inputs, **options)

    monkeypatch.setattr(net.encoder, "forward", spy)
    ids = torch.stack((long, short), dim=1)
    net(ids, (ids > 0).long())
    assert seen == [(2, 6), (2, 4)]


def test_a_transformer_in_a_folder_of_its_own_is_the_same_encoder(sentence_encoder: Path, tmp_path: Path) -> None:
    """As older folders have it: it is fine-tuned through its embedding, to the same numbers."""
    old = Path(shutil.copytree(sentence_encoder, tmp_path / "old"))
    modules = json.loads((old / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (old / "0_Transformer").mkdir()
    for file in old.glob("*"):
        if file.is_file() and file.name != "config_sentence_transformers.json":
            file.rename(old / "0_Transformer" / file.name)
    (old / "modules.json").write_text(json.dumps(modules))
    task = tmp_path / "own.jsonl"
    _rows(60, 0, lambda a, _: "cat" in a).select_columns(["one", "label"]).to_json(task)
    made = [evaluate(str(folder), tasks=[str(task)], seeds=1, time=False) for folder in (sentence_encoder, old)]
    assert [r["values"] for r in made[0]] == [r["values"] for r in made[1]]


def test_other_encoders_have_no_towers(sentence_encoder: Path, encoder: Path) -> None:
    """Only a folder that says how its embedding is made is a sentence encoder."""
    assert is_sentence_encoder(sentence_encoder)
    assert not is_sentence_encoder(encoder)


def test_a_single_class_is_refused_in_words(sentence_encoder: Path) -> None:
    """There is nothing to tell apart."""
    with pytest.raises(UserError, match="single class, 'yes'"):
        finetune(sentence_encoder, _splits(lambda a, b: "yes", "one"), STILL, seed=0)
