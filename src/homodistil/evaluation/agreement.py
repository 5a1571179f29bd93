"""How closely a model follows another one on the same text, whatever their widths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding

from homodistil.errors import UserError
from homodistil.evaluation.language import LOGITS, attended, masked_positions, predictions
from homodistil.evaluation.models import LANGUAGE, Opened
from homodistil.evaluation.sides import Sides, last_states
from homodistil.evaluation.similarity import embed, follows, is_sentence_encoder

_UNNAMED = re.compile(r"label_\d+")
"""What transformers calls a class that nobody has named, in small letters."""


def agreement(student: Opened, teacher: Opened, ids: Tensor | Sides, texts: Sequence[str]) -> dict[str, float]:
    """Compare two models with one vocabulary, or a student with part of its teacher's.

    Both read the same tokens, and predictions are compared among those that the student has.

    Args:
        student: the model that is judged.
        teacher: the model that it is judged by.
        ids: blocks of text that neither was distilled on, as the student numbers tokens, (blocks, length); for
            encoder-decoders what is said to it, too.
        texts: the same text as separate sequences.

    Returns:
        `top1`, the share of predicted tokens on which both choose alike, and `kl`, the mean divergence
        KL(teacher ‖ student) in nats, where both have a language model, and of texts where both tell the same classes;
        `hidden_cka`, the linear centred kernel alignment of the last hidden states, of encoder-decoders the decoder's
        (Kornblith et al. 2019), 1 for equal up to rotation and scale; `similarity`, Spearman's correlation of the
        cosine similarities of all pairs of texts, by a sentence encoder's own embedding, or by the mean of the last
        hidden states, of encoder-decoders the encoder's; of two sentence encoders `similarity_error`, the root
        mean square of by how much these similarities differ, without which a threshold may mean something else, and
        where their embeddings are as wide, `cosine`, the mean of both embeddings of a text, and `search_accuracy`, the
        share of texts of which the student's embedding is nearest to the teacher's own: high in one space alone.

    Raises:
        UserError: the student has tokens that its teacher does not know.
    """
    mine, theirs = _shared(student, teacher)
    numbers = torch.zeros(max(mine.tolist()) + 1, dtype=torch.long).scatter_(0, mine, theirs).to(student.model.device)
    both = (ids, ids.renumbered(numbers) if isinstance(ids, Sides) else numbers[ids])
    result: dict[str, float] = {}
    if student.head == teacher.head in LANGUAGE:
        result = _predictions(student, teacher, both, (mine, theirs))
    elif (columns := _columns(student, teacher)) is not None:
        said, right = (_classes(m, texts) for m in (student, teacher))
        result = _of_classes(said, right[:, columns])
    states = [_last_hidden(m, own) for m, own in zip((student, teacher), both, strict=True)]
    # texts of like length together, for less padding; pairs of texts know no order
    embeddings = [_embeddings(m, sorted(texts, key=len)) for m in (student, teacher)]
    result["hidden_cka"] = linear_cka(*states)
    result["similarity"] = pairs_correlation(*embeddings)
    if all(is_sentence_encoder(m.source) for m in (student, teacher)):
        result["similarity_error"] = pairs_error(*embeddings)
        if embeddings[0].shape == embeddings[1].shape:
            result |= across(*embeddings)
    return result


@torch.no_grad()
def image_agreement(student: Opened, teacher: Opened, images: Sequence[Image.Image]) -> dict[str, float]:
    """Compare two models of images.

    Args:
        student: the model that is judged.
        teacher: the model that it is judged by.
        images: that neither was distilled on.

    Returns:
        `top1` and `kl` of the classes, as of tokens in `agreement`, where both have the same; `hidden_cka` of the last
        hidden states; `similarity` of the class tokens, over all pairs of images.

    Raises:
        UserError: the two cut images into other patches, so that nothing belongs together.
    """
    logits: list[tuple[Tensor, ...]] = []
    states: list[tuple[Tensor, ...]] = []
    for at in range(0, len(images), 32):
        both = [_see(one, images[at : at + 32]) for one in (student, teacher)]
        states.append(tuple(last for last, _ in both))
        logits.append(tuple(said for _, said in both if said is not None))
    mine, theirs = (torch.cat(side) for side in zip(*states, strict=True))
    if mine.shape[1] != theirs.shape[1]:
        raise UserError(
            f"Cannot compare {student.source} with {teacher.source}: they see {mine.shape[1]} and {theirs.shape[1]} "
            "tokens in an image.",
            "Agreement is measured patch by patch, so both must have one size of images and patches.",
            "Leave --against out, or name the teacher that the model was made of.",
        )
    result: dict[str, float] = {}
    if (columns := _columns(student, teacher)) is not None:
        said, right = (torch.cat(side) for side in zip(*logits, strict=True))
        result = _of_classes(said, right[:, columns])
    result["hidden_cka"] = linear_cka(mine.flatten(0, 1), theirs.flatten(0, 1))
    result["similarity"] = pairs_correlation(mine[:, 0], theirs[:, 0])
    return result


def _see(opened: Opened, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor | None]:
    """Last hidden states (images, tokens, width), and logits (images, classes) where there are classes."""
    pixels = opened.processor(list(images), return_tensors="pt")["pixel_values"].to(opened.model.device)
    last = opened.model.base_model(pixel_values=pixels).last_hidden_state
    logits = opened.model(pixel_values=pixels).logits if opened.head == "classes" else None
    return last.float().cpu(), None if logits is None else logits.float().cpu()


def _columns(student: Opened, teacher: Opened) -> list[int] | None:
    """For each class of the student's the teacher's; None if they do not tell the same, of classes that exclude others.

    A class is known by its name, in whatever case. Where either has no names but LABEL_0 and on, it is by its number.
    """
    if not student.head == teacher.head == "classes":
        return None
    configs = [one.model.config for one in (student, teacher)]
    mine, theirs = ([str(name).casefold() for _, name in sorted(config.id2label.items())] for config in configs)
    multiple = any(config.problem_type == "multi_label_classification" for config in configs)
    if len(mine) != len(theirs) or len(mine) == 1 or multiple:
        return None
    if mine == theirs or any(_UNNAMED.fullmatch(name) for name in (*mine, *theirs)):
        return list(range(len(mine)))
    if len(set(mine)) < len(mine) or set(mine) != set(theirs):
        return None
    return [theirs.index(name) for name in mine]


def _of_classes(mine: Tensor, theirs: Tensor) -> dict[str, float]:
    """Agreement of logits (rows, classes)."""
    ours, others = (x.log_softmax(-1) for x in (mine, theirs))
    return {
        "top1": (ours.argmax(-1) == others.argmax(-1)).float().mean().item(),
        "kl": (others.exp() * (others - ours)).sum(-1).mean().item(),
    }


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of (rows, width a) and (rows, width b): ‖AᵀB‖² / (‖AᵀA‖ ‖BᵀB‖), 0 to 1.

    It is 0 if all rows of one are alike: what is constant agrees with nothing.
    """
    if any(bool((x == x[:1]).all()) for x in (a, b)):
        return 0.0
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


