"""Refuse what a pickle holds."""

import pickle


def require(condition: bool, what: str, writer: str = '') -> None:
    """Refuse a file that holds ``what`` unless ``condition`` is true; the text may name who does not write such files.

    Raises:
        pickle.UnpicklingError: the condition is false.
    """
    if not condition:
        raise pickle.UnpicklingError(f'the file holds {what}' + (f', which {writer} does not write' if writer else ''))
