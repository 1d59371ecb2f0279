"""The error of everything that has to do with token labels."""
from ..launch import UsageError


class TokenLabelError(UsageError, ValueError):
    """Something wrong with label maps, or with how they are used, in one sentence."""

    def __init__(self, text: str) -> None:
        # A DataLoader raises its workers' errors anew, with a traceback in front of the sentence.
        super().__init__(text.rsplit(f'{type(self).__name__}: ', 1)[-1].strip())
