"""Train the tagger that ships in `filtering/tagger/model` on a Universal Dependencies treebank.

    python tools/train_tagger.py TREEBANK_FOLDER [--out filtering/tagger/model]

TREEBANK_FOLDER holds `train`, `dev` and `test` as `.conllu` or `.conllu.gz` (UD English EWT, CC BY-SA 4.0). Takes about five
minutes on one core. Every sentence is seen twice: as written, and as captions are written, in lower case and without the
final stop. The weights with the best dev accuracy over both forms are kept; test is read once, at the end.
"""

import argparse
import gzip
import random
from collections.abc import Iterator
from pathlib import Path

import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import compounding, fix_random_seed, minibatch

MODEL = {
    "@architectures": "spacy.Tagger.v2",
    "tok2vec": {
        "@architectures": "spacy.Tok2Vec.v2",
        "embed": {
            "@architectures": "spacy.MultiHashEmbed.v2",
            "width": 96,
            "attrs": ["NORM", "PREFIX", "SUFFIX", "SHAPE"],
            "rows": [6000, 1000, 2500, 500],
            "include_static_vectors": False,
        },
        "encode": {
            "@architectures": "spacy.MaxoutWindowEncoder.v2",
            "width": 96,
            "window_size": 1,
            "maxout_pieces": 3,
            "depth": 4,
        },
    },
}
META = {
    "name": "caption_tagger",
    "version": "1.0.0",
    "description": "Part-of-speech tagger for web captions: written and lower-case English.",
    "license": "CC BY-SA 4.0",
    "sources": [
        {
            "name": "Universal Dependencies English EWT",
            "url": "https://github.com/UniversalDependencies/UD_English-EWT",
            "license": "CC BY-SA 4.0",
        }
    ],
}

Sentence = list[tuple[str, str, bool]]
"""(word, fine-grained tag, followed by a space) for every token."""


def read_conllu(path: Path) -> Iterator[Sentence]:
    """The sentences of a CoNLL-U file, with words as the treebank splits them ("can", "not")."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        sentence: Sentence = []
        joined_until = 0  # last word of a multi-word token ("3-4 don't"): its words are written without spaces
        for line in file:
            if line.startswith("#"):
                continue
            fields = line.rstrip("\n").split("\t")
            if len(fields) != 10:
                if sentence:
                    yield sentence
                sentence, joined_until = [], 0
            elif "-" in fields[0]:
                joined_until = int(fields[0].split("-")[1])
            elif fields[0].isdigit():
                space = "SpaceAfter=No" not in fields[9] and int(fields[0]) >= joined_until
                sentence.append((fields[1], fields[4], space))


def as_caption(sentence: Sentence) -> Sentence:
    """The sentence in lower case, without its final stop."""
    body = sentence[:-1] if len(sentence) > 1 and sentence[-1][1] == "." else sentence
    return [(word.lower(), tag, space) for word, tag, space in body]


def examples_of(nlp: Language, sentences: list[Sentence]) -> list[Example]:
    """Training examples whose predicted side has the treebank's tokens."""
    examples = []
    for sentence in sentences:
        words, tags, spaces = (list(column) for column in zip(*sentence, strict=True))
        reference = Doc(nlp.vocab, words=words, spaces=spaces, tags=tags)
        examples.append(Example(Doc(nlp.vocab, words=words, spaces=spaces), reference))
    return examples


def accuracy(nlp: Language, sentences: list[Sentence], *, from_text: bool = False) -> float:
    """Share of right fine-grained tags; `from_text` lets spaCy's tokenizer split the raw text and scores the aligned tokens."""
    examples = examples_of(nlp, sentences)
    if from_text:
        examples = [Example(nlp.make_doc(example.reference.text), example.reference) for example in examples]
    return float(nlp.evaluate(examples)["tag_acc"])


def find(folder: Path, part: str) -> list[Sentence]:
    """The sentences of the treebank's `part`."""
    paths = sorted(folder.glob(f"*{part}.conllu*"))
    if not paths:
        raise SystemExit(f"{folder}: no *{part}.conllu or *{part}.conllu.gz; give the folder of a UD treebank")
    return list(read_conllu(paths[0]))


def train(folder: Path, out: Path, steps: int) -> None:
    """Train, keep the best weights by dev accuracy, write the model to `out`, print the test accuracy."""
    fix_random_seed(0)
    shuffle = random.Random(0)
    train_set, dev_set, test_set = (find(folder, part) for part in ("train", "dev", "test"))
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger", config={"model": MODEL})
    examples = examples_of(nlp, train_set + [as_caption(sentence) for sentence in train_set])
    optimizer = nlp.initialize(lambda: examples)
    step, best, best_weights = 0, 0.0, b""
    while step < steps:
        shuffle.shuffle(examples)
        for batch in minibatch(examples, size=compounding(8.0, 64.0, 1.001) if step == 0 else 64):
            nlp.update(batch, sgd=optimizer, drop=0.2)
            step += 1
            if step % 500 == 0:
                with nlp.use_params(optimizer.averages):
                    score = (accuracy(nlp, dev_set) + accuracy(nlp, [as_caption(s) for s in dev_set])) / 2
                    if score > best:
                        best, best_weights = score, nlp.get_pipe("tagger").model.to_bytes()
                print(f"step {step}: dev {score:.4f}", flush=True)
            if step == steps:
                break
    nlp.get_pipe("tagger").model.from_bytes(best_weights)
    nlp.meta.update(META | {"performance": {"tag_acc_dev": round(best, 4)}})
    nlp.to_disk(out)
    report(spacy.load(out), test_set)


def report(nlp: Language, test_set: list[Sentence]) -> None:
    """Print the test accuracy of a saved model, the way the documentation quotes it."""
    print(f"test, treebank tokens:            {accuracy(nlp, test_set):.4f}")
    print(f"test, raw text:                   {accuracy(nlp, test_set, from_text=True):.4f}")
    print(f"test, lower case, no final stop:  {accuracy(nlp, [as_caption(s) for s in test_set]):.4f}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("treebank", type=Path, help="folder with train, dev and test .conllu(.gz)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "filtering" / "tagger" / "model")
    parser.add_argument("--steps", type=int, default=4000, help="training steps of up to 64 sentences (4000)")
    parser.add_argument("--test-only", action="store_true", help="only measure the model that is in --out")
    args = parser.parse_args()
    if args.test_only:
        report(spacy.load(args.out), find(args.treebank, "test"))
    else:
        train(args.treebank, args.out, args.steps)


if __name__ == "__main__":
    main()
