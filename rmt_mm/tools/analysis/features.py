"""Feature maps as colours, by their principal components."""

import torch
from torch import Tensor


def features_as_colours(features: Tensor) -> Tensor:
    """Show the three directions in which features of the tokens vary most, as red, green and blue.

    Args:
        features (Tensor): (C, H, W).

    Returns:
        Tensor: (3, H, W), from 0 to 1; each colour runs from the 1st to the 99th percentile of its component. Signs are
        chosen so that the weight of largest magnitude is positive: the same features give the same colours.
    """
    channels, height, width = features.shape
    tokens = features.flatten(1).T.double()
    tokens = tokens - tokens.mean(0)
    _, _, directions = torch.linalg.svd(tokens.T @ tokens)
    directions = directions[:3]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    components = tokens @ (directions * largest.sign()).T
    low, high = components.quantile(torch.tensor([0.01, 0.99], dtype=torch.double), dim=0)
    colours = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colours = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]), value=0.5)
    return colours.T.reshape(3, height, width).float()
