"""Numbers about a model: `homodistil evaluate`."""

from __future__ import annotations

import argparse


def evaluate(words: list[str]) -> None:
    """Measure, print a table, keep the numbers."""
    parser = argparse.ArgumentParser(
        "homodistil evaluate",
        description="What a model can do, how large and how fast it is. Numbers of finished parts are kept in --json.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder or hub name that from_pretrained opens")
    add("--against", metavar="TEACHER", help="the teacher, which is measured alike, beside it")
    add(
        "--tasks",
        type=_names,
        default=[],
        help="fine-tune on them: names of GLUE, squad, squad_v2, or own files; of models of images folders with a "
        "folder for each class, or datasets",
    )
    add(
        "--pairs",
        type=_names,
        default=[],
        help="compare pairs by similarity, without fine-tuning: stsb, or a file, all of it",
    )
    add(
        "--probes",
        type=_names,
        default=[],
        help="learn tasks, named as for --tasks, squad aside, by a linear model on frozen embeddings",
    )
    add(
        "--answers",
        type=_names,
        default=[],
        help="score its own head as it is on tasks, named as for --tasks; nothing is learnt",
    )
    add("--text", help="plain text that it did not learn from: language modelling, agreement with the teacher")
    add("--images", help="images that it did not learn from, a folder or a dataset: agreement with the teacher")
    add("--data-dir", help="where the tasks lie, as NAME/train.jsonl, validation.jsonl or glue/NAME/... (default: hub)")
    add("--seeds", type=int, default=3, help="how often each task is learnt (default: 3)")
    add("--grid", action="store_true", help="choose the learning rate on training rows that are held out")
    add("--limit", type=int, help="learn each task and probe from that many rows at most")
    add(
        "--max-length",
        type=int,
        help="tokens of a row that heads read, for --tasks and --answers (default: GLUE 128, SQuAD 384, own files 512)",
    )
    add("--columns", type=_names, default=[], help="the text columns of one's own tasks")
    add(
        "--label",
        default="label",
        help="the label's column of one's own tasks and of datasets of images (default: label)",
    )
    add("--text-column", default="text", help="the column of --text, where it has columns (default: text)")
    add("--text-target", help="the column of what encoder-decoders say to --text (default: what noise takes out of it)")
    add("--image-column", default="image", help="the image column of datasets (default: image)")
    add("--lengths", type=_names, default=["32", "128"], help="tokens at which it is timed (default: 32,128)")
    add("--threads", type=int, help="of the processor while timing (default: all)")
    add("--no-speed", action="store_true", help="leave the timing out")
    add("--trust-remote-code", action="store_true", help="run code that comes with a model")
    add("--json", metavar="FILE", help="keep the numbers there; those that it holds are not measured again")
    options = parser.parse_args(words)

    from rich.console import Console

    from homodistil.evaluation.evaluation import evaluate
    from homodistil.reports.tables import terminal

    notes = Console(stderr=True)
    records = evaluate(
        options.model,
        tasks=options.tasks,
        pairs=options.pairs,
        probes=options.probes,
        answers=options.answers,
        text=options.text,
        images=options.images,
        data_dir=options.data_dir,
        against=options.against,
        seeds=options.seeds,
        grid=options.grid,
        limit=options.limit,
        max_length=options.max_length,
        columns=options.columns,
        label=options.label,
        text_column=options.text_column,
        text_target=options.text_target,
        image_column=options.image_column,
        # what is no number is refused with those that are none to time at
        lengths=[int(word) if word.isdecimal() else word for word in options.lengths],
        threads=options.threads,
        time=not options.no_speed,
        trust_remote_code=options.trust_remote_code,
        json=options.json,
        say=lambda what: notes.print(f"measuring {what} ...", highlight=False, markup=False),
    )
    # a pipe counts as 80 columns, which would cut figures off
    Console(width=max(120, Console().width)).print(terminal(records))
    print("± is the standard deviation over seeds; scores are 0 to 100, as GLUE defines them, and R² may be below 0.")


def _names(text: str) -> list[str]:
    return [name for name in (word.strip() for word in text.split(",")) if name]
