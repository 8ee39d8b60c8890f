"""Layers that models are made of: `(b, l, d) -> (b, l, d)`, causal."""
