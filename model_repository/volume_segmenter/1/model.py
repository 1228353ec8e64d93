"""Triton's entry point of the volumetric segmenter; the code is :mod:`medvl.serving.volume_segmenter`."""

from medvl.serving.volume_segmenter import TritonPythonModel

__all__ = ["TritonPythonModel"]
