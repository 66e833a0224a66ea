"""`fedjax-rec export`: what a trained model holds or recommends, for other programs."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_rec.cli.recommend import write_table

if TYPE_CHECKING:
    from fedjax_rec.runs.recommender import Recommender

KINDS = ("lists", "vectors", "trec", "ranx")


def add_parser(commands: Any) -> None:
    """Describe `export` and its flags."""
    parser = commands.add_parser(
        "export",
        help="write vectors, lists, or runs for ranx and trec_eval",
        description="Write what a trained model holds or recommends. lists: csv, json or parquet, without what "
        "users have met. vectors: an .npz of the parameters with the ids of their rows. trec, ranx: the lists "
        "that the test ranks, for trec_eval or ranx, with --qrels for the test items.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", metavar="RUN", required=True, help="the run folder")
    parser.add_argument("--what", choices=KINDS, default=KINDS[0], help=f"(default: {KINDS[0]})")
    parser.add_argument("--out", metavar="FILE", required=True, help="the file to write")
    parser.add_argument("-k", type=int, default=100, metavar="K", help="items of each user (default: 100)")
    parser.add_argument("--qrels", metavar="FILE", help="for trec and ranx: also write the test items")


def call(given: argparse.Namespace) -> int:
    """Write the files; none of them may exist."""
    from fedjax_rec.runs.recommender import load

    files = [Path(file).expanduser() for file in (given.out, given.qrels) if file is not None]
    for file in files:
        if file.exists():
            raise FileExistsError(f"{file} exists; name a new file")
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError(f"--out and --qrels are both {given.out}; name two files")
    if given.qrels is not None and given.what not in ("trec", "ranx"):
        raise ValueError(f"--qrels is for --what trec and ranx, not {given.what}; leave it out")
    model = load(given.run)
    if given.what == "vectors":
        _write_vectors(model, files[0])
    elif given.what == "lists":
        _write_lists(model, files[0], given.k)
    else:
        _write_run(model, given.what, files, given.k)
    print("\n".join(map(str, files)))
    return 0


def _write_lists(model: "Recommender", file: Path, k: int) -> None:
    import numpy as np

    from fedjax_rec.runs.lists import best_lists, table_of

    lists = best_lists(model, np.arange(len(model.user_ids)), k)
    write_table(table_of(model, lists), None if file.suffix in (".json", ".parquet") else "csv", str(file))


def _write_vectors(model: "Recommender", file: Path) -> None:
    """Leaves by their path: `item/...` [I, ...], `user/...` [N, ...] and `shared/...`."""
    import jax
    import numpy as np

    trees = {"item": model.server.tables, "user": model.private, "shared": model.server.shared}
    arrays = {"item_ids": model.item_ids, "user_ids": model.user_ids}
    for kind, tree in trees.items():
        for path, leaf in jax.tree.leaves_with_path(tree):
            arrays[f"{kind}/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = np.asarray(leaf)
    with file.open("xb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _write_run(model: "Recommender", kind: str, files: list[Path], k: int) -> None:
    """The lists among which the test looks for its items: the test items are in them, training ones are not."""
    import numpy as np

    from fedjax_rec.runs.lists import best_lists, relevant_items, table_of

    frame = table_of(model, best_lists(model, np.arange(len(model.user_ids)), k, which="test"))
    users, items = frame["user"].astype(str), frame["item"].astype(str)
    relevant = list(relevant_items(model))
    if kind == "ranx":
        run: dict[str, dict[str, float]] = {}
        for user, item, score in zip(users, items, frame["score"].tolist(), strict=True):
            run.setdefault(user, {})[item] = score
        qrels: dict[str, dict[str, int]] = {}
        for user, item in relevant:
            qrels.setdefault(user, {})[item] = 1
        texts = [json.dumps(run), json.dumps(qrels)]
    else:
        for name, ids in (("user", users), ("item", items)):
            if ids.str.contains(r"\s", regex=True).any():
                raise ValueError(
                    f"a TREC file has blanks between fields, and an id of {name}s has one; use ranx"
                )
        rows = zip(users, items, frame["rank"], frame["score"], strict=True)
        texts = [
            "".join(f"{user} Q0 {item} {rank} {score:.9g} fedjax_rec\n" for user, item, rank, score in rows),
            "".join(f"{user} 0 {item} 1\n" for user, item in relevant),
        ]
    for file, text in zip(files, texts, strict=False):
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
