"""EASE as RecBole's recommender and RecPack's algorithm write it: a dense numpy.linalg.inv of X'X + lambda I.

numpy2: with the numpy that lies alone in the environment's folder numpy2, newer than the one the other peers need.
"""

import sys
from pathlib import Path

from serve import arguments, serve

given = arguments()
if given["numpy2"]:
    sys.path.insert(0, str(Path(sys.prefix) / "numpy2"))

import numpy as np  # noqa: E402
from scipy import sparse  # noqa: E402

folder = Path(given["arrays"])
indptr, items = np.load(folder / "indptr.npy"), np.load(folder / "items.npy")
X = sparse.csr_matrix((np.ones(len(items), np.float64), items, indptr), shape=(len(indptr) - 1, given["n_items"]))
gram = (X.T @ X).tocsr()
sample = np.load(folder / "sample.npy")


def run() -> dict:
    G = gram + given["lambda_f"] * sparse.identity(gram.shape[0])
    G = np.asarray(G.todense())
    P = np.linalg.inv(G)
    B = P / (-np.diag(P))
    np.fill_diagonal(B, 0.0)
    return {"numpy": np.__version__, "sample": B[np.ix_(sample, sample)].tolist()}


serve(run)
