"""Names that are longer than a text tower reads are found, and those that become one are refused."""

from pathlib import Path

import pytest

from helpers import bert
from helpers.tiny import encoder
from owseg import InputError
from owseg.evaluation.inference import texts_of
from owseg.evaluation.own_dataset import OwnDataset
from owseg.evaluation.protocols import EvaluateConfig, protocol_of
from owseg.methods.zero_shot import ZeroShotConfig
from owseg.segmenter import shortened_names
from owseg.text import CLIP_VOCABULARY, Tokenizer, clip_tokenizer, prompt_templates, shortened, told_shortened

PLAIN = ("{}",)


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return clip_tokenizer(CLIP_VOCABULARY, 77)


def words(count: int, last: str = "") -> str:
    """So many words of one token each."""
    return " ".join(["dog"] * (count - bool(last)) + [last] * bool(last))


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        (words(75), False),  # 75 and what opens and closes a text fill the 77
        (words(76), True),
        ("é" * 40, False),
        ("犬" * 40, True),  # a character of several tokens
        ("!" * 400, False),  # many bytes, few tokens
        ("cat", False),
    ],
)
def test_a_name_is_cut_beyond_77_tokens(clip: Tokenizer, name: str, cut: bool) -> None:
    assert (len(clip.encode(name)) > 75) is cut, "the example is none"
    assert shortened(clip, [name, "sky"], PLAIN) == ((name,) if cut else ())


def test_templates_take_room(clip: Tokenizer) -> None:
    assert shortened(clip, [words(72)], PLAIN) == ()
    assert shortened(clip, [words(72)], prompt_templates("simple")) == (words(72),)


def test_names_that_differ_only_after_what_is_read_are_refused(clip: Tokenizer) -> None:
    red, blue = words(80, "red"), words(80, "blue")
    with pytest.raises(InputError, match=r"dog red' and '.*dog blue' are the same in the first 77 tokens, .*; shorten them"):
        shortened(clip, ["sky", red, blue], PLAIN)
    assert shortened(clip, [red, red], PLAIN) == (red,), "a name that is given twice is one"
    near, far = words(76, "red"), words(60, "blue")
    assert shortened(clip, [near, far], PLAIN) == (near,)


def test_the_line_names_the_first_few() -> None:
    assert told_shortened(["a"]) == "1 name is longer than the text tower reads, and cut: 'a'"
    told = told_shortened([f"{letter}{'x' * 200}y" for letter in "abcd"])
    assert told.startswith("4 names are longer than the text tower reads, and cut: 'ax")
    assert told.endswith("y', ...")
    assert len(told) < 300


def test_a_bert_counts_its_own_tokens(tmp_path: Path) -> None:
    from owseg.methods.ovsegmentor.text_tower import BertTower

    bert.save_bert(tmp_path)
    tower = BertTower(str(tmp_path))
    room = tower.tokenize("").shape[1] - 2
    word = next(word for word in ("dog", "a", "cat") if len(tower.tokenize.encode(word)) == 1)
    assert shortened(tower.tokenize, [" ".join([word] * room)], PLAIN) == ()
    assert len(shortened(tower.tokenize, [" ".join([word] * (room + 1))], PLAIN)) == 1


def test_synonyms_and_prompt_names_are_looked_at(tmp_path: Path) -> None:
    long = words(90)
    lists = {"names": "cat\ndog\n", "prompts": f"cat\nred {long}, {long}\n", "also": f"cat: tiger {long}\n"}
    for name, lines in lists.items():
        (tmp_path / f"{name}.txt").write_text(lines)
    files = {"names": f"{tmp_path}/names.txt", "prompt_names": f"{tmp_path}/prompts.txt"}
    own = OwnDataset(name="own", images=str(tmp_path), labels=str(tmp_path), **files)
    protocol = protocol_of(EvaluateConfig(datasets=(own,), synonyms=f"{tmp_path}/also.txt"), "own")
    segmenter = ZeroShotConfig(templates="plain").build(encoder(tmp_path))
    assert shortened_names(segmenter, texts_of(protocol)) == (f"tiger {long}", f"red {long}", long)
