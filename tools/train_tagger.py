"""Train the tagger that ships in `filtering/captions/tagger/model` on a Universal Dependencies treebank.

    python tools/train_tagger.py TREEBANK_FOLDER [--out filtering/captions/tagger/model] [--adapt-only]

TREEBANK_FOLDER holds `train`, `dev` and `test` as `.conllu` or `.conllu.gz` (UD English EWT, CC BY-SA 4.0). Takes about six
minutes on one core. First every sentence is seen twice: as written, and as captions are written, in lower case and without
the final stop. Then, at a lower rate, fragments without a clause join them, since alt-texts are titles more often than
sentences. Last, for a short while, sentences and titles of `caption_grammar.py` do: people who climb and wave, a boy who opens
the sentence. `--adapt-only` begins with that on the model in `--out`. In each phase the weights with the best dev accuracy over
its forms are kept; test is read once, at the end.
"""

import argparse
import gzip
import random
from collections.abc import Iterator
from pathlib import Path

import spacy
from caption_grammar import CaptionGrammar, Sentence
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import compounding, fix_random_seed, minibatch
from thinc.api import Optimizer

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
    "version": "1.2.0",
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

NOUNS = frozenset({"NN", "NNS", "NNP", "NNPS"})
IN_A_PHRASE = NOUNS | {"JJ", "JJR", "JJS", "CD", "VBG", "VBN", "POS", "HYPH"}
JOINTS = (None, None, (",", ","), ("and", "CC"), ("with", "IN"), ("for", "IN"), ("of", "IN"), ("-", ","), ("|", ","))
"""(word, tag) between two noun phrases of a title; None is nothing at all."""

LOWER_RATE = 0.0003
SHARE_OF_FRAGMENTS = 0.6
"""Of one epoch's fragments, in the second phase. It is short: after 500 steps dev's common nouns in sentences got worse."""
ADAPTING_RATE = 0.0006
GRAMMAR_CAPTIONS = 7000
"""Of the grammar, for one epoch of the third phase. It is short: after 450 steps dev's alt-texts got worse."""


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


def fragments(sentences: list[Sentence], lot: random.Random) -> list[Sentence]:
    """Captions without a clause, as many as sentences: a piece of a sentence, or noun phrases of several in a row."""
    phrases = [phrase for sentence in sentences for phrase in noun_phrases(sentence)]
    drawn = []
    for sentence in sentences:
        fragment = piece(sentence, lot) if lot.random() < 0.5 else row_of(lot.sample(phrases, lot.randint(1, 3)), lot)
        form = lot.random()
        if form < 0.5:
            fragment = [(word.lower(), tag, space) for word, tag, space in fragment]
        elif form < 0.75:
            fragment = [(word[0].upper() + word[1:] if at == 0 else word, *rest) for at, (word, *rest) in enumerate(fragment)]
        drawn.append(fragment)
    return [fragment for fragment in drawn if fragment]


def noun_phrases(sentence: Sentence) -> list[Sentence]:
    """The longest runs of modifiers and nouns that end in a noun, without the article."""
    phrases: list[Sentence] = []
    run: Sentence = []
    for token in [*sentence, ("", "", False)]:
        if token[1] in IN_A_PHRASE:
            run.append(token)
            continue
        while run and run[-1][1] not in NOUNS:
            run.pop()
        if run:
            phrases.append(run)
        run = []
    return phrases


def piece(sentence: Sentence, lot: random.Random) -> Sentence:
    """Up to ten tokens of a sentence, from where a noun phrase may open to a noun; none if it has no noun."""
    ends = [at for at, (_, tag, _) in enumerate(sentence) if tag in NOUNS]
    if not ends:
        return []
    end = lot.choice(ends)
    starts = [at for at in range(max(0, end - 9), end + 1) if sentence[at][1] in IN_A_PHRASE | {"DT", "PRP$"}]
    return sentence[lot.choice(starts) : end + 1]


def row_of(phrases: list[Sentence], lot: random.Random) -> Sentence:
    """Noun phrases one after another, the way titles and key words are written."""
    row: Sentence = []
    for phrase in phrases:
        if row:
            joint, before = lot.choice(JOINTS), row.pop()
            row.append((*before[:2], joint is None or joint[0] != ","))
            row += [(*joint, True)] if joint else []
        row += phrase
    return row


def docs_of(nlp: Language, sentences: list[Sentence], *, tagged: bool) -> list[Doc]:
    """The sentences in the treebank's own tokens, with its tags or without any."""
    docs = []
    for sentence in sentences:
        words, tags, spaces = (list(column) for column in zip(*sentence, strict=True))
        docs.append(Doc(nlp.vocab, words=words, spaces=spaces, tags=tags if tagged else None))
    return docs


