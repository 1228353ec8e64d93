"""A wrong configuration is refused at the start, in one sentence that names the field."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from medvl.contracts.errors import SetupError
from medvl.orchestrator.config import OrchestratorConfig, load_config

GOOD = {"listen": "127.0.0.1:0", "triton": "127.0.0.1:8001"}


def write(folder, **changes):
    path = folder / "orchestrator.json"
    path.write_text(json.dumps(GOOD | changes))
    return path


def test_two_addresses_are_enough(tmp_path):
    """Everything else has a default."""
    assert load_config(write(tmp_path)) == OrchestratorConfig(**GOOD)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"listen": "nowhere"}, "listen"),
        ({"triton": None}, "triton"),
        ({"metrics_port": 70000}, "metrics_port"),
        ({"drain_s": 0}, "drain_s"),
        ({"series": {"max_series_bytes": 10, "max_store_bytes": 5}}, "series"),
        ({"series": {"min_slices": 10, "max_slices": 5}}, "series"),
        ({"admission": {"max_queued_requests": -1}}, "admission.max_queued_requests"),
        ({"request": {"max_objekts": 3}}, "request.max_objekts"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, changes, field):
    """With what is wrong about it."""
    with pytest.raises(SetupError, match=f"orchestrator.json is wrong: {field}: "):
        load_config(write(tmp_path, **changes))


def test_a_secret_is_not_repeated(tmp_path):
    """Neither in the error nor in the configuration's own words."""
    path = write(tmp_path, triton_key={"name": "MEDVL", "secret": "hunter2"})
    with pytest.raises(SetupError) as caught:
        load_config(path)
    assert "hunter2" not in str(caught.value)
    config = OrchestratorConfig(**GOOD, triton_key={"name": "medvl", "secret": "hunter2"})
    assert "hunter2" not in repr(config)


def test_the_command_ends_with_the_sentence(tmp_path):
    """Exit status 2 and no traceback."""
    command = [sys.executable, "-m", "medvl.orchestrator", "--config", str(tmp_path / "missing.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "The configuration missing.json cannot be read: No such file or directory.\n"
