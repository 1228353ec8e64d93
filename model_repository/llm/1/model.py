"""Triton's entry point of the language model; the code is :mod:`medvl.serving.llm`."""

from medvl.serving.llm import TritonPythonModel

__all__ = ["TritonPythonModel"]
