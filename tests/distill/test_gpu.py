"""What runs on GPUs alone equals what runs everywhere. Skipped where there is none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import homodistil
from homodistil.data.collate import draws
from homodistil.distill.layers import Head, quicken
from homodistil.distill.learning import learn, read_off
from homodistil.distill.optimizer import Muon
from homodistil.distill.prepare import Run, prepare
from homodistil.distill.recorder import SETTLED
from homodistil.losses import maps
from homodistil.losses.kernels import over_vocabulary, squared_distance
from homodistil.models.attention import QueriesKeys
from homodistil.reading import build
from zoo import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

BATCH, LENGTH, HEADS = 3, 200, 2


def _layer(width: int, dtype: torch.dtype, seed: int) -> QueriesKeys:
    draw = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(BATCH, LENGTH, HEADS, width, generator=draw).to("cuda", dtype) for _ in range(2))
    return QueriesKeys(q.transpose(1, 2), k.transpose(1, 2), width**-0.5)


def _mask() -> Tensor:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long, device="cuda")
    mask[1, 70:] = 0
    return mask


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("narrow", "wide"), [(64, 64), (20, 64), (10, 32), (16, 16)])
def test_the_scores_kernel_equals_the_scores(narrow: int, wide: int, dtype: torch.dtype) -> None:
    """Value and gradients, beside the maps themselves in float64."""
    student, teacher = _layer(narrow, dtype, 0), _layer(wide, dtype, 1)
    q, k = (x.detach().requires_grad_() for x in student[:2])
    made = maps.score_distance(QueriesKeys(q, k, student.scaling), teacher, _mask())
    ours = torch.autograd.grad(made, (q, k))
    q, k = (x.detach().double().requires_grad_() for x in student[:2])
    keep = _mask()[:, None, :, None].double()
    scores = (q * keep) @ (k * keep).mT * student.scaling
    of_teacher = (teacher.queries.double() * keep) @ (teacher.keys.double() * keep).mT * teacher.scaling
    plain = (scores - of_teacher).square().sum()
    theirs = torch.autograd.grad(plain, (q, k))
    torch.testing.assert_close(made.double(), plain, rtol=1e-4, atol=0)
    rounding = 1e-5 if dtype == torch.float32 else 5e-3
    for mine, right in zip(ours, theirs, strict=True):
        assert (mine.double() - right).norm() <= rounding * right.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_scores_kernel_is_exactly_zero_where_layers_agree(dtype: torch.dtype) -> None:
    """So are its gradients: an uncut student learns nothing from it."""
    layer = _layer(32, dtype, 0)
    q, k = (x.detach().requires_grad_() for x in layer[:2])
    made = maps.score_distance(QueriesKeys(q, k, layer.scaling), layer, _mask())
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(made, (q, k)))
    assert made.abs() <= 1e-6 * BATCH * HEADS * LENGTH**2


@pytest.fixture
def ready(save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run of a class, ready for its first step."""

    def make_run(model_class: type[PreTrainedModel], **options: Any) -> Run:
        values = {"teacher": str(save_teacher(model_class)), "data": str(corpus), "target": "1.0", "steps": 100,
                  "out": str(tmp_path / "run"), "batch": 8, "text": {"length": 32}}  # fmt: skip
        return prepare(build(values | options), resume=False, texts=None)

    return make_run


def _learnt(run: Run, steps: int) -> list[dict[str, float]]:
    """The terms of each step of a student that is off its teacher."""
    feed = draws(run.corpus.train, 8, start=0)
    with torch.no_grad():
        for parameter in run.state.student.parameters():
            parameter.mul_(1.1)
    for group in run.state.optimizer.param_groups:
        group["lr"] = 1e-3
    found = []
    for step in range(1, steps + 1):
        made = learn(run, run.batch(next(feed)), step, scored=False)
        norm = run.state.optimizer.step(1.0)
        run.state.optimizer.zero_grad(set_to_none=not run.recorder.keeps_gradients)
        found.append(read_off(run, [made], step, {}, norm)[0])
    return found


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertModel])
def test_recorded_steps_are_those_that_were_recorded(
    model_class: type[PreTrainedModel], ready: Callable[..., Run], tmp_path: Path
) -> None:
    """Of packed and of padded text, beside a run that records nothing."""
    text = {"length": 32, "packing": "blocks" if model_class is BertForMaskedLM else "texts"}
    options = {"precision": "fp32", "text": text}
    run, plain = (ready(model_class, out=str(tmp_path / name), **options) for name in ("recorded", "plain"))
    plain.recorder.stop()
    ours, theirs = _learnt(run, SETTLED + 24), _learnt(plain, SETTLED + 24)
    assert run.recorder.recordings >= 1
    assert plain.recorder.recordings == 0
    for mine, right in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(right, rel=1e-3)
    assert ours[-1]["hidden"] < 0.9 * ours[0]["hidden"]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertModel])
