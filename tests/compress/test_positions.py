"""Positions, distances and types that no text reaches are moved as those that one does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, PreTrainedModel

from conftest import make
from homodistil.axes.layout import Layout
from homodistil.compress.positions import all_moved, moved_along, tables
from zoo import tiny


def _table(rows: int, units: int) -> Tensor:
    """A table as those of trained models are: in few directions, of which each unit has its own mixture."""
    torch.manual_seed(0)
    return torch.randn(rows, 8) @ torch.randn(8, units) / 4


def _learnt(start: Tensor) -> Tensor:
    """The same for all rows: another mixture of their units, and something more."""
    return start + start @ torch.randn(start.shape[1], start.shape[1]) / 8 + 0.3 * torch.randn(start.shape[1])


@pytest.mark.parametrize("reached", [64, 150])
def test_what_all_reached_rows_have_learnt_the_others_learn(reached: int) -> None:
    """A change that is linear in what a row was is told to rows that nobody read, but for a small part."""
    start = _table(200, 24)
    whole = _learnt(start)
    known = torch.arange(200) < reached
    table = torch.where(known[:, None], whole, start)
    made = moved_along(table, start, known)
    assert torch.equal(made[known], table[known])
    missed = (made - whole)[~known].norm() / (start - whole)[~known].norm()
    assert missed < 0.1


def test_what_rows_have_not_in_common_moves_no_other() -> None:
    """Of changes by chance nothing is told: what is added to the others is small beside them."""
    start = _table(200, 24)
    known = torch.arange(200) < 100
    table = start + torch.randn_like(start) * known[:, None]
    moved = (moved_along(table, start, known) - start)[~known]
    assert moved.norm() < 0.35 * torch.randn_like(moved).norm()


@pytest.mark.parametrize("rows", [2, 12])
def test_of_few_rows_the_mean_change_is_told(rows: int) -> None:
    """As of the two types of text, of which a single text has one."""
    start = _table(rows + 1, 24)
    known = torch.arange(rows + 1) < rows
    table = start + known[:, None] * torch.randn(24)
    made = moved_along(table, start, known)
    torch.testing.assert_close(made, start + (table - start)[0])


@pytest.mark.parametrize("reached", [200, 0])
def test_a_table_of_which_all_or_no_row_was_reached_stays(reached: int) -> None:
    """There is nobody to move, or nobody to go by."""
    start = _table(200, 24)
    known = torch.arange(200) < reached
    table = torch.where(known[:, None], _learnt(start), start)
    assert torch.equal(moved_along(table, start, known), table)


def test_a_row_of_zeros_is_nobodys_position() -> None:
    """Padding's stays."""
    start = _table(200, 24)
    start[0] = 0
    known = (torch.arange(200) < 100) & (torch.arange(200) > 1)
    table = torch.where(known[:, None], _learnt(start), start)
    made = moved_along(table, start, known)
    assert torch.equal(made[0], table[0])
    assert not torch.equal(made[1], table[1])


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (make(BertForMaskedLM), [f"bert.embeddings.{kind}_embeddings.weight" for kind in ("position", "token_type")]),
        (tiny("GPT-2"), ["transformer.wpe.weight"]),
        (tiny("BART"), ["model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"]),
        (tiny("Llama"), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_tables_of_positions_are_known_by_their_axis(model: PreTrainedModel, names: list[str]) -> None:
    """One, one on each side, or none."""
    assert sorted(tables(model, Layout.of(model))) == sorted(names)


def test_afterwards_the_model_is_as_it_was() -> None:
    """What is saved has other positions than what goes on learning."""
    model = make(BertForMaskedLM, max_position_embeddings=200)
    layout, name = Layout.of(model), "bert.embeddings.position_embeddings.weight"
    table = tables(model, layout)[name]
    start = _table(200, 48)
    known = torch.arange(200) < 100
    with torch.no_grad():
        table.copy_(torch.where(known[:, None], _learnt(start), start))
    before = table.detach().clone()
    with all_moved(model, layout, {name: start}, {name: known}):
        assert torch.equal(table, moved_along(before, start, known))
        assert not torch.equal(table, before)
    assert torch.equal(table, before)
    with pytest.raises(OSError, match="full"), all_moved(model, layout, {name: start}, {name: known}):
        raise OSError("the disk is full")
    assert torch.equal(table, before)
    with all_moved(model, layout, {}, {}):
        assert torch.equal(table, before)
