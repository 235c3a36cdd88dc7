"""Fetching weights: what is here is used, and what can't be fetched says where to put it."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from vkrt import catalog
from vkrt.errors import DownloadError
from vkrt.weights.hub import find_local, pull

hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")

TINY = catalog.find("sam2.1-tiny")
FILE = "sam2.1_hiera_tiny.pt"
HUB_ID = "facebook/sam2.1-hiera-tiny"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let any use of the network fail the test, and hide what this user has downloaded."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        pytest.fail("the network was used")

    monkeypatch.setattr(hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "shared"))


def put_into_hub_cache(folder: Path) -> Path:
    """Write a file where huggingface_hub keeps it."""
    repository = folder / "models--facebook--sam2.1-hiera-tiny"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / FILE).write_bytes(b"weights")
    return snapshot / FILE


def refusal(cache: Path, model: catalog.Model = TINY, offline: bool = False) -> str:
    with pytest.raises(DownloadError) as caught:
        pull(model, cache, offline)
    message = str(caught.value)
    assert message.isprintable() and caught.value.__cause__ is None
    return message


def test_a_packaged_model_needs_no_download(tmp_path: Path) -> None:
    packaged = tmp_path / "demo.safetensors"
    packaged.write_bytes(b"weights")
    model = replace(catalog.find("sam2.1-nano"), packaged=packaged)
    assert pull(model, tmp_path) == find_local(model, tmp_path) == packaged
    packaged.unlink()
    assert find_local(model, tmp_path) is None
    assert "reinstall vkrt" in refusal(tmp_path, model)


def test_a_file_put_there_by_hand_is_used_first(tmp_path: Path) -> None:
    by_hand = tmp_path / "checkpoints" / FILE
    by_hand.parent.mkdir()
    by_hand.write_bytes(b"weights")
    put_into_hub_cache(tmp_path / "hub")
    assert pull(TINY, tmp_path) == pull(TINY, tmp_path, offline=True) == by_hand


def test_earlier_downloads_are_used(tmp_path: Path) -> None:
    shared = put_into_hub_cache(Path(hub.constants.HF_HUB_CACHE))
    assert pull(TINY, tmp_path) == shared
    own = put_into_hub_cache(tmp_path / "hub")
    assert pull(TINY, tmp_path) == find_local(TINY, tmp_path) == own


def test_the_default_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "mine"))
    by_hand = tmp_path / "mine" / "checkpoints" / FILE
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(b"weights")
    assert pull(TINY) == find_local(TINY) == by_hand


def test_downloads_go_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(url: str, timeout: float) -> None:
        asked.append(url)
        assert timeout < 20

    def download(repo_id: str, filename: str, cache_dir: Path) -> str:
        assert (repo_id, filename) == (HUB_ID, FILE)
        return str(put_into_hub_cache(cache_dir))

    monkeypatch.setattr(hub, "get_hf_file_metadata", answer)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    path = pull(TINY, tmp_path)
    assert path.is_file() and path.is_relative_to(tmp_path / "hub")
    assert len(asked) == 1 and HUB_ID in asked[0] and FILE in asked[0]
    assert pull(TINY, tmp_path) == path and len(asked) == 1


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"fetch {FILE} of {HUB_ID} and put it at {tmp_path / 'checkpoints' / FILE}"
    message = refusal(tmp_path, offline=True)
    assert place in message and "vkrt pull sam2.1-tiny" in message
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal(tmp_path)
    assert place in message and "HF_HUB_OFFLINE is set" in message


def test_without_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    message = refusal(tmp_path)
    assert "vkrt[hub]" in message and str(tmp_path / "checkpoints" / FILE) in message


class Response:
    """Stand in for an answer of the hub."""

    status_code = 503
    headers: dict[str, str] = {}  # noqa: RUF012
    request = None


def http_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    error.args = ("line one\nline two",)
    error.response = Response()  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.LocalEntryNotFoundError("x"), "can't reach the hub"),
        (ConnectionError("x"), "can't reach the hub"),
        (TimeoutError("x"), "can't reach the hub"),
        (http_error(errors.GatedRepoError), "asks you to accept its terms"),
        (http_error(errors.RepositoryNotFoundError), "the hub has no facebook/"),
        (http_error(errors.EntryNotFoundError), f"has no {FILE}"),
        (http_error(errors.HfHubHTTPError), "the hub answered with status 503"),
        (PermissionError(13, "Permission denied", "/x"), "can't write to"),
        (OSError(28, "No space left on device"), "can't write to"),
    ],
)
@pytest.mark.parametrize("call", ["get_hf_file_metadata", "hf_hub_download"])
def test_every_failure_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, call: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *args, **kwargs: None)
    monkeypatch.setattr(hub, call, fail)
    message = refusal(tmp_path)
    assert words in message
    assert f"fetch {FILE} of {HUB_ID} and put it at {tmp_path / 'checkpoints' / FILE}" in message


def test_an_unreachable_hub_is_noticed_quickly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()

    def unreachable(*args: object, **kwargs: object) -> NoReturn:
        raise socket.gaierror(-2, "Name or service not known")

    # The real client runs, up to where it would look the hub's name up.
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "shared"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    began = time.monotonic()
    assert "can't reach the hub" in refusal(tmp_path)
    assert time.monotonic() - began < 20
