"""Format counts for people."""


def pluralise(count: int, noun: str) -> str:
    """Write a count with its noun, such as `1 picture` or `1,200 pictures`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
