"""Muon: singular values are evened and nothing else of a matrix is changed; what is no such matrix moves by AdamW."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM, BertModel

import homodistil
import zoo
from homodistil.axes.layout import Layout
from homodistil.compress.cut import select
from homodistil.compress.importance import magnitude
from homodistil.distill import optimizer as module
from homodistil.distill.optimizer import BLOCK, NARROW, Muon, between_widths, rate
from homodistil.distill.prepare import Run, prepare
from homodistil.distill.start import _optimizer
from homodistil.losses.projections import Projections
from homodistil.reading import build
from homodistil.settings import Optim
from runs import stages_of


def _matrix(rows: int, columns: int, least: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix with singular values from 1 down to `least`, and its singular vectors."""
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    return (left * torch.linspace(1, least, min(rows, columns))) @ right, left, right


def evened(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """One matrix, evened by products in a number type."""
    return module.evened(matrix[None].to(dtype))[0].to(matrix.dtype)


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (24, 96), (96, 24), (1, 30)])
def test_singular_values_are_evened_and_singular_vectors_stay(rows: int, columns: int) -> None:
    """Values that were up to five times apart lie between 0.68 and 1.21 of what gives elements a mean square of 1."""
    matrix, left, right = _matrix(rows, columns, 0.2)
    made = evened(matrix * 1e-4, torch.float32)
    values = (left.T @ made @ right.T).diagonal()
    torch.testing.assert_close((left * values) @ right, made, rtol=1e-3, atol=1e-3)
    relative = values / math.sqrt(max(rows, columns))
    assert relative.min() > 0.68
    assert relative.max() < 1.21
    assert 0.68 < made.square().mean().sqrt() < 1.21


