"""Sentence encoders: how they pool, where they lie, what their students are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import AutoTokenizer, BertForMaskedLM, BertModel, PreTrainedTokenizerBase

import homodistil
from conftest import WORDS, make
from homodistil.data.collate import padded
from homodistil.distill.defaults import losses_for
from homodistil.distill.prepare import Run
from homodistil.errors import UserError
from homodistil.evaluation.agreement import across, agreement, pairs_correlation, pairs_error
from homodistil.evaluation.language import blocks
from homodistil.evaluation.models import open_model
from homodistil.losses.objective import Objective
from homodistil.losses.outputs import Runner
from homodistil.losses.projections import Projections
from homodistil.models.sentence import EMBEDDING, folded
from homodistil.models.teacher import load_teacher
from homodistil.recipe import Recipe
from homodistil.settings import Losses
from runs import batch_of, terms_of
from zoo import tiny

TEXTS = ["the cat sees a dog", "a man", "one old house near the big red tree likes the small blue man", "two"]
QUICK: dict[str, Any] = {"steps": 6, "batch": 4, "text": {"length": 24}}


@pytest.fixture(scope="module")
def as_encoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Path]:
    """Saves a model as a sentence encoder that pools in some way, and returns the folder."""

    def save(model: Any, pooling: str, *tail: Any, side: str = "right") -> Path:
        plain, folder = (tmp_path_factory.mktemp(name) for name in ("plain", "encoder"))
        model.save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        # a decoder has no use for types of tokens
        reads = AutoTokenizer.from_pretrained(
            plain, padding_side=side, model_input_names=["input_ids", "attention_mask"]
        )
        reads.save_pretrained(plain)
        parts = [Transformer(str(plain)), Pooling(model.config.hidden_size, pooling), *tail, Normalize()]
        SentenceTransformer(modules=parts).save(str(folder))
        return folder

    return save


@pytest.fixture(scope="module")
def decoder(as_encoder: Callable[..., Path]) -> Path:
    """One that pools its last token, padded on the left, and says that it is a language model, as Qwen3's encoders."""
    folder = as_encoder(tiny("Qwen3"), "lasttoken", side="left")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForCausalLM"]}))
    return folder


def _embedded(source: Path) -> torch.Tensor:
    """By the forward pass that distillation compares."""
    teacher = load_teacher(str(source))
    assert teacher.kind == "similarity"
    run = Runner(teacher.kind, teacher.layout, teacher.pooling, attention=False, prediction=True)
    width = teacher.model.config.hidden_size
    same = Projections(teacher.states, pooled=False, narrow=width, wide=width)
    ids = teacher.tokenizer(TEXTS)["input_ids"]
    with torch.no_grad():
        made = run(teacher.model, padded(ids, teacher.tokenizer))
        answers = Objective(teacher.kind, Losses(), same, teacher.tail).answers(made, made)
    assert answers is not None
    assert torch.equal(*answers)
    return answers[0]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_an_embedding_is_what_sentence_transformers_makes(pooling: str, as_encoder: Callable[..., Path]) -> None:
    """For each way of pooling, of texts of other lengths in one batch."""
    folder = as_encoder(make(BertModel), pooling)
    expected = SentenceTransformer(str(folder)).encode(TEXTS)
    np.testing.assert_allclose(_embedded(folder), expected, atol=1e-5)


def test_a_decoder_that_embeds_is_distilled_into_one(decoder: Path, corpus: Path, tmp_path: Path) -> None:
    """Whatever its configuration calls it; its student embeds by the last token on either side of the padding."""
    np.testing.assert_allclose(_embedded(decoder), SentenceTransformer(str(decoder)).encode(TEXTS), atol=1e-5)
    student = homodistil.distil(decoder, corpus, "hidden=24,ffn=48", tmp_path / "run", **QUICK).students
    folder = student["hidden=24,ffn=48"]
    encoder = SentenceTransformer(str(folder))
    assert encoder.get_embedding_dimension() == 24
    assert encoder.tokenizer.padding_side == "left"
    np.testing.assert_allclose(_embedded(folder), encoder.encode(TEXTS), atol=1e-5)


@pytest.fixture(scope="module")
def tailed(as_encoder: Callable[..., Path]) -> Path:
    """One with two layers after its pooling, as EmbeddingGemma and LaBSE have them."""
    torch.manual_seed(0)
    return as_encoder(make(BertModel), "mean", Dense(48, 64), Dense(64, 20, bias=False, activation_function=None))


