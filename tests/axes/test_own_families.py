"""Families of users' own: the one that the documentation makes, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    BertForMaskedLM,
    MarianConfig,
    MarianMTModel,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerBase,
)

import homodistil
from conftest import make
from homodistil.axes.families import FAMILIES, own
from homodistil.axes.families.decoders import LLAMA
from homodistil.axes.families.encoders import BERT
from homodistil.axes.families.seq2seq import BART
from homodistil.axes.layout import Layout
from homodistil.cli import main
from homodistil.errors import UserError
from zoo import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-family.md").read_text()

SIDE = {"layers": 2, "attention_heads": 4, "ffn_dim": 96}


@pytest.fixture
def phi(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[Path, Path]:
    """A tiny Phi, and the documentation's file."""
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=32, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, initializer_range=0.2, pad_token_id=0, eos_token_id=3,
        bos_token_id=2, resid_pdrop=0.0,
    )  # fmt: skip
    PhiForCausalLM(config).save_pretrained(tmp_path / "phi")
    tokenizer.save_pretrained(tmp_path / "phi")
    found = re.search(r"```yaml\n(.+?)```", PAGE, re.DOTALL)
    assert found is not None
    (tmp_path / "phi.yaml").write_text(found[1])
    return tmp_path / "phi", tmp_path / "phi.yaml"


