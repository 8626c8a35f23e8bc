"""Editing: one pass of an equivariant network over the weights of a classifier improves it."""
