"""gensim's skip-gram on walks as a LineSentence file (its fastest input: the workers read it without the GIL).

The vocabulary is built beforehand; a run starts from new vectors. Each epoch's vectors go to <folder>/epoch-<e>.npy.
"""

import time
from pathlib import Path

import numpy as np
from gensim.models import Word2Vec
from gensim.models.callbacks import CallbackAny2Vec
from gensim.models.word2vec_inner import FAST_VERSION
from serve import arguments, serve

given = arguments()
folder = Path(given["folder"])
corpus = folder / "walks.txt"
walks = np.load(folder / "walks.npy")
np.savetxt(corpus, walks[np.random.default_rng(0).permutation(len(walks))], fmt="%d")
assert FAST_VERSION >= 0, "gensim runs without its compiled loops"

model = Word2Vec(
    sg=1, hs=0, negative=given["negatives"], ns_exponent=0.75, window=given["window"], vector_size=given["dimension"],
    workers=2, sample=0, min_count=0, shrink_windows=given["shrink"], seed=1,
)  # fmt: skip
model.build_vocab(corpus_file=str(corpus))
items = np.array(model.wv.index_to_key, np.int64)


class Epochs(CallbackAny2Vec):
    """Seconds since the start after each epoch, less the writing of the vectors."""

    def on_train_begin(self, _):
        self.start, self.seconds = time.perf_counter(), []

    def on_epoch_end(self, trained):
        self.seconds.append(time.perf_counter() - self.start)
        vectors = np.zeros((given["n_items"], given["dimension"]), np.float32)
        vectors[items] = trained.wv.vectors
        np.save(folder / f"epoch-{len(self.seconds) - 1}.npy", vectors)
        self.start += time.perf_counter() - self.start - self.seconds[-1]


def run() -> dict:
    epochs = Epochs()
    model.init_weights()
    model.train(
        corpus_file=str(corpus), total_examples=model.corpus_count, total_words=model.corpus_total_words,
        epochs=given["epochs"], callbacks=[epochs],
    )  # fmt: skip
    return {"epoch_seconds": epochs.seconds}


serve(run)