def test_a_copy_has_no_loss_and_learns_nothing_from_its_teacher(
    model_class: type[PreTrainedModel], precision: str, ready: Callable[..., Run]
) -> None:
    """Exactly, by all kernels: what student and teacher do alike is rounded alike."""
    run = ready(model_class, precision=precision, losses={"lm": 0.0})
    batch = run.batch(next(draws(run.corpus.train, 8, start=0)))
    terms, _ = read_off(run, [learn(run, batch, 1, scored=False)], 1, {})
    assert set(terms.values()) == {0.0}
    assert not any(p.grad.any() for p in run.state.learnt if p.grad is not None)


@pytest.mark.parametrize(
    "name", ["ALBERT", "DeBERTa", "DistilBERT", "ELECTRA generator", "GPT-2", "MPNet", "ModernBERT"]
)
def test_a_copy_of_any_family_has_no_loss(
    name: str, tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    """Nor does it learn anything, by a head whose logits are padded and at a temperature: student and teacher agree."""
    tiny(name, vocab_size=35).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    values = {"teacher": str(tmp_path / "teacher"), "data": str(corpus), "target": "1.0", "steps": 100,
              "out": str(tmp_path / "run"), "batch": 8, "text": {"length": 32}, "precision": "bf16",
              "losses": {"lm": 0.0, "temperature": 2.0}}  # fmt: skip
    run = prepare(build(values), resume=False, texts=None)
    batch = run.batch(next(draws(run.corpus.train, 8, start=0)))
    terms, _ = read_off(run, [learn(run, batch, 1, scored=False)], 1, {})
    assert len(terms) > 1
    assert set(terms.values()) == {0.0}
    assert not any(p.grad.any() for p in run.state.learnt if p.grad is not None)


def test_a_student_is_cut_and_learns_on_a_gpu(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """From the first cut to the saved student, killed never: recordings go when units do."""
    result = homodistil.distil(
        masked_lm, corpus, "0.5", tmp_path / "run", steps=120, batch=8, text={"length": 32}, cutting={"ramp_end": 0.3}
    )
    student = AutoModelForMaskedLM.from_pretrained(result.students["0.5"])
    assert student.config.hidden_size == 24
    assert all(p.isfinite().all() for p in student.parameters())


def test_a_model_that_waits_for_the_gpu_learns_without_recordings(ready: Callable[..., Run]) -> None:
    """Logits of each token that is no padding: how many there are, only the GPU knows."""
    run = ready(BertForTokenClassification)
    with pytest.warns(UserWarning, match="not recorded"):
        terms = _learnt(run, SETTLED + 24)
    assert terms[-1]["hidden"] < terms[0]["hidden"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_quick_norm_equals_the_norm(dtype: torch.dtype) -> None:
    """Value and gradients, beside float64; its outputs are bf16, and so are the inputs of the products after it."""
    draw = torch.Generator().manual_seed(0)
    layer = nn.LayerNorm(96)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=draw)
    states = torch.randn(3, 7, 96, generator=draw).to("cuda", dtype)
    of_made = torch.randn(3, 7, 96, generator=draw).cuda().bfloat16()
    plain = copy.deepcopy(layer).double().cuda()
    quick = BertModel(BertConfig(hidden_size=96, num_hidden_layers=1, intermediate_size=8, vocab_size=8))
    quick.embeddings.LayerNorm = layer
    quicken(quick)
    quick.cuda()
    sides = []
    for norm, x, of in (
        (quick.embeddings.LayerNorm, states, of_made),
        (plain, states.double(), of_made.double()),
    ):
        x = x.detach().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            made = norm(x)
        sides.append((made, *torch.autograd.grad(made, (x, norm.weight, norm.bias), of)))
    assert sides[0][0].dtype == torch.bfloat16
    for mine, right in zip(*sides, strict=True):
        assert (mine.double() - right.double()).norm() <= 5e-3 * right.double().norm()


def _head(width: int, vocab: int) -> nn.Module:
    """The quick head of a masked language model of that many tokens."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForMaskedLM(BertConfig(hidden_size=width, vocab_size=vocab, **sizes)).cuda()
    quicken(model)
    head = model.get_output_embeddings()
    assert isinstance(head, Head)
    return head


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_losses_over_a_vocabulary_equal_their_formulas(temperature: float) -> None:
    """With a head of 1,003 tokens, whose rows lie apart; beside float64, and exactly zero where both sides agree."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(37, 32, generator=draw).cuda() for _ in range(2))
    labels = torch.randint(1003, (37,), generator=draw).cuda()
    head = _head(32, 1003)
    sides = []
    for dtype in (torch.float32, torch.float64):
        decoder = copy.deepcopy(head).to(dtype)
        x = student.to(dtype).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.float32):
            mine, theirs = decoder(x), decoder(teacher.to(dtype)).detach()
            if dtype == torch.float32:
                assert mine.stride() == (1008, 1)
                same = mine.detach().requires_grad_()
                both = over_vocabulary(same, same.detach(), labels, temperature)
                assert both[1] == 0
                assert not torch.autograd.grad(both[1], same)[0].any()
            lm, kl = over_vocabulary(mine, theirs, labels, temperature)
        sides.append((lm, kl, *torch.autograd.grad(0.3 * lm + 0.7 * kl, (x, *decoder.parameters()))))
    for ours, right in zip(*sides, strict=True):
        assert (ours.double() - right).norm() <= 1e-2 * right.norm()


def test_distances_of_states_equal_their_formula() -> None:
    """Of states in bf16 from a teacher's, rounded alike: beside float64, and exactly zero where both sides agree."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(BATCH, LENGTH, 50, generator=draw).cuda() for _ in range(2))
    student = student.bfloat16().requires_grad_()
    made = squared_distance(student, teacher, _mask())
    exact = student.detach().double().requires_grad_()
    squares = (exact - teacher.bfloat16().double()).square().sum(-1) * _mask()
    plain = squares.sum() / (_mask().sum() * 50)
    torch.testing.assert_close(made.double(), plain, rtol=1e-5, atol=0)
    mine, right = (torch.autograd.grad(total, x)[0].double() for total, x in ((made, student), (plain, exact)))
    assert (mine - right).norm() <= 5e-3 * right.norm()
    same = squared_distance(student, student.detach().float(), _mask())
    assert same == 0
    assert not torch.autograd.grad(same, student)[0].any()


@pytest.mark.parametrize("size", [200, 203])
def test_a_quick_head_equals_the_product(size: int) -> None:
    """Value and gradients, beside float64, of outputs that are a multiple of eight and of others."""
    draw = torch.Generator().manual_seed(0)
    head = _head(64, size)
    weight, bias = (p.detach().double() for p in head.parameters())
    states = torch.randn(300, 64, generator=draw).cuda().requires_grad_()
    of_made = torch.randn(300, size, generator=draw).cuda().bfloat16()
    with torch.autocast("cuda", torch.bfloat16):
        made = head(states)
    exact = [x.detach().double().requires_grad_() for x in (states, weight, bias)]
    plain = nn.functional.linear(*exact)
    ours = (made, *torch.autograd.grad(made, (states, *head.parameters()), of_made))
    for mine, right in zip(ours, (plain, *torch.autograd.grad(plain, exact, of_made.double())), strict=True):
        assert (mine.double() - right).norm() <= 1e-2 * right.norm()
    assert all(g.dtype == torch.float32 for g in ours[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(768, 768), (384, 1536), (1536, 384), (116, 464), (348, 116), (90, 100), (1, 30)])
def test_muon_moves_matrices_on_a_gpu_as_on_a_cpu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Over clipped steps, beside products in float32: no farther off than products in the same type on the CPU."""
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for _ in range(3)]
    pulls = [[torch.randn(shape, generator=draw) * 10.0**-k for k in range(3)] for _ in range(4)]

    def moved(device: str, dtype: torch.dtype) -> list[Tensor]:
        matrices = [nn.Parameter(m.to(device)) for m in start]
        options = {"lr": 0.03, "weight_decay": 0.1, "momentum": 0.9, "scale": 0.2}
        vector = nn.Parameter(torch.zeros(5, device=device))
        groups = [{"params": matrices, **options}, {"params": [vector], "weight_decay": 0.0}]
        optimizer = Muon(groups, dtype=dtype)
        for pull in pulls:
            for matrix, gradient in zip(matrices, pull, strict=True):
                matrix.grad = gradient.to(device)
            vector.grad = torch.ones_like(vector)
            optimizer.step(5.0)
        learnt = [*matrices, vector]
        return [*(p.detach().cpu() for p in learnt), *(optimizer.state[p]["exp_avg"].cpu() for p in learnt)]

    ours, exact, plain = moved("cuda", dtype), moved("cpu", torch.float32), moved("cpu", dtype)
    before = [*start, torch.zeros(5), *(torch.zeros_like(right) for right in exact[4:])]
    for mine, right, other, old in zip(ours, exact, plain, before, strict=True):
        assert (mine - right).norm() <= (other - right).norm() + 1e-4 * (right - old).norm()
