"""What int8 leaves of a sentence encoder and of its students, and how fast they are, by ONNX Runtime.

    pip install onnx onnxscript onnxruntime
    python benchmarks/int8.py path/to/student ... [--data-dir ../shared/data]

Each model as torch has it, as ONNX Runtime has it, and with its weights in 8 bits. Quality: Spearman's correlation with
the judgements of the STS benchmark's test pairs, not fine-tuned. Speed: texts of 32 tokens, one or 32 at once, all
models in turns. Embeddings are means over tokens, as all-MiniLM-L6-v2 and what comes of it make them.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from harness import parser, report
from homodistil.assets import fetch
from homodistil.evaluation.speed import in_turns
from quality import datasets_of

LENGTH, BATCHES = 32, (1, 32)
Embed = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Embedder(nn.Module):
    """The mean of a model's last states over the tokens of each text."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager")

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (texts, hidden) of tokens (texts, length)."""
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        means: Tensor = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return means


def made(folder: Path, work: Path) -> Iterator[tuple[str, int, Embed]]:
    """What a model is run by, its bytes, and what embeds by it."""
    embedder = Embedder(folder).eval()

    def plainly(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            embeddings: np.ndarray = embedder(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        return embeddings

    yield "torch", sum(p.nbytes for p in embedder.parameters()), plainly
    # two tensors, for one would be exported as one input
    ids, mask = torch.ones(2, LENGTH, dtype=torch.long), torch.ones(2, LENGTH, dtype=torch.long)
    sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    whole, ready, small = (work / f"{name}.onnx" for name in ("whole", "ready", "int8"))
    torch.onnx.export(
        embedder, (ids, mask), whole, input_names=["ids", "mask"], dynamo=True, dynamic_shapes=(sizes, sizes),
        external_data=False, verbose=False,
    )  # fmt: skip
    quant_pre_process(whole, ready, skip_symbolic_shape=True)
    quantize_dynamic(ready, small, per_channel=True)
    for name, file in (("ONNX Runtime", whole), ("ONNX Runtime, int8", small)):
        yield name, file.stat().st_size, functools.partial(_run, onnxruntime.InferenceSession(file))


def _run(session: onnxruntime.InferenceSession, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    embeddings: np.ndarray = session.run(None, {"ids": ids, "mask": mask})[0]
    return embeddings


def spearman(embed: Embed, tokenizer: PreTrainedTokenizerBase, rows: Any) -> float:
    """How closely the cosines of pairs follow what people have judged."""
    sides = []
    for column in ("sentence1", "sentence2"):
        texts = rows[column][:]
        parts = [
            embed(read["input_ids"], read["attention_mask"])
            for at in range(0, len(texts), 32)
            for read in [tokenizer(texts[at : at + 32], padding=True, truncation=True, return_tensors="np")]
        ]
        together = np.concatenate(parts)
        sides.append(together / np.linalg.norm(together, axis=1, keepdims=True))
    return float(spearmanr((sides[0] * sides[1]).sum(1), rows["label"][:]).statistic)


def main() -> None:
    """Measure, print and write."""
    words = parser(__doc__, "int8", 7)
    words.add_argument("students", nargs="+", type=Path)
    words.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    chosen = words.parse_args()
    judged, rows, actions = datasets_of(chosen.data_dir, "test"), list[dict[str, Any]](), []
    with tempfile.TemporaryDirectory() as folder:
        for number, source in enumerate((fetch("minilm"), *chosen.students)):
            tokenizer = AutoTokenizer.from_pretrained(source)
            (work := Path(folder, str(number))).mkdir()
            for how, size, embed in made(source, work):
                name = "teacher" if number == 0 else source.name
                right = spearman(embed, tokenizer, judged)
                rows.append({"model": name, "by": how, "MB": size / 1e6, "STS-B test": right})
                for batch in BATCHES:
                    ids = np.random.default_rng(0).integers(1000, 2000, (batch, LENGTH))
                    actions.append(functools.partial(embed, ids, np.ones_like(ids)))
        spent = iter(in_turns(actions, chosen.rounds))
        for row in rows:
            for batch in BATCHES:
                seconds = statistics.median(next(spent))
                row[f"texts/s, {batch} at once"] = batch / seconds
    report("Sentence encoders in int8", rows, chosen.json, length=LENGTH, rounds=chosen.rounds)


if __name__ == "__main__":
    main()
