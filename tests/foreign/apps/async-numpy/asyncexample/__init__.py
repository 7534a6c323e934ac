"""An asynchronous server that polls: a model is mixed in whenever a reply is there."""
