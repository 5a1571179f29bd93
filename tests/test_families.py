"""Every family, by the same laws: its table, what a cut does, what is saved, and that it can be distilled."""

from __future__ import annotations

import copy
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase, RobertaConfig, RobertaForCausalLM

import homodistil
from homodistil.axes.binding import families_of
from homodistil.axes.families import FAMILIES as TABLES
from homodistil.axes.layout import Layout, on_meta
from homodistil.axes.shape import describe
from homodistil.compress.compensate import InputMoments
from homodistil.compress.cut import Keep, cut
from homodistil.compress.plan import plan
from homodistil.compress.shrink import shrink
from homodistil.errors import UserError
from homodistil.losses.outputs import Runner
from homodistil.models.attention import IMPLEMENTATION
from homodistil.models.kind import Kind
from homodistil.models.teacher import attend
from zoo import EVERY, FAMILIES, LAYERS, deep, inputs, loses_layers, reads_images, reads_pairs, tiny

ALSO_DISTILLED = ["RoBERTa encoder", "RoBERTa sequence", "ELECTRA encoder", "DistilBERT encoder", "DistilBERT token",
                  "ModernBERT encoder", "ModernBERT token", "DeBERTa encoder", "DeBERTa sequence", "Llama encoder",
                  "Gemma encoder", "Gemma sequence", "ViT encoder", "DeiT encoder", "DeiT of one token"]  # fmt: skip
ROTARY = ("ModernBERT", "EuroBERT", "GPT-NeoX", "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3")
QUIETER = {"Gemma": LAYERS, "Gemma2": LAYERS, "Gemma3": LAYERS, "T5": 2 * LAYERS + 1}
"""The number of the last state, which a cut makes quieter."""
LOUD = ("T5 v1.1",)
SAY_TOKENS = ("LM", "HeadModel", "ConditionalGeneration")
"""How the names of language models' classes end."""
distilled = pytest.mark.parametrize("name", [*FAMILIES, *ALSO_DISTILLED])
families = pytest.mark.parametrize("name", FAMILIES)
every = pytest.mark.parametrize("name", EVERY)


def _states(model: Any, *, padded: bool = True) -> list[Tensor]:
    """What a model says at ordinary tokens: all hidden states, and logits where it has them.

    Without padding it is given no mask either.
    """
    given, mask = inputs(model, padded=padded)
    given = {name: value for name, value in given.items() if padded or "attention_mask" not in name}
    with torch.no_grad():
        out = model(**given, output_hidden_states=True)
    last = getattr(out, "last_hidden_state", None)
    said = [h[mask == 1] for h in (*_hidden(out), *([] if last is None else [last]))]
    if (logits := getattr(out, "logits", None)) is not None:
        said.append(logits[mask == 1] if logits.shape[:2] == mask.shape else logits)
    return said


def _hidden(out: Any) -> tuple[Tensor, ...]:
    """Hidden states: of encoder-decoders the encoder's, then the decoder's."""
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    return tuple(state for name in names for state in getattr(out, name, None) or ())


def _draw(layout: Layout, sizes: dict[str, int], kinds: set[str]) -> Keep:
    """Random units that stay: about two thirds of each axis of these widths, others in each layer and head."""
    draw = torch.Generator().manual_seed(3)
    keep: Keep = {}
    for axis in layout.axes:
        if layout.width_of(axis) in kinds:
            rows = sizes[layout.parent[axis]] if axis in layout.parent else 1
            kept = max(1, round(sizes[axis] * 0.66))
            chosen = [torch.randperm(sizes[axis], generator=draw)[:kept].sort().values for _ in range(rows)]
            keep[axis] = torch.stack(chosen) if axis in layout.parent else chosen[0]
    return keep


class _Living(nn.Module):
    """A norm of the full width that sees living units only and leaves zeros in the others' places."""

    def __init__(self, norm: Any, living: Tensor) -> None:
        super().__init__()
        self.norm, self.living = copy.deepcopy(norm), living
        for name, parameter in norm.named_parameters():
            setattr(self.norm, name, nn.Parameter(parameter[living]))
        if isinstance(norm, nn.LayerNorm):
            self.norm.normalized_shape = (len(living),)

    def forward(self, x: Tensor) -> Tensor:
        made = torch.zeros_like(x)
        made[..., self.living] = self.norm(x[..., self.living])
        return made


