"""The notation: what is read, and what is refused."""

from __future__ import annotations

import pytest

from homodistil.axes.notation import Dim, Row, expand_braces, parse_dims, parse_table


@pytest.mark.parametrize(
    ("text", "dims"),
    [
        ("hidden", (("hidden",),)),
        ("vocab hidden", (("vocab",), ("hidden",))),
        ("ffn* hidden", (("ffn*",), ("hidden",))),
        ("(heads* qk*) hidden", (("heads*", "qk*"), ("hidden",))),
        ("hidden (heads* vo*)", (("hidden",), ("heads*", "vo*"))),
        ("(3 heads* qk*)", ((3, "heads*", "qk*"),)),
        ("head_dim 4", (("head_dim",), (4,))),
        ("  (a   b)c ", (("a", "b"), ("c",))),
    ],
)
def test_a_word_is_an_axis_and_parentheses_are_one_dimension(text: str, dims: tuple[Dim, ...]) -> None:
    """A word is an axis, a number a factor, and what stands in parentheses is one fused dimension."""
    assert parse_dims(text) == dims


@pytest.mark.parametrize("text", ["", "   ", "()", "(a", "a)", "((a) b)", "A", "a-b", "*", "a**", "a,b", "3x"])
def test_what_is_not_notation_is_refused(text: str) -> None:
    """A dimension that cannot be read is an error and never a guess."""
    with pytest.raises(ValueError, match=r"cannot read|at least one dimension"):
        parse_dims(text)


@pytest.mark.parametrize(
    ("name", "expanded"),
    [
        ("a.b", ["a.b"]),
        ("a.{b,c}", ["a.b", "a.c"]),
        ("{a,b}.x.{c,d}", ["a.x.c", "a.x.d", "b.x.c", "b.x.d"]),
        ("a.{b,c.d}", ["a.b", "a.c.d"]),
    ],
)
def test_braces_mean_every_choice(name: str, expanded: list[str]) -> None:
    """Braces stand for each of their words, in order, combined with each of the others'."""
    assert list(expand_braces(name)) == expanded


def test_a_row_gives_each_layer_its_own_axes() -> None:
    """An axis with a star is another axis in each layer; one without is the same in all."""
    row = Row("layer.*.query.weight", (("heads*", "qk*"), ("hidden",), (2,)))
    assert row.bind("layer.11.query.weight") == (("heads.11", "qk.11"), ("hidden",), (2,))
    assert parse_table("layer.^.mlp.weight  ffn* hidden")[0].bind("layer.3.mlp.weight") == (("ffn.3",), ("hidden",))


@pytest.mark.parametrize(
    "name",
    ["layer.x.a.weight", "layer.1.2.a.weight", "layer.1.axweight", "layer.1.a.weight.b", "my.layer.1.a.weight"],
)
def test_a_row_claims_only_its_own_parameters(name: str) -> None:
    """A row's name matches whole; its dots are dots and its star is a number."""
    assert Row("layer.*.a.weight", (("hidden",),)).bind(name) is None


def test_a_table_is_its_rows_without_comments_and_blanks() -> None:
    """A table is a row a line; comments and blank lines say nothing."""
    table = """
    # the first line
    a.weight          vocab hidden   # a comment

    b.*.{weight,bias}     ffn*
    """
    assert parse_table(table) == (
        Row("a.weight", (("vocab",), ("hidden",))),
        Row("b.*.weight", (("ffn*",),)),
        Row("b.*.bias", (("ffn*",),)),
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a.weight", "In the row 'a.weight'.*at least one dimension"),
        ("a.weight  hidden (x", r"In the row 'a.weight  hidden \(x'.*cannot read '\('"),
        ("a.weight  ffn*", "In the row 'a.weight  ffn\\*'.*no layer"),
        ("a.weight  hidden\na.weight  ffn", "Described twice: a.weight"),
        ("a.{weight,bias}  hidden\na.bias  hidden", "Described twice: a.bias"),
    ],
)
def test_a_wrong_table_is_refused_with_its_row(table: str, message: str) -> None:
    """The error names the row that is wrong."""
    with pytest.raises(ValueError, match=message):
        parse_table(table)
