"""Client logic without torch: what a client does with a message, what it keeps, how it tests, remembers and notices on a stream."""
