"""Real weights: teachers of three families go through the whole job and come out as what their users open."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import homodistil
from homodistil.assets import fetch

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module")
def reactions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reaction SMILES of four textbook kinds, put together from small groups."""
    acids = ["CC", "CCC", "CC(C)C", "c1ccccc1", "Cc1ccccc1", "COc1ccccc1", "FC(F)(F)C", "C1CC1"]
    others = ["CC", "CCC", "CCCC", "CC(C)C", "Cc1ccccc1", "C1CCCCC1", "COCC", "CCOCC"]
    rings = ["c1ccccc1", "c1ccncc1", "c1ccc(C)cc1", "c1ccc(OC)cc1", "c1ccc(F)cc1", "c1ccsc1"]
    made = [f"OC(=O){a}.O{b}>>O=C(O{b}){a}" for a in acids for b in others]
    made += [f"OC(=O){a}.N{b}>>O=C(N{b}){a}" for a in acids for b in others]
    made += [f"Br{a}.OB(O){b}>>{a[:-1]}1-{b}" for a in rings for b in rings]
    made += [f"ClC(=O){a}.N{b}.CCN(CC)CC>>O=C(N{b}){a}" for a in acids for b in others]
    random.Random(0).shuffle(made)
    path = tmp_path_factory.mktemp("reactions") / "reactions.txt"
    path.write_text("\n".join(made) + "\n")
    return path


def test_minilm_comes_out_as_a_sentence_encoder_of_half_the_width(tmp_path: Path) -> None:
    """A sentence-transformers teacher gives a sentence-transformers student, which plain transformers opens too."""
    learn = tmp_path / "learn.txt"
    learn.write_text("\n".join(fetch("wiki-leads").read_text().splitlines()[:200]) + "\n")
    result = homodistil.distil(
        fetch("minilm"), learn, "0.5", tmp_path / "run", steps=6, batch=8, text={"length": 64, "heldout": 0.1}
    )
    folder = result.students["0.5"]
    encoder = SentenceTransformer(str(folder))
    texts = ["A cat sleeps on the mat.", "The parliament passed a law.", "A kitten naps on a rug."]
    embeddings = encoder.encode(texts)
    assert embeddings.shape == (3, 192)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert embeddings[0] @ embeddings[2] > embeddings[0] @ embeddings[1]
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    weights = batch["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)
    np.testing.assert_allclose(pooled.numpy(), embeddings, atol=1e-5)


@pytest.mark.parametrize("teacher", ["rxnfp", "rxnmapper"])
def test_an_uncut_pass_leaves_the_masked_accuracy_of_a_teacher_unchanged(
    tmp_path: Path, reactions: Path, teacher: str
) -> None:
    """With the teacher's own width as target and no learning, teacher and student find the same masked tokens."""
    result = homodistil.distil(
        fetch(teacher),
        reactions,
        "1.0",
        tmp_path / "run",
        steps=2,
        batch=4,
        text={"heldout": 0.5},
        optim={"learning_rate": 0.0},
    )
    held = result.heldout["1.0"]
    assert held["accuracy"] == held["teacher_accuracy"] > 0.6
    assert held["agreement"] == 1.0
    assert held["hidden"] == held["attention"] == held["prediction"] == 0.0


@pytest.mark.parametrize("teacher", ["rxnfp", "rxnmapper"])
def test_a_model_of_reactions_goes_through_two_targets_and_comes_out_loadable(
    tmp_path: Path, reactions: Path, teacher: str
) -> None:
    """A true masked language model of 12 layers, or of one that is passed 12 times, gets to 0.5 by 0.75 in one run."""
    result = homodistil.distil(
        fetch(teacher), reactions, ["0.5", "0.75"], tmp_path / "run", steps=8, batch=4, text={"heldout": 0.2}
    )
    for target, hidden in (("0.75", 192), ("0.5", 128)):
        model = AutoModelForMaskedLM.from_pretrained(result.students[target])
        assert model.config.hidden_size == hidden
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        tokenizer = AutoTokenizer.from_pretrained(result.students[target])
        assert tokenizer.tokenize("BrC[C@@H]Cl>>C") == ["Br", "C", "[C@@H]", "Cl", ">>", "C"]


def test_smollm2_loses_and_regains_in_a_few_steps(tmp_path: Path) -> None:
    """A real Llama with grouped queries, from four bits: cut to 0.75, it nears its teacher in some steps."""
    learn = tmp_path / "learn.txt"
    learn.write_text("\n".join(fetch("wiki-leads").read_text().splitlines()[:60]) + "\n")
    out = tmp_path / "run"
    result = homodistil.distil(
        fetch("smollm2"), learn, "0.75", out, steps=8, batch=2, log_every=1, evaluations=0,
        text={"length": 64, "heldout": 0.05}, cutting={"ramp_end": 0.0, "calibration": 2},
        optim={"learning_rate": 3e-4, "warmup": 0.0},
    )  # fmt: skip
    path = [json.loads(line)["discrepancy"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sum(path[-2:]) < sum(path[:2])
    held = result.heldout["0.75"]

    assert held["teacher_accuracy"] > 0.3
    assert held["lm"] < 10
    model = AutoModelForCausalLM.from_pretrained(result.students["0.75"])
    assert (model.config.hidden_size, model.config.num_attention_heads, model.config.head_dim) == (432, 6, 64)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_trimmed_minilm_says_the_same_of_its_text(tmp_path: Path) -> None:
    """Of 200 lead sections, with all that a real WordPiece vocabulary meets; other text is still read."""
    texts = fetch("wiki-leads").read_text().splitlines()[:200]
    made = homodistil.trim_vocabulary(fetch("minilm"), texts, tmp_path / "trimmed")
    assert made.tokens[1] < 9000
    assert made.parameters[0] - made.parameters[1] == (made.tokens[0] - made.tokens[1]) * 384
    # on one input after the other, because sums in a batch are rounded by its shape
    models = [SentenceTransformer(str(folder)) for folder in (made.folder, fetch("minilm"))]
    ours, theirs = (m.encode(texts[:20], batch_size=1) for m in models)
    np.testing.assert_array_equal(ours, theirs)
    unseen = "Xylophonists quarrelled over zucchini."
    assert "[UNK]" not in AutoTokenizer.from_pretrained(made.folder).tokenize(unseen)
    ours, theirs = (m.encode(unseen, normalize_embeddings=True) for m in models)
    assert ours @ theirs < 0.999


def test_a_trimmed_smollm2_reads_as_before(tmp_path: Path) -> None:
    """Byte-level BPE with 48,900 merges: the tokens of its text, and every byte, are left."""
    whole = AutoTokenizer.from_pretrained(fetch("smollm2"))
    texts = fetch("wiki-leads").read_text().splitlines()[:200]
    made = AutoTokenizer.from_pretrained(homodistil.trim_vocabulary(fetch("smollm2"), texts, tmp_path / "made").folder)
    assert len(made) < 12_000
    for text in texts:
        assert made.tokenize(text) == whole.tokenize(text)
    unseen = "\N{GRINNING FACE} Xylophonists \u0416\u4e2d\x00"
    assert made.decode(made(unseen).input_ids) == unseen
