"""Between our values and Flower's: records, apps, and every touch of Flower's private names (compat)."""
