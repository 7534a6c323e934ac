"""Flower strategies by name: the stock classes today, and those that Flower lacks as they come."""
