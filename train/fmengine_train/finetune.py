"""Chooses how a network that was trained before is trained further, by how many pictures there are."""

from typing import Any

PICTURES = 8_000  # that all epochs together see where there are few: more of them fit noise
CHOOSABLE = 4_000  # from which on those held out are enough to choose an epoch by; of fewer it would be chance
PENALTY = 0.3  # of the last layer's fit


def choose_recipe(pictures: int, labels_are_new: bool, linear: bool) -> dict[str, Any]:
    """Choose the recipe's values for training further; what the user names wins over them.

    The first epoch fits the last layer to what the network sees already; all layers follow, with a small
    learning rate. A network that knows all labels keeps its last layer.

    Args:
        pictures: to train on.
        labels_are_new: whether the network lacks one of the labels.
        linear: train the last layer alone.
    """
    if linear:
        return {"probe": PENALTY, "epochs": 1}
    epochs = min(20, max(3, round(PICTURES / max(1, pictures))))
    values: dict[str, Any] = {
        "epochs": epochs + labels_are_new,
        "batch_size": 64,
        "keep": "best" if pictures >= CHOOSABLE else "last",
        "learning_rate": 2e-4,
        "layer_decay": 0.5,  # the first layers see edges, whatever the labels
        "warmup": 1.0,
        "label_smoothing": 0.1,
        "dropout": 0.1,
        "ema": 0.99,
        "augment": 0.3,
    }
    return values | ({"probe": PENALTY} if labels_are_new else {})
