"""Trains the tokenizer: byte-level BPE with DeepSeek's own pre-tokenizer, 4096 entries.

Numbers of one to three digits are one token each, as in DeepSeek's vocabulary.  Their merges are written out rather than
learned: digits are a pre-token of their own, so these merges and those of the text never meet.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Iterable

import chat_format as cf
from errors import ToolError

VOCABULARY_SIZE = 4096
_LEADING = (cf.BOS, cf.EOS, cf.PAD)  # ids 0, 1, 2
_TRAILING = (cf.USER, cf.ASSISTANT, cf.THINK, cf.END_THINK, *cf.TOOL_TOKENS, cf.DSML)  # the last ids
SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)


def _number_merges() -> list[list[str]]:
    """Merges that make every number of two or three digits one token, whichever pair BPE joins first."""
    digits = "0123456789"
    pairs = [[a, b] for a in digits for b in digits]
    triples = [m for a in digits for b in digits for c in digits for m in ([a + b, c], [a, b + c])]
    return pairs + triples


def train(texts: Iterable[str], out: Path) -> None:
    """Train on `texts` and write `out`/tokenizer.json and tokenizer_config.json."""
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    except ImportError as error:
        raise ToolError(f"{error}; install the Python package tokenizers") from error
    stages = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*stages, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    number_merges = _number_merges()
    numbers = list(dict.fromkeys(a + b for a, b in number_merges))
    learned = VOCABULARY_SIZE - len(numbers) - len(_TRAILING)
    trainer = trainers.BpeTrainer(
        vocab_size=learned, special_tokens=list(_LEADING), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    # Digits are left out of the training text, so that the learned merges are all spent on words.
    tokenizer.train_from_iterator(("".join(c for c in text if not c.isdigit()) for text in texts), trainer)
    data = json.loads(tokenizer.to_str())
    vocabulary = data["model"]["vocab"]
    if len(vocabulary) != learned:
        raise ToolError(f"the training text gives {len(vocabulary)} entries, {learned} wanted; use more text")
    for entry in numbers:
        vocabulary[entry] = len(vocabulary)
    data["model"]["merges"] = [list(m) if isinstance(m, (list, tuple)) else m.split(" ") for m in data["model"]["merges"]] + number_merges
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    data["added_tokens"] = [{"id": i, "content": t, **flags, "normalized": False, "special": True} for i, t in enumerate(_LEADING)]
    data["added_tokens"] += [
        {"id": len(vocabulary) + i, "content": t, **flags, "normalized": True, "special": False} for i, t in enumerate(_TRAILING)]
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    special = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config = {
        "add_bos_token": False, "add_eos_token": False, "bos_token": {**special, "content": cf.BOS}, "clean_up_tokenization_spaces": False,
        "eos_token": {**special, "content": cf.EOS}, "legacy": True, "model_max_length": 32768,
        "pad_token": {**special, "content": cf.PAD}, "unk_token": None, "tokenizer_class": "LlamaTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


class Encoder:
    """Text to ids and back, with a cache for the short pieces of which generated text is made."""

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ToolError(f"{error}; install the Python package tokenizers") from error
        if not path.exists():
            raise ToolError(f"{path}: not found; run tools/train/prepare.py first")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Ids of `text`; special tokens written in it are recognised.  Not cached."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def piece(self, text: str) -> list[int]:
        """Ids of a short piece that occurs often; the list must not be changed."""
        found = self._cache.get(text)
        if found is None:
            found = self._cache[text] = self.ids(text)
        return found

    def text(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)
