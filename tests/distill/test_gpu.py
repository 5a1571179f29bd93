"""What runs on GPUs alone equals what runs everywhere. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertForTokenClassification, BertModel, PreTrainedModel

import homodistil
from homodistil.distill import maps
from homodistil.distill.attention import QueriesKeys
from homodistil.distill.collate import draws
from homodistil.distill.learning import learn, read_off
from homodistil.distill.prepare import Run, prepare
from homodistil.distill.recorder import SETTLED
from homodistil.reading import build

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
        nn.utils.clip_grad_norm_(run.state.learnt, 1.0)
        run.state.optimizer.step()
        run.state.optimizer.zero_grad(set_to_none=not run.recorder.keeps_gradients)
        found.append(read_off(run, [made], step, {})[0])
    return found


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertModel])
def test_recorded_steps_are_those_that_were_recorded(
    model_class: type[PreTrainedModel], ready: Callable[..., Run], tmp_path: Path
) -> None:
    """Of packed and of padded text, beside a run that records nothing."""
    run, plain = (ready(model_class, precision="fp32", out=str(tmp_path / name)) for name in ("recorded", "plain"))
    plain.recorder.stop()
    ours, theirs = _learnt(run, SETTLED + 24), _learnt(plain, SETTLED + 24)
    assert run.recorder.recordings >= 1
    assert plain.recorder.recordings == 0
    for mine, right in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(right, rel=1e-3)
    assert ours[-1]["hidden"] < 0.9 * ours[0]["hidden"]


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