def test_the_family_of_the_documentation_can_be_distilled(
    phi: tuple[Path, Path],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its two commands run, and the student opens with plain transformers."""
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    homodistil (.+)$", PAGE, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["plan", "distil"]
    for command in commands:
        words = [{"path/to/phi": str(phi[0]), "corpus.txt": str(corpus)}.get(w, w) for w in command.split()]
        extra = ["--steps", "4", "--batch", "4", "--text.length", "16"] if "--data" in words else []
        assert main([*words, *extra]) == 0, capsys.readouterr().err
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "phi" / "students" / "0.75")
    assert (student.config.hidden_size, student.config.num_attention_heads) == (32, 3)
    assert student(torch.arange(4, 12)[None]).logits.isfinite().all()


def test_a_family_is_unknown_until_it_is_registered(phi: tuple[Path, Path]) -> None:
    """Registering makes a model type known; the message before says how to do it."""
    model = PhiForCausalLM.from_pretrained(phi[0])
    with pytest.raises(UserError, match="--family"):
        Layout.of(model)
    homodistil.register(homodistil.read_family(phi[1]))
    assert homodistil.shrink(model, "0.5").shape == {"hidden": 24, "kv_heads": 2, "ffn": 48, "layers": 2}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_the_packages_own_families_pass_the_check(family: homodistil.Family) -> None:
    """What users' families must hold, ours hold."""
    own.check(family)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": "embed.weight  vocab (hidden"}, "embed.weight  vocab (hidden"),
        ({"widths": {"hidden": "hidden", "ffm": "ffn"}}, "widths speaks of 'ffm'"),
        ({"config": {"hidden_size": "hiden"}}, "config speaks of 'hiden'"),
        ({"counted": {"kvs": "num_key_value_heads"}}, "counted speaks of 'kvs'"),
        ({"queries": ("layers.*.attn.q.weight",)}, "queries names layers.*.attn.q.weight"),
        ({"divided": {"hidden": "heeds"}}, "divided speaks of 'heeds'"),
        ({"scaled": {"embed.weight": "hidden^-0.5"}}, "scaled names embed.weight"),
        ({"scaled": {"norm.weight + 1": "hiden"}}, "scaled speaks of 'hiden'"),
        ({"distances": ("layers.*.attn.k.weight",)}, "distances names layers.*.attn.k.weight"),
        ({"widths": {"hidden": "hidden"}, "config": {}, "attributes": {}}, "widths has no ffn"),
        ({"widths": {"hidden": "hidden", "ffn": "ffn"}}, "widths has no kv_heads"),
        ({"widths": {"hidden": "hidden", "ffn": "ffn", "kv": "heads"}}, "must be ffn, hidden, kv_heads"),
        ({"bound": True}, "widths has no heads"),
        ({"rows": LLAMA.rows.replace("rope", "rope*")}, "config speaks of 'rope'"),
        ({"scaled": {"norm.weight + 1": "hidden^-0,5"}}, "scaled speaks of 'hidden^-0,5'"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, object], said: str) -> None:
    """The row or the rule that is wrong is in the message."""
    with pytest.raises(UserError) as refusal:
        homodistil.register(replace(LLAMA, **changes))  # type: ignore[arg-type]
    assert said in str(refusal.value)
    assert not own.registered


def test_queries_between_keys_and_values_of_each_head_are_refused() -> None:
    """Scaling all three would change what a model says: only the first part of a matrix can be told to be queries."""
    table = """
        word_embeddings.weight                          vocab hidden
        h.*.self_attention.query_key_value.weight       (heads* 3 qk*) hidden
        h.*.mlp.weight                                  ffn* hidden
    """
    family = homodistil.Family(
        name="Bloom", model_types=("bloom",), rows=table, heads={}, config={"hidden_size": "hidden"}, bound=True,
        widths={"hidden": "hidden", "heads": "heads", "qk": "head_dim", "ffn": "ffn"}, counted={"heads": "n_head"},
        queries=("h.*.self_attention.query_key_value.weight",), attributes={},
    )  # fmt: skip
    with pytest.raises(UserError, match="whose fixed factor is not the first of its dimension"):
        homodistil.register(family)
    homodistil.register(replace(family, rows=table.replace("heads* 3 qk*", "3 heads* qk*")))


def test_a_table_of_ones_own_is_used_or_refused_but_never_passed_over() -> None:
    """Where the package's own table of the same models would fit, too: the message names the row."""
    model = make(BertForMaskedLM)
    homodistil.register(replace(BERT, name="Mine"))
    assert Layout.of(model).family.name == "Mine"
    wrong = BERT.rows.replace("intermediate.dense.weight", "intermediate.dence.weight")
    homodistil.register(replace(BERT, name="Mine", rows=wrong))
    with pytest.raises(UserError, match="Mine"):
        Layout.of(model)


def test_what_tensors_tell_need_not_be_counted() -> None:
    """MPNet's biases of distances have a column a head, by which its heads are known."""
    model = tiny("MPNet")
    counted = Layout.of(model)
    homodistil.register(replace(counted.family, name="Mine", counted={}))
    assert Layout.of(model).shape(model) == counted.shape(model)


def test_a_parameter_that_the_model_does_not_save_is_refused() -> None:
    """Marian's positions are made anew where it is opened: they would be others than those that were cut."""
    rows = "\n".join(row for row in BART.rows.splitlines() if "layernorm_embedding" not in row)
    homodistil.register(replace(BART, name="Marian", model_types=("marian",), rows=rows))
    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIDE.items()}
    model = MarianMTModel(MarianConfig(vocab_size=32, d_model=48, max_position_embeddings=64, pad_token_id=0, **sides))
    with pytest.raises(UserError, match=r"does not save its parameter model\.encoder\.embed_positions\.weight"):
        homodistil.shrink(model, "0.5")


def test_a_count_that_the_configuration_has_not_is_named(phi: tuple[Path, Path]) -> None:
    """The check of a family sees no configuration."""
    homodistil.register(replace(homodistil.read_family(phi[1]), counted={"kv": "n_kv_heads"}))
    with pytest.raises(UserError, match="has no n_kv_heads"):
        homodistil.plan(phi[0], "0.5")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: [", "Cannot read"),
        ("name: Übung".encode("latin-1"), "Cannot read the family(?s:.*)in UTF-8"),
        (b"- name", "but a list"),
        (b"nme: Phi", "'nme' is unknown"),
        (b"5: Phi\nname: Phi", "'5' is unknown"),
        (b"name: Phi", "is missing"),
    ],
)
def test_a_file_that_is_no_family_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    """YAML that is broken, or has other fields than a family, is refused by name."""
    (tmp_path / "own.yaml").write_bytes(content)
    with pytest.raises(UserError, match=said):
        homodistil.read_family(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 5},
        {"heads": {"language model": 5}},
        {"widths": ["hidden", "ffn"]},
        {"attributes": {"layers.*.self_attn": "heads"}},
        {"model_types": "phi"},
        {"queries": [1]},
        {"bound": "perhaps"},
        {"class_tokens": "one"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_field_of_another_type_is_named(phi: tuple[Path, Path], changes: dict[str, object]) -> None:
    """A value that is no text, list or mapping where one must stand is refused by its field."""
    phi[1].write_text(yaml.safe_dump({**yaml.safe_load(phi[1].read_text()), **changes}))
    with pytest.raises(UserError, match=next(iter(changes))):
        homodistil.read_family(phi[1])


def test_families_are_listed(phi: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The verb shows every family with its widths, and a user's own."""
    assert main(["families", "--family", str(phi[1])]) == 0
    listed = capsys.readouterr().out
    assert all(f.name.split()[0] in listed for f in FAMILIES)
    assert "Phi" in listed
    assert "kv_heads" in listed
