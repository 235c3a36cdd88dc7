"""After vkrt.compat.install(), code that imports SAM 2's own package finds vkrt's."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import vkrt.compat
from vkrt.compat.image_predictor import SAM2ImagePredictor
from vkrt.errors import VkrtError

# What is imported here is not there for a type checker.
SAM2 = "sam2"


@pytest.fixture
def installed() -> Iterator[None]:
    vkrt.compat.install()
    yield
    vkrt.compat.uninstall()


def script(text: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a script of its own."""
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


THIRD_PARTY = """
import sys
import numpy as np
import vkrt.compat

vkrt.compat.install()
vkrt.compat.install()

import sam2
from sam2.build_sam import build_sam2, build_sam2_video_predictor
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2 import sam2_video_predictor
from sam2.utils.transforms import SAM2Transforms

photo = np.zeros((48, 64, 3), np.uint8)
photo[10:30, 20:40] = 255
predictor = SAM2ImagePredictor(build_sam2("sam2.1-nano", device="cpu"))
predictor.set_image(photo)
masks, scores, logits = predictor.predict(np.array([[30, 20]]), np.array([1]))
best = masks[scores.argmax()] > 0
print(masks.shape, best[20, 30], (best & (photo[..., 0] > 0)).sum() / best.sum() > 0.9)
print(isinstance(predictor._transforms, SAM2Transforms), sam2.__name__)
"""


def test_a_script_written_for_upstream() -> None:
    done = script(THIRD_PARTY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(3, 48, 64) True True", "True sam2"]


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("from sam2.build_sam import build_sam3", "no build_sam3 in sam2.build_sam, which has"),
        ("import sam2.modeling.backbones", "no backbones in sam2.modeling, which has sam2_base"),
        ("from sam2.modeling.backbones import hieradet", "backbones in sam2.modeling, which has"),
        ("from sam2 import _C", "no _C in sam2, which has build_sam"),
        (
            "from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator",
            "a later version brings the automatic mask generator",
        ),
        ("import sam2.automatic_mask_generator", "a later version brings the automatic mask"),
    ],
)
def test_what_is_not_there_is_told(installed: None, statement: str, told: str) -> None:
    with pytest.raises(ImportError, match=told) as caught:
        exec(statement, {})
    assert "\n" not in str(caught.value)


def test_attributes(installed: None) -> None:
    names: dict = {}
    exec("import sam2.sam2_image_predictor as module\nfrom sam2.utils.amg import *", names)
    module = names["module"]
    assert module.SAM2ImagePredictor is SAM2ImagePredictor
    assert not hasattr(module, "Absent") and "SAM2ImagePredictor" in dir(module)
    with pytest.raises(AttributeError, match=r"no Absent in sam2\.sam2_image_predictor, which"):
        _ = module.Absent
    assert "build_point_grid" in names


def test_the_real_package_must_not_be_there_already(tmp_path: Path) -> None:
    (tmp_path / "sam2").mkdir()
    (tmp_path / "sam2" / "__init__.py").write_text("real = True")
    done = script(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import vkrt.compat
        vkrt.compat.install()
        import sam2
        print(hasattr(sam2, "real"))
        vkrt.compat.uninstall()
        import sam2
        print(sam2.real)
        try:
            vkrt.compat.install()
        except vkrt.errors.VkrtError as error:
            print("was imported already, from" in str(error))
        """,
        tmp_path,
    )
    assert done.stdout.split() == ["False", "True", "True"], done.stderr


def test_helpers_of_masks(installed: None) -> None:
    names: dict = {}
    exec("from sam2.utils.amg import *\nfrom sam2.utils.misc import *", names)
    mask = np.zeros((2, 6, 8), bool)
    mask[0, 1:4, 2:7] = True
    mask[0, 2, 3] = False
    tensor = torch.from_numpy(mask)
    assert names["mask_to_box"](tensor[:, None]).tolist() == [[[2, 1, 6, 3]], [[8, 6, -1, -1]]]
    assert names["batched_mask_to_box"](tensor).tolist() == [[2, 1, 6, 3], [0, 0, 0, 0]]
    assert names["box_xyxy_to_xywh"]([2, 1, 6, 3]) == [2, 1, 4, 2]
    runs = names["mask_to_rle_pytorch"](tensor)
    assert runs[0] == {"size": [6, 8], "counts": [13, 3, 3, 1, 1, 1, 3, 3, 3, 3, 3, 3, 8]}
    assert runs[1]["counts"] == [48]
    for run, one in zip(runs, mask, strict=True):
        np.testing.assert_array_equal(names["rle_to_mask"](run), one)
        assert names["area_from_rle"](run) == one.sum()
    full = names["mask_to_rle_pytorch"](torch.ones(1, 2, 2, dtype=torch.bool))
    assert full[0]["counts"] == [0, 4]
    logits = torch.full((1, 1, 6, 8), 5.0)
    logits[0, 0, 2, 3] = -5.0
    assert names["fill_holes_in_mask_scores"](logits, 2)[0, 0, 2, 3] == pytest.approx(0.1)
    score = names["calculate_stability_score"](torch.tensor([[0.5, 2.0], [-3.0, 4.0]]), 0.0, 1.0)
    assert score == pytest.approx(2 / 3)
    assert names["build_point_grid"](2).tolist() == [
        [0.25, 0.25],
        [0.75, 0.25],
        [0.25, 0.75],
        [0.75, 0.75],
    ]
    one = names["concat_points"](None, torch.zeros(1, 1, 2), torch.ones(1, 1))
    assert names["concat_points"](one, torch.ones(1, 2, 2), torch.zeros(1, 2))[
        "point_labels"
    ].tolist() == [[1, 0, 0]]


def test_every_name_is_there(installed: None) -> None:
    from importlib import import_module

    from vkrt.compat.finder import MODULES

    for module, names in MODULES.items():
        for name in names:
            assert getattr(import_module(module), name) is not None
    with pytest.raises(VkrtError):
        sys.modules[SAM2].__spec__ = None  # as another package's would be
        vkrt.compat.install()
    del sys.modules[SAM2]
