"""The contact sheet: one self-contained HTML file with every picture, its label and its confidence."""

import base64
import html
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import resources
from itertools import islice
from pathlib import Path
from string import Template

from PIL import Image

from .decode import decode
from .errors import OutputError, SourceError
from .limits import Limits
from .model_file import ModelSpec
from .output import temporary_of
from .rows import Row, file_of, printable

THUMBNAIL = 192  # pixels of the longer side, sharp on a phone's screen at half that size
READ_AHEAD = 256  # pictures; bounds memory


def write_report(path: Path, rows: Iterable[Row], spec: ModelSpec, describe: dict[str, str]) -> None:
    """Write the contact sheet.

    Args:
        path: of the HTML file; it is replaced atomically.
        rows: of `rows.to_row`, in the order to show.
        spec: of the model that answered.
        describe: of the backend that answered.

    Raises:
        OutputError: if the file cannot be written.
    """
    template = Template(resources.files("fmengine").joinpath("report.html").read_text(encoding="utf-8"))
    before, after = template.template.split("$cards")
    counts: Counter[str] = Counter()
    temporary = temporary_of(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(Template(before).substitute(title=html.escape(printable(path.stem))))
            for number, (row, thumbnail) in enumerate(_with_thumbnails(rows)):
                counts[row["label"] or "error"] += 1
                file.write(_card(number, row, thumbnail, spec))
            names = [*spec.labels, "error"]
            values = {
                "total": f"{counts.total():,}",
                "filters": "".join(
                    _filter(name, names.index(name), counts[name]) for name in names if counts[name]
                ),
                "model": html.escape(f"{spec.name} {spec.precision}"),
                "backend": html.escape(", ".join(describe.values())),
            }
            file.write(Template(after).substitute(values))
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):  # where it could not be made, it cannot be removed either
            temporary.unlink(missing_ok=True)


def _with_thumbnails(rows: Iterable[Row]) -> Iterator[tuple[Row, str]]:
    """Each row with its picture as a data URI, decoded by threads, in order, a bounded number ahead."""
    iterator = iter(rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(iterator, READ_AHEAD)):
            yield from zip(chunk, pool.map(_thumbnail, chunk), strict=True)


def _thumbnail(row: Row) -> str:
    if row["error"]:
        return ""
    try:
        image = Image.fromarray(decode(file_of(row), "rgb", Limits()))
    except SourceError:  # the file changed or went away since it was labelled
        return ""
    scale = THUMBNAIL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _card(number: int, row: Row, thumbnail: str, spec: ModelSpec) -> str:
    name = html.escape(row["path"])
    short = html.escape(row["path"].rsplit("/", 1)[-1])
    if row["error"]:
        kind, message = (html.escape(row["error"][key]) for key in ("kind", "message"))
        picture = '<div class="none" aria-hidden="true">?</div>'
        label, confidence, tone, detail = "error", -1.0, len(spec.labels), f"{kind}: {message}"
        answer = f'<b>{kind}</b><p class="message">{message}</p>'
    else:
        label, confidence, tone = row["label"], row["confidence"], spec.labels.index(row["label"])
        detail = html.escape(", ".join(f"{k} {p:.3f}" for k, p in row["probabilities"].items()))
        picture = (
            f'<img src="{thumbnail}" alt="{html.escape(label)}" loading="lazy">'
            if thumbnail
            else ('<div class="none">gone</div>')
        )
        answer = (
            f"<b>{html.escape(label)}</b><span>{confidence:.1%}</span>"
            f'<i><i style="width:{confidence:.1%}"></i></i>'
        )
    return (
        f'<figure class="tone{tone % 6}" data-n="{number}" data-label="{html.escape(label)}" '
        f'data-confidence="{confidence:.6f}" data-path="{name}" title="{name} — {detail}">{picture}'
        f"<figcaption>{answer}<small>{short}</small></figcaption></figure>\n"
    )


def _filter(name: str, tone: int, count: int) -> str:
    shown = html.escape(name)
    return f'<button class="tone{tone % 6}" data-filter="{shown}" aria-pressed="false">{shown} {count:,}</button>'
