"""Reads weights from safetensors files, folders and the Hugging Face Hub. Pickles are never opened."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

OPEN_CLIP_WEIGHTS, OPEN_CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
HF_WEIGHTS, HF_INDEX, HF_CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
# transformers 5 writes the second, with the image processor as a section of it, and prefers it.
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
JSON_LIMIT = 16 * 2**20  # bytes; an index of many shards has less than one million
# What DistributedDataParallel and torch.compile put before the names of what they wrap, in whatever order and depth.
WRAPPERS = {"module", "_orig_mod"}
# Tokenizer files that a folder may have, and their kind: the first that is there counts. Released folders have several
# forms of one vocabulary; CLIP's byte pairs come with the cleaning of text that the weights were trained with.
VOCABULARY_FILES = {
    "bpe_simple_vocab_16e6.txt.gz": "clip_bpe",
    "merges.txt": "clip_bpe",
    "spiece.model": "siglip",
    "tokenizer.json": "tokenizer_json",
    "tokenizer.model": "sentencepiece",
}
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class StateDict(Mapping[str, np.ndarray]):
    """The arrays of one or several safetensors files, each read when it is indexed.

    Keys are without the names that wrappers of a model add to them (`WRAPPERS`).

    Raises:
      ValueError: a file is missing, truncated or no safetensors file, or a key occurs twice.
    """

    def __init__(self, files: Sequence[Path]):
        self._handles: dict[str, tuple[Any, str]] = {}  # the file and its own name of the key
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
                    "download it again, what is in the Hub's cache by `hf download OWNER/NAME --force-download`"
                ) from None
            for name in handle.keys():  # noqa: SIM118, it is not a dict
                key = ".".join(part for part in name.split(".") if part not in WRAPPERS)
                if key in self._handles:
                    other, its_name = self._handles[key]
                    if other is handle:
                        raise ValueError(f"{file} has both {its_name} and {name}: remove one of them")
                    raise ValueError(f"{key} is in {file} and in another file beside it: remove one of them")
                self._handles[key] = handle, name
                self.shapes[key] = tuple(handle.get_slice(name).get_shape())

    def __getitem__(self, key: str) -> np.ndarray:
        handle, name = self._handles[key]
        try:
            return handle.get_tensor(name)
        except (SafetensorError, TypeError, AttributeError) as error:  # the last: NumPy has no such dtype, as float8
            dtype = handle.get_slice(name).get_dtype()
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
    """A JSON object of finite numbers, of at most JSON_LIMIT; raises ValueError with the file's name otherwise."""

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{text} is no finite number")
        return number

    try:
        with file.open("rb") as stream:
            text = stream.read(JSON_LIMIT + 1)
        if len(text) > JSON_LIMIT:
            raise ValueError(f"it is larger than {JSON_LIMIT // 2**20} MiB")
        content = json.loads(text.decode("utf-8-sig"), parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise ValueError(f"{file} cannot be read as JSON: its brackets are nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not a JSON object")
    return content


def image_settings(folder: Path) -> tuple[dict[str, Any], str | None]:
    """How transformers' processor prepares a picture, and the file that says so; {} and None without one.

    Raises ValueError for a file that is damaged, or two that contradict each other.
    """
    files = [file for name in (PROCESSOR, PREPROCESSOR) if (file := folder / name).is_file()]
    found = [(settings, file) for file in files if (settings := _images_of(file)) is not None]
    if not found:
        return {}, None
    (settings, file), *others = found
    for other, beside in others:
        if differing := sorted(key for key in settings.keys() & other.keys() if settings[key] != other[key]):
            raise ValueError(f"{file} and {beside} differ in {', '.join(differing)}: remove the one that is wrong")
    return settings, file.name


def _images_of(file: Path) -> dict[str, Any] | None:
    content = read_json(file)
    if file.name == PREPROCESSOR:
        return content
    images = content.get("image_processor")  # older ones have no such section
    if images is not None and not isinstance(images, dict):
        raise ValueError(f"{file} has image_processor={images!r}, not a JSON object")
    return images


def find_vocabulary(folder: Path) -> tuple[Path, str] | None:
    """The tokenizer file of a folder and its kind; None where there is none that clip_jax reads."""
    settings = folder / TOKENIZER_SETTINGS[0]
    given = read_json(settings).get("tokenizer_class") if settings.is_file() else None
    has_json = (folder / "tokenizer.json").is_file()
    for name, kind in VOCABULARY_FILES.items():
        # spiece.model of another class is T5's or Gemma's, merges.txt of any model with byte pairs.
        is_others = kind == "siglip" and given not in (None, "SiglipTokenizer", "SiglipTokenizerFast")
        is_others |= kind == "clip_bpe" and given not in (None, "CLIPTokenizer", "CLIPTokenizerFast")
        if (folder / name).is_file() and not (is_others and has_json):
            return folder / name, kind
    return None


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
      ValueError: huggingface_hub is not installed, the Hub cannot be reached and the cache has no copy, the download
        breaks off, or there is no such repository or it has no safetensors.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"getting {repo} from the Hub needs huggingface_hub: pip install 'jax-clip[hub]'") from None
    beside = [PREPROCESSOR, PROCESSOR, *VOCABULARY_FILES, *TOKENIZER_SETTINGS]
    try:
        folder = Path(
            huggingface_hub.snapshot_download(repo, allow_patterns=[OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, *beside])
        )
        if not ((folder / OPEN_CLIP_CONFIG).is_file() and (folder / OPEN_CLIP_WEIGHTS).is_file()):
            patterns = [HF_CONFIG, HF_WEIGHTS, HF_INDEX, "model-*.safetensors", *beside]
            folder = Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns))
    except Exception as error:  # of several HTTP libraries, by the release
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(
            f"cannot get {repo} from the Hugging Face Hub, and it is not in the local cache: {reason}. Without a "
            f"network, run `hf download {repo}` where there is one and give the folder's path"
        ) from None
    if not any((folder / name).is_file() for name in (OPEN_CLIP_WEIGHTS, HF_WEIGHTS, HF_INDEX)):
        raise ValueError(_without_weights(repo))
    return folder


def _without_weights(repo: str) -> str:
    """Why a repository cannot be read, by what lies there instead of safetensors."""
    import huggingface_hub

    try:
        names = huggingface_hub.HfApi().list_repo_files(repo)
    except Exception:  # what was asked for came from the cache, and the network is away
        names = []
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return (
            f"the repository {repo} has its weights as pickles only ({', '.join(pickles[:3])}), which can run any code "
            f"when they are opened, so clip_jax does not read them. If you trust them, `hf download {repo} "
            f"{pickles[0]}`, and give that path: the message then says how to convert it"
        )
    holds = f"it holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it holds nothing"
    return f"the repository {repo} has no {OPEN_CLIP_WEIGHTS} or {HF_WEIGHTS}: {holds}"