def pairs_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation between the cosine similarities of all pairs of rows; 0 if all of one are alike."""
    return follows(*(torch.nn.functional.normalize(x, dim=-1).numpy() for x in (a, b)))


def across(a: Tensor, b: Tensor) -> dict[str, float]:
    """The mean cosine of rows with each other, and how often a row of `a` is nearest to the same row of `b`."""
    first, second = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (a, b))
    cosines = first @ second.T
    # a copy of a text is as near as the text itself
    found = cosines.diagonal() >= cosines.max(1).values - 1e-9
    return {"cosine": cosines.diagonal().mean().item(), "search_accuracy": found.double().mean().item()}


def pairs_error(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference between the cosine similarities of all pairs of rows."""
    ours, others = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (a, b))
    pairs = torch.triu_indices(len(a), len(a), 1)
    difference = (ours @ ours.T - others @ others.T)[pairs[0], pairs[1]]
    return float(difference.square().mean().sqrt())


def _shared(student: Opened, teacher: Opened) -> tuple[Tensor, Tensor]:
    """The numbers of each token of the student's: its own, and the teacher's, both (tokens,)."""
    own, known = (m.tokenizer.get_vocab() for m in (student, teacher))
    if strange := own.keys() - known.keys():
        raise UserError(
            f"Cannot compare {student.source} with {teacher.source}: they have {len(own)} and {len(known)} tokens, and "
            f"{len(strange)} of the first are none of the second's, such as {min(strange)!r}.",
            "Agreement is measured token by token, so both must have one vocabulary, or the first a part of it.",
            "Leave --against out, or name the teacher that the model was made of.",
        )
    return torch.tensor(list(own.values())), torch.tensor([known[token] for token in own])


