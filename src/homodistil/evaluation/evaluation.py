"""A model folder in, numbers out: labelled tasks, plain text, similarities, size and speed, beside a teacher's."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from os import PathLike
from os.path import expanduser
from pathlib import Path

from homodistil.evaluation import speed
from homodistil.evaluation.answers import refuse_other_head, tells_a_number
from homodistil.evaluation.inputs import (
    SHORTEST,
    read_pictures,
    read_texts,
    refuse_counts,
    refuse_no_mask,
    refuse_other_data,
    refuse_other_sides,
    refuse_too_long,
    refuse_unpaired,
)
from homodistil.evaluation.labelled_images import open_labelled_images
from homodistil.evaluation.measuring import (
    BLOCKS,
    measure_answers,
    measure_images,
    measure_pairs,
    measure_probe,
    measure_speed,
    measure_task,
    measure_text,
)
from homodistil.evaluation.models import local, open_model
from homodistil.evaluation.probe import refuse_spans
from homodistil.evaluation.records import Record, Records
from homodistil.evaluation.tasks import open_task
from homodistil.kinds import Names, model_named, several


def evaluate(
    model: str | PathLike[str],
    *,
    tasks: Names = (),
    pairs: Names = (),
    probes: Names = (),
    answers: Names = (),
    text: str | PathLike[str] | None = None,
    images: str | PathLike[str] | None = None,
    data_dir: str | PathLike[str] | None = None,
    against: str | PathLike[str] | None = None,
    seeds: int = 3,
    grid: bool = False,
    limit: int | None = None,
    max_length: int | None = None,
    columns: Names = (),
    label: str = "label",
    text_column: str = "text",
    text_target: str | None = None,
    image_column: str = "image",
    lengths: Sequence[int] = (32, 128),
    threads: int | None = None,
    time: bool = True,
    trust_remote_code: bool = False,
    json: str | PathLike[str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Record]:
    """Measure a model, and its teacher beside it.

    Args:
        model: a folder or hub name that `from_pretrained` opens.
        tasks: to fine-tune on, one or several: names of `tasks.TASKS`, or files or folders of one's own. For models
            of images folders with a folder of images for each class, or datasets
            (`labelled_images.open_labelled_images`).
        pairs: tasks whose pairs are compared by cosine similarity, without fine-tuning, such as `stsb`; of a file all.
        probes: tasks that a linear model learns on frozen embeddings, named as those of `tasks`, SQuAD aside.
        answers: tasks on which the model's own head is scored as it is, named as those of `tasks`; of a file all rows.
        text: plain text that the model was not distilled on: language modelling, and agreement with the teacher.
        images: a folder or dataset of images that it was not distilled on, for models of images: agreement.
        data_dir: where the tasks lie; the hub by default.
        against: the teacher, which is measured alike.
        seeds: how often each task is learnt.
        grid: choose the learning rate of each task and model on training rows that are held out.
        limit: learn each task and probe from that many rows at most.
        max_length: tokens of a row that are read at most by heads, new ones and the model's own, as far as the model
            reads; by default 128 of GLUE, 384 of SQuAD, whose contexts are read in windows of it, and 512 of one's own
            tasks.
        columns: the text columns of one's own tasks.
        label: the label's column of one's own tasks, and of datasets of images.
        text_column: the text's column.
        text_target: the column of what encoder-decoders should say to it; by default it is made by noise, as in a run.
        image_column: the images' column.
        lengths: tokens at which the models are timed; models of images are timed at their size of images.
        threads: of torch while timing.
        time: whether models are timed.
        trust_remote_code: run code that comes with a model.
        json: a file that keeps the records; what it holds is not measured again.
        say: told what is being measured.

    Returns:
        The records of all measurements, of the model first; each as soon as it is there also in `json`.

    Raises:
        UserError: a model, task, column or file that cannot be used; before anything is measured where that can
            be known.
    """
    refuse_counts({"--seeds": seeds, "--limit": limit, "--threads": threads})
    refuse_counts({"--max-length": max_length}, least=SHORTEST)
    for length in lengths:
        refuse_counts({"--lengths": length})
    tasks, pairs, probes, answers, columns = map(several, (tasks, pairs, probes, answers, columns))
    names = [local(model_named(name)) for name in (model, *([against] if against else []))]
    records = Records(Path(expanduser(json)) if json else None, names[1] if against else None, say)
    folder = Path(expanduser(data_dir)) if data_dir else None
    opened = [open_model(name, trust_remote_code=trust_remote_code) for name in names]
    of_text = {"--pairs": pairs, "--text": text, "--columns": columns, "--max-length": max_length}
    refuse_other_data(opened, of_text, {"--images": images})
    labelled_data = {"--tasks": tasks, "--pairs": pairs, "--probes": probes, "--answers": answers}
    refuse_other_sides(opened, labelled_data, text, text_target)
    own = {"columns": columns, "label": label}
    paired = {name: open_task(name, folder, learnt=False, numbers=True, **own) for name in pairs}  # type: ignore[arg-type]
    if opened[0].reads_images:
        of_images = functools.partial(open_labelled_images, opened=opened[0], column=image_column, label=label)
        labelled = {name: of_images(name, limit=limit, learnt=True) for name in tasks}
        probed = {name: of_images(name, limit=limit, learnt=True) for name in probes}
        answered = {name: of_images(name) for name in answers}
    else:
        numbers = tells_a_number(opened[0])
        labelled = {name: open_task(name, folder, limit=limit, **own) for name in tasks}  # type: ignore[arg-type]
        probed = {name: open_task(name, folder, limit=limit, **own) for name in probes}  # type: ignore[arg-type]
        answered = {name: open_task(name, folder, learnt=False, numbers=numbers, **own) for name in answers}  # type: ignore[arg-type]
    for one, splits in itertools.product(opened, answered.values()):
        refuse_other_head(one, splits)
    for splits in probed.values():
        refuse_spans(splits.task)
    for name, splits in paired.items():
        refuse_unpaired(name, splits)
    if text:
        refuse_no_mask(opened)
    texts, targets = read_texts(str(text), text_column, text_target, 20 * BLOCKS) if text else ([], [])
    pictures = read_pictures(str(images), image_column, opened) if images else []
    if time:
        refuse_too_long(opened, lengths)

    for one in opened:
        records.measure(one.source, "size", {}, functools.partial(speed.size, one))
    if texts:
        measure_text(records, opened, texts, targets)
    if pictures:
        measure_images(records, opened, pictures)
    for name, splits in paired.items():
        measure_pairs(records, opened, name, splits)
    for name, splits in answered.items():
        measure_answers(records, opened, name, splits, max_length=max_length)
    for name, splits in probed.items():
        measure_probe(records, opened, name, splits)
    for name, splits in labelled.items():
        measure_task(records, opened, name, splits, seeds=seeds, grid=grid, max_length=max_length)
    if time:
        measure_speed(records, opened, lengths, threads)
    return records.used
