"""Networks and what acts on them: the UNet, its cheaper layers, diffusion, adapters, weight deltas."""
