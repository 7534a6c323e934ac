"""Model and data of the app."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier


def load_data(partition_id: int, num_partitions: int):
    """Return the partition of the digits."""
    x, y = load_digits(return_X_y=True)
    return x[partition_id::num_partitions][:60] / 16.0, y[partition_id::num_partitions][:60]


def create_model(penalty: str) -> SGDClassifier:
    """Return a classifier that draws its order from numpy's global generator."""
    model = SGDClassifier(loss="log_loss", penalty=penalty)
    model.classes_ = np.arange(10)
    return model
