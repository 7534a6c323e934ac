"""A NumPyClient, a client_fn and a server_fn: the app of two years ago."""
