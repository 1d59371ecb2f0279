"""Draw truth and prediction of a scene side by side, and sheets of such pairs.

Images are (H, W, 3), RGB, uint8. Every picture is scaled so that its longer side has ``SIDE`` pixels; a class has the
same colour in truth and prediction.
"""

from functools import cache
from pathlib import Path
from typing import List, Mapping, NamedTuple, Optional, Sequence, Tuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..pictures import Colour, scale_to

SIDE = 480
GAP = 12
INK, FAINT, PAPER = (28, 31, 36), (104, 111, 120), (255, 255, 255)


class Instances(NamedTuple):
    """Objects of a scene.

    Attributes:
        boxes (np.ndarray): (N, 4), left, top, right, bottom in pixels.
        labels (np.ndarray): (N,), numbers of classes.
        masks (list[np.ndarray] | None): N times (H, W), bool.
        scores (np.ndarray | None): (N,); truth has none.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: Optional[List[np.ndarray]] = None
    scores: Optional[np.ndarray] = None


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return matplotlib's font in a size in pixels."""
    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / 'fonts/ttf' / name), size)


def draw_instances(
    image: np.ndarray, instances: Instances, classes: Sequence[str], colours: Sequence[Colour], side: int = SIDE
) -> Image.Image:
    """Draw boxes, masks and names; the names stand where they cover least of the masks and of each other."""
    large = scale_to(image, side)
    height, width = large.shape[:2]
    boxes = instances.boxes.reshape(-1, 4) * ([width / image.shape[1], height / image.shape[0]] * 2)
    order = np.argsort([-(right - left) * (bottom - top) for left, top, right, bottom in boxes])
    covered = np.zeros((height, width), np.uint8)
    for i in order:
        colour = colours[instances.labels[i]]
        if instances.masks is not None:
            # Scale the mask as a picture of gray, for a smooth contour.
            gray = cv2.resize(instances.masks[i].astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
            mask = (gray >= 0.5).astype(np.uint8)
            _tint(large, mask > 0, colour)
            contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(large, contours, -1, colour, 2, cv2.LINE_AA)
            covered |= mask
        corners = [int(v) for v in np.clip(boxes[i].round(), 0, [width - 1, height - 1] * 2)]
        cv2.rectangle(large, corners[:2], corners[2:], colour, 1 if instances.masks is not None else 2, cv2.LINE_AA)
    if instances.masks is None:
        for left, top, right, bottom in boxes.round().astype(int):
            covered[max(top, 0) : bottom, max(left, 0) : right] = 1
    picture = Image.fromarray(large)
    _draw_names(picture, instances, boxes, covered, classes, colours)
    return picture


def _draw_names(picture, instances, boxes, covered, classes, colours) -> None:
    draw, letters = ImageDraw.Draw(picture), font(14, bold=True)
    height, width = covered.shape
    # Sums over rectangles of the area covered by masks, and by names that stand already.
    masks = cv2.integral(covered)
    taken: List[Tuple[int, int, int, int]] = []
    for i in np.argsort([bottom for _, _, _, bottom in boxes]):
        text = shorten(classes[instances.labels[i]])
        if instances.scores is not None:
            text += f' {instances.scores[i]:.2f}'
        box = tuple(int(v) for v in boxes[i].round())
        w, h = int(draw.textlength(text, letters)) + 8, 19
        x, y = _find_place(box, (w, h), (width, height), masks, taken)
        taken.append((x, y, x + w, y + h))
        colour = colours[instances.labels[i]]
        draw.rounded_rectangle((x, y, x + w - 1, y + h - 1), 4, fill=colour)
        draw.text((x + 4, y + h / 2), text, fill=_contrast(colour), font=letters, anchor='lm')


def _find_place(box, size, canvas, masks, taken) -> Tuple[int, int]:
    """Return where a name of ``size`` stands: near its box, in the canvas, with the least cost of what it covers."""
    left, top, right, bottom = box
    w, h = size
    middle = (left + right - w) // 2
    best, best_cost = (0, 0), float('inf')
    for gap in (1, h // 2, h + 3, 2 * h):
        sides = [(x, y) for x in (left, middle, right - w) for y in (top - h - gap, bottom + gap)]
        sides += [(x, y) for x in (left - w - gap, right + gap) for y in (top, (top + bottom - h) // 2, bottom - h)]
        for x, y in sides:
            x, y = min(max(x, 0), max(canvas[0] - w, 0)), min(max(y, 0), max(canvas[1] - h, 0))
            x2, y2 = min(x + w, canvas[0]), min(y + h, canvas[1])
            hidden = int(masks[y2, x2]) - int(masks[y, x2]) - int(masks[y2, x]) + int(masks[y, x])
            over = sum(max(0, min(x2, b[2]) - max(x, b[0])) * max(0, min(y2, b[3]) - max(y, b[1])) for b in taken)
            cost = hidden + 4 * over + 2 * gap
            if cost < best_cost:
                best, best_cost = (x, y), cost
    return best


def draw_label_map(
    image: np.ndarray, labels: np.ndarray, colours: Sequence[Colour], background: Sequence[int] = (), side: int = SIDE
) -> Image.Image:
    """Draw the class of every pixel over an image.

    Args:
        image (np.ndarray): (H, W, 3).
        labels (np.ndarray): (H, W), numbers of classes; others, such as 255, are no class.
        colours (Sequence[tuple]): one colour per class.
        background (Sequence[int]): classes that are not drawn, as pixels without a class are not.
        side (int): pixels of the longer side of the picture.
    """
    large = scale_to(image, side)
    shape = large.shape[1::-1]
    numbers = cv2.resize(labels.astype(np.int32), shape, interpolation=cv2.INTER_NEAREST)
    for label in np.unique(numbers):
        if not 0 <= label < len(colours) or label in background:
            continue
        # Scale each class as a picture of gray, for smooth borders.
        gray = cv2.resize((labels == label).astype(np.float32), shape, interpolation=cv2.INTER_LINEAR)
        mask = gray >= 0.5
        _tint(large, mask, colours[label])
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(large, contours, -1, colours[label], 1, cv2.LINE_AA)
    return Image.fromarray(large)


def _tint(image: np.ndarray, mask: np.ndarray, colour: Colour) -> None:
    """Give the pixels of a mask a colour, in place. Their own colours, which would change it, go."""
    light = image[mask] @ np.array([0.299, 0.587, 0.114])
    image[mask] = 0.4 * light[:, None] + 0.6 * np.array(colour)


def draw_probabilities(names: Sequence[str], values: Sequence[float], truth: str, size: Tuple[int, int]) -> Image.Image:
    """Draw the most probable classes as bars; that of the truth in green, others in gray."""
    picture = Image.new('RGB', size, (246, 247, 249))
    draw = ImageDraw.Draw(picture)
    step = min(64, (size[1] - 2 * GAP) // max(len(names), 1))
    for i, (name, value) in enumerate(zip(names, values)):
        y = GAP + i * step
        colour = (30, 150, 90) if name == truth else (150, 157, 168)
        width = (size[0] - 2 * GAP) * float(value)
        draw.text((GAP, y), shorten(name, 28), fill=INK, font=font(15, bold=name == truth))
        draw.text((size[0] - GAP, y), f'{value:.3f}', fill=FAINT, font=font(15), anchor='ra')
        draw.rounded_rectangle((GAP, y + 23, size[0] - GAP, y + 33), 4, fill=(228, 231, 235))
        if width >= 1:
            draw.rounded_rectangle((GAP, y + 23, GAP + max(width, 8), y + 33), 4, fill=colour)
    return picture


def side_by_side(truth: Image.Image, prediction: Image.Image, legend: Sequence[Tuple[str, Colour]] = ()) -> Image.Image:
    """Put truth left and prediction right, with headings above and a legend of classes below."""
    width = truth.width + prediction.width + GAP
    rows = _legend_rows(legend, width)
    top, height = 28, max(truth.height, prediction.height)
    picture = Image.new('RGB', (width, top + height + (6 + 24 * len(rows) if rows else 0)), PAPER)
    draw = ImageDraw.Draw(picture)
    for x, heading, part in ((0, 'truth', truth), (truth.width + GAP, 'prediction', prediction)):
        draw.text((x, 2), heading, fill=FAINT, font=font(18))
        picture.paste(part, (x, top))
    for i, row in enumerate(rows):
        y = top + height + 6 + 24 * i
        for x, name, colour in row:
            draw.rounded_rectangle((x, y + 2, x + 14, y + 16), 3, fill=colour, outline=FAINT)
            draw.text((x + 20, y), name, fill=INK, font=font(14))
    return picture


def add_caption(picture: Image.Image, caption: str) -> Image.Image:
    """Return a picture with a line of text below it."""
    captioned = Image.new('RGB', (picture.width, picture.height + 28), PAPER)
    captioned.paste(picture)
    text = shorten(caption, picture.width // 9)
    ImageDraw.Draw(captioned).text((0, picture.height + 6), text, fill=INK, font=font(15))
    return captioned


def _legend_rows(legend: Sequence[Tuple[str, Colour]], width: int) -> List[List[Tuple[int, str, Colour]]]:
    rows: List[List[Tuple[int, str, Colour]]] = []
    x = width
    for name, colour in legend:
        name = shorten(name)
        length = int(font(14).getlength(name)) + 40
        if x + length > width:
            rows.append([])
            x = 0
        rows[-1].append((x, name, colour))
        x += length
    return rows


def contact_sheet(groups: Mapping[str, Sequence[Image.Image]], title: str, columns: int = 2) -> Image.Image:
    """Put pictures on one sheet: groups such as 'best' below each other, each with a heading.

    Args:
        groups (dict[str, Sequence[Image]]): pictures by heading.
        title (str): the sheet's.
        columns (int): pictures in a row. Default 2.
    """
    pictures = [picture for group in groups.values() for picture in group]
    if not pictures:
        raise ValueError('a contact sheet needs a picture')
    margin = 32
    wide = max(picture.width for picture in pictures)
    columns = min(columns, max(len(group) for group in groups.values()))
    rows = [
        (heading if i == 0 else '', group[i : i + columns])
        for heading, group in groups.items()
        for i in range(0, len(group), columns)
    ]
    heights = [max(p.height for p in row) + (38 if heading else 0) + GAP for heading, row in rows]
    width = 2 * margin + columns * wide + (columns - 1) * margin
    sheet = Image.new('RGB', (width, 60 + sum(heights) + margin), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, 22), shorten(title, width // 13), fill=INK, font=font(22, bold=True))
    y = 66
    for (heading, row), height in zip(rows, heights):
        at = y
        if heading:
            draw.line((margin, y + 2, width - margin, y + 2), fill=(222, 226, 230))
            draw.text((margin, y + 8), heading, fill=INK, font=font(18, bold=True))
            at += 38
        for i, picture in enumerate(row):
            sheet.paste(picture, (margin + i * (wide + margin), at))
        y += height
    return sheet


def shorten(text: str, limit: int = 24) -> str:
    """Return a text of at most ``limit`` printable characters."""
    text = ''.join(c if c.isprintable() else ' ' for c in str(text))
    return text if len(text) <= limit else f'{text[: limit - 1]}…'


def _contrast(colour: Colour) -> Colour:
    r, g, b = colour
    return INK if 0.299 * r + 0.587 * g + 0.114 * b > 140 else PAPER
