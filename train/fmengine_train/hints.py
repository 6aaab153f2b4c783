"""Hints: a student also learns to guess what its teachers' last layers see.

Romero et al.: "FitNets: Hints for Thin Deep Nets", 2014, with the last embedding for the hint. Two probabilities
say little of a picture; the hundreds of numbers that they are made of say what in it the teachers looked at.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from .networks import Network


def standardise(embeddings: Tensor) -> Tensor:
    """Centre a teacher's float32 embeddings `[N, D]`, and scale them together to a mean square of 1; in float16.

    One scale for all columns: the directions in which a teacher tells pictures apart most stay the largest.
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
        """Logits `[N, K]`, and guesses `[N, D]` if there are hints to guess."""
        embedding = self.student.embed(images)
        return self.student.last(embedding), None if self.guess is None else self.guess(embedding)


def hint_loss(guesses: Tensor, hints: Tensor) -> Tensor:
    """The share of the hints' variance that the guesses leave open: 1 for guesses of nothing but the mean."""
    return F.mse_loss(guesses.float(), hints)