@torch.no_grad()
def _predictions(
    student: Opened, teacher: Opened, ids: Sequence[Tensor | Sides], tokens: tuple[Tensor, Tensor]
) -> dict[str, float]:
    same, divergence, count = 0, 0.0, 0
    # in step, whichever has the larger vocabulary
    length = ids[0].longest if isinstance(ids[0], Sides) else ids[0].shape[1]
    batch = min(m.rows_at_once(LOGITS, length, 32) for m in (student, teacher))
    read = list(zip((student, teacher), ids, strict=True))
    blocks = [(m, own) for m, own in read if isinstance(own, Tensor)]
    chosen = masked_positions(*blocks) if student.head == "masked" else None
    both = (predictions(m, own, chosen, batch=batch) for m, own in read)
    for (mine, _), (theirs, _) in zip(*both, strict=True):
        mine, theirs = (p[:, own.to(p.device)].log_softmax(-1) for p, own in zip((mine, theirs), tokens, strict=True))
        same += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
        divergence += float((theirs.exp() * (theirs - mine)).sum())
        count += len(mine)
    return {"top1": same / count, "kl": divergence / count}


@torch.no_grad()
def _last_hidden(opened: Opened, ids: Tensor | Sides) -> Tensor:
    if isinstance(ids, Sides):
        return last_states(opened, ids)
    states = []
    for part in torch.split(ids, 32):
        mask = attended(opened, part)
        states.append(opened.model.base_model(input_ids=part, attention_mask=mask).last_hidden_state[mask > 0].cpu())
    return torch.cat(states)


def _read(opened: Opened, texts: Sequence[str], batch: int = 32) -> Iterator[BatchEncoding]:
    """Batches of texts as a model reads them, cut at 512 tokens or where its positions end."""
    length = min(opened.longest, 512)
    for at in range(0, len(texts), batch):
        yield opened.tokenizer(
            list(texts[at : at + batch]), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(opened.model.device)


@torch.no_grad()
def _classes(opened: Opened, texts: Sequence[str]) -> Tensor:
    """What a classifier says of texts, (texts, classes)."""
    return torch.cat(
        [
            opened.model(input_ids=made["input_ids"], attention_mask=made["attention_mask"]).logits.float().cpu()
            for made in _read(opened, texts)
        ]
    )


@torch.no_grad()
def _embeddings(opened: Opened, texts: Sequence[str]) -> Tensor:
    """A sentence encoder's own embeddings, or mean-pooled last hidden states, (texts, width)."""
    if is_sentence_encoder(opened.source):
        return torch.from_numpy(embed(opened.source, texts, trust_remote_code=opened.trust_remote_code))
    pooled = []
    for made in _read(opened, texts):
        states = opened.reader(input_ids=made["input_ids"], attention_mask=made["attention_mask"]).last_hidden_state
        weights = made["attention_mask"][..., None].to(states.dtype)
        pooled.append(((states * weights).sum(1) / weights.sum(1)).cpu())
    return torch.cat(pooled)
