"""ViL-Seg's regions: components, pooled features, names."""

import pytest
import torch
import torch.nn.functional as F

from helpers import tiny
from owseg.methods.vilseg import VilSeg
from owseg.methods.vilseg.regions import connected_components, paint, pool_regions


def test_segment_is_the_mean_of_the_region_s_patches() -> None:
    torch.manual_seed(0)
    method = tiny.vilseg_config(clusters=3).build(None).eval()
    image = torch.randn(2, 3, 27, 45)  # neither side is whole patches
    classes = method.embed_classes(["cat", "sea", "red wall", "road"])
    assert torch.allclose(classes.norm(dim=1), torch.ones(4))
    scores = method.segment(image, classes, background=True)
    assert scores.shape == (2, 5, 27, 45)
    assert (scores[:, 0] == method.config.background_threshold).all()
    assert torch.allclose(scores[:, 1:].sum(dim=1), torch.ones(2, 27, 45), atol=1e-5)
    padded = F.pad(image, (1, 2, 2, 3))  # 27 → 32, 45 → 48, half before
    with torch.no_grad():
        tokens = method.image(padded)
        logits = method.clusters(tokens.patches).transpose(1, 2).reshape(2, 3, 4, 6)
        clusters = F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False).argmax(dim=1)
        embedded = F.normalize(method.image_projection(tokens.patches), dim=-1)
        for picture in range(2):
            for cluster in clusters[picture].unique():
                inside = clusters[picture] == cluster
                shares = inside.float().reshape(4, 8, 6, 8).sum(dim=(1, 3)).flatten()
                mean = F.normalize((shares[:, None] * embedded[picture]).sum(dim=0), dim=0)
                expected = (method.log_scale.exp() * classes @ mean).softmax(dim=0)
                shown = inside[2:29, 1:46]
                assert torch.allclose(scores[picture, 1:, shown], expected[:, None], atol=1e-5)
    regions = method.regions(image, classes)
    assert torch.equal(regions, clusters[:, 2:29, 1:46])


def test_patches_that_are_named_lie_in_the_text_space() -> None:
    """What meets the caption in training is the mean of the very embeddings that regions are named by."""
    method = tiny.vilseg_config().build(None).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = method.image(image)
        assert torch.allclose(method.embed(tokens), method.image_projection(tokens.patches).mean(dim=1), atol=1e-6)
        by_class_token = VilSeg(tiny.vilseg_config(pool="cls")).eval()
        tokens = by_class_token.image(image)
        assert torch.allclose(by_class_token.embed(tokens), by_class_token.image_projection(tokens.whole), atol=1e-6)


def test_connected_components() -> None:
    clusters = torch.tensor([[[0, 0, 1, 0], [1, 1, 1, 0], [0, 0, 1, 2]]])
    parts = connected_components(clusters)[0]
    assert len(parts.unique()) == 5
    assert int(parts.min()) == 0
    for part in parts.unique():
        assert len(clusters[0][parts == part].unique()) == 1, "a component is of one cluster"
    assert parts[0, 0] != parts[0, 3]
    assert parts[0, 3] == parts[1, 3]
    torch.manual_seed(0)
    method = tiny.vilseg_config(components=True).build(None).eval()
    image = torch.randn(1, 3, 32, 32)
    whole = VilSeg(tiny.vilseg_config()).eval()
    whole.load_state_dict(method.state_dict())
    finer, coarser = (m.regions(image, torch.zeros(1, 16)) for m in (method, whole))
    assert all(len(coarser[finer == part].unique()) == 1 for part in finer.unique())
    assert method.regions_across_windows is False
    assert whole.regions_across_windows is True


def test_pool_and_paint() -> None:
    patches = torch.tensor([[[[3.0, 0.0], [0.0, 2.0]]]])  # one row of two patches
    regions = torch.tensor([[[0, 0, 0, 1], [0, 0, 1, 1]]])  # 2 x 2 pixels each
    pooled = pool_regions(patches, regions, 2)
    assert pooled[0, 0].tolist() == pytest.approx(F.normalize(torch.tensor([4.0, 1.0]), dim=0).tolist())
    assert pooled[0, 1].tolist() == pytest.approx([0.0, 1.0])
    painted = paint(torch.tensor([[[1.0, 5.0], [2.0, 6.0]]]), regions)
    assert painted.shape == (1, 2, 2, 4)
    assert painted[0, 1].tolist() == [[5, 5, 5, 6], [5, 5, 6, 6]]
