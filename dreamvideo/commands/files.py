"""`inspect` and `convert`: files of bases and of adapters."""

from __future__ import annotations

import json
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..defaults import defaults_for
from ..files.adapter_info import TrainedAdapter
from ..files.adapters import load_adapter, save_trained
from ..files.base import find_base
from ..files.conversion import convert as convert_network
from ..files.foreign_adapters import save_authors_adapter, save_authors_embedding
from ..files.inspection import describe
from ..files.inspection import inspect as inspect_file
from ..files.tensors import CheckpointError
from ..safety.locks import reserved
from ..safety.paths import keep_apart
from ..sampling import LATENT_FACTOR
from .common import ADAPTER, DTYPES, file_name, writable
from .terminal import Terminal

AUTHORS = (".pth", ".pt")
BESIDE_THE_UNET = (
    "model_index.json and the folders scheduler, text_encoder, tokenizer and vae, "
    "such as those of damo-vilab/text-to-video-ms-1.7b on Hugging Face"
)


def inspect(args: Namespace, terminal: Terminal) -> None:
    loaded = _find_adapter(args.path)
    if loaded is not None:
        facts = _adapter_facts(args.path, loaded)
        text = "\n".join(
            [f"DreamVideo {loaded.info}", *(f"  {name:<13} {_indented(fact)}" for name, fact in facts.items())]
        )
    else:
        facts = inspect_file(args.path)
        text = describe(facts)
    terminal.say(json.dumps(facts, indent=2, ensure_ascii=False) if args.json else text)


def convert(args: Namespace, terminal: Terminal) -> None:
    loaded = _find_adapter(args.source)
    if loaded is None:
        source = args.source
        if source.is_dir():
            source = find_base(source, partial=True).unet or source
        dtype = DTYPES[args.dtype] if args.dtype else None
        size = lambda config: defaults_for(config).height // LATENT_FACTOR  # noqa: E731
        layout = args.layout or "original"
        written = [convert_network(source, args.target, layout, dtype, sample_size=size, loras=args.lora)]
    elif args.layout or args.dtype or args.lora:
        raise ValueError(
            f"--layout, --dtype and --lora are for UNets, and {args.source} is of another kind: {loaded.info}."
        )
    else:
        written = _convert_adapter(loaded, args.source, args.target)
    terminal.say(f"Wrote {' and '.join(map(str, written))}")
    if loaded is None and written[0] != args.target:
        terminal.say(f"For a pipeline of diffusers {args.target} needs besides {BESIDE_THE_UNET}.")


def _convert_adapter(loaded: TrainedAdapter, source: Path, target: Path) -> list[Path]:
    """To our format or, by the suffix, to the authors': there a token is a file of its own, and its name is *."""
    writable(target, (*ADAPTER, *AUTHORS))
    keep_apart([target], [source])
    if target.suffix.lower() in ADAPTER:
        save_trained(target, loaded)
        return [target]
    written = []
    if loaded.info.token_layers is not None:
        raise ValueError(
            f"The authors' files hold one vector a word and {source.name} has {loaded.info.token_layers}, one a layer: "
            "save it as .safetensors."
        )
    if loaded.adapter is not None:
        save_authors_adapter(target, loaded.adapter, loaded.info.steps or 0)
        written.append(target)
    for name, vectors in loaded.tokens.items():
        beside = target.with_name(f"{target.stem}.{file_name(name)}.pt")
        with nullcontext(target) if not written else reserved(beside) as path:
            save_authors_embedding(path, vectors)
        written.append(path)
    return written


def _find_adapter(path: Path) -> TrainedAdapter | None:
    """The adapter or text embedding in a file; None when the path is anything else."""
    try:
        return load_adapter(path)
    except CheckpointError:
        return None


def _indented(fact: Any) -> str:
    return str(fact).replace("\n", "\n" + 16 * " ")


def _adapter_facts(path: Path, loaded: TrainedAdapter) -> dict[str, Any]:
    info = loaded.info
    state = {} if loaded.adapter is None else loaded.adapter.state_dict()
    facts = {
        "file": str(path),
        "kind": info.kind,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "tensors": len(state),
        "adapter": info.adapter_config and info.adapter_config.to_dict(),
        "tokens": {name: list(vectors.shape) for name, vectors in loaded.tokens.items()},
        "features": None if loaded.features is None else list(loaded.features.shape),
        "class word": info.class_word,
        "captions": list(dict.fromkeys(info.captions)),
        "steps": info.steps,
        "learning rate": info.learning_rate,
        "seed": info.seed,
        "run file": info.run.rstrip(),
        "UNet": info.unet_config and info.unet_config.to_dict(),
        "base": info.base_fingerprint,
        **info.extra,
    }
    return {name: fact for name, fact in facts.items() if fact not in (None, "", {}, [])}
