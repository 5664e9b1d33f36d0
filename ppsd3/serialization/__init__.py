"""Reads checkpoints into layers and writes them. Knows names and layouts, imports no model."""

from .checkpoint import Checkpoint
from .loading import load_weights
from .readers import SafetensorsFile
from .report import LoadReport
from .single_file import SingleFile

__all__ = ["Checkpoint", "LoadReport", "SafetensorsFile", "SingleFile", "load_weights"]
