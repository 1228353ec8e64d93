"""Numbers that an operator may set for a Python model, by environment or by ``config.pbtxt``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from medvl.contracts.checkpoint import Checkpoint, parse_checkpoint
from medvl.contracts.errors import SetupError
from medvl.contracts.models import CHECKPOINT_PARAMETER, QUANTISATION_PARAMETER
from medvl.contracts.quantisation import Quantisation, parse_quantisation


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters of one model.

    Attributes
    ----------
    prefix
        Of the environment variables, such as ``MEDVL_LLM_``.
    parameters
        The string parameters of the model's ``config.pbtxt``.
    """

    prefix: str
    parameters: Mapping[str, str]

    @classmethod
    def of(cls, model_config: str, prefix: str) -> Settings:
        """Read the JSON that Triton gives a model as ``args["model_config"]``."""
        parameters = json.loads(model_config)["parameters"]
        return cls(prefix, {key: value["string_value"] for key, value in parameters.items()})

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the model serves."""
        return parse_checkpoint(self.parameters[CHECKPOINT_PARAMETER])

    @property
    def quantisation(self) -> Quantisation | None:
        """How the language model is quantised; None where it is the checkpoint's own."""
        text = self.parameters.get(QUANTISATION_PARAMETER)
        return parse_quantisation(text) if text else None

    def integer(self, name: str, default: int) -> int:
        """Return ``<PREFIX><NAME>`` of the environment, else the parameter ``<name>``, else the default.

        Raises
        ------
        SetupError
            When the setting is not a positive whole number.
        """
        value = self.number(name, default)
        if value != int(value):
            raise SetupError(f"The setting {name} must be a whole number.")
        return int(value)

    def number(self, name: str, default: float) -> float:
        """Return a setting as :meth:`integer` does, fractions allowed.

        Raises
        ------
        SetupError
            When the setting is not a positive number.
        """
        text = os.environ.get(self.prefix + name.upper()) or self.parameters.get(name)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = float("nan")
        if not 0 < value < float("inf"):
            raise SetupError(f"The setting {name} must be a positive number.")
        return value
