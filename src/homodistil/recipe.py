"""What a run is: frozen dataclasses and their validation. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from homodistil.errors import UserError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Weights of the loss terms. A term of weight 0 is not computed.

    Args:
        lm: L_lm, the student's own language modelling, masked or causal.
        prediction: L_pred, divergence from the teacher's predictions; for a sentence encoder, and for an encoder of
            images, from its similarities.
        hidden: L_hid, distance of each layer's hidden states.
        attention: L_att, distance of each layer's attention; by default 0.1 for encoders whose layers attend to the
            whole sequence, and 0 for all others.
        embedding: L_emb, distance of the embeddings.
        hidden_kind: what L_hid is: the mean squared error, or that relative to both sides' mean square at each token;
            `auto` is relative for causal language models, some of whose states are a thousand times the others, and for
            models of images.
        attention_kind: what L_att compares: scores before the softmax (faster), or probabilities after it.
        temperature: T of L_pred.
        similarity_temperature: by what cosine similarities are divided in L_pred of sentence encoders.
    """

    lm: float = 1.0
    prediction: float = 1.0
    hidden: float = 20.0
    attention: float | None = None
    embedding: float = 0.1
    hidden_kind: Literal["auto", "mse", "relative"] = "auto"
    attention_kind: Literal["scores", "probabilities"] = "scores"
    temperature: float = 1.0
    similarity_temperature: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Text:
    """How text is read, by teachers of text.

    Args:
        column: the text column of .jsonl, .csv, .parquet and datasets.
        target: the column of targets, for encoder-decoders that learn from given pairs; left out, they learn to say
            what stood where spans were taken out of the text.
        length: tokens in a sequence at most; of a pair in each of the two.
        packing: `blocks` joins texts and cuts them into full sequences, `texts` keeps one text a sequence, `auto`
            is blocks for language models and texts for everything else.
        crops: of the texts that a sentence encoder learns from, the share that is cut down to a random piece, so that
            it learns short texts as well as long ones.
        heldout: the share of the sequences that is not trained on and measures the student.
        stream: read on the fly, never as a whole; implied by data that cannot be counted.
        workers: processes that tokenise; 0 is one for every 20,000 texts, up to the number of cores.
    """

    column: str = "text"
    target: str | None = None
    length: int = 128
    packing: Literal["auto", "blocks", "texts"] = "auto"
    crops: float = 0.5
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
        heldout: the share of the images that is not trained on and measures the student.
    """

    column: str = "image"
    crop: float = 0.5
    flip: float = 0.5
    heldout: float = 0.02


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """What is cut, and when.

    Args:
        importance: how units are scored; `auto` is sensitivity where there is a language-model loss, otherwise output.
        window: measurements in a smoothing window.
        decay: what the average of windows keeps of itself.
        calibration: batches on which importance is measured before the first step, on the uncut student; where nothing
            is cut, none.
        ramp_start: t_i, the fraction of a target's steps at which cutting starts.
        ramp_end: t_f, the fraction at which the target's width is reached.
        grain: hidden and ffn fall to multiples of it on the way.
        compensate: what layers take over from units that are cut: their best guess from the units that stay, the
            mean alone, or nothing.
    """

    importance: Literal["auto", "sensitivity", "platon", "output", "magnitude"] = "auto"
    window: int = 4
    decay: float = 0.8
    calibration: int = 16
    ramp_start: float = 0.0
    ramp_end: float = 0.4
    grain: int = 8
    compensate: Literal["least-squares", "mean", "none"] = "least-squares"


@dataclass(frozen=True, kw_only=True)
class Optim:
    """How the student learns: AdamW, linear warm-up, linear decay.

    Args:
        learning_rate: at its highest.
        warmup: the fraction of the steps over which it rises.
        floor: the fraction of the highest learning rate that is left at the end.
        weight_decay: of the student's matrices.
        beta1: AdamW's.
        beta2: AdamW's.
        eps: AdamW's.
        clip: the norm that gradients are clipped to; 0 is no clipping.
    """

    learning_rate: float = 1e-3
    warmup: float = 0.05
    floor: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run: which teacher, on which text or images, down to which targets.

    Args:
        teacher: a folder or a hub name; a transformer or a sentence-transformers folder.
        data: plain text: a file, a folder, .jsonl, .csv, .parquet, a saved dataset, or a hub dataset (`name:config`);
            for teachers of images a folder of images, or a dataset with a column of them.
        out: the run's folder.
        target: keep ratio (0.5), parameter budget (17.3M), shape (hidden=240,heads=12,ffn=960, or layers=6 for fewer
            layers) or preset (homobert-small); give it several times to reach several in one run.
        student: where the student starts, if not as a copy of the teacher: a model of the same family and vocabulary,
            no larger. Targets are then shares of its widths.
        trim_vocab: drop the tokens that the data never uses, of the teacher as well; budgets count what is left.
        tokens: how long to train, in tokens, such as 2M; an image has as many as patches and class tokens.
        steps: how long to train, in optimizer steps; wins over tokens.
        batch: sequences or images in a step, on one process, before accumulation.
        accumulate: batches whose gradients make one step.
        precision: bf16 or fp32; `auto` is bf16 where the machine computes in it.
        seed: of everything that is drawn.
        losses: weights of the loss terms.
        text: how text is read.
        images: how images are read.
        cutting: what is cut, and when.
        optim: how the student learns.
        log_every: steps between two lines of metrics.
        evaluations: how often held-out data is measured during the run, evenly; each target is measured as well.
        checkpoint_minutes: minutes between two checkpoints; 0 is one at each step.
        trust_remote_code: run code that comes with a teacher.
        family: a file that describes the teacher's family, where it is none of the package's.
    """

    teacher: str
    data: str
    out: str
    target: list[str]
    student: str | None = None
    trim_vocab: bool = False
    tokens: str = "10M"
    steps: int | None = None
    batch: int = 32
    accumulate: int = 1
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    losses: Losses = field(default_factory=Losses)
    text: Text = field(default_factory=Text)
    images: Images = field(default_factory=Images)
    cutting: Cutting = field(default_factory=Cutting)
    optim: Optim = field(default_factory=Optim)
    log_every: int = 10
    evaluations: int = 5
    checkpoint_minutes: float = 5.0
    trust_remote_code: bool = False
    family: str | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without the teacher or the text.

        Raises:
            UserError: a value out of its range.
        """
        self.token_budget()
        one_up = {
            "batch": self.batch,
            "accumulate": self.accumulate,
            "log_every": self.log_every,
            "text.length": self.text.length,
            "cutting.grain": self.cutting.grain,
            "cutting.window": self.cutting.window,
            "steps": 1 if self.steps is None else self.steps,
        }
        for name, count in one_up.items():
            _check(name, count, count >= 1, "a whole number from 1 up", "1")
        shares = {
            "text.crops": self.text.crops,
            "text.heldout": self.text.heldout,
            "images.heldout": self.images.heldout,
            "cutting.decay": self.cutting.decay,
            "optim.warmup": self.optim.warmup,
            "optim.floor": self.optim.floor,
            "optim.beta1": self.optim.beta1,
            "optim.beta2": self.optim.beta2,
        }
        for name, share in shares.items():
            _check(name, share, 0 <= share < 1, "a number from 0 to below 1", "0")
        terms = {n: getattr(self.losses, n) for n in ("lm", "prediction", "hidden", "embedding")}
        if self.losses.attention is not None:
            terms["attention"] = self.losses.attention
        others = {
            "optim.learning_rate": self.optim.learning_rate,
            "optim.weight_decay": self.optim.weight_decay,
            "optim.clip": self.optim.clip,
            "optim.eps": self.optim.eps,
            "checkpoint_minutes": self.checkpoint_minutes,
            "evaluations": self.evaluations,
            "cutting.calibration": self.cutting.calibration,
        }
        for name, value in {f"losses.{n}": v for n, v in terms.items()}.items() | others.items():
            _check(name, value, 0 <= value < float("inf"), "a number from 0 up", "0")
        for name in ("temperature", "similarity_temperature"):
            value = getattr(self.losses, name)
            _check(f"losses.{name}", value, 0 < value < float("inf"), "above 0", "1")
        crop, flip = self.images.crop, self.images.flip
        _check("images.crop", crop, 0 < crop <= 1, "above 0 and at most 1", "0.5")
        _check("images.flip", flip, 0 <= flip <= 1, "from 0 to 1", "0.5")
        ramp = (self.cutting.ramp_start, self.cutting.ramp_end)
        _check("cutting.ramp_end", ramp[1], 0 <= ramp[0] <= ramp[1] <= 1, "from ramp_start to 1", "0.4")
        if self.trim_vocab and self.text.stream:
            raise UserError(
                "Cannot trim the vocabulary (trim_vocab) to a stream of text (text.stream).",
                "All of the text is read before the first step, to know which tokens it uses.",
                "Use --text.stream false, or --trim_vocab false.",
            )
        _check("the losses", terms, any(terms.values()), "at least one weight above 0", "--losses.hidden 1")

    def token_budget(self) -> int:
        """`tokens` as a number: 2M is 2,000,000.

        Raises:
            UserError: it cannot be read.
        """
        written = self.tokens.strip().upper()
        scale = {"K": 1e3, "M": 1e6, "B": 1e9}.get(written[-1:], 1.0)
        try:
            count = float(written.rstrip("KMB")) * scale
        except ValueError:
            count = 0.0
        _check(
            "tokens",
            self.tokens,
            1 <= count < float("inf"),
            "a number of tokens such as 500000, 500k or 2M",
            "2M",
        )
        return int(count)

    def digest(self) -> str:
        """A fingerprint of everything that a run's result depends on, and of nothing else."""
        passing = {"out", "log_every", "checkpoint_minutes"}
        decisive = {k: v for k, v in asdict(self).items() if k not in passing}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def resolved(self) -> Recipe:
        """The same with absolute paths, so that the run can be resumed from anywhere."""
        places = {"teacher": Path(self.teacher).expanduser(), "data": Path(self.data).expanduser()}
        if self.student is not None:
            places["student"] = Path(self.student).expanduser()
        if self.family is not None:
            places["family"] = Path(self.family).expanduser()
        absolute: dict[str, Any] = {name: str(path.resolve()) for name, path in places.items() if path.exists()}
        return replace(self, **absolute)

    def to_yaml(self) -> str:
        """The whole recipe, defaults written out, as it can be read back with `--config`."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)


def _check(name: str, value: object, holds: bool, rule: str, example: str) -> None:
    if not holds:
        raise UserError(
            f"Cannot use {name} = {value}.",
            f"It must be {rule}." if not name.startswith("the ") else f"There must be {rule}.",
            f"Use, for example, {example}.",
        )
