"""Small trained networks to try layers on (`zoo`), and the demo."""
