"""DreamVideo: customise a text-to-video model with a subject and a motion (Wei et al., CVPR 2024, arXiv 2312.04433).

Plain PyTorch and free of any host: the ComfyUI nodes and the command line are two faces of this package.
"""

__version__ = "0.1.0"
