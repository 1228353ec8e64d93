"""What a person types is read as meant or refused in one sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.client.coordinates import TypedBox, TypedPoint, parse_box, parse_point
from medvl.client.parser import Parser
from medvl.contracts.errors import InvalidRequest

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TRIPLES = st.tuples(NUMBERS, NUMBERS, NUMBERS)


@given(TRIPLES, st.booleans(), st.sampled_from([",", ", ", " ,"]))
def test_points_survive_typing(xyz, negative, comma):
    """Every three numbers, in any notation of Python's floats, are read as they are."""
    typed = comma.join([*map(repr, xyz), *(["neg"] if negative else [])])
    assert parse_point(typed) == TypedPoint(xyz, negative)


@given(TRIPLES, TRIPLES)
def test_boxes_survive_typing(corner, opposite):
    """Corners are read in any order; a box without area is refused."""
    typed = ",".join(map(repr, (*corner, *opposite)))
    if sum(a == b for a, b in zip(corner, opposite, strict=True)) > 1:
        with pytest.raises(InvalidRequest, match="no size"):
            parse_box(typed)
    else:
        assert parse_box(typed) == TypedBox(corner, opposite)


@given(TRIPLES, st.sampled_from(["-", "+", ""]))
def test_negative_coordinates_are_values(xyz, sign):
    """``--point -12.5,3,4`` is one option with its value, wherever it stands."""
    parser = Parser(prog="medvl")
    parser.add_argument("series")
    parser.add_argument("--point", action="append", type=parse_point)
    typed = sign + ",".join(repr(abs(v)) for v in xyz)
    expected = parse_point(typed)
    for arguments in (["ct", "--point", typed], ["--point", typed, "ct"], [f"--point={typed}", "ct"]):
        assert parser.parse_args(arguments).point == [expected]


@pytest.mark.parametrize("typed", ["", "1,2", "1,2,3,4", "1,2,x", "1,2,3,positive", "nan,1,2", "1,2,inf", "1;2;3"])
def test_what_is_no_point_is_refused(typed):
    """The sentence shows the form that is expected."""
    with pytest.raises(InvalidRequest, match="x,y,z or x,y,z,neg"):
        parse_point(typed)


@pytest.mark.parametrize("typed", ["", "1,2,3", "1,2,3,4,5", "1,2,3,4,5,6,7", "a,b,c,d,e,f", "1,2,3,4,nan,6"])
def test_what_is_no_box_is_refused(typed):
    """The sentence shows the form that is expected."""
    with pytest.raises(InvalidRequest, match="x0,y0,z0,x1,y1,z1"):
        parse_box(typed)


def test_options_are_not_abbreviated_and_refusals_are_one_sentence():
    """A refusal is an error of the tree and names where to read more."""
    parser = Parser(prog="medvl segment")
    parser.add_argument("--label")
    with pytest.raises(InvalidRequest, match=r"unrecognized arguments: --lab liver; see medvl segment --help\.$"):
        parser.parse_args(["--lab", "liver"])
