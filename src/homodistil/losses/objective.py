"""The sum of the losses: which are computed, with which weights, and what they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homodistil.losses import losses
from homodistil.losses.descent import Descent
from homodistil.losses.outputs import Batch, Outputs
from homodistil.losses.projections import Projections
from homodistil.models.attention import QueriesKeys
from homodistil.models.kind import Kind
from homodistil.models.sentence import EMBEDDING
from homodistil.settings import Losses

_ATTENTION = {"scores": losses.attention_scores, "probabilities": losses.attention_probabilities}


@dataclass(frozen=True)
class Objective:
    """L = a_lm·L_lm + a_pred·L_pred + a_hid·L_hid + a_att·L_att + a_emb·L_emb + a_cos·L_cos (HomoDistil, section 2).

    L_cos is ours.

    Attributes:
        kind: what the models predict.
        weights: of the six terms, none of them left open; a term of weight 0 is not computed.
        projections: W of the hidden and embedding terms.
        tail: of a sentence encoder, the layers after its pooling (see `sentence`).
    """

    kind: Kind
    weights: Losses
    projections: Projections
    tail: nn.Module | None = None

    @property
    def relative(self) -> bool:
        """Whether distances of states are relative to the size of both."""
        return self.weights.hidden_kind == "relative"

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, descent: Descent) -> dict[str, Tensor]:
        """Each term with a weight, unweighted.

        Args:
            student: its outputs on the batch.
            teacher: its outputs on the same batch.
            batch: what both have read.
            descent: which of the teacher's layers and heads the student's are compared with.
        """
        w = self.weights
        terms: dict[str, Tensor] = {}
        if student.tokens is not None:
            theirs = teacher.tokens if w.prediction else None
            both = losses.tokens(student.tokens, theirs, batch["labels"], w.temperature)
            terms |= {n: t for n, t in zip(("lm", "prediction"), both, strict=True) if getattr(w, n)}
        if w.prediction and (answers := self.answers(student, teacher)):
            terms["prediction"] = self._prediction(*answers)
        if w.hidden:
            terms["hidden"] = self._hidden(student, teacher, descent)
        if w.attention:
            loss, mask = _ATTENTION[w.attention_kind], batch["attention_mask"]
            pairs = zip(student.attention, descent.attention(teacher.attention), strict=True)
            terms["attention"] = torch.stack(
                [loss(s, _with_heads(t, descent.heads.get(k)), mask) for k, (s, t) in enumerate(pairs)]
            ).mean()
        if w.embedding:
            terms["embedding"] = losses.hidden(
                student.hidden[0], teacher.hidden[0], self.projections[0], student.masks[0], relative=self.relative
            )
        if w.cosine and (ways := self._ways(student, teacher)):
            terms["cosine"] = torch.stack([losses.cosine(*both) for both in ways]).sum()
        return terms

    def answers(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor] | None:
        """What both predict, if they were asked to: logits (rows, classes), or normalised embeddings (batch, width)."""
        mine, theirs = student.prediction, teacher.prediction
        if mine is None or theirs is None:
            return None
        if self.kind != "similarity":
            return mine, theirs
        if self.tail is not None:
            return self._ways(student, teacher)[0]
        return _normalised(mine), _normalised(theirs)

    def _ways(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """Of sentence encoders, the student's and the teacher's normalised embeddings, if they were asked for.

        First in the teacher's width, (batch, wide), and then in the student's, (batch, narrow), to which the same
        matrix leads back: its users compare a student's embeddings without it. If it led there alone, it could shrink
        what the embeddings of all texts have in common, and their cosines would stay high. A tail is in the teacher's
        width, and so are a student's embeddings behind it.
        """
        mine, theirs = student.prediction, teacher.prediction
        if mine is None or theirs is None or self.kind != "similarity":
            return []
        matrix = self.projections.last
        # in float32, in which nothing is lost by the identity that W starts as
        with torch.autocast(mine.device.type, enabled=False):
            mine, theirs = mine.float(), theirs.float()
            there = mine @ matrix
            ways = [(there, theirs)] if self.tail is not None else [(there, theirs), (mine, theirs @ matrix.T)]
        if self.tail is not None:
            ways = [tuple(self.tail({EMBEDDING: x})[EMBEDDING] for x in ways[0])]
        return [(_normalised(ours), _normalised(others)) for ours, others in ways]

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, which is what the student learns from."""
        return torch.stack([getattr(self.weights, name) * term for name, term in terms.items()]).sum()

    def discrepancy(self, terms: Mapping[str, float]) -> float:
        """How far the student is from its teacher: the weighted sum without the student's own language model."""
        return float(sum(getattr(self.weights, name) * term for name, term in terms.items() if name != "lm"))

    def _prediction(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.kind == "similarity":
            return losses.similarity(student, teacher, self.weights.similarity_temperature)
        if self.kind == "multi-label":
            return losses.multi_label(student, teacher, self.weights.temperature)
        if student.shape[-1] == 1:
            return losses.regression(student, teacher)
        return losses.prediction(student, teacher, self.weights.temperature)

    def _hidden(self, student: Outputs, teacher: Outputs, descent: Descent) -> Tensor:
        pairs = zip(student.hidden[1:], descent.states(teacher.hidden[1:]), student.masks[1:], strict=True)
        states = [
            losses.hidden(s, t, self.projections[k + 1], mask, relative=self.relative)
            for k, (s, t, mask) in enumerate(pairs)
        ]
        if student.pooled is not None and teacher.pooled is not None:
            once = student.masks[-1][:, :1]
            states.append(
                losses.hidden(student.pooled[:, None], teacher.pooled[:, None], self.projections[len(states) + 1], once)
            )
        return torch.stack(states).mean()


def _normalised(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=-1)


def _with_heads(layer: QueriesKeys, heads: Tensor | None) -> QueriesKeys:
    if heads is None:
        return layer
    return QueriesKeys(layer.queries[:, heads], layer.keys[:, heads], layer.scaling)
