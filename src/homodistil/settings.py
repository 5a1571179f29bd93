"""What a recipe is made of: weights, how data is read, what is cut and when, how the student learns. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Weights of the loss terms. A term of weight 0 is not computed.

    Args:
        lm: L_lm, the student's own language modelling, masked or causal.
        prediction: L_pred, divergence from the teacher's predictions; for an encoder without a head, of text or of
            images, from the similarities of its embeddings. By default 0.25 for sentence encoders, 0.5 for other
            encoders without a head, and 1 for all else.
        hidden: L_hid, distance of each layer's hidden states; by default 120, and 20 where it is relative.
        attention: L_att, distance of each layer's attention; for encoders whose layers attend to the whole sequence by
            default 0.25, or 0.1 where L_hid is relative, and 0 for all others, MPNet and DeBERTa among them.
        embedding: L_emb, distance of the embeddings.
        cosine: L_cos, one minus the cosine between the embeddings of a text, the student's led to the teacher's width,
            and, where the student embeds in a space of its own, the same again with the teacher's led back to it; by
            default 1 for sentence encoders, and 0 for encoders that nobody has made into one.
        hidden_kind: what L_hid is: the mean squared error, or that relative to both sides' mean square at each token;
            `auto` is relative for decoders and encoder-decoders, some of whose states are a thousand times the others,
            and for models of images.
        attention_kind: what L_att compares: scores before the softmax (faster), or probabilities after it.
        masked: the share of tokens that a masked language model predicts, of which L_lm and L_pred are; held-out text
            is always measured by the 0.15 of BERT.
        temperature: T of L_pred.
        similarity_temperature: by what cosine similarities are divided in L_pred of sentence encoders.
    """

    lm: float = 1.0
    prediction: float | None = None
    hidden: float | None = None
    attention: float | None = None
    embedding: float = 0.1
    cosine: float | None = None
    hidden_kind: Literal["auto", "mse", "relative"] = "auto"
    attention_kind: Literal["scores", "probabilities"] = "scores"
    masked: float = 0.25
    temperature: float = 1.0
    similarity_temperature: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Text:
    """How text is read, by teachers of text.

    Args:
        column: the text column of .jsonl, .csv, .parquet and datasets.
        target: the column of targets, for encoder-decoders that learn from given pairs; left out, they learn to say
            what stood where spans were taken out of the text.
        length: tokens in a sequence at most; of a pair in each of the two. By default 128, and of language models as
            many as nearly all texts have, from 128 to 512, as far as both models read.
        packing: `blocks` joins texts and cuts them into full sequences, `whole` joins as many whole ones as there is
            room for, `texts` keeps one text a sequence; `auto` is whole for masked language models, blocks for other
            language models, and texts for everything else, and for pairs.
        crops: of the texts that a sentence encoder learns from, the share that is cut down to a random piece, so that
            it learns short texts as well as long ones.
        prompts: what is put before texts that are kept apart, one of them before each, such as "query: "; by default
            those that a sentence encoder comes with, and nothing for other teachers.
        heldout: the share of the sequences that is not trained on and measures the student: three at least and 256
            at most, of a stream its first ones, 64 at most.
        stream: read on the fly, never as a whole; implied by data that cannot be counted.
        workers: processes that tokenise; 0 is one for every 20,000 texts, up to the number of cores.
    """

    column: str = "text"
    target: str | None = None
    length: int | None = None
    packing: Literal["auto", "blocks", "whole", "texts"] = "auto"
    crops: float = 0.5
    prompts: list[str] | None = None
    heldout: float = 0.02
    stream: bool = False
    workers: int = 0


@dataclass(frozen=True, kw_only=True)
class Images:
    """How images are read, by teachers of images.

    Args:
        column: the image column of datasets.
        crop: the share of its area that a random piece of an image keeps at least, resized to what the teacher
            reads; drawn anew each epoch. 1 is always the whole image.
        flip: the share of the images that are mirrored.
        heldout: the share of the images, three at least and 256 at most, that is not trained on and measures the
            student.
    """

    column: str = "image"
    crop: float = 0.5
    flip: float = 0.5
    heldout: float = 0.02


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """What is cut, and when.

    Args:
        importance: how units are scored; `auto` is sensitivity where there is a language-model loss, otherwise output,
            which is measured on the uncut student alone.
        window: measurements in a smoothing window.
        decay: what the average of windows keeps of itself.
        calibration: batches on which importance is measured before the first step, on the uncut student; where nothing
            is cut, none. With 0, `output` is measured on the way, and what is cut before the first step on one batch.
        basis: in which basis heads lose dimensions: their `principal` one on the batches of `calibration`, in which the
            first dimensions make as much of the scores and of the output as so many can, or the one that the `teacher`
            has. Nothing that a model says depends on it before the first cut.
        ramp_start: t_i, the fraction of a target's steps at which cutting starts.
        ramp_end: t_f, the fraction at which the target's width is reached; left out, a tenth after it starts, and later
            in a language model's run of few steps.
        grain: hidden and ffn fall to multiples of it on the way.
        every: units are cut, and importance is measured, at each so many-th step of the ramp; 0 is every eighth, or so
            often that it is 16 times at least, as far as the ramp has steps.
        compensate: what layers take over from units that are cut: their best guess from the units that stay, the
            mean alone, or nothing.
    """

    importance: Literal["auto", "sensitivity", "platon", "output", "magnitude"] = "auto"
    window: int = 4
    decay: float = 0.8
    calibration: int = 16
    basis: Literal["principal", "teacher"] = "principal"
    ramp_start: float = 0.0
    ramp_end: float | None = None
    grain: int = 8
    every: int = 0
    compensate: Literal["least-squares", "mean", "none"] = "least-squares"


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How the student learns: Muon, linear warm-up and decay for each target, at a rate that goes with its width.

    Args:
        method: what moves matrices from units to units: `muon`, their momentum made orthogonal (Jordan et al. 2024), or
            `adamw`. Everything else, such as embeddings, norms and biases, is moved by AdamW.
        learning_rate: at its highest, of a student as wide as its teacher; by default 0.384 over the teacher's hidden
            width, which is 1e-3 for 384 and 5e-4 for 768, and less where a target has more steps than half of a step's
            tokens: times the cube root of that half over the steps. Of several targets the second has half of it, the
            third a third, and so on.
        width_power: the learning rate is multiplied by how many times narrower than its teacher the student is, to this
            power. 1 is how the rate that Adam needs goes with the width of matrices (Yang et al. 2022, *Tensor Programs
            V*, table 3); 0 is one rate for all widths.
        warmup: the fraction of a target's steps over which it rises.
        floor: the fraction of a target's highest learning rate that is left at its end.
        weight_decay: of matrices from units to units. Tables of tokens and positions have none, so that those which the
            text does not have stay as they are.
        momentum: Muon's, what the average of gradients keeps of itself.
        scale: Muon's, the root mean square of an update of a matrix, in learning rates.
        beta1: AdamW's.
        beta2: AdamW's.
        eps: AdamW's.
        clip: the norm that gradients are clipped to; 0 is no clipping.
    """

    method: Literal["muon", "adamw"] = "muon"
    learning_rate: float | None = None
    width_power: float = 1.0
    warmup: float = 0.05
    floor: float = 0.0
    weight_decay: float = 0.01
    momentum: float = 0.95
    scale: float = 0.4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    clip: float = 1.0
