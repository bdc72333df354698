"""Reads weights from safetensors files, folders and the Hugging Face Hub. Pickles are never opened."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

OPEN_CLIP_WEIGHTS, OPEN_CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
HF_WEIGHTS, HF_INDEX, HF_CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PREPROCESSOR = "preprocessor_config.json"
# Tokenizer files that a folder may have, and their kind.
VOCABULARY_FILES = {
    "tokenizer.model": "sentencepiece",
    "spiece.model": "siglip",
    "bpe_simple_vocab_16e6.txt.gz": "clip_bpe",
    "merges.txt": "clip_bpe",
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

HUB_REPOS = {
    "RN50": "timm/resnet50_clip.openai",
    "RN101": "timm/resnet101_clip.openai",
    "RN50x4": "timm/resnet50x4_clip.openai",
    "RN50x16": "timm/resnet50x16_clip.openai",
    "RN50x64": "timm/resnet50x64_clip.openai",
    "ViT-B/32": "timm/vit_base_patch32_clip_224.openai",
    "ViT-B/16": "timm/vit_base_patch16_clip_224.openai",
    "ViT-L/14": "timm/vit_large_patch14_clip_224.openai",
    "ViT-L/14@336px": "timm/vit_large_patch14_clip_336.openai",
    "ViT-H/14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "ViT-g/14": "laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
    "ViT-bigG/14": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "SigLIP-B/16": "google/siglip-base-patch16-224",
    "SigLIP-SO400M/14": "google/siglip-so400m-patch14-224",
    "SigLIP-SO400M/14@384px": "google/siglip-so400m-patch14-384",
}


class StateDict(Mapping[str, np.ndarray]):
    """The arrays of one or several safetensors files, each read when it is indexed.

    Raises:
      ValueError: a file is missing, truncated or no safetensors file, or a key occurs twice.
    """

    def __init__(self, files: Sequence[Path]):
        self._handles: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            refuse_pickle(file)
            try:
                handle = safe_open(file, framework="numpy")
            except FileNotFoundError:
                raise ValueError(f"there is no weights file {file}") from None
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{file} cannot be read as safetensors; it is truncated, damaged or another format ({error}): "
                    "download it again"
                ) from None
            for key in handle.keys():  # noqa: SIM118, it is not a dict
                if key in self._handles:
                    raise ValueError(f"{key} is in {file} and in another file beside it: remove one of them")
                self._handles[key] = handle
                self.shapes[key] = tuple(handle.get_slice(key).get_shape())

    def __getitem__(self, key: str) -> np.ndarray:
        try:
            return self._handles[key].get_tensor(key)
        except (SafetensorError, TypeError, AttributeError) as error:  # the last: NumPy has no such dtype, as float8
            dtype = self._handles[key].get_slice(key).get_dtype()
            raise ValueError(
                f"{key} cannot be read as {dtype} ({error}): write the file again in float32, float16 or bfloat16"
            ) from None

    def drop(self, key: str) -> None:
        """Removes the key."""
        del self._handles[key], self.shapes[key]

    def __contains__(self, key: object) -> bool:
        return key in self._handles

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)


def refuse_pickle(file: Path) -> None:
    """Raises ValueError for a file that only unpickling could read."""
    if file.suffix in PICKLES:
        out = file.with_suffix(".safetensors")
        raise ValueError(
            f"{file} is a pickle, which can run any code when it is opened, so clip_jax does not read it. If you "
            'trust it and have PyTorch, convert it: python -c "import torch; from safetensors.torch import '
            f"save_file; d = torch.load('{file}', map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
            f"save_file({{k: v.contiguous() for k, v in d.items()}}, '{out}')\" (of OpenAI's own .pt files, which are "
            "TorchScript: d = torch.jit.load(...).state_dict())"
        )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; raises ValueError with the file's name for anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not a JSON object")
    return content


def weight_files(path: Path) -> tuple[list[Path], Path | None]:
    """The safetensors files of a folder, or the file itself, and the config beside them."""
    if path.is_file():
        return [path], _config_beside(path)
    for weights in (path / OPEN_CLIP_WEIGHTS, path / HF_INDEX, path / HF_WEIGHTS):
        if weights.is_file():
            return _shards(weights) if weights.name == HF_INDEX else [weights], _config_beside(weights)
    for file in sorted(path.iterdir()):
        refuse_pickle(file)
    raise ValueError(
        f"{path} holds no weights: expected {OPEN_CLIP_WEIGHTS}, {HF_WEIGHTS}, or the path of a .safetensors file"
    )


def _config_beside(weights: Path) -> Path | None:
    """For a name that transformers uses its config comes first, for all others open_clip's."""
    names = (HF_CONFIG, OPEN_CLIP_CONFIG) if weights.name.startswith("model") else (OPEN_CLIP_CONFIG, HF_CONFIG)
    return next((weights.with_name(name) for name in names if weights.with_name(name).is_file()), None)


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map of keys to files")
    names = sorted({str(name) for name in weight_map.values()})
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{index} names files outside of its folder")
    return [index.with_name(name) for name in names]


def download(repo: str) -> Path:
    """The folder of a Hub repository's weights, config and tokenizer, downloaded or from the cache.

    Raises:
      ValueError: huggingface_hub is not installed, the Hub cannot be reached and the cache has no copy, or there is no
        such repository.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"getting {repo} from the Hub needs huggingface_hub: pip install 'jax-clip[hub]'") from None
    beside = [PREPROCESSOR, *VOCABULARY_FILES]
    try:
        folder = Path(
            huggingface_hub.snapshot_download(repo, allow_patterns=[OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, *beside])
        )
        if not ((folder / OPEN_CLIP_CONFIG).is_file() and (folder / OPEN_CLIP_WEIGHTS).is_file()):
            patterns = [HF_CONFIG, HF_WEIGHTS, HF_INDEX, "model-*.safetensors", *beside]
            folder = Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(
            f"cannot get {repo} from the Hugging Face Hub, and it is not in the local cache: {reason}. Without a "
            f"network, run `hf download {repo}` where there is one and give the folder's path"
        ) from None
    return folder
