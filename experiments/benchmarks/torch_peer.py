"""The torch peer: a plain loop over clients with sparse embeddings, as in the papers' code, less its copies.

Run by the benchmark in its own environment, with a file of batches that share the engine's random draws:

    python torch_peer.py work.npz        # prints one line of JSON
"""

import json
import sys
import time

import numpy as np
import torch


def main(path: str) -> None:
    """Train the clients of the file once to warm up and once on the clock."""
    torch.set_num_threads(1)
    work = np.load(path, allow_pickle=False)
    ids, offsets, table, vectors = (work[name] for name in ("ids", "offsets", "table", "vectors"))
    rate, positives, epochs = float(work["rate"]), int(work["positives"]), int(work["epochs"])
    label = torch.zeros(ids.shape[1])
    label[:positives] = 1.0
    entropy = torch.nn.BCEWithLogitsLoss(reduction="sum")
    rates, result = [], None
    for _ in range(1 + int(work["repeats"])):  # the first warms up
        items = torch.nn.Embedding(len(table), table.shape[1], sparse=True)
        start = torch.tensor(table)
        total = torch.zeros_like(start)
        tick = time.perf_counter()
        for client, vector in enumerate(vectors):
            with torch.no_grad():
                items.weight.copy_(start)
            own = torch.nn.Parameter(torch.tensor(vector))
            optimizer = torch.optim.SGD([own, items.weight], lr=rate)
            batches = [torch.tensor(b[b < len(table)]) for b in ids[offsets[client] : offsets[client + 1]]]
            labels = [label[torch.tensor(b < len(table))] for b in ids[offsets[client] : offsets[client + 1]]]
            for _ in range(epochs):
                for batch, target in zip(batches, labels, strict=True):
                    optimizer.zero_grad()
                    entropy(items(batch) @ own, target).backward()
                    optimizer.step()
            with torch.no_grad():
                touched = torch.unique(torch.cat(batches))
                total[touched] += items.weight[touched] - start[touched]
        rates.append(len(vectors) / (time.perf_counter() - tick))
        result = total
    assert result is not None  # noqa: S101 - at least one repeat
    print(json.dumps({"rates": rates[1:], "norm": float(result.norm()), "version": torch.__version__}))


if __name__ == "__main__":
    main(sys.argv[1])
