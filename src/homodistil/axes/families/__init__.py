"""The families of models that can be cut: names of parameters, modules and configuration keys, and nothing else."""

from homodistil.axes.families.deberta import DEBERTA, DEBERTA_OWN
from homodistil.axes.families.decoders import EUROBERT, GPT2, LLAMA, MISTRAL, NEOX, OPT
from homodistil.axes.families.electra import ELECTRA, ELECTRA_SMALL
from homodistil.axes.families.encoders import BERT, DISTILBERT, MODERNBERT, ROBERTA
from homodistil.axes.families.family import Family
from homodistil.axes.families.gemma import GEMMA, GEMMA_2
from homodistil.axes.families.own import read_family, register, registered
from homodistil.axes.families.seq2seq import BART, T5, T5_1
from homodistil.axes.families.sharing import ALBERT, MPNET
from homodistil.axes.families.vision import DEIT, VIT

FAMILIES: tuple[Family, ...] = (
    *(BERT, ROBERTA, ELECTRA, ELECTRA_SMALL, DISTILBERT, MPNET, ALBERT, MODERNBERT, EUROBERT),
    *(DEBERTA, DEBERTA_OWN),
    *(GPT2, OPT, NEOX, LLAMA, MISTRAL, GEMMA, GEMMA_2),
    *(T5, T5_1, BART),
    *(VIT, DEIT),
)


def known() -> tuple[Family, ...]:
    """All families: users' own first."""
    return (*registered, *FAMILIES)


__all__ = ["FAMILIES", "Family", "known", "read_family", "register"]
