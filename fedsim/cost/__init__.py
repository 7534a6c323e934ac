"""Sizes to seconds: what a device, a link and a client's availability make of FLOPs and bytes. Never sees a tensor."""
