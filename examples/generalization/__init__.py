"""A real task: a network's test accuracy from its weights alone, in torch and in JAX."""
