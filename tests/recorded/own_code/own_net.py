"""A model of a reader's own, for a run folder that was recorded before the readers of folders changed."""

import math

from torch import nn


class Net(nn.Module):
    """One hidden layer, *width* wide."""

    def __init__(self, shape, outputs, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, x):
        return self.layers(x)