def examples_of(nlp: Language, sentences: list[Sentence]) -> list[Example]:
    """Training examples whose predicted side has the treebank's tokens."""
    return list(map(Example, docs_of(nlp, sentences, tagged=False), docs_of(nlp, sentences, tagged=True)))


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


def train(folder: Path, out: Path, *, adapt_only: bool = False) -> None:
    """Train, keep the best weights by dev accuracy, write the model to `out`, print the test accuracy."""
    fix_random_seed(0)
    train_set, dev_set, test_set = (find(folder, part) for part in ("train", "dev", "test"))
    forms = [dev_set, [as_caption(sentence) for sentence in dev_set], fragments(dev_set, random.Random(0))]
    nlp = spacy.load(out) if adapt_only else spacy.blank("en")
    if not adapt_only:
        nlp.add_pipe("tagger", config={"model": MODEL})
        optimizer = nlp.initialize(lambda: examples_of(nlp, train_set))
        run_phase(nlp, optimizer, train_set, forms[:2], steps=4000)
        run_phase(nlp, resumed(nlp, LOWER_RATE), train_set, forms, steps=500, seed=1, share=SHARE_OF_FRAGMENTS)
    forms.append(CaptionGrammar(random.Random(99)).captions(400))
    best = run_phase(
        nlp, resumed(nlp, ADAPTING_RATE), train_set, forms,
        steps=300, seed=3, share=SHARE_OF_FRAGMENTS, grammar=CaptionGrammar(random.Random(10)), every=150,
    )  # fmt: skip
    nlp.meta.update(META | {"performance": {"tag_acc_dev": round(best, 4)}})
    nlp.to_disk(out)
    report(spacy.load(out), test_set)


def resumed(nlp: Language, rate: float) -> Optimizer:
    """What goes on training `nlp` at a learning rate."""
    fix_random_seed(0)
    optimizer = nlp.resume_training()
    optimizer.learn_rate = rate
    return optimizer


def run_phase(
    nlp: Language,
    optimizer: Optimizer,
    sentences: list[Sentence],
    dev_forms: list[list[Sentence]],
    *,
    steps: int,
    seed: int = 0,
    share: float = 0.0,
    grammar: CaptionGrammar | None = None,
    every: int = 500,
) -> float:
    """Train for some steps of up to 64 sentences, with a `share` of their fragments and captions of `grammar`.

    The best weights are kept, by a look at dev `every` so many steps.

    Returns:
        Their mean accuracy over `dev_forms`.
    """
    lot = random.Random(seed)
    step, best, best_weights = 0, 0.0, b""
    while step < steps:
        drawn = fragments(sentences, lot) if share else []
        pieces = lot.sample(drawn, int(share * len(drawn)))
        captions = grammar.captions(GRAMMAR_CAPTIONS) if grammar else []
        examples = examples_of(nlp, [*sentences, *map(as_caption, sentences), *pieces, *captions])
        lot.shuffle(examples)
        for batch in minibatch(examples, size=64 if share or step else compounding(8.0, 64.0, 1.001)):
            nlp.update(batch, sgd=optimizer, drop=0.2)
            step += 1
            if step % every == 0:
                with nlp.use_params(optimizer.averages):
                    scores = [accuracy(nlp, form) for form in dev_forms]
                    if sum(scores) > best * len(scores):
                        best, best_weights = sum(scores) / len(scores), nlp.get_pipe("tagger").model.to_bytes()
                print(f"step {step}: dev", *(f"{score:.4f}" for score in scores), flush=True)
            if step == steps:
                break
    nlp.get_pipe("tagger").model.from_bytes(best_weights)
    return best


def report(nlp: Language, test_set: list[Sentence]) -> None:
    """Print the test accuracy of a saved model, the way the documentation quotes it."""
    print(f"test, treebank tokens:            {accuracy(nlp, test_set):.4f}")
    print(f"test, raw text:                   {accuracy(nlp, test_set, from_text=True):.4f}")
    print(f"test, lower case, no final stop:  {accuracy(nlp, [as_caption(s) for s in test_set]):.4f}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("treebank", type=Path, help="folder with train, dev and test .conllu(.gz)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "filtering" / "captions" / "tagger" / "model")
    parser.add_argument("--test-only", action="store_true", help="only measure the model that is in --out")
    parser.add_argument("--adapt-only", action="store_true", help="only the last phase, on the model that is in --out")
    args = parser.parse_args()
    if args.test_only:
        report(spacy.load(args.out), find(args.treebank, "test"))
    else:
        train(args.treebank, args.out, adapt_only=args.adapt_only)


if __name__ == "__main__":
    main()
