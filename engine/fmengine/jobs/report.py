"""Write the contact sheet: one self-contained HTML file with every picture, its label and its confidence."""

import base64
import html
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib import resources
from itertools import islice
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from ..errors import OutputError, SourceError
from ..image.decode import try_decode
from ..model.spec import ModelSpec
from ..options import Isolation, Limits
from ..system.cores import usable_cores
from ..system.files import open_atomic
from ..types import DecodedImage
from .rows import Row, Tally, decode_path, escape_path

THUMBNAIL = 192  # pixels of the longer side: twice its size on the page, sharp on a phone's screen
CHUNK = 256  # pictures; bounds memory
Shrink = Callable[[str], DecodedImage | SourceError]

ASIDE = "aside"  # the style of answers that are none of the model's labels


def write_report(
    path: Path,
    rows: Iterable[Row],
    spec: ModelSpec,
    describe: dict[str, str],
    limits: Limits | None = None,
    isolate: Isolation | None = None,
) -> None:
    """Write the contact sheet.

    Args:
        path: of the HTML file; it is replaced atomically.
        rows: of `rows.to_row`, in the order to show.
        spec: of the model that answered.
        describe: of the backend that answered.
        limits: of a picture; those that it was labelled with.
        isolate: limits of worker processes that decode; those that it was labelled with.

    Raises:
        OutputError: if the file cannot be written.
    """
    tally = Tally()

    def write_cards() -> Iterator[str]:
        for number, (row, jpeg) in enumerate(_add_thumbnails(rows, limits or Limits(), isolate)):
            tally.add([row])
            yield write_card(number, row, jpeg, spec.labels)

    write_page(path, write_cards(), tally, spec, describe)


def write_page(path: Path, cards: Iterable[str], tally: Tally, spec: ModelSpec, describe: dict[str, str]) -> None:
    """Write a page of cards.

    Args:
        path: of the HTML file; it is replaced atomically.
        cards: a figure each; whoever makes them counts them in `tally` meanwhile.
        tally: of the rows, complete after the last card.
        spec: of the model that answered.
        describe: of the backend that answered.

    Raises:
        OutputError: if the file cannot be written.
    """
    template = Template(resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    before, after = template.template.split("$cards")
    try:
        with open_atomic(path, "w") as file:
            file.write(Template(before).substitute(title=html.escape(escape_path(path.stem))))
            file.writelines(cards)
            values = {
                "total": tally.count(),
                "filters": _write_filters(tally, spec.labels),
                "model": html.escape(f"{spec.name} {spec.precision}"),
                "backend": html.escape(", ".join(describe.values())),
            }
            file.write(Template(after).substitute(values))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _add_thumbnails(rows: Iterable[Row], limits: Limits, isolate: Isolation | None) -> Iterator[tuple[Row, bytes]]:
    """Yield each row with its thumbnail, in order; a failure has none. Threads make a chunk at a time."""
    iterator, threads = iter(rows), usable_cores()
    with ExitStack() as stack:
        shrink: Shrink = partial(try_decode, color="rgb", make=make_thumbnail, limits=limits)
        if isolate is not None:
            shrink = stack.enter_context(_open_workers(limits, isolate, threads))

        def make_or_skip(row: Row) -> bytes:
            if row["error"]:
                return b""
            image = shrink(decode_path(row))
            # It may have changed since it was labelled, or there is no memory for it now.
            return b"" if isinstance(image, SourceError) else encode_thumbnail(image)

        pool = stack.enter_context(ThreadPoolExecutor(threads))
        while chunk := list(islice(iterator, CHUNK)):
            yield from zip(chunk, pool.map(make_or_skip, chunk), strict=True)


@contextmanager
def _open_workers(limits: Limits, isolate: Isolation, count: int) -> Iterator[Shrink]:
    """Give a function that makes a thumbnail in a worker process."""
    # Here, for it takes time to import, and needs Linux.
    from ..pipeline.worker_setup import set_up_shrinking
    from ..pipeline.workers import Workers

    setup = set_up_shrinking("rgb", limits, isolate, make=f"{__name__}:make_thumbnail", arguments={})
    with closing(Workers(setup, count)) as processes:
        yield processes.decode


def make_thumbnail(image: DecodedImage, side: int = THUMBNAIL) -> DecodedImage:
    """Make an image, uint8 `[H, W, 3]`, of another, whose longer side has so many pixels."""
    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return DecodedImage(np.asarray(Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BICUBIC)))


