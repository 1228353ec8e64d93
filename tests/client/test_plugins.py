"""Commands come from installed distributions; one that does not load takes no other away."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from itertools import count

import pytest

from medvl.client.exits import Exit, exit_of
from medvl.client.parser import Parser
from medvl.client.plugins import GROUP, register_commands
from medvl.contracts import errors
from medvl.contracts.errors import MedvlError, SetupError


@pytest.fixture
def parser_of(tmp_path, monkeypatch):
    """Make a parser of the commands that some module text registers."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(**modules):
        points = []
        for name, text in modules.items():
            module = f"plugin_{name}_{next(SERIAL)}"
            (tmp_path / f"{module}.py").write_text(text)
            points.append(EntryPoint(name, f"{module}:register", GROUP))
        parser = Parser(prog="medvl")
        register_commands(parser.add_subparsers(), points)
        return parser

    return make


SERIAL = count()
WORKING = """
def register(subparsers):
    parser = subparsers.add_parser("works")
    parser.set_defaults(run=lambda arguments: 0)
"""


def run(parser, *arguments):
    namespace = parser.parse_args(arguments)
    return namespace.run(namespace)


def test_a_registered_command_runs(parser_of):
    """An entry point adds a command."""
    assert run(parser_of(works=WORKING), "works") == 0


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("import no_such_module_anywhere", "needs the module no_such_module_anywhere, which is not installed"),
        ("def register(subparsers): raise RuntimeError('x')", r"does not load \(RuntimeError\)"),
        ("register = None", r"does not load \(TypeError\)"),
        ("", r"does not load \(AttributeError\)"),
    ],
)
def test_a_broken_command_says_so_and_leaves_the_others_alone(parser_of, broken, sentence):
    """It stays visible, whatever it is called with, and its sentence says what is wrong."""
    parser = parser_of(broken=broken, works=WORKING)
    assert run(parser, "works") == 0
    for arguments in (["broken"], ["broken", "ct", "--json", "-x", "--point", "-1,2,3"], ["broken", "--help"]):
        with pytest.raises(SetupError, match=f"The command broken {sentence}"):
            run(parser, *arguments)


def test_a_missing_extra_is_named(monkeypatch):
    """The sentence holds the command that installs what is missing."""
    parser = Parser(prog="medvl")
    point = EntryPoint("up", "medvl.runtime.no_such_module:register", GROUP)
    register_commands(parser.add_subparsers(), [point])
    with pytest.raises(SetupError, match=r"pip install '\.\[orchestrator\]' in a checkout"):
        run(parser, "up")


def test_a_command_that_breaks_after_it_was_added_keeps_no_half(parser_of):
    """A register function that fails half-way is refused like one that fails at once."""
    half = "def register(subparsers):\n    subparsers.add_parser('half')\n    raise RuntimeError\n"
    with pytest.raises(SetupError, match="The command half does not load"):
        run(parser_of(half=half), "half")


def test_every_error_has_an_exit_code_of_its_class():
    """Classes of trouble can be told apart by a script."""
    expected = {
        errors.UnknownLabel: Exit.USAGE,
        errors.MixedSeries: Exit.SERIES,
        errors.GeometryRefused: Exit.GEOMETRY,
        errors.Overloaded: Exit.UNAVAILABLE,
        errors.BackendUnavailable: Exit.UNAVAILABLE,
        errors.SeriesNotResident: Exit.UNAVAILABLE,
        errors.DeadlineExceeded: Exit.DEADLINE,
        errors.SetupError: Exit.SETUP,
        errors.CheckpointError: Exit.SETUP,
        errors.InternalError: Exit.DEFECT,
        MedvlError: Exit.DEFECT,
    }
    assert {cls: exit_of(cls("x")) for cls in expected} == expected
