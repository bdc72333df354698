"""Any `tokenizer.json` of Hugging Face, with the rules that stand in the files beside it."""

import html
import json
import os
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import tokenizers

from input_pipeline.tokenizers.base import Tokenizer, read_vocabulary, without_surrogates

VOCABULARY, SETTINGS, SPECIAL, OPEN_CLIP = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "open_clip_config.json",
)
RULES = "clip_jax_rules"  # key of tokenizer_config.json
FORMAT = "clip_jax tokenizer 1"  # of a run's own file, which holds all of them
LIMIT = 256 * 2**20  # bytes; Gemma's has 34 million, XLM-V's, of 900,000 pieces, more
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Their post-processor is made of these two settings, whatever tokenizer.json says.
FLAGGED = ("GemmaTokenizer", "GemmaTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast")


def _repaired(text: str) -> str:
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _canonical(text: str) -> str:
    return " ".join(text.replace("_", " ").translate(NO_PUNCTUATION).lower().split())


# open_clip's names of what is done to a text first; "none" is transformers' way.
CLEANING: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "whitespace": _repaired,
    "lower": lambda text: _repaired(text).lower(),
    "canonicalize": lambda text: _canonical(_repaired(text)),
}


class JsonTokenizer(Tokenizer):
    """Ids as the packages give them that the weights were trained with.

    tokenizer_config.json, or special_tokens_map.json, says the padding and whether text is lower-cased first: so it was
    in SigLIP 2's training, while transformers 5 leaves it to the user. open_clip_config.json says what its tokenizer
    does to a text, and whether separators become padding (CLIPA). Special tokens written out in a text are special
    tokens, as in both packages. A folder that clip_jax wrote in the other package's form says in tokenizer_config.json,
    under `RULES`, what that form has no word for.

    Args:
      file: tokenizer.json, the folder that holds it, or the file that `stored` gave.
      context_length: ids a row; the special tokens at both ends are kept in what is cut.

    Raises:
      ValueError: a file is missing, damaged, too large or of an unknown kind, or has a rule that is not known here.
    """

    kind = "tokenizer_json"

    def __init__(self, file: str | os.PathLike[str], context_length: int):
        path = Path(file) / VOCABULARY if Path(file).is_dir() else Path(file)
        self._files = _read_all(path)
        settings = _json(self._files.get(SETTINGS, b"{}"), path.with_name(SETTINGS))
        self._clean, self._strips = self.rules = _rules(self._files, settings, path)
        special = _json(self._files.get(SPECIAL, b"{}"), path.with_name(SPECIAL)) | settings
        _check_settings(settings, path.with_name(SETTINGS))
        content = self._files[VOCABULARY]
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"{path} is not a tokenizer.json that can be read: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._lowers = settings.get("do_lower_case") is True and not _lowers(_json(content, path).get("normalizer"))
        self._adds = settings.get("tokenizer_class") not in FLAGGED or "add_eos_token" not in settings
        self._before, self._after = self._ends(settings, special, path)
        self._padding = self._id("pad_token", special, path)
        self._separator = self._id("sep_token", special, path) if self._strips else -1
        ends = self._stripped([*self._before, *self._after])
        rules = {"clean": self._clean, "strips": self._strips, "lowers": self._lowers, "ends": ends}
        super().__init__(
            context_length,
            vocab_size=max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
            sot_token=ends[0],
            eot_token=ends[-1],
            vocabulary=content + json.dumps([rules, self._padding]).encode(),
        )

    def token_ids(self, text: str) -> list[int]:
        if self._clean == "none" and self._lowers:
            text = text.lower()
        text = without_surrogates(CLEANING[self._clean](text))
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode(self, text: str) -> tuple[np.ndarray, bool]:
        ids = self.token_ids(text)
        room = self.context_length - len(self._before) - len(self._after)
        kept = self._stripped([*self._before, *ids[:room], *self._after])
        row = np.full(self.context_length, self._padding, np.int32)
        row[: len(kept)] = kept
        return row, len(ids) > room

    def files(self) -> dict[str, bytes]:
        return {name: content for name, content in self._files.items() if name != OPEN_CLIP}

    def files_in(self, implied: tuple[str, bool]) -> dict[str, bytes]:
        """`files` of a folder whose other files imply these rules, (clean, strip_sep_token); RULES says others."""
        files = self.files()
        if self.rules != implied:
            settings = _json(files.get(SETTINGS, b"{}"), Path(SETTINGS))
            settings[RULES] = {"clean": self._clean, "strip_sep_token": self._strips}
            files[SETTINGS] = json.dumps(settings, indent=2).encode() + b"\n"
        return files

    def stored(self) -> bytes:
        parts = {name: content.decode("utf-8") for name, content in self._files.items()}
        return json.dumps({"format": FORMAT, "files": parts}, ensure_ascii=False).encode()

    def _ends(self, settings: Mapping[str, Any], special: Mapping[str, Any], path: Path) -> tuple[list[int], list[int]]:
        """The special ids that are put before and after each text."""
        if not self._adds:
            before = [self._id("bos_token", special, path)] if settings.get("add_bos_token") else []
            after = [self._id("eos_token", special, path)] if settings["add_eos_token"] else []
        else:
            encoding = self._tokenizer.encode("a")
            is_text = [not mask for mask in encoding.special_tokens_mask]
            first, last = (is_text.index(True), is_text[::-1].index(True)) if any(is_text) else (0, 0)
            before, after = encoding.ids[:first], encoding.ids[len(is_text) - last :]
        if not after:
            raise ValueError(f"{path} puts no token behind a text: clip_jax reads tokenizers with an end token")
        return before, after

    def _id(self, name: str, special: Mapping[str, Any], path: Path) -> int:
        token = special.get(name)
        content = token.get("content") if isinstance(token, Mapping) else token
        found = self._tokenizer.token_to_id(content) if isinstance(content, str) else None
        if found is None:
            raise ValueError(
                f"{path.with_name(SETTINGS)} has {name}={content!r}, which is no token of {path.name}: give the "
                f"{SETTINGS} that was saved with it"
            )
        return found

    def _stripped(self, ids: list[int]) -> list[int]:
        return [0 if token == self._separator else token for token in ids] if self._strips else ids


