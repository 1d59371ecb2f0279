"""The errors of this package: each text says in one sentence what was wrong and what to do."""


def printable(text: object, limit: int = 0) -> str:
    """Return ``text`` for a terminal: what is not printable comes out escaped, such as ``\\x1b`` and ``\\u202e``.

    For names that a file or a command line gives, which may hold control characters and marks that reverse the line.

    Args:
        text (object): its ``str`` is taken.
        limit (int): characters to show at most; what is left out is counted. 0, the default, shows all.
    """
    text = str(text)
    more = len(text) - limit if limit else 0
    if more > 0:
        text = text[:limit]
    text = ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text)
    return f'{text}... ({more} characters more)' if more > 0 else text


class RMTError(Exception):
    """A mistake that the user can mend. The command-line tools print its text as one sentence, without a traceback.

    Args:
        text (str): what was wrong, and what to do. Unprintable characters are escaped, line breaks are not.
        remedy (str): what the tools may add is a key of ``rmt_mm.cli.options.REMEDIES``, such as ``'convert'``: the
            library knows neither their paths nor their flags. Default ``''``: the text says it all.
        **facts: what the remedy's text names, such as ``type_name='yacs.config.CfgNode'``.
    """

    def __init__(self, text: str, remedy: str = '', **facts: object) -> None:
        # A DataLoader raises its workers' errors anew, with a traceback in front of the sentence.
        text = str(text).rsplit(f'{type(self).__name__}: ', 1)[-1].strip()
        super().__init__('\n'.join(map(printable, text.split('\n'))))
        self.remedy = remedy
        self.facts = facts

    def at(self, place: str) -> 'RMTError':
        """Return the same error with ``place``, such as a file's name, in front of its text."""
        return type(self)(f'{place}: {self}', self.remedy, **self.facts)


class UsageError(RMTError):
    """A command line or config that cannot be run."""


class DataError(RMTError, ValueError):
    """A data set or annotation file that cannot be used with the config."""


class CheckpointError(RMTError, ValueError):
    """A checkpoint that cannot be used."""


class TokenLabelError(RMTError, ValueError):
    """Label maps that cannot be used, or token labels used wrongly."""
