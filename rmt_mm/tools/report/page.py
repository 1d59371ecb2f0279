"""Write a page of sections as one HTML file that needs no other file and no network."""

import base64
import io
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Sequence, Tuple, Union

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

FOLDER = Path(__file__).parent


@dataclass
class Text:
    """A paragraph."""

    text: str
    kind: str = 'text'


@dataclass
class Note(Text):
    """A sentence about what is missing or may mislead."""

    kind: str = 'note'


@dataclass
class Cards:
    """Large figures, each with its name."""

    cards: Sequence[Tuple[str, str]]
    kind: str = 'cards'


@dataclass
class Table:
    """A table; columns after the first are aligned as numbers if ``numbers``."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numbers: bool = False
    kind: str = 'table'


@dataclass
class Code:
    """A text as it is, folded until it is opened."""

    title: str
    text: str
    kind: str = 'code'


@dataclass
class Chart:
    """A figure of plotly, with a title; ``half`` as wide as the page, beside another one."""

    title: str
    figure: go.Figure
    half: bool = False
    kind: str = 'chart'

    @property
    def json(self) -> Markup:
        """The figure as JSON that cannot end a script element."""
        text = self.figure.to_json().replace('<', '\\u003c').replace('\u2028', '\\u2028').replace('\u2029', '\\u2029')
        return Markup(text)

    @property
    def height(self) -> int:
        return self.figure.layout.height


@dataclass
class Gallery:
    """Images with their captions, two in a row."""

    title: str
    images: Sequence[Tuple[str, Image.Image]]
    kind: str = 'gallery'

    @property
    def sources(self) -> List[Tuple[str, str]]:
        """The captions, and the images as data URIs."""
        return [(caption, _data_uri(image)) for caption, image in self.images]


def _data_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, 'JPEG', quality=88)
    return 'data:image/jpeg;base64,' + base64.b64encode(stream.getvalue()).decode()


Block = Union[Text, Cards, Table, Code, Chart, Gallery]


@dataclass
class Section:
    """A heading and what stands below it."""

    name: str
    title: str
    blocks: List[Block] = field(default_factory=list)


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the page. Every text is escaped; scripts run only with the page's own nonce, and nothing is requested."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    charts = any(isinstance(block, Chart) for section in sections for block in section.blocks)
    return environment.get_template('page.html').render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        nonce=secrets.token_urlsafe(16),
        style=Markup((FOLDER / 'page.css').read_text()),
        script=Markup((FOLDER / 'page.js').read_text()),
        plotly=Markup(get_plotlyjs()) if charts else '',
    )
