"""The command line: ``blue …``."""

from .editing import _parser, main

__all__ = ["_parser", "main"]