@torch.no_grad()
def _zeroed(model: Any, layout: Layout, keep: Keep, sizes: dict[str, int]) -> Any:
    """The uncut model with every weight of every unit that leaves at zero, and norms over living units."""
    masked = copy.deepcopy(model)
    for name, parameter in masked.named_parameters():
        for i, dim in enumerate(layout.dims[name]):
            if isinstance(masked.get_submodule(name.rpartition(".")[0]), nn.LayerNorm) or dim == ("hidden",):
                gone = _gone(("hidden",), keep, layout, sizes)
            else:
                gone = _gone(dim, keep, layout, sizes)
            if dim != ("label",) and len(gone) == parameter.shape[i]:
                parameter.index_fill_(i, gone.nonzero()[:, 0], 0)
    if "hidden" in keep:
        norms = [n for n, d in layout.dims.items() if d == (("hidden",),) and n.endswith("weight")]
        for name in {n.rpartition(".")[0] for n in norms}:
            parent, _, last = name.rpartition(".")
            setattr(masked.get_submodule(parent), last, _Living(model.get_submodule(name), keep["hidden"]))
    return masked


def _gone(dim: Any, keep: Keep, layout: Layout, sizes: dict[str, int]) -> Tensor:
    """Which positions of a fused dimension hold a unit that leaves: said by coordinates, not as the cut says it."""
    parts = [p if isinstance(p, int) else sizes[p] for p in dim]
    grid = torch.cartesian_prod(*(torch.arange(n) for n in parts)).reshape(-1, len(parts))
    gone = torch.zeros(len(grid), dtype=torch.bool)
    for i, part in enumerate(dim):
        if part not in keep:
            continue
        if part in layout.parent:
            of = grid[:, dim.index(layout.parent[part])]
            gone |= torch.tensor([int(u) not in keep[part][int(h)] for h, u in zip(of, grid[:, i], strict=True)])
        else:
            gone |= ~torch.isin(grid[:, i], keep[part])
    return gone


@every
def test_a_table_describes_every_parameter_with_its_sizes(name: str) -> None:
    """Each parameter has a row, and the product of its axes' sizes is its shape."""
    model = tiny(name)
    layout = Layout.of(model)
    sizes = layout.sizes(model)
    for parameter, tensor in model.named_parameters(remove_duplicate=False):
        for dim, size in zip(layout.dims[parameter], tensor.shape, strict=True):
            assert math.prod(p if isinstance(p, int) else sizes[p] for p in dim) == size, parameter
    depth = {"layers"} if loses_layers(name) else set()
    assert set(layout.shape(model)) == {*layout.family.widths.values()} | depth


@every
def test_a_parameter_that_no_row_describes_is_named(name: str) -> None:
    """A stranger in a model of a known family is refused by its name."""
    model = tiny(name)
    model.base_model.stranger = nn.Linear(3, 2)
    with pytest.raises(UserError, match=r"stranger\.weight"):
        Layout.of(model)


def _instance(name: str, shape: dict[str, int]) -> Any:
    """A fresh model of the shape, made by transformers from the configuration that the family's table writes."""
    model_class, config, options = EVERY[name]
    layout = Layout.of(tiny(name))
    made = config(**options)
    known = {**layout.fixed, **shape}
    for key, product in layout.family.config.items():
        setattr(made, key, math.prod(known[word] for word in product.split()))
    made.num_hidden_layers = shape.get("layers", made.num_hidden_layers)
    if getattr(made, "layer_types", None):
        made.layer_types = made.layer_types[: shape["layers"]]
    return on_meta(model_class, made)


def _random_shapes(name: str, count: int) -> list[dict[str, int]]:
    draw, layout = random.Random(1), Layout.of(tiny(name))
    teacher = layout.shape(tiny(name))
    shapes = []
    for _ in range(count):
        shape = {width: draw.randint(1, most) for width, most in teacher.items()}
        if layout.family.bound:
            shape["hidden"] = shape["heads"] * shape.get("head_dim", layout.fixed.get("rope", 0))
            for width, axis in layout.family.unequal.items():
                shape["head_dim"] += shape[width] == layout.fixed[axis]
                shape[width] = shape["heads"] * shape["head_dim"]
        shapes.append(shape)
    return shapes


@every
def test_the_plan_counts_parameters_exactly(name: str) -> None:
    """Fifty random shapes have as many parameters as the models that transformers makes of them."""
    layout = Layout.of(tiny(name))
    for shape in _random_shapes(name, 50):
        assert layout.count(shape) == sum(p.numel() for p in _instance(name, shape).parameters()), describe(shape)