def _read_all(path: Path) -> dict[str, bytes]:
    """tokenizer.json and what stands beside it, by name; from one file where a run stored them."""
    content = read_vocabulary(path, "tokenizer.json", LIMIT)
    whole = _json(content, path)
    if whole.get("format") == FORMAT:
        return {name: text.encode() for name, text in whole["files"].items()}
    beside = {name: path.with_name(name) for name in (SETTINGS, SPECIAL, OPEN_CLIP)}
    found = {name: read_vocabulary(file, name) for name, file in beside.items() if file.is_file()}
    return {VOCABULARY: content} | found


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def _rules(files: Mapping[str, bytes], settings: Mapping[str, Any], path: Path) -> tuple[str, bool]:
    """What is done to a text first, and whether separators become padding."""
    if RULES in settings:
        own = settings[RULES]
        if not isinstance(own, dict) or own.get("clean") not in CLEANING:
            raise ValueError(f"{path.with_name(SETTINGS)} has {RULES}={own!r}; clean is one of {', '.join(CLEANING)}")
        return own["clean"], bool(own.get("strip_sep_token"))
    if OPEN_CLIP not in files:
        return "none", False
    config = path.with_name(OPEN_CLIP)
    given = _json(files[OPEN_CLIP], config)
    text = given.get("model_cfg", given).get("text_cfg", {})
    options = dict(text.get("tokenizer_kwargs") or {})
    # Without a name it is open_clip's own tokenizer, which lower-cases.
    clean = options.pop("clean", "whitespace" if text.get("hf_tokenizer_name") else "lower")
    strips = options.pop("strip_sep_token", False)
    if clean not in CLEANING or options or text.get("tokenizer_mode"):
        others = [f"tokenizer_mode={text['tokenizer_mode']!r}"] if text.get("tokenizer_mode") else []
        others += [f"clean={clean!r}"] if clean not in CLEANING else []
        others += [f"{name}={value!r}" for name, value in options.items()]
        raise ValueError(
            f"{config} has {', '.join(others)} for its tokenizer; clip_jax knows strip_sep_token and "
            f"clean={', '.join(CLEANING)}"
        )
    return clean, bool(strips)


def _check_settings(settings: Mapping[str, Any], path: Path) -> None:
    known = {"padding_side": "right", "truncation_side": "right", "split_special_tokens": False}
    for name, value in known.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{path} has {name}={settings[name]!r}; clip_jax has {value!r} alone")


def _lowers(normalizer: Any) -> bool:
    """Whether a normalizer of tokenizer.json lower-cases."""
    if isinstance(normalizer, list):
        return any(map(_lowers, normalizer))
    if not isinstance(normalizer, dict):
        return False
    is_own = normalizer.get("type") == "Lowercase" or normalizer.get("lowercase") is True
    return is_own or _lowers(normalizer.get("normalizers"))
