"""One step of distillation: ours, as one would write it at first, and textbrewer's. Same teacher, batch and losses."""

from __future__ import annotations

import copy
import logging
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedModel

from harness import Action
from homodistil.assets import fetch
from homodistil.compress.cut import select
from homodistil.compress.importance import magnitude
from homodistil.compress.plan import plan
from homodistil.data.collate import MEASURED, draws
from homodistil.distill.learning import learn, read_off, score
from homodistil.distill.prepare import Run, prepare
from homodistil.reading import build

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
WIDTHS = {
    "minilm": {"1": "1.0", "1/2": "0.5", "1/3": "0.3333"},
    "bert-base": {"1": "1.0", "1/2": "0.5", "1/3": "0.3333"},
}


def teacher_with_head(name: str, folder: Path) -> Path:
    """A masked language model, saved: MiniLM with a new head, or the shape of BERT-base with random weights.

    A step's time does not depend on what was learnt.
    """
    torch.manual_seed(0)
    logging.getLogger("transformers").setLevel(logging.CRITICAL)  # it tells at length that the head is new
    if name == "minilm":
        return _saved(BertForMaskedLM.from_pretrained(fetch("minilm")), folder)
    return teacher_of_shape(folder)


def teacher_of_shape(folder: Path, **sizes: int) -> Path:
    """A BERT with random weights of other sizes than BERT-base's, with positions for 2,048 tokens, saved."""
    torch.manual_seed(0)
    return _saved(BertForMaskedLM(BertConfig(max_position_embeddings=2048, **sizes)), folder)


def _saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(fetch("minilm"))
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return folder


def ready(teacher: Path, target: str, **options: Any) -> Run:
    """A run whose student has been cut to a target, ready for its next step, with as many masks as its peers have."""
    out = Path(tempfile.mkdtemp()) / "run"
    losses = {"masked": MEASURED, **options.pop("losses", {})}
    # full blocks, so that a step is of as many tokens as is said
    text = {"length": 128, "packing": "blocks", **options.pop("text", {})}
    recipe = build(
        {"teacher": str(teacher), "data": str(fetch("wiki-leads")), "target": ["1.0"], "out": str(out), "steps": 100,
         "losses": losses, "text": text, **options}
    )  # fmt: skip
    run = prepare(recipe, resume=False, texts=None)
    layout, student = run.state.layout, run.state.student
    shape = plan(layout, layout.shape(student), [target])[0].shape
    run.state.shrink(select(layout, layout.sizes(student), magnitude(layout, student), shape), compensate=False)
    return run


def batch_of(run: Run) -> dict[str, Tensor]:
    """The first batch of a run's text, on its device."""
    return run.batch(next(draws(run.corpus.train, run.recipe.batch, start=0)))


def step(run: Run, batch: dict[str, Tensor], *, scored: bool = False) -> None:
    """One step of the loop: both forwards, losses, backward, clipping, the optimizer, and a score if asked for."""
    state = run.state
    if scored:
        state.moments.fade()
    made = learn(run, batch, 1, scored=scored)
    if scored:
        score(state)
    norm = state.optimizer.step(1.0)
    state.optimizer.zero_grad(set_to_none=not run.recorder.keeps_gradients)
    read_off(run, [made], 1, {}, norm)


def operations(run: Run, batch: dict[str, Tensor]) -> float:
    """Floating-point operations of a step in matrix products, counted in closed form, two a multiply-add.

    A forward pass of the teacher; one forward and two backward ones of the student, of its projections W and of its
    head at the predicted positions. The attention loss and everything that is no product are not counted.
    """
    layout, tokens = run.state.layout, batch["input_ids"].numel()
    shapes = [layout.shape(m) for m in (run.teacher.model, run.state.student)]
    widths = [shape["hidden"] for shape in shapes]
    vocab, positions = run.teacher.model.config.vocab_size, len(batch["positions"])
    head = [2 * h * (h + vocab) for h in widths]
    # the layout counts the head at every token
    bodies = [layout.flops_per_token(s, batch["input_ids"].shape[1]) - f for s, f in zip(shapes, head, strict=True)]
    states = len(run.state.projections.weights)
    maps = states * 2 * widths[0] * widths[1] * tokens
    return float((bodies[0] + 3 * bodies[1]) * tokens + (head[0] + 3 * head[1]) * positions + 3 * maps)


def ours(teacher: Path, target: str, options: dict[str, Any], scored: bool = False) -> Action:
    """A step of ours at a width."""
    run = ready(teacher, target, **options)
    batch = batch_of(run)
    return lambda: step(run, batch, scored=scored)