@pytest.mark.parametrize(
    ("target", "name"),
    [(target, name) for target in ("1.0", "layers=1") for name in EVERY if target == "1.0" or loses_layers(name)],
)
def test_operations_equal_those_that_are_counted(name: str, target: str) -> None:
    """The closed form of operations equals torch's counter, which sees windows as the full attention that they mask.

    A head that reads a sequence once is told from one of the same name that reads every token.
    """
    model = tiny(name)
    layout = Layout.of(model)
    shape = shrink(model, target).shape
    attend(model, "eager")
    # one row, because embeddings of distances are projected once for all rows
    given, mask = inputs(model, 1, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**given)
    expected = layout.flops_per_token(shape, layout.sequence or 32) * mask.numel()
    # rotary angles are a product as well, of one row, which no width changes
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02 if "rope" in layout.fixed else 1e-6)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        (name, kinds)
        for name in EVERY
        for kinds in ("ffn", "heads", "head_dim", "hidden", "all")
        # rotary dimensions are never cut
        if kinds != "head_dim" or name.split()[0] not in ROTARY
    ],
)
def test_cutting_a_unit_equals_zeroing_it(name: str, kinds: str) -> None:
    """A model without units says what it says with all their weights at zero and norms over living units."""
    model = tiny(name)
    layout = Layout.of(model)
    sizes = layout.sizes(model)
    wanted = {"heads": {"heads", "kv_heads"}, "all": set(layout.shape(model))}.get(kinds, {kinds})
    keep = _draw(layout, sizes, wanted)
    assert keep
    whole = _states(model)
    zeroed = _states(_zeroed(model, layout, keep, sizes))
    cut(model, layout, keep)
    living = keep.get("hidden", torch.arange(sizes["hidden"]))
    said = _states(model)
    for number, (now, before) in enumerate(zip(said, zeroed, strict=True)):
        is_state = before.shape[-1] == sizes["hidden"]
        reference = before[..., living] if is_state else before
        if is_state and number >= QUIETER.get(name.split()[0], len(said)) and name not in LOUD:
            # the last norm is quieter, because what reads it is tied to the embeddings, which are louder
            reference = reference * math.sqrt(len(living) / sizes["hidden"])
        torch.testing.assert_close(now, reference, rtol=1e-4, atol=1e-4)
    # equal because both did nothing would be no proof
    assert not torch.allclose(zeroed[-1], whole[-1], rtol=1e-2, atol=1e-2)


def _built(model: Any) -> dict[str, dict[str, object]]:
    """What each part of a model says of itself: its plain attributes, and its configuration."""
    said: dict[str, dict[str, object]] = {}
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str | tuple) and k[0] != "_"}
        # GPT-2 keeps its width there, and reads it while it is made alone
        unread = {"training"} | ({"embed_dim"} if hasattr(module, "wte") else set())
        said[name] = {k: v for k, v in plain.items() if k not in unread}
        if hasattr(module, "config"):
            said[name]["config"] = module.config.to_dict()
    return said


@every
def test_a_cut_model_is_what_its_configuration_would_build(name: str) -> None:
    """In every part, attributes and copies of the configuration among them."""
    model = tiny(name)
    shrink(model, "0.5")
    assert _built(model) == _built(on_meta(type(model), copy.deepcopy(model.config)))


