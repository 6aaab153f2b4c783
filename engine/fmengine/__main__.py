"""`python -m fmengine`."""

from .cli import main

main()
