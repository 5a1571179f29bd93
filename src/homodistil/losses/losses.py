"""The distillation losses, each a pure function of tensors.

`tokens`, `prediction`, `hidden` and the attention's are those of HomoDistil, section 2 (L_pred to L_emb). Ours are
`multi_label` and `regression`, for heads that the paper does not have, `similarity` and `cosine`, for sentence
encoders, and distances that are `relative`.

Shapes: batch, seq, heads; `wide` is the teacher's hidden width, `narrow` the student's. A mask is 1 for tokens and
0 for padding, which counts nowhere. Every loss is exactly zero when student and teacher agree, but for `lm`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from homodistil.losses.kernels import divergence, over_vocabulary, squared_distance
from homodistil.losses.maps import map_distance, score_distance
from homodistil.losses.outputs import TokenPredictions
from homodistil.models.attention import QueriesKeys


def tokens(
    student: TokenPredictions, teacher: TokenPredictions | None, labels: Int[Tensor, " positions"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """L_lm and L_pred of language models: cross-entropy of the student's own predictions, and `prediction`.

    Both are means over predicted positions, without all logits at once: chunks of positions are predicted one after
    the other, and again in the backward pass. Without a teacher, L_pred is 0; without a position, as in a batch of
    texts of one token each, both are.
    """

    def chunk(mine: Tensor, theirs: Tensor | None, right: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            others = teacher.head(theirs) if teacher is not None and theirs is not None else None
        own, other = over_vocabulary(student.head(mine), others, right, temperature)
        return own * len(right), other * len(right)

    sums: list[tuple[Tensor, Tensor]] = []
    parts = student.chunks()
    for part in parts:
        inputs = student.states[part], teacher.states[part] if teacher is not None else None, labels[part]
        if len(parts) == 1 or not torch.is_grad_enabled():
            sums.append(chunk(*inputs))
        else:
            # nothing is drawn in it
            sums.append(checkpoint(chunk, *inputs, use_reentrant=False, preserve_rng_state=False))
    own, other = (torch.stack(terms).sum() / max(1, len(labels)) for terms in zip(*sums, strict=True))
    return own, other


def prediction(
    student: Float[Tensor, "rows classes"], teacher: Float[Tensor, "rows classes"], temperature: float
) -> Float[Tensor, ""]:
    """T² · KL(softmax(z_t/T) ‖ softmax(z_s/T)), mean over rows: tokens or sequences."""
    return divergence(student, teacher, temperature)


def multi_label(
    student: Float[Tensor, "rows labels"], teacher: Float[Tensor, "rows labels"], temperature: float
) -> Float[Tensor, ""]:
    """T² · KL between the two Bernoulli distributions of each label, summed over labels, mean over rows.

    Labels that do not exclude each other are told by sigmoids: a softmax would not see what all logits have in common.
    """
    mine, theirs = student.float() / temperature, teacher.float() / temperature
    told = theirs.sigmoid()
    both = [F.binary_cross_entropy_with_logits(x, told, reduction="none") for x in (mine, theirs)]
    return temperature**2 * (both[0] - both[1]).sum(-1).mean()


def regression(student: Float[Tensor, "rows 1"], teacher: Float[Tensor, "rows 1"]) -> Float[Tensor, ""]:
    """Mean squared error of a head that predicts one number."""
    return F.mse_loss(student.float(), teacher.float())


def similarity(
    student: Float[Tensor, "batch narrow"], teacher: Float[Tensor, "batch wide"], temperature: float
) -> Float[Tensor, ""]:
    """KL between the in-batch similarity distributions of normalised embeddings, the diagonal left out.

    Each text's cosine similarities to the other texts, over the temperature, are a distribution over those texts.
    Zero for a batch of one or two, of which nothing can be told apart.
    """
    n = len(student)
    if n < 2:
        return (student * 0).sum().float()
    rows_s, rows_t = (_to_others(x.float() @ x.float().T) / temperature for x in (student, teacher))
    return divergence(rows_s, rows_t, 1.0)


def _to_others(square: Float[Tensor, "n n"]) -> Float[Tensor, "n others"]:
    """A square without its diagonal, without asking where that is: a GPU would have to be waited for."""
    n = len(square)
    # rows that are one longer begin one entry behind the diagonal
    return square.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)


def cosine(student: Float[Tensor, "batch wide"], teacher: Float[Tensor, "batch wide"]) -> Float[Tensor, ""]:
    """One minus the cosine between embeddings of the same text, mean over texts; both are normalised already.

    As half the squared distance, which is exactly zero where they agree.
    """
    return (student - teacher).square().sum(-1).mean() / 2


def hidden(
    student: Float[Tensor, "batch seq narrow"],
    teacher: Float[Tensor, "batch seq wide"],
    projection: Float[Tensor, "narrow wide"],
    mask: Int[Tensor, "batch seq"],
    *,
    relative: bool = False,
) -> Float[Tensor, ""]:
    """MSE(H_t, H_s W), mean over tokens and the teacher's width; `relative` to the mean square of both at each token.

    Some models have tokens whose states are a thousand times those of others: of a plain mean they would be all.
    Relative to both sides, and not to the teacher's alone, no token adds more than 4, also where the student's is large
    and the teacher's is not.
    """
    projected = student @ projection
    # autocast may have rounded the product; the teacher is rounded alike, or equal states would differ
    if not relative:
        return squared_distance(projected, teacher, mask)
    difference = (projected - teacher.to(projected.dtype)).float()
    both = (projected.float().square() + teacher.float().square()).mean(-1) / 2
    squares = difference.square().mean(-1) / both.clamp(min=1e-12)
    return (squares * mask).sum() / mask.sum()


def attention_scores(student: QueriesKeys, teacher: QueriesKeys, mask: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    """MSE(A_t, A_s) of the scaled scores before the softmax, over heads and pairs of tokens, without the scores."""
    return score_distance(student, teacher, mask) / _pairs(student, mask)


def attention_probabilities(
    student: QueriesKeys, teacher: QueriesKeys, mask: Int[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    """MSE(A_t, A_s) of the probabilities after the softmax, over heads and pairs of tokens."""
    return map_distance(student, teacher, mask) / _pairs(student, mask)


def _pairs(layer: QueriesKeys, mask: Tensor) -> Tensor:
    """Pairs of tokens that are compared, of all heads."""
    return mask.sum(-1).float().square().sum() * layer.queries.shape[1]
