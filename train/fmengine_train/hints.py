"""Trains a student to predict its teachers' last embeddings too, as hints.

Romero et al.: "FitNets: Hints for Thin Deep Nets", 2014, with the last embedding for the hint. Two probabilities
hold little about a picture; the hundreds of numbers that they are computed from hold what the teachers saw in it.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from .networks import Network


def standardise(embeddings: Tensor) -> Tensor:
    """Centre a teacher's float32 embeddings `[N, D]`, and scale all alike to a mean square of 1; in float16.

    One scale for all columns: the directions in which a teacher's embeddings differ more stay the larger ones.
    """
    centred = embeddings - embeddings.mean(0)
    return (centred / centred.square().mean().sqrt().clamp_min(1e-12)).half()


class Guided(nn.Module):
    """A student in training, and the layer that guesses hints from its embedding; that layer does not ship."""

    def __init__(self, student: Network, hints: int) -> None:
        super().__init__()
        self.student = student
        self.guess = nn.Linear(student.last.in_features, hints) if hints else None
        if self.guess is not None:
            nn.init.zeros_(self.guess.weight)  # begin with the mean, whatever a fresh student's embedding is
            nn.init.zeros_(self.guess.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute logits `[N, K]`, and guesses `[N, D]` if there are hints to guess."""
        embedding = self.student.embed(images)
        return self.student.last(embedding), None if self.guess is None else self.guess(embedding)


def compute_hint_loss(guesses: Tensor, hints: Tensor) -> Tensor:
    """Compute the share of the hints' variance that the guesses leave unexplained: 1 where they guess the mean."""
    return F.mse_loss(guesses.float(), hints)
