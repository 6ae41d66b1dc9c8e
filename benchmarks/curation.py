"""Which captions mention a frequent entity: our two tiers beside the same tagger on everything, and OVSegmentor's script.

    python benchmarks/curation.py [CAPTIONS] [--captions 4000] [--learn 8000] [--top 100] [--confidence 0.85] [--rounds 5]

CAPTIONS is anything that the filter reads; without it the miniature world's captions are taken. All approaches read the same
captions, on one thread of one process, in rounds of alternating order; seconds are CPU seconds, and a ratio is taken within a
round. The entities and the chances of their forms are learned beforehand from `--learn` other captions, which are tagged once.
Agreement is the share of captions on which keep/drop is the same as when everything is tagged.

OVSegmentor's script is written here from its description: nltk's word tokenizer (without the sentence splitter, whose data
cannot always be fetched; that makes it faster), 100 words as they stand, and a data frame that is copied for every row it
gains, so that the time per caption grows with their number.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before anything reads them

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from random import Random

import numpy as np
import pandas as pd
from captions import miniature_captions, real_captions
from nltk.tokenize import word_tokenize

from filtering.captions.corpus import FilterConfig
from filtering.captions.entities import EntityFinder
from filtering.captions.lexicon import load_lexicon, paper_names
from filtering.captions.matching import Matcher, tally
from filtering.captions.surface_forms import Scanner
from filtering.captions.tagger import load_tagger
from filtering.captions.text import for_tagging
from filtering.captions.vocabulary import FrequencyList, kept_entities

BATCH = 512
FEWEST_WORDS = 3

Approach = Callable[[Sequence[str]], Sequence[bool] | None]
"""Captions → which are kept; None of an approach that only does the work."""


def script(captions: Sequence[str], words: frozenset[str]) -> list[bool]:
    """OVSegmentor's filter: rows with a token that is one of the words, gathered one by one."""
    kept = pd.DataFrame(columns=["image_id", "caption", "entity"])
    keep = []
    for row, caption in enumerate(captions):
        found = words.intersection(word_tokenize(caption, preserve_line=True))
        keep.append(bool(found))
        if found:
            line = pd.DataFrame([{"image_id": row, "caption": caption, "entity": ",".join(found)}])
            kept = pd.concat([kept, line], ignore_index=True)
    return keep


def some_captions(source: str | None, count: int) -> list[str]:
    """Different captions of at least three words, drawn from all that there are."""
    captions = dict.fromkeys(real_captions(source) if source else miniature_captions(0))
    long_enough = [caption for caption in captions if len(caption.split()) >= FEWEST_WORDS]
    Random(0).shuffle(long_enough)
    return long_enough[:count]


def timed(approaches: Mapping[str, Approach], captions: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """CPU-seconds of each approach by round, in turns and back, so that none has the warmer machine."""
    seconds: dict[str, list[float]] = {name: [] for name in approaches}
    for turn in range(rounds):
        for name in list(approaches)[:: 1 if turn % 2 == 0 else -1]:
            began = time.process_time()
            approaches[name](captions)
            seconds[name].append(time.process_time() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", metavar="CAPTIONS")
    parser.add_argument("--captions", type=int, default=4000, help="captions that every approach reads")
    parser.add_argument("--learn", type=int, default=8000, help="other captions, from which entities and chances are learned")
    parser.add_argument("--top", type=int, default=100, help="number of entities")
    parser.add_argument("--confidence", type=float, default=FilterConfig.confidence)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    captions = some_captions(args.source, args.captions + args.learn)
    captions, others = captions[: args.captions], captions[args.captions :]
    nlp, lexicon = load_tagger(), load_lexicon()
    find, scan = EntityFinder(nlp, lexicon), Scanner(lexicon, nlp.tokenizer)
    began = time.process_time()
    tagged = find(others)
    forms = tally(scan(others), tagged, scan.means)
    learning = time.process_time() - began
    counts = Counter(chain.from_iterable(tagged))
    kept = kept_entities(FrequencyList().choose(counts, top_k=args.top, min_count=1, excluded=frozenset()))
    matcher = Matcher(find, scan, kept, forms, args.confidence)
    words = frozenset(paper_names())

    def pipe(captions: Sequence[str]) -> None:
        with nlp.memory_zone():
            for _ in nlp.pipe((for_tagging(caption)[0] for caption in captions), batch_size=BATCH):
                pass

    def match(captions: Sequence[str]) -> list[bool]:
        return [bool(names) for names in matcher.match(captions, scan(captions), [None] * len(captions))]

    approaches: dict[str, Approach] = {
        "nlp.pipe, tags alone": pipe,
        "nlp.pipe, entities": lambda captions: [not kept.isdisjoint(names) for names in find(captions)],
        "two tiers, keep or drop": lambda captions: matcher.keep(captions).tolist(),
        "two tiers, entities": match,
        "OVSegmentor's script": lambda captions: script(captions, words),
        "set look-up, the floor": lambda captions: [not words.isdisjoint(caption.split()) for caption in captions],
    }
    results = {name: approach(captions) for name, approach in approaches.items()}  # warms up, too
    before = dict(matcher.counts)
    matcher.keep(captions)
    ways = {way: (count - before[way]) / len(captions) for way, count in matcher.counts.items()}
    seconds = timed(approaches, captions, args.rounds)

    length = statistics.mean(len(caption.split()) for caption in captions)
    print(f"{len(captions)} captions of {length:.1f} words, {len(kept)} entities, 1 thread, {args.rounds} rounds")
    print(f"learned from {len(others)} other captions in {learning:.1f} s, once")
    print(f"{'':26}{'captions/s':>12}{'us each':>10}   times faster than nlp.pipe      than the script   agreement")
    truth = np.array(results["nlp.pipe, entities"])
    for name, result in results.items():
        each = statistics.median(seconds[name]) / len(captions)
        ratios = " ".join(
            f"{spread(seconds[base], seconds[name]):>24}" for base in ("nlp.pipe, tags alone", "OVSegmentor's script")
        )
        same = f"{(np.array(result) == truth).mean():10.2%}" if name.startswith(("two tiers", "nlp.pipe, e")) else ""
        print(f"{name:26}{1 / each:12,.0f}{1e6 * each:10.1f} {ratios} {same}")
    print("keep or drop: " + ", ".join(f"{share:.1%} {way}" for way, share in ways.items()))


def spread(slow: Sequence[float], fast: Sequence[float]) -> str:
    """Median ratio and its range over the rounds."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


if __name__ == "__main__":
    main()
