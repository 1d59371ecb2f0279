"""The errors of this package: each text says in one sentence what was wrong and what to do."""


class RMTError(Exception):
    """A mistake that the user can mend. The command-line tools print its text as one sentence, without a traceback."""


class UsageError(RMTError):
    """A command line or config that cannot be run."""


class DataError(RMTError, ValueError):
    """A data set or annotation file that cannot be used with the config."""


class CheckpointError(RMTError, ValueError):
    """A checkpoint that cannot be used."""


class TokenLabelError(RMTError, ValueError):
    """Label maps that cannot be used, or token labels used wrongly."""

    def __init__(self, text: str) -> None:
        # A DataLoader raises its workers' errors anew, with a traceback in front of the sentence.
        super().__init__(text.rsplit(f'{type(self).__name__}: ', 1)[-1].strip())
