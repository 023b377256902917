"""How independent cases are spread over workers of this machine."""
