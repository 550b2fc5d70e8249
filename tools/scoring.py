"""How well a model does: top-k on labelled pictures, rank correlation on word pairs."""

import numpy as np

MINILM_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def ranks(values):
    """Ranks from 0, equal values sharing the mean of theirs."""
    values = np.asarray(values, np.float64)
    ordered = np.sort(values)
    first, last = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right") - 1
    return (first + last) / 2


def spearman(a, b):
    """Spearman's rank correlation, ties included."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def read_wordsim(path):
    """[(word, word, score by people)] of wordsim353."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [(a, b, float(score)) for a, b, score in rows]


def wordsim(session, directory):
    """Spearman between people's scores and the cosines of the model's embeddings, over the 353 pairs."""
    pairs = read_wordsim(directory / "wordsim353.tsv")
    names = {value.name for value in session.get_inputs()}
    embeddings = {}
    for word in {word for a, b, _ in pairs for word in (a, b)}:
        with np.load(directory / "minilm_inputs" / f"{word}.npz") as tokens:
            feeds = {name: tokens[name] for name in MINILM_INPUTS if name in names}
        (embedding,) = session.run(["sentence_embedding"], feeds)
        embeddings[word] = embedding[0] / np.linalg.norm(embedding[0])
    cosines = [float(embeddings[a] @ embeddings[b]) for a, b, _ in pairs]
    return spearman(cosines, [score for _, _, score in pairs])


def hits(logits, labels, k):
    """Whether one of the k best classes is among `labels`."""
    return bool(set(np.argsort(-logits, kind="stable")[:k].tolist()) & set(labels))
