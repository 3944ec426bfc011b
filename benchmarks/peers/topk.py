"""implicit's and faiss's exact top-k by inner product, from factors in memory to ids and scores in memory.

implicit: implicit.cpu.topk.topk as its recommenders call it, seen items filtered. faiss: IndexFlatIP.search, which
knows no seen items.
"""

from pathlib import Path

import numpy as np
from serve import arguments, serve

given = arguments()
folder, k, threads = Path(given["folder"]), given["k"], given["threads"]
users, items = (np.ascontiguousarray(np.load(folder / f"{name}.npy")) for name in ("user_factors", "item_factors"))

if given["library"] == "faiss":
    import faiss

    faiss.omp_set_num_threads(threads)

    def run():
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(items)
        _, ids = index.search(users, k)
        return ids[: given["compared"]].tolist()

else:
    from implicit.cpu.topk import topk
    from scipy import sparse

    seen = sparse.load_npz(folder / "seen.npz").tocsr()

    def run():
        ids, _ = topk(items, users, k, filter_query_items=seen, num_threads=threads)
        return ids[: given["compared"]].tolist()


serve(run)
