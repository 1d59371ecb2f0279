"""The page: its parts, and what happens when a user uploads, moves the slider, clicks or clears."""

import functools
import json
import tempfile
from html import escape
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import gradio as gr
from gradio.data_classes import ImageData

from ..cli.predictor import Detector, Predictor
from ..errors import UsageError
from .listing import list_predictions
from .trial import LEAST_SCORE, Result, Trial, shrink

WELCOME = 'Drop a picture on the left, paste one, or choose an example.'

from gradio.events import Dependency

class Upload(gr.Image):
    """gradio's picture field, which hands over the uploaded file as it is.

    gradio's own would decode it, and answer a file that is no picture with a general error.
    """

    is_template = True  # the browser shows it as gradio's

    def preprocess(self, payload: Optional[ImageData]) -> Optional[Tuple[Path, str]]:  # type: ignore[override]
        """Return the file and the user's name of it. gradio has checked that the file is an upload."""
        if payload is None or payload.path is None:
            return None
        return Path(payload.path), Path(payload.orig_name or payload.path).name

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> Optional[str]:
        """Refuse addresses, which gradio would download."""
        if '://' in str(url_or_file_path):
            raise gr.Error('Upload a file: addresses are not read.')
        return await super().async_move_resource_to_block_cache(url_or_file_path)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Page:
    """Answers to what users do. Every answer is a list of updates, in the order of the outputs in :meth:`build`.

    Args:
        trial (Trial): the model.
        examples (Sequence[Path]): pictures for the row of examples.
    """

    def __init__(self, trial: Trial, examples: Sequence[Path]) -> None:
        self.trial = trial
        self.examples = list(examples)

    def upload(self, file: Optional[Tuple[Path, str]], threshold: float) -> List[Any]:
        """Predict an uploaded file."""
        if file is None:
            return self.clear()
        return self._predict(*file, threshold)

    def example(self, number: int, threshold: float) -> List[Any]:
        """Predict an example, by its place in the row."""
        path = self.examples[number]
        return self._predict(path, path.name, threshold)

    def clear(self) -> List[Any]:
        return [None, say(WELCOME), None, None, '', gr.update(interactive=False, value=None)]

    def _predict(self, path: Path, name: str, threshold: float) -> List[Any]:
        try:
            result = self.trial.predict(path, name)
        except UsageError as error:
            return [None, say(str(error), is_error=True), *self.clear()[2:]]
        height, width = result.image.shape[:2]
        said = say(f'{name}, {width} x {height} pixels')
        return [shrink(result.image), said, result, *self.redraw(result, threshold)]

    def redraw(self, result: Optional[Result], threshold: float) -> List[Any]:
        """Draw and list the predictions again, without computing them."""
        if result is None:
            return self.clear()[3:]
        entries = self.trial.entries(result, threshold)
        listed = list_predictions(self.trial.predictor, entries, threshold)
        download = gr.update(interactive=True, value=save_json(entries))
        return [self.trial.draw(result, threshold), listed, download]

    def build(self, title: str, facts: str) -> gr.Blocks:
        """Return the page.

        Args:
            title (str): heading.
            facts (str): line below it.
        """
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            gr.HTML(f'<h1>{escape(title)}</h1><p>{escape(facts)}</p>', elem_id='heading')
            state = gr.State(None)
            with gr.Row(equal_height=True, elem_id='pictures'):
                image = Upload(
                    label='Picture', sources=['upload', 'clipboard'], type='filepath', format='png', height=440,
                    buttons=['fullscreen'], elem_id='picture',
                )  # fmt: skip
                drawn = gr.Image(
                    label='Predictions', format='png', height=440, interactive=False, type='numpy',
                    buttons=['download', 'fullscreen'], elem_id='predictions',
                )  # fmt: skip
            status = gr.HTML(say(WELCOME), elem_id='status')
            with gr.Row(elem_id='controls'):
                with gr.Column():
                    threshold = gr.Slider(
                        LEAST_SCORE, 1, 0.5, step=0.01, label='Least score', buttons=[], elem_id='threshold',
                        visible=isinstance(self.trial.predictor, Detector),
                    )  # fmt: skip
                    download = gr.DownloadButton('Download JSON', interactive=False, size='md', elem_id='download')
                with gr.Column():
                    listed = gr.HTML('', elem_id='listing')
            if self.examples:
                thumbnails = [[str(path)] for path in self.examples]
                row = gr.Dataset(
                    label='Examples', components=[gr.Image(render=False, format='png')], samples=thumbnails,
                    type='index', samples_per_page=len(thumbnails), elem_id='examples',
                )  # fmt: skip

            shown = [drawn, listed, download]
            every = [image, status, state, *shown]
            # One at a time, in order of arrival, and callable from the page only.
            on = functools.partial(dict, concurrency_id='model', concurrency_limit=1, api_visibility='private')
            image.upload(self.upload, [image, threshold], every, **on(show_progress_on=[drawn]))
            image.clear(self.clear, None, every, **on(show_progress='hidden'))
            threshold.change(
                self.redraw, [state, threshold], shown, **on(show_progress='hidden', trigger_mode='always_last')
            )
            if self.examples:
                row.click(self.example, [row, threshold], every, **on(show_progress_on=[drawn]))
        return blocks


def say(text: str, is_error: bool = False) -> str:
    """Return a line of text for the page."""
    return f'<p class="{"error" if is_error else "said"}" role="status">{escape(text)}</p>'


def save_json(entries: List[dict]) -> str:
    """Write predictions.json where the page may serve it, and return its path."""
    folder = tempfile.mkdtemp(dir=gr.utils.get_upload_folder())
    path = Path(folder, 'predictions.json')
    path.write_text(json.dumps(entries, indent=1))
    return str(path)


def describe_model(predictor: Predictor, checkpoint: str) -> str:
    """Return a line that says which model this is."""
    model = predictor.model
    count = sum(parameter.numel() for parameter in model.parameters())
    backbone = type(getattr(model, 'backbone', model)).__name__
    device = next(model.parameters()).device
    return (
        f'{type(model).__name__} with {backbone}, {count / 1e6:.1f} M parameters, {len(predictor.classes)} classes; '
        f'{Path(checkpoint).name} on {device}'
    )