def test_a_projection_is_folded_into_the_first_layer_after_the_pooling(tailed: Path) -> None:
    """What reads a student's pooled states says what the tail says of them projected."""
    tail = load_teacher(str(tailed)).tail
    assert tail is not None
    projection, pooled = torch.randn(24, 48), torch.randn(5, 24)
    expected = tail({EMBEDDING: pooled @ projection})[EMBEDDING]
    torch.testing.assert_close(folded(tail, projection)({EMBEDDING: pooled})[EMBEDDING], expected, rtol=1e-4, atol=1e-5)
    assert tail.get_parameter("0.linear.weight").shape == (64, 48)


def test_an_encoder_keeps_its_layers_after_the_pooling(tailed: Path, corpus: Path, tmp_path: Path) -> None:
    """Embeddings stay as wide as the teacher's; those of an uncut student that has not learnt are the teacher's own."""
    teacher = SentenceTransformer(str(tailed)).encode(TEXTS)
    np.testing.assert_allclose(_embedded(tailed), teacher, atol=1e-5)
    options = QUICK | {"optim": {"learning_rate": 1e-9}, "precision": "fp32"}
    made = homodistil.distil(tailed, corpus, ["1.0", "0.5"], tmp_path / "run", **options).students
    whole, half = (SentenceTransformer(str(made[target])).encode(TEXTS) for target in ("1.0", "0.5"))
    np.testing.assert_allclose(whole, teacher, atol=1e-5)
    assert half.shape == teacher.shape
    np.testing.assert_allclose(_embedded(made["0.5"]), half, atol=1e-5)