def test_what_is_scaled_keeps_its_effect_and_its_moments() -> None:
    """What Gemma makes of embeddings and states stays as loud; moments of what is scaled by c are 1/c as large."""
    model = tiny("Gemma2", tie_word_embeddings=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(**inputs(model)[0]).logits.square().mean().backward()
    optimizer.step()
    before = {n: (p.detach().clone(), optimizer.state[p]["exp_avg"].clone()) for n, p in model.named_parameters()}
    living = torch.arange(0, 48, 3)
    cut(model, Layout.of(model), {"hidden": living}, optimizer=optimizer)
    c = math.sqrt(48 / len(living))
    expected = {
        "model.embed_tokens.weight": (c, 0),
        "lm_head.weight": (c, 0),
        "model.norm.weight": (1 / c, 1),
        "model.layers.0.mlp.up_proj.weight": (1, 0),
        "model.layers.1.input_layernorm.weight": (1, 1),
    }
    for name, (scale, added) in expected.items():
        values, moments = (old[..., living] for old in before[name])
        now = model.get_parameter(name)
        torch.testing.assert_close(now.detach() + added, (values + added) * scale, msg=name)
        torch.testing.assert_close(optimizer.state[now]["exp_avg"], moments / scale, rtol=1e-5, atol=0, msg=name)


@pytest.mark.parametrize("name", [name for name, model in FAMILIES.items() if model[0].__name__.endswith(SAY_TOKENS)])
def test_predictions_are_what_the_model_says(name: str) -> None:
    """Logits made at chosen positions by the modules that the table names are those of the model's own forward pass."""
    model = tiny(name)
    given, mask = inputs(model, padded=True)
    positions = mask.flatten().nonzero()[:, 0]
    kind: Kind = "seq2seq-lm" if reads_pairs(model) else "causal-lm"
    run = Runner(kind=kind, layout=Layout.of(model), pooling="mean", attention=False, prediction=True)
    with torch.no_grad():
        tokens = run(model, {**given, "positions": positions}).tokens
        assert tokens is not None
        said = tokens.head(tokens.states)
        torch.testing.assert_close(said, model(**given).logits.flatten(0, 1)[positions], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@families
def test_a_run_attends_as_transformers_does(name: str, precision: torch.dtype, padded: bool) -> None:
    """In the way of attending that runs choose, a model says what it says in any other, with a mask and without."""
    model = tiny(name).to(precision)
    if not model._supports_sdpa:
        pytest.skip("keeps the attention that transformers chose for it")
    before = _states(model, padded=padded)
    attend(model, IMPLEMENTATION)
    for mine, other in zip(_states(model, padded=padded), before, strict=True):
        tolerance = 1e-5 if precision == torch.float32 else 0.05 * other.abs().max().item()
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=tolerance)


@families
def test_compensation_brings_a_cut_model_nearer(name: str) -> None:
    """What the layers that stay take over from ffn units makes the model more like the uncut one."""
    model = tiny(name)
    layout = Layout.of(model)
    moments = InputMoments(model, layout)
    given, mask = inputs(model, 64, 16)
    with torch.no_grad(), moments.listening(mask):
        whole = _hidden(model(**given, output_hidden_states=True))[-1]
    keep = _draw(layout, layout.sizes(model), {"ffn"})
    distance = []
    for read in (None, moments.inputs):
        smaller = copy.deepcopy(model)
        cut(smaller, layout, keep, inputs=read)
        with torch.no_grad():
            said = _hidden(smaller(**given, output_hidden_states=True))[-1]
            distance.append((said - whole).square().mean().item())
    assert distance[1] < 0.9 * distance[0]


@families
def test_gradients_and_moments_survive_a_cut(name: str) -> None:
    """A cut model trains on with the same optimizer, and gradients reach every parameter."""
    model = tiny(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for target in (None, "0.5"):
        if target:
            shrink(model, target, optimizer=optimizer)
        out = model(**inputs(model)[0], output_hidden_states=True)
        (out.logits.square().mean() + _hidden(out)[-1].square().mean()).backward()
        assert all(p.grad is not None for n, p in model.named_parameters() if "token_type" not in n)
        optimizer.step()
        optimizer.zero_grad()
    assert all(s["exp_avg"].shape == p.shape for p, s in optimizer.state.items())


def test_a_saved_student_opens_in_a_fresh_process_with_equal_outputs(tmp_path: Path) -> None:
    """Each family's student is opened by plain auto classes that know nothing of this package."""
    said = {}
    for name, target in [(n, t) for n in FAMILIES for t in ("0.5", "layers=2") if t == "0.5" or loses_layers(n)]:
        model = deep(name) if "layers" in target else tiny(name)
        shrink(model, target)
        folder = tmp_path / f"{name} {target}"
        model.save_pretrained(folder)
        said[folder.name] = _states(model)
        (folder / "class").write_text(type(model).__name__)
        torch.save(inputs(model, padded=True), folder / "inputs.pt")
    program = f"""
import sys, torch, transformers
from pathlib import Path
root = Path({str(tmp_path)!r})
autos = {{"ForMaskedLM": transformers.AutoModelForMaskedLM, "ForPreTraining": transformers.AutoModelForPreTraining,
         "ForImageClassification": transformers.AutoModelForImageClassification,
         "ForConditionalGeneration": transformers.AutoModelForSeq2SeqLM}}
for folder in sorted(p for p in root.iterdir() if p.is_dir()):
    said = (folder / "class").read_text()
    auto = next((a for s, a in autos.items() if s in said), transformers.AutoModelForCausalLM)
    given, mask = torch.load(folder / "inputs.pt")
    model = auto.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(**given, output_hidden_states=True)
    logits = out.logits[mask == 1] if out.logits.shape[:2] == mask.shape else out.logits
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    states = [h[mask == 1] for n in names for h in getattr(out, n, None) or ()]
    torch.save(states + [logits], folder / "said.pt")
assert "homodistil" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    for name, ours in said.items():
        theirs = torch.load(tmp_path / name / "said.pt")
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture
def ready(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, corpus: Path, image_processor: Any, pictures: Path
) -> Callable[..., dict[str, Any]]:
    """Saves a model as a teacher, and gives what a run of it starts with: texts of some length, or images."""

    def save(model: Any, length: int) -> dict[str, Any]:
        model.save_pretrained(tmp_path / "teacher")
        (image_processor if reads_images(model) else tokenizer).save_pretrained(tmp_path / "teacher")
        own = {"data": pictures} if reads_images(model) else {"data": corpus, "text": {"length": length}}
        return {"teacher": tmp_path / "teacher", "out": tmp_path / "run", **own}

    return save


@distilled
def test_ten_steps_after_a_cut_lower_the_discrepancy(
    name: str, tmp_path: Path, ready: Callable[..., dict[str, Any]]
) -> None:
    """A student that was cut at once comes nearer to its teacher with every few steps."""
    out = tmp_path / "run"
    model = tiny(name)
    target = "0.7" if "head_dim" in Layout.of(model).shape(model) else "0.5"
    result = homodistil.distil(
        **ready(model, 32), target=target, steps=12, batch=16, log_every=1, evaluations=0,
        cutting={"ramp_end": 0.0, "calibration": 4}, optim={"learning_rate": 3e-3, "warmup": 0.0},
    )  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    path = [line["discrepancy"] for line in lines if "discrepancy" in line]
    assert path[0] > 0
    assert sum(path[-3:]) < 0.95 * sum(path[:3])
    student = type(model).from_pretrained(result.students[target])
    assert Layout.of(student).shape(student) == plan(Layout.of(model), Layout.of(model).shape(model), [target])[0].shape


@distilled
def test_an_uncut_student_has_no_discrepancy(name: str, tmp_path: Path, ready: Callable[..., dict[str, Any]]) -> None:
    """Before the first cut every distillation term is exactly zero: the student is the teacher."""
    homodistil.distil(
        **ready(tiny(name), 16), target="1.0", steps=2, batch=4, log_every=1, evaluations=0, precision="fp32"
    )
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["discrepancy"] == pytest.approx(0, abs=1e-9)


@families
def test_a_budget_is_met(name: str) -> None:
    """A parameter budget becomes a shape of the family that lies within a tenth of it, at these tiny sizes."""
    layout = Layout.of(tiny(name))
    whole = layout.shape(tiny(name))
    budget = layout.count(whole) // 2
    planned = plan(layout, whole, [str(budget)])[0]
    assert abs(planned.parameters / budget - 1) < 0.1
    assert all(planned.shape[w] <= whole[w] for w in whole)


def test_an_encoder_is_no_language_model_of_next_tokens(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, corpus: Path
) -> None:
    """An encoder's class for next tokens is refused: without a causal mask it would read the answer."""
    RobertaForCausalLM(RobertaConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=8)).save_pretrained(tmp_path / "teacher")  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="RoBERTa models are encoders"):
        homodistil.distil(tmp_path / "teacher", corpus, "0.5", tmp_path / "run")


