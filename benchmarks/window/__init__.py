"""How often a killed run repeats its effect: one effect at a remote provider, one on this machine."""
