"""Towers hold no attention maps, and what is frozen no gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import tiny
from helpers.bert import save_bert
from owseg.encoders import run_blocks
from owseg.engine import TorchEngine
from owseg.fit import fit
from owseg.left_out import BadSamples
from owseg.method_config import TrainableConfig
from owseg.methods.ovsegmentor.text_tower import bert_tower
from owseg.training import TrainJob, loader

TEXT, HEADS = "red wall", 2
CONTEXT = 11
"""Tokens of a text for CLIP: not as many as a head has channels, which queries would be taken for maps by."""
Case = Callable[[Path], tuple[Callable[[], Tensor], int]]
"""Something to run, and the number of tokens that attend to each other in it."""


class Maps(TorchDispatchMode):
    """Collects the operations, of forward and backward, that give a number for each pair of `tokens` tokens.

    Of a mask there is one for all heads, or for all texts as well; of maps one for each of two texts or images and each head.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.found = tokens, set[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.shape[-2:] == (self.tokens, self.tokens):
                held = min(one.numel(), one.untyped_storage().nbytes() // one.element_size())  # a view of a mask holds less
                if held >= 2 * HEADS * self.tokens**2:
                    self.found.add(str(function))
        return result


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny.MODEL["text_cfg"], "context_length", CONTEXT)


def clip_image(folder: Path) -> tuple[Callable[[], Tensor], int]:
    clip = tiny.encoder(folder).clip
    return lambda: clip.encode_image(torch.randn(2, 3, 32, 32)), 17


def clip_text(folder: Path) -> tuple[Callable[[], Tensor], int]:
    encoder = tiny.encoder(folder)
    return lambda: encoder.clip.encode_text(encoder.tokenize([TEXT, TEXT])), CONTEXT


def tcl_trunk(folder: Path) -> tuple[Callable[[], Tensor], int]:
    visual = tiny.encoder(folder).clip.visual
    return lambda: run_blocks(visual, torch.randn(2, 17, 32), 0, 2), 17


def grouping(folder: Path) -> tuple[Callable[[], Tensor], int]:
    method = tiny.ovsegmentor_config().build(tiny.encoder(folder))
    return lambda: method.encoder(torch.randn(2, 3, 32, 32)).features, 16 + 6


def clip_text_copy(folder: Path) -> tuple[Callable[[], Tensor], int]:
    method = tiny.ovsegmentor_config().build(tiny.encoder(folder))
    return lambda: method.text(method.tokenize([TEXT, TEXT])).features, CONTEXT


def frozen_bert(folder: Path) -> tuple[Callable[[], Tensor], int]:
    """As in the second phase. One that learns draws dropout by place, over the maps themselves."""
    save_bert(folder)
    tower = bert_tower(str(folder)).eval()
    return lambda: tower(tower.tokenize(["a dog on road", "cat"])).features, 77


def vilseg_image(folder: Path) -> tuple[Callable[[], Tensor], int]:
    method = tiny.vilseg_config().build(None)
    return lambda: method.image(torch.randn(2, 3, 32, 32)).patches, 17


def vilseg_text(folder: Path) -> tuple[Callable[[], Tensor], int]:
    method = tiny.vilseg_config().build(None)
    tokens = method.tokenize([TEXT, TEXT])
    return lambda: method.text(tokens), int(tokens[0].argmax()) + 1


@pytest.mark.parametrize(
    "case", [clip_image, clip_text, tcl_trunk, grouping, clip_text_copy, frozen_bert, vilseg_image, vilseg_text]
)
def test_no_tower_holds_attention_maps_in_training(tmp_path: Path, case: Case) -> None:
    run, tokens = case(tmp_path)
    with Maps(tokens) as maps:
        run().square().sum().backward()
    assert maps.found == set()


def test_maps_would_be_seen(tmp_path: Path) -> None:
    run, tokens = clip_image(tmp_path)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), Maps(tokens) as maps:
        run().square().sum().backward()
    assert maps.found


@pytest.mark.parametrize("config", [tiny.tcl_config(1, 1), tiny.ovsegmentor_config(1, 1)])
def test_what_a_phase_does_not_train_keeps_no_gradient(tmp_path: Path, config: TrainableConfig) -> None:
    """Nor what the phase before has trained, whose last step leaves one for each parameter."""
    method = config.build(tiny.encoder(tmp_path))
    shards = tuple(tiny.write_shards(tmp_path / "shards"))
    job = TrainJob(method=config, encoder=tiny.encoder_config(tmp_path), shards=shards, out=tmp_path)
    held: list[set[str]] = []

    def on_log(step: int, losses: dict[str, float], lr: float, diagnostics: dict[str, float]) -> None:
        held.append({name for name, parameter in method.named_parameters() if parameter.grad is not None})

    fit(
        method,
        config.phases,
        config.optim,
        lambda groups, optim: TorchEngine(method, groups, optim),
        loader(job, method, 0, 1, BadSamples(tmp_path / "bad", 0.0, write=False)),
        seed=0,
        log_every=1,
        on_log=on_log,
    )
    for phase, with_gradient in zip(config.phases, held, strict=True):
        assert with_gradient
        assert all(name.startswith(phase.train) for name in with_gradient)
    assert len(held[1]) < len(list(method.parameters())), "the last phase freezes something"


def test_frozen_towers_record_nothing_for_backward(tmp_path: Path) -> None:
    """What learns reads their outputs as constants; OVSegmentor's text tower is frozen in the second phase."""
    assert tiny.tcl_config().build(tiny.encoder(tmp_path)).trunk(torch.randn(2, 3, 32, 32)).grad_fn is None
    grouping, vilseg = tiny.ovsegmentor_config().build(tiny.encoder(tmp_path)), tiny.vilseg_config().build(None)
    grouping.text.requires_grad_(False)
    texts = grouping.read({"caption": grouping.tokenize([TEXT, TEXT])})
    assert texts["caption"].features.grad_fn is None
    for copy in (grouping.momentum, vilseg.teacher, vilseg.teacher_head):
        assert list(copy.parameters()) == [], "copies that follow are buffers"
        assert not any(buffer.requires_grad for buffer in copy.buffers())