def encode_thumbnail(image: DecodedImage) -> bytes:
    """Encode a small image as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def write_card(number: int, row: Row, jpeg: bytes, labels: Sequence[str]) -> str:
    """Write the figure of a row. Its name and its answer are attributes of their own, for the filters."""
    name = html.escape(row["path"])
    short = html.escape(row["path"].rsplit("/", 1)[-1])
    if row.get("face") is not None:
        short += f" · {row['face']}"
    if row["error"]:
        kind, message = (html.escape(row["error"][key]) for key in ("kind", "message"))
        picture = '<div class="none" aria-hidden="true">?</div>'
        tone, outcome, confidence, detail = ASIDE, f'data-error="{kind}"', -1.0, f"{kind}: {message}"
        answer = f'<b>{kind}</b><p class="message">{message}</p>'
    elif row["label"] is None:  # of a photograph without a face
        detail = html.escape(row["reason"])
        tone, outcome, confidence = ASIDE, f'data-reason="{detail}"', -1.0
        picture, answer = write_picture(jpeg, detail), f"<b>{detail}</b>"
    else:
        label, reason, confidence = html.escape(row["label"]), row["reason"], row["confidence"]
        tone, outcome = choose_tone(row["label"], labels), f'data-label="{label}"'
        detail = html.escape(", ".join(f"{k} {p:.3f}" for k, p in row["probabilities"].items()))
        picture = write_picture(jpeg, label)
        answer = f'<b>{label}</b><span>{confidence:.1%}</span><i><i style="width:{confidence:.1%}"></i></i>'
        if reason:
            outcome += f' data-reason="{html.escape(reason)}"'
            answer += f"<em>{html.escape(reason)}</em>"
    return (
        f'<figure class="{tone}" data-n="{number}" {outcome} data-confidence="{confidence:.6f}" '
        f'data-path="{name}" title="{name} — {detail}">{picture}'
        f"<figcaption>{answer}<small>{short}</small></figcaption></figure>\n"
    )


def write_picture(jpeg: bytes, text: str) -> str:
    """Write an image with what it shows as text, already escaped; or that there is none any more."""
    if not jpeg:
        return '<div class="none">gone</div>'
    data = base64.b64encode(jpeg).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{text}" loading="lazy">'


def choose_tone(label: str, labels: Sequence[str]) -> str:
    """Choose the colour of a label; one that is not the model's, such as `unsure`, has none."""
    return f"tone{labels.index(label) % 6}" if label in labels else ASIDE


def _write_filters(tally: Tally, labels: Sequence[str]) -> str:
    """Write a button for each label, for each reason not to trust an answer, and for failed pictures."""
    order = [label for label in labels if label in tally.labels]
    order += [label for label in tally.labels if label not in labels]
    buttons = [
        _write_filter("label", label, label, tally.labels[label], choose_tone(label, labels)) for label in order
    ]
    for reason, count in sorted(tally.reasons.items()):
        buttons.append(_write_filter("reason", reason, f"reason: {reason}", count, ASIDE))
    if tally.failed:
        buttons.append(_write_filter("error", None, "failed", tally.failed, ASIDE))
    return "".join(buttons)


def _write_filter(key: str, value: str | None, text: str, count: int, tone: str) -> str:
    """Write a button that shows the cards whose attribute `key` is `value`, or which have it at all."""
    wanted = f'data-key="{key}"' + ("" if value is None else f' data-value="{html.escape(value)}"')
    return f'<button class="{tone}" {wanted} aria-pressed="false">{html.escape(text)} {count:,}</button>'
