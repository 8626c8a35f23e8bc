"""Specs of common networks (`specs`) and small trained networks to try layers on (`zoo`)."""