def test_the_attention_of_a_decoder_is_not_compared(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, corpus: Path
) -> None:
    """A weight for it is refused, in place of comparing what no token sees."""
    tiny("Llama").save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"attention of a Llama model"):
        homodistil.distil(tmp_path / "teacher", corpus, "0.5", tmp_path / "run", losses={"attention": 0.1})


def test_every_table_has_a_tiny_model_here() -> None:
    """No family comes without these laws."""
    tried = [Layout.of(tiny(name)).family for name in FAMILIES]
    assert {family.name for family in TABLES} == {family.name for family in tried if family is not None}


def test_hidden_never_becomes_as_wide_as_embeddings_of_their_own() -> None:
    """Half of a hidden width may be the embeddings' width, of which transformers would make another model."""
    model = tiny("ELECTRA small", embedding_size=24)
    layout = Layout.of(model)
    whole = layout.shape(model)
    assert plan(layout, whole, ["0.5"])[0].shape["hidden"] == 28
    count = layout.count(whole)
    widths = {plan(layout, whole, [str(budget)])[0].shape["hidden"] for budget in range(count // 4, count, count // 80)}
    assert 24 not in widths
    assert {20, 28} <= widths
    with pytest.raises(UserError, match="hidden must not be 24"):
        plan(layout, whole, ["hidden=24,heads=4"])


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "olmoe"])
def test_a_mixture_of_experts_is_refused_as_what_it_is(model_type: str) -> None:
    """Not as a model that nobody has heard of."""
    with pytest.raises(UserError, match="mixture of experts"):
        families_of(model_type)
