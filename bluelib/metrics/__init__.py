"""What an edit did: the editing metrics of both benchmarks, and fluency and consistency of generated text."""

from .before import Before
from .editing import Scores, evaluate

__all__ = ["Before", "Scores", "evaluate"]