@pytest.mark.parametrize(
    ("length", "width", "size"),
    [(NARROW, 24, NARROW), (NARROW + 2, 24, 65), (3 * NARROW, 24, NARROW), (3 * NARROW - 1, NARROW, NARROW),
     (NARROW + 1, NARROW + 1, 43), (4 * BLOCK, NARROW + 2, BLOCK)],
)  # fmt: skip
def test_a_long_matrix_is_evened_in_blocks_whichever_way_it_lies(length: int, width: int, size: int) -> None:
    """Blocks of equal size along its longer dimension, the last one shorter where they do not divide it."""
    matrix, _, _ = _matrix(length, width, 0.2)
    made = evened(matrix, torch.float32)
    blocks = list(torch.split(matrix, size))
    parts = [module.orthogonalised(part[None])[0] * math.sqrt(max(size, width)) for part in blocks]
    assert len(blocks) == math.ceil(length / size)
    torch.testing.assert_close(made, torch.cat(parts), rtol=1e-4, atol=1e-4)
    if length > width:
        torch.testing.assert_close(evened(matrix.T, torch.float32), made.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_gradient_moves_nothing(dtype: torch.dtype) -> None:
    """Zeros stay zeros, whole or in part; nothing is divided by nothing."""
    assert not evened(torch.zeros(12, 300), dtype).any()
    half = torch.zeros(2 * NARROW, 12)
    half[:NARROW] = torch.randn(NARROW, 12, generator=torch.Generator().manual_seed(0))
    assert evened(half, dtype)[:NARROW].all()
    assert not evened(half, dtype)[NARROW:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_may_be_however_small(dtype: torch.dtype) -> None:
    """Nothing overflows: down to a norm whose square float32 still holds it is evened, below it moves by less."""
    matrix, _, _ = _matrix(24, 40, 0.2)
    as_large = evened(matrix, dtype)
    assert 0.68 < as_large.square().mean().sqrt() < 1.21
    torch.testing.assert_close(evened(matrix * 1e-15, dtype), as_large, rtol=0.05, atol=0.1)
    for scale in (1e-21, 1e-25, 1e-36):
        assert evened(matrix * scale, dtype).abs().max() <= 1.3 * as_large.abs().max()


def test_matrices_are_evened_each_by_itself_however_many_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes mixed, one larger than what is taken together: as each moves alone."""

    def moved(groups: list[list[torch.Size]]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        matrices = [[torch.nn.Parameter(torch.zeros(shape)) for shape in shapes] for shapes in groups]
        made: list[torch.optim.Optimizer] = [
            Muon([{"params": m, "momentum": 0.9, "scale": 1.0, "lr": 1.0}], dtype=torch.float32) for m in matrices
        ]
        for matrix in (m for part in matrices for m in part):
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        for one in made:
            one.step()
        return [m.detach() for part in matrices for m in part]

    shapes = [torch.Size(s) for s in ((6, 4), (4, 6), (6, 4), (30, 30), (6, 4), (4, 6), (6, 4))]
    monkeypatch.setattr(module, "TOGETHER", 3 * 6 * 4)
    pulled = [torch.nn.Parameter(torch.empty(shape)) for shape in shapes]
    for matrix in pulled:
        matrix.grad = torch.empty_like(matrix)
    together = [len(held) for held in module._alike({"params": pulled})]
    assert sorted(together) == [1, 1, 2, 3]
    for one, other in zip(moved([shapes]), moved([[shape] for shape in shapes]), strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip", [0.5, 1e6, math.inf])
def test_gradients_are_clipped_together_as_torch_clips_them(clip: float) -> None:
    """Those of matrices and of all else, before anything moves; what is returned is the norm before."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((6, 4), (5,), (8, 8))]
    found = []
    for ours in (True, False):
        matrix, vector, other = (torch.nn.Parameter(p.clone()) for p in start)
        groups: list[dict[str, Any]] = [
            {"params": [matrix, other], "momentum": 0.9, "scale": 0.2},
            {"params": [vector]},
        ]
        optimizer = Muon(groups, dtype=torch.float32)
        draw = torch.Generator().manual_seed(1)
        for _ in range(3):
            for parameter in (matrix, vector, other):
                parameter.grad = torch.randn(parameter.shape, generator=draw) * 3
            if ours:
                norm = optimizer.step(clip)
            else:
                norm = torch.nn.utils.clip_grad_norm_([matrix, vector, other], clip)
                optimizer.step()
        found.append([norm, *(p.detach() for p in (matrix, vector, other))])
    assert (found[0][0] > 0.5).all()
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has its own from 2.9 on")
def test_matrices_of_one_block_move_as_by_the_muon_of_torch() -> None:
    """With as many iterations and its size of updates: weights stay equal over steps, decay included."""
    generator = torch.Generator().manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((40, 40), (20, 100), (100, 20))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    options: dict[str, Any] = {"lr": 0.03, "weight_decay": 0.1, "momentum": 0.9}
    ours = Muon([{"params": mine, "scale": 0.2, **options}], dtype=torch.bfloat16)
    other = torch.optim.Muon(theirs, ns_steps=3, adjust_lr_fn="match_rms_adamw", **options)
    both: list[torch.optim.Optimizer] = [ours, other]
    for _ in range(5):
        for p, q in zip(mine, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        for optimizer in both:
            optimizer.step()
    start = torch.randn((40, 40), generator=torch.Generator().manual_seed(0))
    assert (mine[0] - start).abs().mean() > 0.01
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_muon_moves_the_matrices_of_layers_and_no_table(name: str) -> None:
    """Every matrix of a layer but its table of distances, and no embedding or classifier."""
    model = zoo.tiny(name)
    layout = Layout.of(model)
    matrices = {n for n, p in model.named_parameters() if p.dim() == 2}
    chosen = {n for n in matrices if between_widths(layout, n)}
    of_layers = {n for n in matrices if re.search(r"\.\d+\.", n) and "relative_attention_bias" not in n}
    assert of_layers
    assert of_layers <= chosen
    assert all("dense" in n or "transform" in n for n in chosen - of_layers)
    tables = ("embed", "wte", "wpe", "relative_attention_bias", "decoder.weight", "lm_head.weight", "shared")
    heads = ("classifier", "dense_prediction", "predictions.dense")
    assert all(any(part in n for part in (*tables, *heads)) for n in matrices - chosen)


@pytest.fixture
def ready(save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run ready for its first step, by a method."""

    def make_run(method: str) -> Run:
        values = {"teacher": str(save_teacher(BertForMaskedLM)), "data": str(corpus), "target": "0.5",
                  "out": str(tmp_path / method), "steps": 10, "batch": 4, "precision": "fp32",
                  "text": {"length": 32},
                  "optim": {"method": method, "beta1": 0.8, "beta2": 0.95, "eps": 1e-4,
                            "weight_decay": 0.2}}  # fmt: skip
        return prepare(build(values), resume=False, texts=None)

    return make_run


@pytest.mark.parametrize("method", ["muon", "adamw"])
@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_only_matrices_from_units_to_units_decay(name: str, method: Literal["muon", "adamw"]) -> None:
    """No norm, bias or class token, no table of tokens or positions, and no projection to the teacher's width."""
    model = zoo.tiny(name)
    layout = Layout.of(model)
    beside = Projections(2, pooled=False, narrow=48, wide=48)
    optimizer = _optimizer(Optim(method=method, weight_decay=0.2), layout, model, beside, torch.float32)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {id(p): 0.2 * between_widths(layout, n) for n, p in model.named_parameters()}
    assert decays == expected | {id(p): 0.0 for p in beside.parameters()}


def test_tokens_that_the_text_does_not_have_stay_as_they_are(
    save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """Bit for bit, however long a run is, while those of the text move."""
    folder = save_teacher(BertModel)
    made = homodistil.distil(
        folder, corpus, "1.0", tmp_path / "run", steps=10, batch=4, precision="fp32",
        text={"length": 32}, losses={"hidden": 1.0}, optim={"weight_decay": 0.5},
    )  # fmt: skip
    before, after = (BertModel.from_pretrained(place).embeddings for place in (folder, made.students["1.0"]))
    old, new = (embeddings.word_embeddings.weight for embeddings in (before, after))
    read = AutoTokenizer.from_pretrained(folder)(corpus.read_text().splitlines())["input_ids"]
    unseen = sorted(set(range(len(old))) - {token for text in read for token in text})
    assert unseen
    assert torch.equal(old[unseen], new[unseen])
    assert not torch.equal(old, new)


def test_everything_else_moves_as_by_adamw_and_by_the_method_adamw_everything_does(
    ready: Callable[..., Run],
) -> None:
    """A student of each method beside a copy that torch's AdamW moves by the same gradients."""
    for method in ("muon", "adamw"):
        state = ready(method).state
        named = dict(state.student.named_parameters())
        copies = {n: torch.nn.Parameter(p.detach().clone()) for n, p in named.items()}
        plain = torch.optim.AdamW(
            [{"params": [c], "weight_decay": 0.2 * between_widths(state.layout, n)} for n, c in copies.items()],
            lr=1e-3, betas=(0.8, 0.95), eps=1e-4,
        )  # fmt: skip
        for group in state.optimizer.param_groups:
            group["lr"] = 1e-3
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for n, p in named.items():
                p.grad = torch.randn(p.shape, generator=generator)
                copies[n].grad = p.grad.clone()
            state.optimizer.step()
            plain.step()
        apart = {n for n, p in named.items() if not torch.allclose(p, copies[n], rtol=1e-5, atol=1e-6)}
        expected = {n for n in named if method == "muon" and between_widths(state.layout, n)}
        assert apart == expected
        assert len(expected) == (0 if method == "adamw" else 13)
        assert all(p.grad is not None for p in named.values())


def test_after_a_cut_the_same_matrices_move_by_muon_with_the_momentum_of_what_stayed(ready: Callable[..., Run]) -> None:
    """Units leave the momentum as they leave the matrix, and no matrix falls back to AdamW."""
    state = ready("muon").state
    layout = state.layout
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        for parameter in state.student.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        state.optimizer.step()

    step()
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    before = state.optimizer.state[dict(state.student.named_parameters())[name]]["exp_avg"].clone()
    shape = {"hidden": 24, "heads": 3, "head_dim": 8, "ffn": 40}
    keep = select(layout, layout.sizes(state.student), magnitude(layout, state.student), shape)
    state.shrink(keep, compensate=False)
    named = dict(state.student.named_parameters())
    after = state.optimizer.state[named[name]]["exp_avg"]
    torch.testing.assert_close(after, before[keep["ffn.1"]][:, keep["hidden"]])
    step()
    by_muon = {id(p) for group in state.optimizer.param_groups if "momentum" in group for p in group["params"]}
    assert {n for n, p in named.items() if id(p) in by_muon} == {n for n in named if between_widths(layout, n)}
    assert all(list(state.optimizer.state[p]) == ["exp_avg"] for p in named.values() if id(p) in by_muon)


def test_the_learning_rate_rises_and_falls_as_a_function_of_the_step() -> None:
    """Linear up over the warm-up, at its highest at the end of it, linear down to the floor."""
    optim, (stage,) = Optim(learning_rate=1.0, warmup=0.1, floor=0.2), stages_of("0.5", steps=100)
    rates = [rate(optim, stage, step) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert max(rates) == rates[9] == 1
    assert all(a > b for a, b in itertools.pairwise(rates[9:]))
    assert 0.2 < rates[-1] < 0.22


def test_the_learning_rate_rises_and_falls_for_each_target_less_high_each_time() -> None:
    """As for the first alone, but half as high for the second and a third for the third."""
    optim, stages = Optim(learning_rate=1.0, warmup=0.1, floor=0.2), stages_of("0.5", "0.4", "0.3", steps=300)
    alone = [rate(optim, stages[0], step) for step in range(1, 101)]
    for stage in stages:
        rates = [rate(optim, stage, step) for step in range(stage.begin + 1, stage.end + 1)]
        assert rates == pytest.approx([rate / stage.number for rate in alone])


def test_the_learning_rate_goes_with_how_much_narrower_the_student_is() -> None:
    """Half the width, twice the rate; with a power of 0 one rate for all widths."""
    (stage,) = stages_of("0.5", steps=100)
    whole, half = (rate(Optim(learning_rate=1e-3), stage, 50, narrower=n) for n in (1.0, 2.0))
    assert half == pytest.approx(2 * whole)
    constant = Optim(learning_rate=1e-3, width_power=0.0)
    assert rate(constant, stage, 50, narrower=2.0) == rate(constant, stage, 50)
