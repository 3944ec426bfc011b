"""LightGCN and NeuMF of RecBole, trained by RecBole's trainer on given pairs; scores of the best epoch for given lists.

python recbole_model.py FOLDER MODEL EPOCHS SECONDS in an environment of requirements-recbole.txt. FOLDER holds
shop/shop.train.inter (user_id, item_id), lists.npz (user (n, 1), item (n, k): the positive first; valid: how many of
the first rows choose the epoch) and settings.json; scores.npy (n, k) is written there, -inf for what training does not
know.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas  # noqa: F401  (before torch: RecBole's imports in the other order warn)
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer, init_seed

PATIENCE = 10  # epochs without a better figure
folder, name, epochs, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
given = {
    "data_path": str(folder), "benchmark_filename": ["train", "train", "train"], "epochs": epochs,
    "load_col": {"inter": ["user_id", "item_id"]}, "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id",
    "show_progress": False, "checkpoint_dir": str(folder / "saved"), "seed": 42, "reproducibility": True,
    "use_gpu": False, **json.loads((folder / "settings.json").read_text()),
}  # fmt: skip
sys.argv = sys.argv[:1]  # RecBole reads options of its own from there
config = Config(model=name, dataset="shop", config_dict=given)
init_seed(config["seed"], True)
dataset = create_dataset(config)
train, _, _ = data_preparation(config, dataset)
model = get_model(name)(config, train._dataset)
if name == "LightGCN":  # the same product on a CSR, its gradient by the same matrix, as it is symmetric: faster
    model.norm_adj_matrix = model.norm_adj_matrix.coalesce().to_sparse_csr()
    torch.sparse.mm = lambda _, vectors: Symmetric.apply(vectors)


class Symmetric(torch.autograd.Function):
    """RecBole's normalised adjacency times vectors."""

    @staticmethod
    def forward(ctx, vectors):
        return model.norm_adj_matrix @ vectors

    @staticmethod
    def backward(ctx, gradient):
        return model.norm_adj_matrix @ gradient


trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
lists = np.load(folder / "lists.npz")
n_valid = int(lists["valid"])
users, items = (
    np.array([-1, *(dataset.field2token_id[field].get(str(token), -1) for token in range(lists[name].max() + 1))])[
        lists[name] + 1
    ]
    for field, name in (("user_id", "user"), ("item_id", "item"))
)


@torch.no_grad()
def score(users, items):
    """(n, k), a part at a time."""
    model.eval()
    users, items = (part.reshape(-1) for part in np.broadcast_arrays(users, items))
    found = np.empty(len(users), np.float32)
    vectors = [part.numpy() for part in model.forward()] if name == "LightGCN" else []
    for first in range(0, len(found), 1 << 18):
        u, i = users[first : first + (1 << 18)], items[first : first + (1 << 18)]
        if vectors:
            found[first : first + len(u)] = np.einsum("nd,nd->n", vectors[0][u], vectors[1][i])
        else:
            asked = {"user_id": torch.from_numpy(u.clip(0)), "item_id": torch.from_numpy(i.clip(0))}
            found[first : first + len(u)] = model.predict(Interaction(asked)).numpy()
    found[(users < 0) | (items < 0)] = -np.inf
    return found.reshape(-1, lists["item"].shape[1])


def ndcg(scores):
    """NDCG@10 of the first column, over all users."""
    own, others = scores[:, :1], scores[:, 1:]
    rank = 1 + (others > own).sum(axis=1) + (others == own).sum(axis=1) / 2
    return np.where(rank <= 10, 1 / np.log2(1 + rank), 0).mean()


best, best_state, since, start = -1.0, None, 0, time.perf_counter()
for epoch in range(epochs):
    model.train()
    loss = trainer._train_epoch(train, epoch)
    value = ndcg(score(users[:n_valid], items[:n_valid]))
    print(f"epoch {epoch}: loss {loss:.4f}, NDCG@10 {value:.4f} ({time.perf_counter() - start:.0f} s)", flush=True)
    since += 1
    if value > best:
        best, since, best_state = value, 0, {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if since >= PATIENCE or time.perf_counter() - start > seconds:
        break
model.load_state_dict(best_state)
np.save(folder / "scores.npy", score(users, items))
