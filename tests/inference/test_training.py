"""Labels, batches and losses of a tiny synthetic tree in the layout of the sets."""

import math
from pathlib import Path

import pytest
import torch

from inference.training.data import Sampler, birads_targets, read_catalogue
from inference.training.losses import mask_loss, masked_binary, masked_choice
from inference.training.manifest import DataFault


def test_catalogue_keeps_absent_labels_absent(tree: Path) -> None:
    catalogue = read_catalogue(tree, "train")
    assert len(catalogue) == 13
    normal = catalogue.names.index("busi_train_4")
    assert math.isnan(float(catalogue.malignancy[normal]))
    assert torch.isnan(catalogue.boxes[normal]).all()
    unlabelled = catalogue.names.index("busbra_train_0")
    assert int(catalogue.choices["shape"][unlabelled]) == -1
    assert torch.isnan(catalogue.margin[unlabelled]).all()


def test_excluded_rows_are_in_no_split(tree: Path) -> None:
    for split in ("train", "val", "test"):
        assert not any("99" in name for name in read_catalogue(tree, split).names)


def test_margin_is_never_trained_on_busi(tree: Path) -> None:
    catalogue = read_catalogue(tree, "train", sets=("busi",))
    assert torch.isnan(catalogue.margin).all()


def test_missing_data_says_which_split_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="split val"):
        read_catalogue(tmp_path, "val")


def test_plain_category_4_says_nothing_about_its_subdivision() -> None:
    above2, above3, above4a, above4b, above4c = birads_targets("4")
    assert (above2, above3, above4c) == (1.0, 1.0, 0.0)
    assert math.isnan(above4a)
    assert math.isnan(above4b)
    assert birads_targets("4b") == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert all(math.isnan(target) for target in birads_targets(""))


def test_background_windows_carry_no_diagnosis(tree: Path) -> None:
    sampler = Sampler(read_catalogue(tree, "train"), weights={}, seed=1)
    batch = sampler.batch(24, 64, crop_share=0.0, background_share=1.0)
    assert torch.isnan(batch.malignancy).all()
    assert (batch.choices["shape"] == -1).all()
    empty = batch.masks.amax(dim=(1, 2)) == 0
    assert (batch.lesion[empty] == 0).all()


def test_same_seed_draws_the_same_batch(tree: Path) -> None:
    catalogue = read_catalogue(tree, "train")
    first, second = (
        Sampler(catalogue, weights={}, seed=7).batch(
            8, 64, crop_share=0.5, background_share=0.1
        )
        for _ in range(2)
    )
    assert torch.equal(first.windows, second.windows)
    assert torch.equal(first.masks, second.masks)


def test_losses_pass_over_absent_labels() -> None:
    nan = math.nan
    logits = torch.tensor([3.0, -2.0, 50.0])
    some = masked_binary(logits, torch.tensor([1.0, 0.0, nan]))
    assert float(some) == pytest.approx(
        float(masked_binary(logits[:2], torch.tensor([1.0, 0.0])))
    )
    assert float(masked_binary(logits, torch.full((3,), nan))) == 0
    assert float(masked_choice(torch.zeros(2, 3), torch.tensor([-1, -1]))) == 0


def test_lesions_that_nobody_drew_keep_their_diagnosis_and_teach_no_mask() -> None:
    targets = torch.zeros(2, 4, 4)
    targets[0, 1:3, 1:3] = 1
    targets[1] = math.nan
    logits = torch.randn(2, 4, 4)
    both = mask_loss(logits, targets)
    assert float(both) == pytest.approx(float(mask_loss(logits[:1], targets[:1])))
    assert float(mask_loss(logits[1:], targets[1:])) == 0
