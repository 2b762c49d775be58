"""The paper's measures and its analysis of layers, and pictures that tell how a run went."""
