"""Whether a device computes what a CPU does in float32: on the embedded base, whole, and on a block of the base itself.

The whole of a large base is not copied to the CPU for it: in float32 it would take 5.6 GB and minutes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..base import EMBEDDED_FOLDER
from ..encoders.loading import load_encoders
from ..encoders.protocols import Encoders
from ..files.base import find_base
from ..files.unet import load_unet
from ..models.adapters import Adapter, AdapterConfig
from ..models.call import Call
from ..models.families import build_network
from ..models.layers import economical
from ..models.stack import AdapterStack, StackEntry
from .measure import dtype_name
from .networks import Session
from .report import Finding
from .training import CAPTION, picture

CPU = torch.device("cpu")
# Relative errors that rounding explains, about seven times what a CPU's half precision comes to. Cards may convolve
# float32 with a mantissa of ten bits (TF32), as float16 has.
ROUNDING = {torch.float32: 0.005, torch.float16: 0.005, torch.bfloat16: 0.035}
FRAMES, SIDE = 4, 8
TIMESTEP = 500


def agree(session: Session) -> Iterator[Finding]:
    """Relative errors |device - CPU| / |CPU|."""
    device, dtype = session.base.device, session.base.unet.dtype
    if device.type == "cpu" and dtype == torch.float32:
        yield Finding("compared", "nothing: the base is on the CPU in float32 already, and there is no card")
        return
    where = f"{device} in {dtype_name(dtype)}"
    yield Finding("compared", f"{where} with cpu in float32, by |difference| / |cpu|")
    yield judged("base's first block", *base_block(session), dtype)
    found, exact = embedded_unet(device, dtype), embedded_unet(CPU, torch.float32)
    yield judged("embedded UNet", found[0], exact[0], dtype)
    yield judged("its gradients", found[1], exact[1], dtype)
    if device.type != "cpu":
        here, there = (embedded_encoders(place) for place in (device, CPU))
        for name in here:
            yield judged(f"embedded {name}", here[name], there[name], torch.float32)


def judged(name: str, found: Tensor, exact: Tensor, dtype: torch.dtype) -> Finding:
    """The relative error of what was found, and whether rounding to `dtype` explains it; NaN never is."""
    exact = exact.cpu().double()
    error = ((found.cpu().double() - exact).norm() / exact.norm()).item()
    limit = ROUNDING.get(dtype, max(ROUNDING.values()))
    advice = f"Rounding explains at most {limit:g}: the device computes something else. Update its driver and PyTorch."
    return Finding(name, f"{error:.2g}", "" if error <= limit else advice)


@torch.no_grad()
def base_block(session: Session) -> tuple[Tensor, Tensor]:
    """What the base's own first block behind the input makes, and a copy in PyTorch's layers on the CPU in float32."""
    unet = session.base.unet
    device, dtype, config = session.base.device, unet.dtype, unet.config
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(FRAMES, config.dim, SIDE, SIDE, generator=generator)  # [B*F, C, h, w]
    embedding = torch.randn(1, config.embed_dim, generator=generator)
    context = torch.randn(1, 77, config.context_dim, generator=generator)
    with torch.device("meta"):
        plain = build_network(config).eval().input_blocks[1]
    own = unet.input_blocks[1]
    state = {name: tensor.detach().to(CPU, torch.float32) for name, tensor in own.state_dict().items()}
    plain.load_state_dict(state, assign=True)

    def run(block: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
        call = Call(FRAMES, embedding.to(device, dtype), context.to(device, dtype), adapters=None, checkpointing=False)
        return block(x.to(device, dtype), call)

    return run(own, device, dtype), run(plain, CPU, torch.float32)


def embedded_unet(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The embedded base's prediction [2, 4, F, h, w] under two adapters, and all gradients of the motion adapter."""
    files = find_base(EMBEDDED_FOLDER)
    unet = load_unet(files.file("unet"), device=device, dtype=dtype, operations=economical(nn)).requires_grad_(False)
    config, generator = unet.config, torch.Generator().manual_seed(0)
    x = torch.randn(2, config.in_channels, FRAMES, SIDE, SIDE, generator=generator)
    context = torch.randn(2, 77, config.context_dim, generator=generator)
    feature = torch.randn(2, config.context_dim, generator=generator)
    kinds = (AdapterConfig.identity(), AdapterConfig.motion(condition_dim=config.context_dim))
    identity, motion = (_filled(Adapter(kind, config, CPU, torch.float32)).to(device) for kind in kinds)
    stack = AdapterStack([StackEntry(identity), StackEntry(motion)], feature.to(device))
    steps = torch.full((2,), TIMESTEP, device=device)
    predicted = unet(x.to(device, dtype), steps, context.to(device, dtype), adapters=stack)
    gradients = torch.autograd.grad(predicted.float().square().mean(), list(motion.parameters()))
    return predicted.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def _filled(adapter: Adapter) -> Adapter:
    """With second halves away from zero, so that adapters act and all of them gets gradients."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapter.named_parameters():
        if "up_linear" in name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    return adapter


@torch.no_grad()
def embedded_encoders(device: torch.device) -> dict[str, Tensor]:
    """What the embedded base's encoders make there, in float32 as always, of a prompt and a picture."""
    encoders: Encoders = load_encoders(find_base(EMBEDDED_FOLDER), device)
    image = picture(64, 64, seed=0)[None]
    latents = encoders.vae.encode(image).mean
    return {
        "text": encoders.text.encode([CAPTION]),
        "image feature": encoders.image.encode(image),
        "latents": latents,
        "decoded": encoders.vae.decode(latents),
    }
