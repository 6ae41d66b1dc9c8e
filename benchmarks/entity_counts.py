"""How far the entity counts of a tagged sample are from tagging everything.

    python benchmarks/entity_counts.py CAPTIONS [CAPTIONS ...] [--samples 1000 2500 5000] [--draws 10] [--top 100]

CAPTIONS is anything that the filter reads; captions that the rules drop are left out. For each size that many captions are
drawn `--draws` times; `entity_counts` then estimates from the sample's tags and the forms of all captions in how many each
entity occurs. The estimate is held against the truth for the entities that are truly the most frequent. Scaling the sample's
own counts up, which needs no forms, is shown beside it.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from random import Random
from statistics import mean

import pyarrow as pa

from filtering.captions.entities import EntityFinder
from filtering.captions.lexicon import load_lexicon
from filtering.captions.matching import entity_counts, tally
from filtering.captions.reader import SourceConfig, read_links
from filtering.captions.rules import DEFAULT_RULES
from filtering.captions.surface_forms import Scanner
from filtering.captions.tagger import load_tagger
from filtering.shards import mark, split


def captions_of(source: str) -> list[str]:
    """The captions that pass the rules, in a stable order."""
    links = pa.concat_tables(read_links(SourceConfig(path=source))).sort_by("key")
    captions: list[str] = split(mark(links, DEFAULT_RULES))[0]["caption"].to_pylist()
    return captions


def most_frequent(counts: Mapping[str, int], top: int) -> list[str]:
    """The names of the `top` largest counts, ties by name."""
    return sorted(counts, key=lambda name: (-counts[name], name))[:top]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="CAPTIONS")
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 2500, 5000])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--top", type=int, default=100)
    args = parser.parse_args()
    nlp, lexicon = load_tagger(), load_lexicon()
    find, scan = EntityFinder(nlp, lexicon), Scanner(lexicon, nlp.tokenizer)
    for source in args.sources:
        captions = captions_of(source)
        tagged, forms = find(captions), scan(captions)
        truth = Counter(chain.from_iterable(tagged))
        top = most_frequent(truth, args.top)
        print(f"{Path(source).name}: {len(captions)} captions; the last of the {args.top} stands in {truth[top[-1]]} of them")
        print("  sample   mean error   worst (mean, max)   of the top found (mean, min)   scaled up: mean error, found")
        for size in args.samples:
            draws = [Random(draw).sample(range(len(captions)), size) for draw in range(args.draws)]
            told, scaled = [], []
            for draw in draws:
                drawn = set(draw)
                read = [names if row in drawn else None for row, names in enumerate(tagged)]
                told.append(entity_counts(tally(forms, read, scan.means)))
                sample = Counter(chain.from_iterable(tagged[row] for row in draw))
                scaled.append({name: round(count * len(captions) / size) for name, count in sample.items()})
            errors = [errors_of(counts, truth, top) for counts in told]
            found = [len({*most_frequent(counts, args.top)} & {*top}) for counts in told]
            plain = mean(mean(errors_of(counts, truth, top)) for counts in scaled)
            plain_found = mean(len({*most_frequent(counts, args.top)} & {*top}) for counts in scaled)
            print(
                f"  {size:6}   {mean(map(mean, errors)):10.1%}   {mean(map(max, errors)):9.0%} {max(map(max, errors)):6.0%}"
                f"   {mean(found):18.1f} {min(found):5}   {plain:20.1%} {plain_found:9.1f}"
            )


def errors_of(counts: Mapping[str, int], truth: Mapping[str, int], names: Sequence[str]) -> list[float]:
    """The relative error of each name's count."""
    return [abs(counts.get(name, 0) - truth[name]) / truth[name] for name in names]


if __name__ == "__main__":
    main()
