"""What README and docs tell a reader to type: the commands and the Python of the pages."""

import re
from typing import Dict, Iterator, List, NamedTuple

from . import ROOT

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
FENCED = re.compile(r'^ *```(\w*)\n(.*?)^ *```$', re.MULTILINE | re.DOTALL)
SHELL = ('bash', 'console', 'sh', 'shell')
# The beginning of a command that stands in the text, in backticks.
PROGRAMS = r'(?:[A-Z_]+=\S* )*(?:(?:python|bash|make|mim|pip|tensorboard|rmt-\w[\w-]*) |\.ci/run$)'


class Command(NamedTuple):
    page: str
    text: str  # in one line, without its comment

    def __str__(self):
        return f'{self.page}: {self.text}'


class Block(NamedTuple):
    page: str
    code: str

    def __str__(self):
        return f'{self.page}: {self.code}'


def read_commands() -> List[Command]:
    """Return every command of every page: the lines of shell blocks, and what stands in backticks in the text."""
    return [Command(page.name, command) for page in PAGES for command in dict.fromkeys(_commands(page.read_text()))]


def _commands(text: str) -> Iterator[str]:
    for language, body in FENCED.findall(text):
        if language in SHELL:
            for line in body.replace('\\\n', ' ').splitlines():
                line = re.sub(r'(^|\s)#.*', '', line)
                yield from (' '.join(part.split()) for part in line.split(' && ') if part.strip())
    for code in inline_code(text):
        if re.match(PROGRAMS, code):
            yield code


def inline_code(text: str) -> List[str]:
    """Return what stands in backticks in a page, outside its blocks."""
    return [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', FENCED.sub('', text))]


def read_blocks() -> List[Block]:
    """Return every block of Python of every page."""
    return [
        Block(page.name, code)
        for page in PAGES
        for language, code in FENCED.findall(page.read_text())
        if language in ('python', 'py', 'pycon')
    ]


def substitute(text: str, values: Dict[str, str]) -> str:
    """Put values in the place of names and other parts of a text."""
    for name, value in values.items():
        text = re.sub(rf'(?<![\w./-]){re.escape(name)}(?![\w-])', value, text)
    return text