def test_behind_a_tail_embeddings_are_the_teachers_own_kind_and_nothing_leads_back(
    tailed: Path, ready: Callable[..., Run]
) -> None:
    """What reads them stands behind the matrix, which a student keeps: its cosine is all of the loss."""
    run = ready(BertModel, teacher=str(tailed), losses={"cosine": 1.0})
    batch, tail = batch_of(run), run.teacher.tail
    assert tail is not None
    with torch.no_grad():
        run.objective.projections.last[0] = 0
        mine, theirs = (run.runner(model, batch).prediction for model in (run.state.student, run.teacher.model))
    assert mine is not None
    there, right = (tail({EMBEDDING: x})[EMBEDDING] for x in (mine @ run.objective.projections.last, theirs))
    found = terms_of(run, batch)["cosine"]
    assert found > 0
    torch.testing.assert_close(found, 1 - torch.cosine_similarity(there, right).mean(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("term", "left"), [("prediction", 0.5), ("cosine", 0.8)])
def test_students_learn_through_their_tail(term: str, left: float, tailed: Path, corpus: Path, tmp_path: Path) -> None:
    """Where embeddings alone are compared, they get nearer to the teacher's, and the projection before it moves."""
    others = dict.fromkeys(("prediction", "cosine", "hidden", "attention", "embedding"), 0.0)
    options = QUICK | {"steps": 60, "evaluations": 60, "losses": others | {term: 1.0}}
    student = homodistil.distil(tailed, corpus, "0.5", tmp_path / "run", **options).students["0.5"]
    kept = json.loads((tmp_path / "run" / "units" / "0.5.json").read_text())["kept"]["hidden"]
    before, after = (SentenceTransformer(str(folder))[2].linear.weight for folder in (tailed, student))
    assert after.shape == (64, 24)
    assert not torch.allclose(after, before[:, kept], atol=1e-3)
    records = homodistil.rundir.RunDir(tmp_path / "run").read_metrics()
    held = [r["heldout"][term] for r in records if "heldout" in r]
    assert held[-1] < left * max(held)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_a_student_in_its_teachers_space_has_a_layer_that_leads_there(
    pooling: str, as_encoder: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """Uncut it embeds as its teacher does; cut it embeds as widely, as the run's own forward pass does."""
    folder = as_encoder(make(BertModel), pooling)
    options = QUICK | {"optim": {"learning_rate": 1e-9}, "precision": "fp32", "space": "teacher"}
    made = homodistil.distil(folder, corpus, ["1.0", "0.5"], tmp_path / "run", **options).students
    teacher, whole, half = (SentenceTransformer(str(place)) for place in (folder, made["1.0"], made["0.5"]))
    assert [type(part).__name__ for part in half] == ["Transformer", "Pooling", "Dense", "Normalize"]
    np.testing.assert_allclose(whole.encode(TEXTS), teacher.encode(TEXTS), atol=1e-5)
    assert half[0].auto_model.config.hidden_size == 24
    assert half.encode(TEXTS).shape == teacher.encode(TEXTS).shape
    np.testing.assert_allclose(_embedded(made["0.5"]), half.encode(TEXTS), atol=1e-5)
    assert "teacher's space" in (made["0.5"] / "README.md").read_text()
    # it can be a teacher itself, whose students embed there, too
    again = homodistil.distil(made["0.5"], corpus, "0.7", tmp_path / "again", **options).students["0.7"]
    assert SentenceTransformer(str(again)).encode(TEXTS).shape == teacher.encode(TEXTS).shape


def test_in_its_teachers_space_a_students_embeddings_get_nearer_to_the_teachers_own(
    as_encoder: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """Of the same text, which is what its search is for; a student in its own space has no such distance."""
    folder = as_encoder(make(BertModel), "mean")
    text: dict[str, Any] = {"text": str(corpus), "time": False, "against": str(folder)}
    found = []
    for steps in (2, 120):
        options = QUICK | {"steps": steps, "space": "teacher"}
        made = homodistil.distil(folder, corpus, "0.5", tmp_path / f"run-{steps}", **options).students["0.5"]
        (said,) = (r["values"] for r in homodistil.evaluate(made, **text) if r["measure"].startswith("agreement"))
        found.append(said)
    assert found[1]["cosine"] > found[0]["cosine"] + 0.05
    assert found[1]["search_accuracy"] > found[0]["search_accuracy"]
    own = homodistil.distil(folder, corpus, "0.5", tmp_path / "own", **QUICK).students["0.5"]
    (said,) = (r["values"] for r in homodistil.evaluate(own, **text) if r["measure"].startswith("agreement"))
    assert not {"cosine", "search_accuracy"} & set(said)


def test_searching_by_the_same_embeddings_finds_every_text() -> None:
    """Copies of a text count as found, and cosines are those of rows with themselves."""
    drawn = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    twice = torch.cat((drawn, drawn[:2]))
    assert across(twice, 3 * twice) == pytest.approx({"cosine": 1, "search_accuracy": 1})
    turned = across(drawn, drawn.roll(1, 0))
    assert turned["search_accuracy"] == 0
    assert turned["cosine"] == pytest.approx(torch.cosine_similarity(drawn, drawn.roll(1, 0)).mean().item())


def test_a_space_is_kept_of_sentence_encoders_alone(
    masked_lm: Path, encoder: Path, as_encoder: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """A plain transformer's folder has no place for the layer; the largest states are no linear thing."""
    largest = as_encoder(make(BertModel), "max")
    for folder, why in (
        (masked_lm, "it is no sentence encoder"),
        (encoder, "it is no sentence encoder"),
        (largest, "it pools by max"),
    ):
        with pytest.raises(UserError, match=rf"space = teacher\): {why}.*\n.*\n.*leave --space out"):
            homodistil.distil(folder, corpus, "0.5", tmp_path / "run", space="teacher", **QUICK)


@pytest.mark.parametrize(("pooling", "first"), [("max", None), ("mean", Normalize())])
def test_a_tail_that_does_not_read_pooled_states_is_refused(
    pooling: str, first: Any, as_encoder: Callable[..., Path]
) -> None:
    """A projection stands before it, and passes neither a maximum nor a normalisation."""
    parts = [first] if first is not None else []
    folder = as_encoder(make(BertModel), pooling, *parts, Dense(48, 20))
    with pytest.raises(UserError, match=r"Dense modules must read the pooled states"):
        load_teacher(str(folder))


def test_states_of_a_decoder_that_embeds_are_compared_relative_to_their_size(decoder: Path, encoder: Path) -> None:
    """As those of a language model: no norm keeps its residual stream small. An encoder's are compared as they are."""
    recipe = Recipe(teacher="", data="", target=["0.5"], out="")
    assert losses_for(recipe, load_teacher(str(decoder))).hidden_kind == "relative"
    assert losses_for(recipe, load_teacher(str(encoder))).hidden_kind == "mse"


def test_embeddings_are_compared_where_they_are_what_a_teacher_is_for(
    encoder: Path, tailed: Path, decoder: Path, save_teacher: Callable[..., Path]
) -> None:
    """By default those of sentence encoders, those of bare ones if asked for, and never a language model's."""
    recipe = Recipe(teacher="", data="", target=["0.5"], out="")
    asked = replace(recipe, losses=Losses(cosine=2.0))
    bare, language_model = load_teacher(str(encoder)), load_teacher(str(save_teacher(BertForMaskedLM)))
    assert [losses_for(recipe, load_teacher(str(folder))).cosine for folder in (tailed, decoder)] == [1, 1]
    assert losses_for(recipe, bare).cosine == losses_for(recipe, language_model).cosine == 0
    assert losses_for(asked, bare).cosine == 2
    with pytest.raises(UserError, match=r"made for masked-lm"):
        losses_for(asked, language_model)


def test_similarities_are_measured_where_there_are_any_to_compare(encoder: Path, tmp_path: Path) -> None:
    """Of two held-out texts each has one other, which is as near as it is for student and teacher alike."""
    for held in (2, 3):
        texts = [f"the {word} cat" for word in WORDS[: 2 * held]]
        found = homodistil.distil(encoder, texts, "0.5", tmp_path / str(held), **QUICK).heldout["0.5"]
        assert {"hidden", "attention"} < set(found)
        assert ("prediction" in found, "agreement" in found) == (held == 3, held == 3)


def test_batches_without_similarities_to_compare_are_refused(encoder: Path, masked_lm: Path) -> None:
    """Their loss would be zero, whatever the student says; another loss may be all that is learnt from."""
    recipe = Recipe(teacher="", data="", target=["0.5"], out="", batch=2)
    teacher = load_teacher(str(encoder))
    with pytest.raises(UserError, match="similarities in batches of 2"):
        losses_for(recipe, teacher)
    assert losses_for(replace(recipe, batch=3), teacher).prediction == 0.5
    assert losses_for(replace(recipe, losses=Losses(prediction=0.0)), teacher).hidden == 120
    assert losses_for(recipe, load_teacher(str(masked_lm))).prediction == 1


def test_similarities_are_those_of_the_encoder_itself(as_encoder: Callable[..., Path]) -> None:
    """Two encoders that differ in how they pool, and in nothing else, do not agree."""
    made = make(BertModel)
    first, second = (open_model(str(as_encoder(made, pooling))) for pooling in ("cls", "mean"))
    ids = blocks(first, TEXTS * 8, 8, 2)
    assert agreement(first, first, ids, TEXTS)["similarity"] == pytest.approx(1)
    assert agreement(first, second, ids, TEXTS)["similarity"] < 0.99
    assert agreement(first, second, ids, TEXTS)["hidden_cka"] == pytest.approx(1)
    assert agreement(first, first, ids, TEXTS)["similarity_error"] == 0
    assert agreement(first, second, ids, TEXTS)["similarity_error"] > 0.01


def test_similarities_in_one_order_may_be_far_from_each_other() -> None:
    """Three texts far apart, and three close together: who is nearer to whom is the same, a threshold is not."""
    apart, close = (torch.tensor([[np.cos(x), np.sin(x)] for x in np.radians(d)]) for d in ([0, 30, 90], [0, 10, 30]))
    assert pairs_correlation(apart, close) == pytest.approx(1)
    cosines = [np.cos(np.radians(d)) for d in ([30, 60, 90], [10, 20, 30])]
    assert pairs_error(apart, close) == pytest.approx(np.sqrt(np.mean((cosines[0] - cosines[1]) ** 2)))
    assert pairs_error(apart, 3 * apart) == pytest.approx(0, abs=1e-6)


def test_a_way_of_pooling_that_we_do_not_know_is_refused(as_encoder: Callable[..., Path]) -> None:
    """By name, with those that we know."""
    folder = as_encoder(make(BertModel), "weightedmean")
    with pytest.raises(UserError, match=r"pools by weightedmean(?s:.*)mean, cls, max, lasttoken"):
        load_teacher(str(folder))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Puts a folder where the hub's client keeps what it has fetched under a name; nothing else can be fetched."""
    cache = tmp_path / "hub"
    for name, value in (("HF_HUB_CACHE", str(cache)), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)

    def put(name: str, folder: Path) -> None:
        place = cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, place / "snapshots" / ("0" * 40))

    return put


def test_a_sentence_encoder_of_the_hub_gives_a_sentence_encoder(
    decoder: Path, corpus: Path, tmp_path: Path, hub: Callable[[str, Path], None]
) -> None:
    """As one in a folder does: with its modules, and planned as what it is."""
    hub("somebody/encoder", decoder)
    assert homodistil.plan("somebody/encoder", "0.5") == homodistil.plan(decoder, "0.5")
    student = homodistil.distil("somebody/encoder", corpus, "0.5", tmp_path / "run", **QUICK).students["0.5"]
    assert SentenceTransformer(str(student))[1].pooling_mode == "lasttoken"


def test_a_hub_that_is_busy_does_not_make_a_sentence_encoder_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """That its modules could not be asked for is said, and nothing is guessed."""

    def busy(*_: Any) -> None:
        raise HfHubHTTPError("429: too many requests", response=MagicMock())

    monkeypatch.setattr("homodistil.models.sentence_folders.hf_hub_download", busy)
    with pytest.raises(UserError, match=r"Cannot load the teacher somebody/encoder: .*no folder .* hub: 429"):
        load_teacher("somebody/encoder")


def test_a_plain_transformer_of_the_hub_stays_one(masked_lm: Path, hub: Callable[[str, Path], None]) -> None:
    """A name without modules is what transformers opens."""
    hub("somebody/language", masked_lm)
    teacher = load_teacher("somebody/language")
    assert isinstance(teacher.model, BertForMaskedLM)
    assert teacher.sentence_folder is None
