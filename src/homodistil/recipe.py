"""What a run is: a frozen dataclass and its validation. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from os.path import abspath, exists, expanduser
from typing import Any, Literal, TypeAlias

import yaml

from homodistil.errors import UserError
from homodistil.kinds import refuse_wrong_kinds
from homodistil.settings import Cutting, Images, Losses, Optim, Text

Target: TypeAlias = str | float | Mapping[str, int]
"""A target as users give it: a text, or the number or the widths that it would be: 0.5 is "0.5", 8_000_000 "8000000",
and {"hidden": 24, "heads": 4} "hidden=24,heads=4"."""
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
"""What a number of tokens or of parameters may be followed by."""

IN_MEMORY = "<texts>"
"""What the data of a run is called that was given texts and no file."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run: which teacher, on which text or images, down to which targets.

    Args:
        teacher: a folder or a hub name; a transformer or a sentence-transformers folder.
        data: plain text: a file, a folder, .jsonl, .csv, .parquet, a saved dataset, or a hub dataset (`name:config`);
            for teachers of images a folder of images, or a dataset with a column of them.
        out: the run's folder.
        target: keep ratio (0.5), parameter budget (17.3M), either of them with a depth (17.3M,layers=6), shape
            (hidden=240,heads=12,ffn=960) or published size (homobert-small); give it several times to reach several in
            one run.
        student: where the student starts, if not as a copy of the teacher: a model of the same vocabulary, a language
            model of the same family as well, no larger. Targets are then shares of its widths.
        space: in which a sentence encoder's student embeds: `own`, as wide as its states, or `teacher`, in which texts
            that the teacher has embedded are found by the student's embeddings, as wide as those, through one more
            layer, which budgets do not count. Behind layers that come after the pooling it is always the teacher's.
        trim_vocab: drop the tokens that the data never uses, of the teacher as well; budgets count what is left.
        tokens: how long to train, in tokens, such as 2M; an image has as many as patches and class tokens.
        steps: how long to train, in optimizer steps; wins over tokens.
        batch: sequences or images in a batch; 0 is 32, and for a language model
            with few tokens of packed text to learn from fewer, down to 4, so that it takes 1,000 steps to each target.
        accumulate: batches whose gradients make one step; several processes share them. 0 is one for each process.
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
        trust_remote_code: run code that lies in the teacher's folder: of its tokenizer or image processor, its
            configuration, or modules of sentence-transformers. The model is of a class of transformers all the same.
        family: a file that describes the teacher's family, where it is none of the package's.
    """

    teacher: str
    data: str
    out: str
    target: list[str]
    student: str | None = None
    space: Literal["own", "teacher"] = "own"
    trim_vocab: bool = False
    tokens: str = "10M"
    steps: int | None = None
    batch: int = 0
    accumulate: int = 0
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
            UserError: a value of another type than declared, or out of its range.
        """
        # as in YAML, where a single target needs no list, and tokens may be a number
        object.__setattr__(self, "target", targets_of(self.target))
        object.__setattr__(self, "tokens", as_written(self.tokens))
        refuse_wrong_kinds(self)
        self.token_budget()
        one_up = {
            "log_every": self.log_every,
            "text.length": 1 if self.text.length is None else self.text.length,
            "cutting.grain": self.cutting.grain,
            "cutting.window": self.cutting.window,
            "steps": 1 if self.steps is None else self.steps,
        }
        for name, count in one_up.items():
            _check(name, count, count >= 1, "a whole number from 1 up", "1")
        _check("seed", self.seed, 0 <= self.seed < 2**63, "a whole number from 0 to below 2**63", "0")
        shares = {
            "text.crops": self.text.crops,
            "text.heldout": self.text.heldout,
            "images.heldout": self.images.heldout,
            "cutting.decay": self.cutting.decay,
            "optim.warmup": self.optim.warmup,
            "optim.floor": self.optim.floor,
            "optim.momentum": self.optim.momentum,
            "optim.beta1": self.optim.beta1,
            "optim.beta2": self.optim.beta2,
        }
        for name, share in shares.items():
            _check(name, share, 0 <= share < 1, "a number from 0 to below 1", "0")
        named = ("lm", "prediction", "hidden", "attention", "embedding", "cosine")
        weights = {n: getattr(self.losses, n) for n in named}
        terms = {name: weight for name, weight in weights.items() if weight is not None}
        others = {
            "optim.learning_rate": self.optim.learning_rate or 0.0,
            "optim.width_power": self.optim.width_power,
            "optim.weight_decay": self.optim.weight_decay,
            "optim.clip": self.optim.clip,
            "optim.eps": self.optim.eps,
            "batch": self.batch,
            "text.workers": self.text.workers,
            "accumulate": self.accumulate,
            "cutting.every": self.cutting.every,
            "checkpoint_minutes": self.checkpoint_minutes,
            "evaluations": self.evaluations,
            "cutting.calibration": self.cutting.calibration,
        }
        for name, value in {f"losses.{n}": v for n, v in terms.items()}.items() | others.items():
            _check(name, value, 0 <= value < float("inf"), "a number from 0 up", "0")
        _check("losses.masked", self.losses.masked, 0 < self.losses.masked < 1, "above 0 and below 1", "0.15")
        for name in ("temperature", "similarity_temperature"):
            value = getattr(self.losses, name)
            _check(f"losses.{name}", value, 0 < value < float("inf"), "above 0", "1")
        scale = self.optim.scale
        _check("optim.scale", scale, 0 < scale < float("inf"), "above 0", "0.4")
        crop, flip = self.images.crop, self.images.flip
        _check("images.crop", crop, 0 < crop <= 1, "above 0 and at most 1", "0.5")
        _check("images.flip", flip, 0 <= flip <= 1, "from 0 to 1", "0.5")
        start, end = self.cutting.ramp_start, self.cutting.ramp_end
        _check("cutting.ramp_start", start, 0 <= start <= 1, "from 0 to 1", "0")
        if end is not None:
            _check("cutting.ramp_end", end, start <= end <= 1, "from ramp_start to 1", f"{min(1, start + 0.1):g}")
        if self.trim_vocab and self.text.stream:
            raise UserError(
                "Cannot trim the vocabulary (trim_vocab) to a stream of text (text.stream).",
                "All of the text is read before the first step, to know which tokens it uses.",
                "Use --text.stream false, or --trim_vocab false.",
            )
        chosen = any(terms.values()) or None in (self.losses.prediction, self.losses.hidden)
        _check("the losses", terms, chosen, "at least one weight above 0", "--losses.hidden 1")

    def token_budget(self) -> int:
        """`tokens` as a number: 2M is 2,000,000.

        Raises:
            UserError: it cannot be read.
        """
        written = self.tokens.strip().upper()
        unit = written[-1:] if written[-1:] in UNITS else ""
        try:
            count = float(written.removesuffix(unit)) * UNITS[unit]
        except ValueError:
            count = 0.0
        _check(
            "tokens",
            self.tokens,
            1 <= count < float("inf"),
            "a number of tokens such as 500000, 500k or 2M",
            "2M",
        )
        return round(count)

    def digest(self) -> str:
        """A fingerprint of everything that it decides of a run's result.

        Models and data are told apart by what they are, wherever they lie.
        """
        passing = {"out", "log_every", "checkpoint_minutes", "teacher", "student", "family", "data"}
        decisive = {k: v for k, v in asdict(self).items() if k not in passing}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def resolved(self) -> Recipe:
        """The same with absolute paths, so that the run can be resumed from anywhere; `out` stays a relative one."""
        named = {"teacher": self.teacher, "data": self.data, "student": self.student, "family": self.family}
        places = {name: expanduser(place) for name, place in named.items() if place is not None}
        # links are not followed: the name of what they lead to need not tell its kind
        absolute: dict[str, Any] = {name: abspath(place) for name, place in places.items() if exists(place)}
        return replace(self, **absolute, out=expanduser(self.out))

    def to_yaml(self) -> str:
        """The whole recipe, defaults written out, as it can be read back with `--config`."""
        return _yaml(asdict(self))

    def asked_yaml(self) -> str:
        """What is other than the defaults, but for `out`: with `--config` what was left open is chosen anew."""
        default = asdict(Recipe(teacher="", data="", out=self.out, target=[]))
        asked: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if isinstance(value, dict):
                asked[name] = {key: one for key, one in value.items() if one != default[name][key]}
            elif value != default[name]:
                asked[name] = value
        return _yaml({name: value for name, value in asked.items() if value != {}})


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def targets_of(given: Target | Iterable[Target]) -> list[str]:
    """One target or several as texts, under which their students are found.

    Raises:
        UserError: one of them is neither a text nor a number nor widths by name.
    """
    given = scalar(given)
    several = [*map(scalar, given)] if isinstance(given, Iterable) and not isinstance(given, str | Mapping) else [given]
    if strange := [target for target in several if not isinstance(target, str | Real | Mapping)]:
        raise UserError(
            f"Cannot read the target {' '.join(repr(strange[0]).split())[:200]}.",
            "Each target must be a keep ratio (0.5), a parameter budget (17.3M), a shape (hidden=240,heads=12,ffn=960) "
            "or a published size (homobert-small), as a text or a number.",
            "Give, for example, 0.5.",
        )
    return [as_written(target) for target in several]


def scalar(value: Any) -> Any:
    """What an array or a tensor without dimensions holds, as of numpy or torch, as Python's own number."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def as_written(value: Any) -> Any:
    """A number, or a shape, as the text that a user would write; a whole one above 1 without a point.

    All else stays as it is.
    """
    value = scalar(value)
    if isinstance(value, Mapping):
        return ",".join(f"{name}={width}" for name, width in value.items())
    if isinstance(value, float) and value > 1 and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, Real) else value


def _check(name: str, value: object, holds: bool, rule: str, example: str) -> None:
    if not holds:
        raise UserError(
            f"Cannot use {name} = {value}.",
            f"It must be {rule}." if not name.startswith("the ") else f"There must be {rule}.",
            f"Use, for example, {example}.",
        )
