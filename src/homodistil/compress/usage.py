"""Which tokens texts use, and a fingerprint of how they are split, so that two tokenizers can be compared on them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from homodistil.compress.tokens import Spec


@dataclass
class Usage:
    """What texts use.

    Attributes:
        ids: tokens that occur.
        unread: words that became the unknown token, as the algorithm was given them.
        digest: a fingerprint of all ids in order.
    """

    ids: set[int] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)
    digest: bytes = b""


def usage_of(texts: Iterable[str], spec: Spec, *, rows: Sequence[int] | None = None, batch: int = 1000) -> Usage:
    """Read texts whole, without truncation or padding.

    Args:
        texts: are read once; what is no text is passed over.
        spec: of the tokenizer that reads them.
        rows: for each of its ids, the id that stands for it in the fingerprint; with it nothing else is told.
        batch: texts that are read at a time.
    """
    backend = Tokenizer.from_str(json.dumps(spec))
    backend.no_truncation()
    backend.no_padding()
    usage, digest = Usage(), hashlib.blake2b()
    unknown = backend.token_to_id(spec["model"]["unk_token"]) if spec["model"]["type"] == "WordPiece" else None
    back = np.asarray(rows, dtype=np.int64) if rows is not None else None
    whole = (t for t in texts if isinstance(t, str) and t.strip())
    while part := list(itertools.islice(whole, batch)):
        for text, encoded in zip(part, backend.encode_batch_fast(part), strict=True):
            ids = np.asarray(encoded.ids, dtype=np.int64)
            ids = ids if back is None else back[ids]
            digest.update(ids.tobytes() + b"\xff" * 8)
            if back is None:
                found = set(ids.tolist())
                usage.ids |= found
                if unknown is not None and unknown in found:
                    usage.unread.update(_unread(backend, text, unknown))
    usage.digest = digest.digest()
    return usage


def _unread(backend: Tokenizer, text: str, unknown: int) -> Iterator[str]:
    """The words of a text that became the unknown token, as the algorithm was given them."""
    encoded = backend.encode(text)
    for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
        if token == unknown:
            word = text[start:end]
            word = backend.normalizer.normalize_str(word) if backend.normalizer else word
            yield from (w for w, _ in backend.pre_tokenizer.pre_tokenize_str(word)) if backend.pre_tokenizer else [word]
