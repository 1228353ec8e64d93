"""A graph's inputs are checked before it runs, and requests of equal shapes share a run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.contracts.errors import InvalidRequest
from medvl.serving.graph_inputs import GraphInput, check_inputs, shared_calls

GRAPH = (
    GraphInput("x", "tensor(float)", ("batch", "points", 2)),
    GraphInput("labels", "tensor(int32)", ("batch", "points")),
)


def inputs(batch: int = 1, points: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.zeros((batch, points, 2), np.float32), "labels": np.zeros((batch, points), np.int32)}


def test_inputs_that_fit_pass():
    """Named axes may have any length."""
    check_inputs(GRAPH, inputs(4, 7))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": None}, "labels is missing"),
        ({"other": np.zeros(1, np.float32)}, "other"),
        ({"x": np.zeros((1, 3, 2), np.float64)}, "float64"),
        ({"x": np.zeros((1, 3), np.float32)}, "x should be"),
        ({"x": np.zeros((1, 3, 3), np.float32)}, "Axis 2 of input x is 3"),
        ({"labels": np.zeros((1, 4), np.int32)}, "Axis points of input labels is 4"),
        ({"x": np.zeros((1, 0, 2), np.float32)}, "Axis points of input x is 0"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, named):
    """The first thing that is wrong is named; nothing reaches the graph."""
    wrong = {name: array for name, array in {**inputs(), **change}.items() if array is not None}
    with pytest.raises(InvalidRequest, match=named):
        check_inputs(GRAPH, wrong)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2)), max_size=10))
def test_groups_share_all_but_the_batch_axis(shapes):
    """Every call is in one group; a group's inputs can be concatenated."""
    calls = {i: inputs(batch, points) for i, (batch, points) in enumerate(shapes)}
    groups = list(shared_calls(calls, batched=True))
    assert sorted(i for group in groups for i in group) == list(calls)
    for group in groups:
        assert len({calls[i]["x"].shape[1:] for i in group}) == 1
    assert len(groups) == len({points for _, points in shapes})


def test_without_a_batch_axis_every_call_runs_alone():
    """A model without Triton's batch axis is never given two requests at once."""
    assert list(shared_calls({0: inputs(), 1: inputs()}, batched=False)) == [[0], [1]]
