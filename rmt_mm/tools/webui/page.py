"""The page: its parts, and what happens when a user uploads, moves the slider, clicks or clears."""

import functools
import json
import tempfile
from html import escape
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple, Union

import gradio as gr

from ...errors import UsageError, printable
from ..cli.predictor import Detector, Predictor
from .listing import list_predictions
from .sizes import clickable
from .trial import LEAST_SCORE, Result, Trial

WELCOME = 'Drop a picture on the left, paste one, or choose an example.'
CLICK = 'Click into the picture: the maps show what the token there receives from every other one.'
MEAN = 'mean'
MAPS = ('Decay', 'Softmax of the scores alone', 'Attention')


class Page:
    """Answers to what users do. Every answer is a list of updates, in the order of the outputs in :meth:`build`.

    Args:
        trial (Trial): the model.
        examples (Sequence[Path]): pictures for the row of examples.
    """

    def __init__(self, trial: Trial, examples: Sequence[Path]) -> None:
        self.trial = trial
        self.examples = list(examples)

    def upload(self, file: Optional[dict], threshold: float) -> List[Any]:
        """Predict an uploaded file, which gradio describes by its ``path`` and the user's name of it, ``orig_name``."""
        if file is None:
            return self.clear()
        path = Path(file['path'])
        return self._predict(path, Path(file.get('orig_name') or path).name, threshold)

    def example(self, number: int, threshold: float) -> List[Any]:
        """Predict an example, by its place in the row."""
        path = self.examples[number]
        return self._predict(path, path.name, threshold)

    def clear(self) -> List[Any]:
        """Forget the picture."""
        return [None, say(WELCOME), None, *self.redraw(None, 0), *self._attend(None, 0, 0, MEAN)]

    def _predict(self, path: Path, name: str, threshold: float) -> List[Any]:
        try:
            result = self.trial.predict(path, name)
        except UsageError as error:
            return [None, say(str(error), is_error=True), *self.clear()[2:]]
        height, width = result.image.shape[:2]
        said = say(f'{printable(name, 80)}, {width} x {height} pixels')
        drawn, nothing = self.redraw(result, threshold), self._attend(None, 0, 0, MEAN)
        return [clickable(result.image), said, result, *drawn, *nothing]

    def redraw(self, result: Optional[Result], threshold: float) -> List[Any]:
        """Draw and list the predictions for another threshold, without computing them again."""
        if result is None:
            return [None, '', gr.update(interactive=False, value=None)]
        entries = self.trial.entries(result, threshold)
        download = gr.update(interactive=True, value=save_json(entries))
        try:
            drawn = self.trial.draw(result, threshold)
        except UsageError as error:
            return [None, say(str(error), is_error=True), download]
        return [drawn, list_predictions(self.trial.predictor, entries, threshold), download]

    def click(
        self, result: Optional[Result], stage: int, block: int, head: Union[int, str], at: gr.SelectData
    ) -> List[Any]:
        """Show the attention of the token at a pixel of the shown picture."""
        if result is not None:
            height, width = result.image.shape[:2]
            shown = clickable(result.image)
            x, y = ((i + 0.5) * n / m - 0.5 for i, n, m in zip(at.index, (width, height), shown.shape[1::-1]))
            result.pixel = (min(max(x, 0), width - 1), min(max(y, 0), height - 1))
        return self._attend(result, stage, block, head)

    def choose_stage(self, result: Optional[Result], stage: int) -> List[Any]:
        """Offer the blocks and heads of a stage, and show the last block."""
        blocks, heads = self._choices(stage)
        block = blocks[-1]
        offers = [gr.update(choices=blocks, value=block), gr.update(choices=[MEAN, *heads], value=MEAN)]
        return [*offers, *self._attend(result, stage, block, MEAN)]

    def choose(self, result: Optional[Result], stage: int, block: int, head: Union[int, str]) -> List[Any]:
        """Show another block or head."""
        return self._attend(result, stage, block, head)

    def _choices(self, stage: int) -> Tuple[List[int], List[int]]:
        assert self.trial.backbone is not None
        blocks: Any = list(self.trial.backbone.stages)[stage]
        return list(range(len(blocks))), list(range(blocks[0].attn.num_heads))

    def _attend(self, result: Optional[Result], stage: int, block: int, head: Union[int, str]) -> List[Any]:
        if self.trial.backbone is None:
            return []
        hidden = [gr.update(visible=False), *[None] * len(MAPS)]
        if result is None or result.pixel is None:
            return [say(CLICK), *hidden]
        try:
            panels = self.trial.attend(result, stage, block, None if head == MEAN else int(head))
        except UsageError as error:
            return [say(str(error), is_error=True), *hidden]
        maps = [
            gr.update(value=image, label=f'{name}: 0 to {top:.3g}')
            for image, name, top in zip(panels.images, MAPS, panels.largest)
        ]
        return [say(panels.text), gr.update(visible=True), *maps]

    def build(self, title: str, facts: str) -> gr.Blocks:
        """Return the page.

        Args:
            title (str): heading.
            facts (str): line below it.
        """
        # One event at a time, in order of arrival, and callable from the page only.
        on: Callable[..., dict] = functools.partial(
            dict, concurrency_id='model', concurrency_limit=1, api_visibility='private'
        )
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            gr.HTML(f'<h1>{escape(title)}</h1><p>{escape(facts)}</p>', elem_id='heading', padding=False)
            state = gr.State(None)
            with gr.Row(equal_height=True):
                image = gr.Image(
                    label='Picture', sources=['upload', 'clipboard'], type='filepath', height=440,
                    buttons=['fullscreen'], elem_id='picture',
                )  # fmt: skip
                drawn = show('Predictions', 'predictions', buttons=['download', 'fullscreen'], height=440)
            status = gr.HTML(say(WELCOME), elem_id='status', padding=False)
            with gr.Row():
                with gr.Column():
                    threshold = gr.Slider(
                        LEAST_SCORE, 1, 0.5, step=0.01, label='Least score', buttons=[], elem_id='threshold',
                        visible=isinstance(self.trial.predictor, Detector),
                    )  # fmt: skip
                    download = gr.DownloadButton('Download JSON', interactive=False, size='md', elem_id='download')
                listed = gr.HTML('', elem_id='listing', padding=False)
            if self.examples:
                row = gr.Dataset(
                    label='Examples', components=[gr.Image(render=False)], samples=[[str(p)] for p in self.examples],
                    type='index', samples_per_page=len(self.examples), elem_id='examples',
                )  # fmt: skip
            maps = self._build_attention(state, image, on)

            shown = [drawn, listed, download]
            every = [image, status, state, *shown, *maps]
            # gradio would decode the file before, and answer one that is no picture with a general error. Without that
            # it still refuses files that are not uploads.
            image.upload(self.upload, [image, threshold], every, **on(preprocess=False, show_progress_on=[drawn]))
            image.clear(self.clear, None, every, **on(show_progress='hidden'))
            threshold.change(
                self.redraw, [state, threshold], shown, **on(show_progress='hidden', trigger_mode='always_last')
            )
            if self.examples:
                row.click(self.example, [row, threshold], every, **on(show_progress_on=[drawn]))
        return blocks

    def _build_attention(self, state: gr.State, image: gr.Image, on: Callable[..., dict]) -> List[Any]:
        """Add the part for the attention, and return its outputs."""
        with gr.Column(elem_id='attention'):
            if self.trial.backbone is None:
                gr.HTML(f'<h2>Attention</h2>{say(f"Not shown: {self.trial.no_attention}")}', padding=False)
                return []
            stages = range(self.trial.backbone.out_indices[-1] + 1)
            first = stages[max(0, len(stages) - 2)]
            blocks, heads = self._choices(first)
            gr.HTML('<h2>Attention</h2>', padding=False)
            with gr.Row():
                choices = [(f'{i} (stride {self.trial.backbone.strides[i]})', i) for i in stages]
                stage = gr.Radio(choices, value=first, label='Stage', scale=3, elem_id='stage')
                block = gr.Dropdown(blocks, value=blocks[-1], label='Block', min_width=100, elem_id='block')
                head = gr.Dropdown([MEAN, *heads], value=MEAN, label='Head', min_width=100, elem_id='head')
            told = gr.HTML(say(CLICK), elem_id='token', padding=False)
            with gr.Row(visible=False) as panels:
                maps = [show(name, f'map-{i}', buttons=['download', 'fullscreen']) for i, name in enumerate(MAPS)]
        outputs = [told, panels, *maps]
        progress = dict(show_progress_on=maps)
        image.select(self.click, [state, stage, block, head], outputs, **on(**progress))
        stage.input(self.choose_stage, [state, stage], [block, head, *outputs], **on(**progress))
        for picker in (block, head):
            picker.input(self.choose, [state, stage, block, head], outputs, **on(**progress))
        return outputs


def show(label: str, name: str, **options: Any) -> gr.Image:
    """Return a field that shows a picture."""
    return gr.Image(label=label, elem_id=name, format='png', type='numpy', interactive=False, **options)


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
