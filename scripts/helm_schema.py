"""Derive the chart's rules for ``orchestrator.config`` and ``triton.settings`` from the code that reads them.

The first come from OrchestratorConfig, the second are the names that Triton's Python models ask for.
``python scripts/helm_schema.py`` writes them into values.schema.json; ``--check`` writes nothing and exits 1 when they
have drifted.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from medvl.orchestrator.config import OrchestratorConfig

ROOT = Path(__file__).parents[1]
SCHEMA_FILE = ROOT / "helm" / "medvl" / "values.schema.json"
MODELS = [ROOT / "export" / "medvl" / "serving" / f"{name}.py" for name in ("engine_settings", "volume_segmenter")]
"""Where settings are asked for; read as text, since what they import exists inside Triton alone."""
SET_BY_THE_CHART = ("listen", "triton", "triton_key", "metrics_port")
_PROSE = frozenset({"title", "description", "default"})


def derive() -> dict[str, Any]:
    """Return the JSON Schema of the fields that a user of the chart may set."""
    whole = OrchestratorConfig.model_json_schema()
    plain = _plain(whole, whole["$defs"])
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: rule for name, rule in plain["properties"].items() if name not in SET_BY_THE_CHART},
    }


def setting_names() -> list[str]:
    """Return the environment variables that the models read, in the order of the code."""
    names = []
    for path in MODELS:
        text = path.read_text("utf-8")
        (prefix,) = re.findall(r'^VARIABLE_PREFIX = "(\w+)"$', text, re.MULTILINE)
        names += [prefix + name.upper() for name in re.findall(r'settings\.(?:integer|number)\("(\w+)"', text)]
    return names


def derive_settings() -> dict[str, Any]:
    """Return the JSON Schema of ``triton.settings``."""
    rule = {"$ref": "#/$defs/setting"}
    return {"type": "object", "additionalProperties": False, "properties": dict.fromkeys(setting_names(), rule)}


def _plain(node: Any, definitions: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON value
    """Resolve references and drop what says nothing about validity."""
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _plain(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {key: _plain(value, definitions) for key, value in node.items() if key not in _PROSE}


def main() -> int:
    """Write or check the rules; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when the rules have drifted")
    check: bool = parser.parse_args().check
    text = SCHEMA_FILE.read_text("utf-8")
    schema = json.loads(text)
    schema["properties"]["orchestrator"]["properties"]["config"] = derive()
    schema["properties"]["triton"]["properties"]["settings"] = derive_settings()
    renewed = json.dumps(schema, indent=2) + "\n"
    if not check:
        SCHEMA_FILE.write_text(renewed, "utf-8")
    return int(check and renewed != text)


if __name__ == "__main__":
    sys.exit(main())
