"""The report: one page that needs nothing else, with pictures that show what the run's files say."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.lines import Line2D

from homodistil import distil
from homodistil.cli import main
from homodistil.errors import UserError
from homodistil.reports import curves, page
from homodistil.reports.page import report


@pytest.fixture(scope="module")
def run(masked_lm: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two targets, and an evaluation in its folder."""
    out = tmp_path_factory.mktemp("report") / "run"
    options: dict[str, Any] = {"steps": 12, "batch": 4, "log_every": 2, "text": {"length": 32}, "precision": "fp32"}
    distil(masked_lm, corpus, ["0.75", "0.5"], out, **options)
    records = [
        {"model": name, "role": role, "measure": measure, "seed": 0, "settings": {}, "values": values}
        for name, role, size, score in (("half", "model", 5e6, 70.0), ("whole", "teacher", 2e7, 80.0))
        for measure, values in (("size", {"parameters": size}), ("sst2", {"accuracy": score / 100, "score": score}))
    ]
    (out / "evaluation.json").write_text(json.dumps({"records": records}))
    return out


def _points(line: Line2D) -> list[list[float]]:
    points: list[list[float]] = np.asarray(line.get_xydata()).tolist()
    return points


def test_the_page_holds_all_of_its_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Losses, the units of both targets, quality: each in the page itself and as a PNG beside it; no address leads
    anywhere else.
    """
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    page = Path(capsys.readouterr().out.strip())
    text = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    inside = [base64.b64decode(found) for found in re.findall(r"data:image/png;base64,([^\"]+)", text)]
    files = {f.read_bytes() for f in page.parent.glob("*.png")}
    assert set(inside) == files
    assert len(files) == 4
    assert "x 0.25" in text
    assert "0.75" in text
    for fact in ("<dt>steps</dt><dd>12</dd>", "<dt>ffn</dt><dd>96 to 48</dd>"):
        assert fact in text


def test_the_page_opens_in_a_browser(run: Path, tmp_path: Path) -> None:
    """Headless Chromium shows the heading, the table and pictures of their full size."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = report([run], [], tmp_path / "report")
    check = "<script>for (const i of document.images) document.body.append(`[${i.naturalWidth}]`)</script></body>"
    page.write_text(page.read_text().replace("</body>", check))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    shown = subprocess.run([browser, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    assert "<h1>HomoDistil</h1>" in shown.stdout
    widths = [int(w) for w in re.findall(r"\[(\d+)\]", shown.stdout)]
    assert len(widths) == 4
    assert min(widths) > 300


def test_the_path_is_drawn_as_it_was_logged(run: Path) -> None:
    """The discrepancy's line has a point for each record, that of a width its share of the start's, and both targets
    are marked.
    """
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    above, below = curves.path(metrics, {"hidden": 48, "heads": 4, "head_dim": 12, "ffn": 96}).axes
    line = next(found for found in above.lines if found.get_label() == "discrepancy, weighted")
    assert _points(line) == [[r["step"], r["discrepancy"]] for r in metrics]
    assert {text.get_text().strip() for text in below.texts} == {"0.75", "0.5"}
    line = next(found for found in below.lines if found.get_label() == "ffn, of 96")
    assert _points(line) == [[0, 1], *([r["step"], r["widths"]["ffn"] / 96] for r in metrics)]


def test_units_are_drawn_where_they_stayed(run: Path) -> None:
    """Of each axis as many cells are dark as units are left, and just those."""
    said = json.loads((run / "units" / "0.5.json").read_text())
    figure = curves.units(said["kept"], said["teacher"], said["parent"])
    pictures = {axes.get_title(loc="left").partition(":")[0]: axes.images[0].get_array() for axes in figure.axes}
    assert set(pictures) == {"hidden", "heads", "qk", "vo", "ffn"}
    hidden = pictures["hidden"]
    assert hidden is not None
    assert hidden.shape == (1, 48)
    assert hidden[0].nonzero()[0].tolist() == said["kept"]["hidden"]
    ffn = pictures["ffn"]
    assert ffn is not None
    assert ffn.sum(axis=1).tolist() == [48, 48]
    for nested in ("qk", "vo"):
        dims = pictures[nested]
        assert dims is not None
        for layer, row in enumerate(dims.reshape(2, 4, 12)):
            heads = said["kept"][f"heads.{layer}"]
            assert np.flatnonzero(row.any(axis=1)).tolist() == heads
            assert [np.flatnonzero(row[h]).tolist() for h in heads] == said["kept"][f"{nested}.{layer}"]


def test_units_of_heads_that_are_gone_are_gone() -> None:
    """Shares are of all that the teacher has, and what is left stands where the teacher had it."""
    kept: dict[str, list[Any]] = {"heads.0": [1, 3], "qk.0": [[0, 2], [1, 2]], "layers": [0, 2]}
    kept |= {"heads.2": [0, 3], "qk.2": [[0, 1], [0, 2]]}
    teacher = {"heads.0": 4, "qk.0": 3, "heads.2": 4, "qk.2": 3, "layers": 3}
    figure = curves.units(kept, teacher, {"qk.0": "heads.0", "qk.2": "heads.2"})
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith("qk"))
    assert panel.get_title(loc="left") == "qk: 22% left, head after head"
    picture = panel.images[0].get_array()
    assert picture is not None
    assert [row.nonzero()[0].tolist() for row in picture] == [[3, 5, 10, 11], [], [0, 1, 9, 11]]


def test_units_whose_place_is_not_told_are_not_drawn() -> None:
    """Dimensions of heads, where nothing says which heads are theirs."""
    kept: dict[str, list[Any]] = {"heads.0": [1], "qk.0": [[0, 2]]}
    figure = curves.units(kept, {"heads.0": 2, "qk.0": 3}, {})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["heads: 50% left"]


def test_quality_is_drawn_over_size_with_the_teacher_as_a_line() -> None:
    """A point for each student at its size, the teacher's score across; without scores there is no picture."""
    records = [
        {"model": m, "role": r, "measure": "size", "values": {"parameters": p}}
        for m, r, p in (("a", "model", 1e6), ("b", "model", 2e6), ("t", "teacher", 9e6))
    ]
    records += [
        {"model": m, "role": "model", "measure": "rte, best of the grid", "values": {"learning_rate": 1e-4}}
        for m in "ab"
    ]
    assert curves.quality(records) is None
    records += [
        {"model": m, "role": r, "measure": "rte", "values": {"accuracy": s / 100, "score": s}}
        for m, r, s in (("a", "model", 60.0), ("b", "model", 64.0), ("t", "teacher", 70.0))
    ]
    figure = curves.quality(records)
    assert figure is not None
    assert len(figure.axes) == 1
    teacher, students = figure.axes[0].lines[:2]
    assert [y for _, y in _points(teacher)] == [70.0, 70.0]
    assert _points(students) == [[1.0, 60.0], [2.0, 64.0]]


def test_students_of_one_size_stand_one_above_the_other() -> None:
    """Both are drawn, in any order of their scores."""
    records = [
        {"model": m, "role": "model", "measure": measure, "values": values}
        for m, score in (("a", 64.0), ("b", 60.0))
        for measure, values in (("size", {"parameters": 1e6}), ("rte", {"score": score}))
    ]
    figure = curves.quality(records)
    assert figure is not None
    assert _points(figure.axes[0].lines[0]) == [[1.0, 64.0], [1.0, 60.0]]


def test_a_model_is_drawn_as_what_it_was_last() -> None:
    """What was a teacher in an evaluation before, and is a student in this one, is a point and no line."""
    records = [
        {"model": m, "role": role, "measure": measure, "values": values}
        for roles in ({"b": "teacher"}, {"a": "model", "b": "model", "t": "teacher"})
        for m, role in roles.items()
        for measure, values in (("size", {"parameters": 1e6}), ("rte", {"score": 60.0}))
    ]
    figure = curves.quality(records)
    assert figure is not None
    teacher, students = figure.axes[0].lines[:2]
    assert teacher.get_label() == "teacher"
    assert len(_points(students)) == 2


def test_long_names_of_tasks_do_not_run_into_each_other() -> None:
    """They are broken into lines above their panels, which stand beside each other."""
    name = "questions of customers about deliveries, returns and refunds, {}"
    records = [{"model": "a", "role": "model", "measure": "size", "values": {"parameters": 1e6}}]
    records += [{"model": "a", "role": "model", "measure": name.format(k), "values": {"score": 60.0}} for k in range(3)]
    figure = curves.quality(records)
    assert figure is not None
    figure.draw_without_rendering()
    titles = sorted((axes.title.get_window_extent() for axes in figure.axes), key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(titles))


def test_a_name_is_no_formula() -> None:
    """Dollars in a task's name are drawn as they are."""
    records = [
        {"model": "a", "role": "model", "measure": measure, "values": values}
        for measure, values in (("size", {"parameters": 1e6}), ("us$_vs_$eu", {"score": 60.0}))
    ]
    figure = curves.quality(records)
    assert figure is not None
    figure.savefig(io.BytesIO())


def test_a_name_is_no_markup_of_the_page(run: Path, tmp_path: Path) -> None:
    """What stands in angle brackets is shown with them."""
    record = {"model": "m", "role": "model", "measure": "<b>rte</b>", "seed": 0, "values": {"score": 60.0}}
    (tmp_path / "numbers.json").write_text(json.dumps({"records": [record]}))
    page = report([run], [tmp_path / "numbers.json"], tmp_path / "report").read_text()
    assert "&lt;b&gt;rte&lt;/b&gt;" in page
    assert "<b>" not in page


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    """What holds no metrics is no run."""
    with pytest.raises(UserError, match="no metrics"):
        report([tmp_path], [], tmp_path / "report")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"records": [{}]}',
        '{"records": ["words"]}',
        '{"records": [{"model": "m", "role": "model", "measure": "size", "values": 3}]}',
        '{"records": [{"model": "m", "role": "model", "measure": "size", "values": {"parameters": "7"}}]}',
        '{"records": [{"model": "m", "role": "model", "measure": "size", "values": {}, "settings": 3}]}',
    ],
)
def test_a_file_without_an_evaluation_is_refused(content: str, run: Path, tmp_path: Path) -> None:
    """What holds no records, or other ones, is no evaluation."""
    (tmp_path / "numbers.json").write_text(content)
    with pytest.raises(UserError, match="no evaluation"):
        report([run], [tmp_path / "numbers.json"], tmp_path / "report")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"kept": {"hidden": [0]}}', '{"kept": [], "teacher": {}, "parent": {}}']
)
def test_a_file_without_units_is_refused(content: str, run: Path, tmp_path: Path) -> None:
    """By its name, so that the report can be made without it."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "units" / "0.5.json").write_text(content)
    with pytest.raises(UserError, match=r"units/0\.5\.json: it does not say which units are left"):
        report([tmp_path / "run"], [], tmp_path / "report")


def test_a_run_that_has_reached_no_target_is_told_from_its_start(run: Path, tmp_path: Path) -> None:
    """What has been cut before its first record was the teacher's, too."""
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "units")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["widths"]["hidden"] < 48
    (tmp_path / "run" / "metrics.jsonl").write_text(lines[0] + "\n")
    page = report([tmp_path / "run"], [], tmp_path / "report").read_text()
    assert f"48 to {json.loads(lines[0])['widths']['hidden']}" in page


def test_a_place_that_cannot_be_written_to_is_refused(run: Path, tmp_path: Path) -> None:
    """A file where the report's folder is to be is left as it is."""
    (tmp_path / "taken").write_text("words")
    with pytest.raises(UserError, match="give --out another place"):
        report([run], [], tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "words"


def test_runs_whose_folders_read_alike_have_names_of_their_own(tmp_path: Path) -> None:
    """Their pictures lie in one folder."""
    runs = [tmp_path / "p" / "a-b", tmp_path / "p-a" / "b", tmp_path / "q" / "a-b", tmp_path / "q" / "b"]
    assert len(set(page._names(runs).values())) == len(runs)
