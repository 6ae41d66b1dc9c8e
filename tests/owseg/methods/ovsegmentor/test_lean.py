"""OVSegmentor's lean training step: the same losses, gradients and running statistics as the official order of work."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ovsegmentor_step import write_bert
from torch import Tensor

from helpers.tensors import assert_near
from owseg.data import Batch
from owseg.methods.ovsegmentor import OvSegmentor, OvSegmentorConfig
from owseg.methods.ovsegmentor.consistency import PAPER_SCALE
from owseg.methods.ovsegmentor.grouping import GroupingEncoder
from owseg.methods.ovsegmentor.text_tower import bert_tower
from references import ovsegmentor_training as reference

TEXTS = {
    "caption": ["a cat on the mat", "a dog runs over a green field", "two birds", "a boat at sea in the sun"],
    "question": [
        "a [MASK] on the [MASK]",
        "a [MASK] runs over a [MASK]",
        "two [MASK]",
        "a [MASK] at sea in the sun",
    ],
    "answer": ["a photo of a cat and mat", "a drawing of a dog and field", "a bird", "a photo of a boat"],
    "prompt": ["A photo of cat", "A photo of green field", "A photo of bird", "A photo of boat"],
}
BATCH = 4
LOSSES = ("contrast", "entity", "mask")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Case:
    """A tiny OVSegmentor in float64 without dropout, its text tower frozen; images, partners and padded texts."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        write_bert(
            folder, [text for texts in TEXTS.values() for text in texts], max_position_embeddings=24, **SIZES, **NO_DROPOUT
        )
        tower = GroupingEncoder(width=32, depths=(2, 2), heads=2, patch_size=8, grid=(4, 4), tokens=12, groups=4)
        config = OvSegmentorConfig(text_tower=str(folder), fidelity="official", groups=4, hidden=24, joint=16)
        self.whole = OvSegmentor(config, tower, bert_tower(str(folder)))
        for name, parameter in self.whole.named_parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))  # no norm the identity, no bias zero
            parameter.requires_grad_(not name.startswith("text."))
        slow = self.whole.momentum
        assert slow is not None
        slow.load_state_dict({name: value + 0.05 * torch.randn_like(value) for name, value in tower.state_dict().items()})
        self.whole.double()
        self.tokens = {name: self.whole.tokenize(texts) for name, texts in TEXTS.items()}
        self.image, self.partner = torch.randn(2, BATCH, 3, 32, 32, dtype=torch.float64)

    def method(self, fidelity: str) -> OvSegmentor:
        """A copy to run, of the same weights."""
        method = deepcopy(self.whole)
        method.config = replace(method.config, fidelity=fidelity)  # type: ignore[arg-type]
        method.official = fidelity == "official"
        return method

    def package(self, method: OvSegmentor, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        others = {name: ids for name, ids in tokens.items() if name != "caption"}
        batch = Batch(self.image, tokens["caption"], TEXTS["caption"], [], others, self.partner)
        return outcome(method, lambda: method.losses(batch))

    def plain(self, method: OvSegmentor, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        return outcome(method, lambda: reference.losses(method, self.image, tokens, self.partner))


def outcome(method: OvSegmentor, losses_of: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Losses, gradients of their sum by parameter, and what batch norms keep, all under the same noise."""
    torch.manual_seed(1)
    losses = losses_of()
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: parameter.grad for name, parameter in method.named_parameters() if parameter.grad is not None}
    statistics = {name: buffer.double() for name, buffer in method.named_buffers() if "head.norm" in name}
    return {name: loss.detach() for name, loss in losses.items()} | gradients | statistics


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_the_official_form_is_the_official_order_of_work(case: Case) -> None:
    """Without noise: all losses, and the gradient of everything that learns in stage 2."""
    method = case.method("official").eval()
    found, expected = case.package(method, case.tokens), case.plain(case.method("official").eval(), case.tokens)
    learned = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert set(LOSSES) | learned <= expected.keys()
    assert_near(found, expected, 1e-6)


def test_batch_norms_see_what_they_see_officially(case: Case) -> None:
    """In training, Gumbel noise and all: gradients, and running statistics that mix sentences, tokens, images and groups."""
    found = case.package(case.method("official").train(), case.tokens)
    expected = case.plain(case.method("official").train(), case.tokens)
    assert {name: int(expected[f"{name}.norm.num_batches_tracked"]) for name in ("text_head", "image_head", "answer_head")} == {
        "text_head": 8,
        "image_head": 4,
        "answer_head": 1,
    }
    assert_near(found, expected, 1e-6)


def test_the_exact_form_differs_in_padding_and_scale_alone(case: Case) -> None:
    """Texts of one length, no noise: the official losses and gradients, but for the mask loss's scale."""
    tokens = {name: ids[:, :5] for name, ids in case.tokens.items()}
    tokens["caption"][2, 4] = tokens["question"][2, 4] = tokens["answer"][2, 4] = 7  # the short ones' padding
    found = case.package(case.method("exact").eval(), tokens)
    official = case.method("official").eval()
    scale = PAPER_SCALE * official.config.groups / BATCH
    official.config = replace(official.config, mask_weight=official.config.mask_weight * scale)
    assert_near(found, case.plain(official, tokens), 1e-6)


def test_the_exact_form_reads_each_text_as_if_it_were_alone(case: Case) -> None:
    """No padding and no neighbour has a say in any sentence, nor in what completion makes of a question."""
    method = case.method("exact").eval()
    texts = method.read(case.tokens)
    groups = torch.randn(BATCH, 4, 32, dtype=torch.float64)
    filled = method.completion(texts["question"], groups, ignore_padding=False)
    for index in range(BATCH):
        for name, ids in case.tokens.items():
            alone = method.text(method.text.trim(ids[index : index + 1]))
            assert alone.features.shape[1] < ids.shape[1]
            torch.testing.assert_close(texts[name].sentence[index], alone.sentence[0])
            if name == "question":
                expected = reference.complete(method.completion, alone.features, groups[index : index + 1])
                torch.testing.assert_close(filled[index], expected[0, 0])


def test_the_momentum_encoder_follows_alike(case: Case) -> None:
    lean, plain = case.method("exact"), case.method("exact")
    lean.after_step()
    reference.update_momentum(plain)
    assert lean.momentum is not None
    assert plain.momentum is not None
    torch.testing.assert_close(dict(lean.momentum.state_dict()), dict(plain.momentum.state_dict()), rtol=1e-14, atol=1e-15)
    assert not torch.equal(lean.momentum.tokens, case.whole.momentum.tokens)  # type: ignore[union-attr]
