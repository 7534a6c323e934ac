"""The Flower app of a scenario, for real SuperNodes."""
