"""Where the atoms of a product come from, as the attention of rxnmapper and of its students tells it.

    pip install rdkit rxn-chem-utils 'setuptools<81' && pip install --no-deps rxnmapper==0.4.3

One head of the eleventh of twelve layers says which atom is which (Schwaller et al. 2021, *Extraction of organic
chemistry grammar from unsupervised learning of chemical reactions*). No student is taught that: it is what the loss of
attention keeps, or does not. What makes a mapping of attention is the package `rxnmapper` itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

LAYER, HEAD = 10, 5
"""Where the package looks for it."""
Maps = list[list[int]]
"""For each reaction the reactants' atom that each atom of the product is said to be."""


def mapped(folder: Path, reactions: Sequence[str]) -> Maps:
    """What a model says."""
    from rxnmapper.attention import AttentionScorer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    maps: Maps = []
    for reaction in reactions:
        read = tokenizer(reaction, return_tensors="pt")
        with torch.no_grad():
            seen = model(**read, output_attentions=True).attentions[LAYER][0, HEAD]
        scorer = AttentionScorer(reaction, tokenizer.convert_ids_to_tokens(read["input_ids"][0]), seen.numpy())
        maps.append([int(atom) for atom in scorer.generate_attention_guided_pxr_atom_mapping()["pxr_mapping_vector"]])
    return maps


def agreement(maps: Maps, teacher: Maps) -> dict[str, float]:
    """The share of atoms, and of whole products, that are mapped as the teacher maps them."""
    same = [[a == b for a, b in zip(mine, theirs, strict=True)] for mine, theirs in zip(maps, teacher, strict=True)]
    return {
        "atoms mapped": statistics.mean(hit for hits in same for hit in hits),
        "products mapped": statistics.mean(all(hits) for hits in same),
    }
