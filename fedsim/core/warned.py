"""Warnings that are errors."""

import warnings


def spare_dependencies() -> None:
    """Where warnings are errors (``python -W error``), have those that fedsim is not to blame for told, and not raised.

    Dependencies warn of each other while they are imported; nobody could start.
    """
    if any(rule[0] == "error" for rule in warnings.filters):
        warnings.filterwarnings("default", module=r"(?!fedsim\b)")
