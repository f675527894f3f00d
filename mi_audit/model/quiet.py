"""Keeps transformers' bars and advice off the terminal while a model loads; its errors stay."""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError
from transformers.utils import logging

LOAD_ERRORS = (OSError, ValueError, ImportError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError)
"""What transformers and safetensors raise for a model that they can't load."""


@contextmanager
def quietly() -> Iterator[None]:
    """Only errors are logged inside, and no bars drawn; both settings are put back."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
