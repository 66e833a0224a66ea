"""GPFedRec with the paper's neighbours and the code's, under both samplers of negatives.

    python -m experiments.gpfedrec.run --data-dir DATA                         # ML-100K, 100 rounds

The README beside this file has the numbers to expect.
"""

import fedjax_rec as fr
from experiments.pfedrec.run import arguments, measure, peak, points_of, row
from fedjax_rec.algorithms.gpfedrec import NEIGHBOURS
from fedjax_rec.data.splits import NEGATIVES


def main() -> None:
    """Print the table of the README."""
    parser = arguments(__doc__)
    parser.set_defaults(every=5)
    parser.add_argument("--neighbours", choices=NEIGHBOURS, action="append", help="by default both")
    given = parser.parse_args()
    split = fr.leave_one_out(fr.load_dataset(given.dataset, data_dir=given.data_dir))
    print("| neighbours, negatives, table | round | sampled HR@10 / NDCG@10 | full HR@10 / NDCG@10 |")
    for neighbours in given.neighbours or NEIGHBOURS:
        algorithm = fr.gpfedrec(neighbours=neighbours, lanes=8)
        for negatives in given.negatives or NEGATIVES:
            part, curve = split._replace(negatives=negatives), list[str]()
            best = measure(
                algorithm,
                part,
                points_of(algorithm, part, given.seed),
                rounds=given.rounds,
                every=given.every,
                seed=given.seed,
                tell=curve.append,
            )
            for name, found in best.items():
                print(row(f"{neighbours}, {negatives}, {name}", found))
            print(f"peak {peak():.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
