"""Fewer tokens, without training: `homodistil trim`."""

from __future__ import annotations

import argparse

PROMPT_HELP = (
    "what is put before each text, several times for several (default: the prompts that a sentence encoder comes with)"
)


def trim(words: list[str]) -> None:
    """Trim a model's vocabulary to a text."""
    parser = argparse.ArgumentParser(
        "homodistil trim",
        description="Drop the tokens that a text never uses, from tokenizer, embeddings and language-model head. The "
        "model says the same of this text as before. No training.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub name")
    parser.add_argument("--data", metavar="TEXT", required=True, help="a file, a folder, or a dataset")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where the trimmed model goes; it must be new")
    parser.add_argument("--text-column", default="text", help="of data that has columns (default: text)")
    parser.add_argument("--text-target", metavar="COLUMN", help="a second column, of what is said to each text")
    parser.add_argument("--text-prompt", metavar="PROMPT", action="append", help=PROMPT_HELP)
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--family", help="a file that describes the model's family (docs/adding-a-family.md)")
    options = parser.parse_args(words)

    from homodistil.api import trim_vocabulary

    made = trim_vocabulary(
        options.model,
        options.data,
        options.out,
        column=options.text_column,
        target_column=options.text_target,
        prompts=options.text_prompt,
        trust_remote_code=options.trust_remote_code,
        family=options.family,
    )
    for what, (before, after) in (("tokens", made.tokens), ("parameters", made.parameters)):
        print(f"{what}: {after:,} of {before:,} ({after / before:.1%})")
    print(made.folder)
