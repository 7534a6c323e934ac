"""The least an app can be."""
