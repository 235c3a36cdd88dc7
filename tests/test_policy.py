"""The precision of each stage, and one backend for each precision."""

from __future__ import annotations

from typing import Any

import pytest

from vkrt.backends.fake import FakeBackend
from vkrt.backends.policy import Policy, StageBackends, parse_policy
from vkrt.errors import BackendError
from vkrt.options import Options, parse_bytes

STAGES = ("clip_l", "clip_g", "t5", "mmdit", "mmdit_controlled", "vae_encoder", "vae_decoder")


def resolved(text: Any, automatic: str) -> dict[str, str]:
    policy = parse_policy(text, STAGES)
    return {stage: policy.of(stage, automatic) for stage in STAGES}


@pytest.mark.parametrize("automatic", ["fp32", "bf16"])
def test_auto_is_what_the_device_has(automatic: str) -> None:
    assert set(resolved("auto", automatic).values()) == {automatic}


@pytest.mark.parametrize("automatic", ["fp32", "bf16"])
def test_fp16_spares_what_overflows(automatic: str) -> None:
    found = resolved("fp16", automatic)
    assert found.pop("t5") == found.pop("vae_decoder") == automatic
    assert set(found.values()) == {"fp16"}


def test_stages_by_name() -> None:
    found = resolved("mmdit=bf16, t5=fp16", "fp32")
    assert found["mmdit"] == found["mmdit_controlled"] == "bf16" and found["t5"] == "fp16"
    assert found["clip_l"] == found["vae_decoder"] == "fp32"
    assert resolved({"t5": "bf16"}, "fp32") == resolved("t5=bf16", "fp32")


def test_a_base_and_names_of_families() -> None:
    found = resolved("bf16,vae=fp32,vae_encoder=fp16,clip=auto", "fp32")
    assert found == {
        **dict.fromkeys(STAGES, "bf16"),
        **{"vae_decoder": "fp32", "vae_encoder": "fp16", "clip_l": "fp32", "clip_g": "fp32"},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fp8", "one of auto, fp32, bf16, fp16, int8, not 'fp8'"),
        ("", "not ''"),
        ("mmdit=", "not ''"),
        ("unet=bf16", "'unet', which is no stage; take clip_l, clip_g, t5, mmdit"),
        ("=bf16", "no stage"),
        ("mm=bf16", "no stage"),
        ("mmdit=bf16,mmdit=fp32", "two things"),
        ("bf16,fp32", "two things"),
        ("mmdit=bf16=fp32", "not 'bf16=fp32'"),
    ],
)
def test_what_is_not_understood(text: str, words: str) -> None:
    with pytest.raises(BackendError) as caught:
        parse_policy(text, STAGES)
    assert words in str(caught.value) and "\n" not in str(caught.value)


class Made(FakeBackend):
    """A backend that records the options it was made with."""

    streams = True

    def __init__(self, options: Options, precision: str) -> None:
        super().__init__()
        self.options, self.precision, self.closed = options, precision, False

    def close(self) -> None:
        self.closed = True


def make(policy: str, automatic: str, made: list[Made]) -> StageBackends:
    def create(options: Options) -> Made:
        wanted = automatic if options.precision == "auto" else options.precision
        made.append(Made(options, wanted))
        return made[-1]

    return StageBackends(Options(threads=1), parse_policy(policy, STAGES), create=create)


def test_one_backend_for_each_precision() -> None:
    made: list[Made] = []
    backends = make("mmdit=bf16,t5=bf16,clip_l=fp16", "fp32", made)
    found = {stage: backends(stage) for stage in STAGES}
    assert found["mmdit"] is found["mmdit_controlled"] is found["t5"]
    assert found["vae_encoder"] is found["vae_decoder"] is found["clip_g"]
    assert [m.precision for m in made] == ["fp32", "fp16", "bf16"]
    assert found["mmdit"].precision == "bf16" and made[2].options.threads == 1
    assert (backends.name, backends.device) == ("fake", "cpu")
    parts = dict.fromkeys(STAGES, "rest") | {"mmdit": "denoiser", "mmdit_controlled": "denoiser"}
    assert backends.precisions(parts) == {"rest": "fp16", "denoiser": "bf16"}
    backends.close()
    assert all(m.closed for m in made)


def test_the_first_backend_serves_what_auto_is() -> None:
    made: list[Made] = []
    backends = make("auto", "bf16", made)
    assert {backends(stage).precision for stage in STAGES} == {"bf16"} and len(made) == 1


def test_fp32_takes_over_from_what_overflows() -> None:
    from vkrt.stage import Port, Stage

    made: list[Made] = []
    backends = make("mmdit=fp16", "bf16", made)
    backend = backends("mmdit")
    port = Port("x", ("n",))
    with pytest.warns(RuntimeWarning, match="mmdit gives NaN"):
        program = backend.take_over(Stage("mmdit", None, (port,), (port,)), None)
    assert [m.precision for m in made] == ["bf16", "fp16", "fp32"]
    import numpy as np

    program(np.ones(3, np.float32))
    assert made[2].calls["mmdit"] == 1 and made[1].calls["mmdit"] == 0


def test_files_have_a_precision_of_their_own() -> None:
    backends = StageBackends(Options(), Policy("fp16"), create=lambda options: FakeBackend())
    assert backends("mmdit") is backends("t5") and backends.precision("t5") == ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8GiB", 8 * 2**30),
        ("8g", 8 * 2**30),
        (" 1.5 GiB ", 3 * 2**29),
        ("512MB", 512 * 10**6),
        ("2kib", 2048),
        ("1T", 2**40),
        ("1000", 1000),
        ("64b", 64),
    ],
)
def test_amounts_of_memory(text: str, wanted: int) -> None:
    assert parse_bytes(text) == wanted
    assert Options(memory_limit=wanted).memory_limit == wanted


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "8 XB", "0", "0.2", "nan", "1e9", "8GiB8", "9" * 400 + "T"]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(BackendError, match="such as 8GiB") as caught:
        parse_bytes(text)
    assert len(str(caught.value)) < 120


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(BackendError, match="memory_limit"):
        Options(memory_limit=0)