class Reference:
    """The step as one would write it at first. Units are masked by multiplying weights, never cut."""

    def __init__(self, teacher: PreTrainedModel) -> None:
        self.teacher = copy.deepcopy(teacher)
        self.student = copy.deepcopy(teacher).requires_grad_(True)
        for model in (self.teacher, self.student):
            model.set_attn_implementation("eager")
        hidden, states = teacher.config.hidden_size, teacher.config.num_hidden_layers + 1
        self.maps = nn.ParameterList(nn.Parameter(torch.eye(hidden)) for _ in range(states)).to(teacher.device)
        self.masks = {p: torch.ones_like(p) for p in self.student.parameters()}
        self.optimizer = torch.optim.AdamW([*self.student.parameters(), *self.maps], lr=1e-4)

    def step(self, batch: dict[str, Tensor]) -> None:
        """Everything once, importance of every weight included."""
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            for parameter, mask in self.masks.items():
                parameter.mul_(mask)
            t = self.teacher(**inputs, output_hidden_states=True, output_attentions=True)
        s = self.student(**inputs, output_hidden_states=True, output_attentions=True)
        at = batch["positions"]
        loss = F.cross_entropy(s.logits.flatten(0, 1)[at], batch["labels"])
        loss = loss + F.kl_div(
            F.log_softmax(s.logits, -1).flatten(0, 1), F.softmax(t.logits, -1).flatten(0, 1), reduction="batchmean"
        )
        pairs = zip(s.hidden_states, t.hidden_states, self.maps, strict=True)
        loss = loss + sum(F.mse_loss(a @ w, b) for a, b, w in pairs)
        loss = loss + sum(F.mse_loss(a, b) for a, b in zip(s.attentions, t.attentions, strict=True))
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        scores = [(p.detach() * p.grad).abs().sum() for p in self.student.parameters() if p.grad is not None]
        assert scores
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()


def reference(teacher: Path, saved: Path) -> Action:
    """A step of the plain reference on a saved batch, at any width the same."""
    device = _device()
    batch = {name: tensor.to(device) for name, tensor in torch.load(saved).items()}
    plain = Reference(AutoModelForMaskedLM.from_pretrained(teacher).eval().requires_grad_(False).to(device))
    return lambda: plain.step(batch)


def textbrewer(teacher: Path, saved: Path) -> Action:
    """A step of textbrewer's own training loop on a saved batch; it is driven through the batches that it asks for.

    The losses of its documentation's examples: language model, KL, hidden states and attention of all layers. Its KL
    is given the mask of predicted positions, and dropout is off, both in its favour.
    """
    import textbrewer as tb

    batch = torch.load(saved)
    labels = torch.full(batch["input_ids"].shape, -100)
    labels.view(-1)[batch["positions"]] = batch["labels"]
    whole = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    theirs, mine = (AutoModelForMaskedLM.from_pretrained(teacher, attn_implementation="eager", **off) for _ in range(2))
    hidden, layers = theirs.config.hidden_size, theirs.config.num_hidden_layers

    def adaptor(batch: dict[str, Tensor], outputs: Any) -> dict[str, Any]:
        return {
            "logits": outputs.logits, "logits_mask": batch["labels"] != -100, "losses": outputs.loss,
            "hidden": outputs.hidden_states, "attention": outputs.attentions, "inputs_mask": batch["attention_mask"],
        }  # fmt: skip

    matches: list[dict[str, Any]] = [
        {"layer_T": k, "layer_S": k, "feature": "hidden", "loss": "hidden_mse", "weight": 1,
         "proj": ["linear", hidden, hidden, {"lr": 1e-4}]}
        for k in range(layers + 1)
    ]  # fmt: skip
    matches += [
        {"layer_T": k, "layer_S": k, "feature": "attention", "loss": "attention_mse", "weight": 1}
        for k in range(layers)
    ]
    distiller = tb.GeneralDistiller(
        train_config=tb.TrainingConfig(device=_device(), log_dir=None, output_dir=tempfile.mkdtemp(), ckpt_steps=10**9),
        distill_config=tb.DistillationConfig(temperature=1, hard_label_weight=1, intermediate_matches=matches),
        model_T=theirs.to(_device()), model_S=mine.to(_device()), adaptor_T=adaptor, adaptor_S=adaptor,
    )  # fmt: skip
    return _driven(distiller, torch.optim.AdamW(mine.parameters(), lr=1e-4), whole)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _driven(distiller: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> Action:
    """One step for each call, of a training loop that runs in a thread of its own and waits for its batches."""
    asked, done = threading.Semaphore(0), threading.Semaphore(0)
    failed: list[BaseException] = []

    def feed() -> Iterator[dict[str, Tensor]]:
        while True:
            done.release()  # the step before is over; at first, everything is set up
            asked.acquire()
            yield batch

    class Feed:
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            return feed()

    def train() -> None:
        try:
            with distiller:
                distiller.train(
                    optimizer, Feed(), num_steps=10**9, max_grad_norm=1.0,
                    output_hidden_states=True, output_attentions=True,
                )  # fmt: skip
        except BaseException as error:
            failed.append(error)
            done.release()
            raise

    threading.Thread(target=train, daemon=True).start()

    def action() -> None:
        asked.release()
        done.acquire()
        if failed:
            raise failed[0]

    done.acquire()
    return action
