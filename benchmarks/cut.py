"""Seconds of scoring all units and cutting a model to half its width, beside torch-pruning; and what comes out.

    pip install torch-pruning==1.6.1
    python benchmarks/cut.py [--shape bert-base] [--rounds 5]

Both score by magnitude and cut hidden, ffn and the dimensions of each head of a masked language model to half. Theirs
is used as its own example for BERT does, attributes of the attention layers mended by hand afterwards. Times are
measured in turns, without the copy that each cut works on. A cut within a run (ours alone) takes optimizer state and
compensation along.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.models.bert.modeling_bert import BertSelfAttention

import steps
from harness import parser, report
from homodistil.axes.layout import Layout
from homodistil.compress.cut import cut, select
from homodistil.compress.importance import magnitude
from homodistil.compress.plan import plan

Cut = Callable[[PreTrainedModel], PreTrainedModel]


def ours(model: PreTrainedModel) -> PreTrainedModel:
    """Table, scores, selection, cut."""
    layout = Layout.of(model)
    shape = plan(layout, layout.shape(model), ["0.5"])[0].shape
    cut(model, layout, select(layout, layout.sizes(model), magnitude(layout, model), shape))
    return model


def theirs(model: PreTrainedModel) -> PreTrainedModel:
    """Dependency graph, scores, cut, and the attributes that its example mends."""
    attention = [m for m in model.modules() if isinstance(m, BertSelfAttention)]
    heads = {part: m.num_attention_heads for m in attention for part in (m.query, m.key, m.value)}
    pruner = tp.pruner.BasePruner(
        model,
        {"input_ids": torch.ones(1, 8, dtype=torch.long)},
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=0.5,
        num_heads=heads,
        prune_head_dims=True,
        prune_num_heads=False,
        output_transform=lambda out: out.logits.sum(),
        ignored_layers=[model.cls.predictions.decoder],
    )
    pruner.step()
    for m in attention:
        m.attention_head_size = m.query.out_features // m.num_attention_heads
        m.all_head_size = m.query.out_features
    return model


def judged(made: PreTrainedModel, ids: torch.Tensor) -> dict[str, str]:
    """Whether ties are kept, whether the saved model opens without edits, and whether it then says the same."""
    said: dict[str, str] = {}
    ties = made.get_input_embeddings().weight is made.get_output_embeddings().weight
    said["ties kept"] = "yes" if ties else "no"
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        try:
            before = made.eval()(input_ids=ids).logits
            made.save_pretrained(folder)
            opened = AutoModelForMaskedLM.from_pretrained(folder).eval()
        except Exception as error:
            said["opens without edits"] = f"no: {type(error).__name__}"
            edited = _edited(made, Path(folder), ids)
            said["same outputs after reload"] = "not to be had" if edited is None else f"off by {edited:.2g}, edited"
            return said
        said["opens without edits"] = "yes"
        difference = (opened(input_ids=ids).logits - before).abs().max().item()
        said["same outputs after reload"] = "yes" if difference < 1e-4 else f"off by {difference:.2g}"
    return said


def _edited(made: PreTrainedModel, folder: Path, ids: torch.Tensor) -> float | None:
    """The largest difference of outputs after the sizes were written into the configuration by hand."""
    layer = made.base_model.encoder.layer[0]
    config = copy.deepcopy(made.config)
    config.hidden_size = layer.attention.self.query.in_features
    config.intermediate_size = layer.intermediate.dense.out_features
    try:
        before = made(input_ids=ids).logits
        opened = AutoModelForMaskedLM.from_config(config).eval()
        opened.load_state_dict(made.state_dict())
        return float((opened(input_ids=ids).logits - before).abs().max())
    except Exception:
        return None


def in_a_run(teacher: Path, rounds: int) -> float:
    """Median seconds of one cut of a grain of hidden and ffn and a dimension of each head, in a run of ours."""
    spent = []
    for _ in range(rounds):
        run = steps.ready(teacher, "1.0", batch=8)
        steps.step(run, steps.batch_of(run), scored=True)
        state = run.state
        layout, shape = state.layout, state.layout.shape(state.student)
        smaller = {**shape, "hidden": shape["hidden"] - 8, "ffn": shape["ffn"] - 8, "head_dim": shape["head_dim"] - 1}
        started = time.perf_counter()
        keep = select(layout, layout.sizes(state.student), state.importance.ranking(), smaller)
        state.shrink(keep, compensate=True)
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, "cut", 5)
    options.add_argument("--shape", choices=list(steps.WIDTHS), default="minilm")
    chosen = options.parse_args()
    if chosen.shape != "minilm":
        chosen.json = chosen.json.with_stem(f"{chosen.json.stem}-{chosen.shape}")
    ids = torch.randint(1000, 20000, (4, 32), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = steps.teacher_with_head(chosen.shape, Path(scratch) / "teacher")
        teacher = AutoModelForMaskedLM.from_pretrained(folder)
        spent: dict[str, list[float]] = {"ours": [], "torch-pruning": []}
        results: dict[str, PreTrainedModel | None] = {}
        for _ in range(chosen.rounds + 1):
            for name, make in (("ours", ours), ("torch-pruning", theirs)):
                model = copy.deepcopy(teacher)
                started = time.perf_counter()
                results[name] = make(model)
                spent[name].append(time.perf_counter() - started)
        rows: list[dict[str, Any]] = []
        for name, made in results.items():
            assert made is not None
            seconds = statistics.median(spent[name][1:])
            ratio = statistics.median(spent["torch-pruning"][1:]) / seconds
            parameters = sum(p.numel() for p in made.parameters())
            rows.append({"": name, "seconds": seconds, "x torch-pruning": ratio, "parameters": parameters}
                        | judged(made, ids))  # fmt: skip
        one = in_a_run(folder, chosen.rounds)
    report(f"Score and cut to half: {chosen.shape}", rows, chosen.json, seconds_of_a_cut_in_a_run=one)
    print(f"A cut of one grain in a run, optimizer state and compensation included: {one:.3f} s")


if __name__ == "__main__":
    main()
