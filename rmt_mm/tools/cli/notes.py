"""Print what may be intended, beside the output of a tool."""

import sys


def note(text: object) -> None:
    """Print a note on stderr."""
    print(f'note: {text}', file=sys.stderr)
