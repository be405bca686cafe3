from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import JobKind
from sollol_proxy.ollama.describe import describe
from sollol_proxy.ollama.multipart import field
from sollol_proxy.ollama.routes import find

TYPE = "multipart/form-data; boundary=XX"


def form(*parts: tuple[str, bytes], boundary: str = "XX") -> bytes:
    """Parts as (rest of the disposition, content)."""
    lines = b"".join(
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n"
        % (boundary.encode(), disposition.encode(), content)
        for disposition, content in parts
    )
    return lines + b"--" + boundary.encode() + b"--\r\n"


AUDIO = b'RIFF\r\n\r\nname="model"\r\n--X\x00\xff' * 5000
FILE = ('name="file"; filename="model.wav"\r\nContent-Type: audio/wav', AUDIO)


@pytest.mark.parametrize(
    "body",
    [
        form(('name="model"', b"whisper:v3"), FILE),
        form(FILE, ('name="model"', b"whisper:v3")),
        form(FILE, ("name=model", b"whisper:v3")),
        form(('name="language"', b"en"), FILE, ('name="model"', b"whisper:v3")),
    ],
)
def test_describe_finds_the_model_of_a_form(body: bytes) -> None:
    facts = describe(find("POST", "/v1/audio/transcriptions"), body, content_type=TYPE)
    assert (facts.kind, facts.model) == (JobKind.TRANSCRIBE, "whisper:v3")
    assert facts.body_bytes == len(body)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(FILE), TYPE),
        (form(('name="model"', b"")), TYPE),
        (form(('name="model"', b"m" * 5000)), TYPE),
        (form(('name="model"', b"m")), "multipart/form-data"),
        (form(('name="model"', b"m")), "application/json"),
        (form(('name="model"', b"m"))[:-9], TYPE),
        (b"", TYPE),
    ],
)
def test_describe_leaves_a_form_without_model_to_a_host(body: bytes, content_type: str) -> None:
    facts = describe(find("POST", "/v1/audio/transcriptions"), body, content_type=content_type)
    assert facts.kind is JobKind.OTHER


def test_field_reads_a_quoted_boundary() -> None:
    body = form(('name="model"', b"m"), boundary="a b")
    assert field(body, 'multipart/form-data; boundary="a b"', "model") == "m"


@given(st.binary(), st.text())
def test_field_never_raises(body: bytes, content_type: str) -> None:
    field(body, content_type, "model")
    field(b"--XX" + body, TYPE, "model")
