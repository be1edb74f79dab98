"""`gallery.html`: every picture of a run on one page that needs no network, with a filter.

The page links to the files in the run folder. Thumbnails are made of finished pictures only, so they
have the watermark and the safety checker's changes, too.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.engine.events import Event, ImageSaved, Report, StepStarted
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.folder_layout import is_whole_png
from lowmem_if.engine.run_folder.writing import writing
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.request import Request
from lowmem_if.system.paths import quoted

GALLERY = "gallery.html"

_THUMBNAIL_SIDE = 256
_LEAST_WAIT_S = 2.0
_WAIT_FACTOR = 30
"""Writing the page may take at most a thirtieth of the run's time, however many pictures it has."""


def write_gallery(folder: RunFolder) -> Path:
    """Write the page of a run as it is now, and the missing thumbnails; returns its path.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    for spec in folder.plan.request.images:
        _make_thumbnail(folder, spec)
    file = folder.path / GALLERY
    folder.write(file, _page(folder).encode())
    return file


class GalleryKeeper:
    """A report that updates the page of a run while pictures are drawn, and passes events on."""

    def __init__(self, folder: RunFolder, report: Report) -> None:
        self._folder, self._report = folder, report
        self._next = time.monotonic()

    def __call__(self, event: Event) -> None:
        self._report(event)
        if isinstance(event, ImageSaved | StepStarted) and time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write the page, and set the earliest time for the next update."""
        began = time.monotonic()
        write_gallery(self._folder.reload())
        took = time.monotonic() - began
        self._next = time.monotonic() + max(_LEAST_WAIT_S, _WAIT_FACTOR * took)


def has_gallery(folder: RunFolder) -> bool:
    """Whether this run has a page: it is a batch, or the user asked for one."""
    return folder.plan.request.gallery or (folder.path / GALLERY).is_file()


def is_stale(folder: RunFolder) -> bool:
    """Whether the page is missing or older than the run's record."""
    try:
        written = (folder.path / GALLERY).stat().st_mtime_ns
    except FileNotFoundError:
        return True
    return written < folder.changed_ns


def _make_thumbnail(folder: RunFolder, spec: ImageSpec) -> None:
    """Make the thumbnail of a large finished picture, unless there is one that is not older."""
    picture, thumbnail = folder.image_file(spec), folder.thumbnail_file(spec)
    if spec.size <= _THUMBNAIL_SIDE or not is_whole_png(picture):
        return
    if thumbnail.is_file() and thumbnail.stat().st_mtime_ns >= picture.stat().st_mtime_ns:
        return
    from PIL import Image

    with Image.open(picture) as image:
        small = image.convert("RGB")
        small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    with writing(folder.path):
        thumbnail.parent.mkdir(exist_ok=True)
    folder.write(thumbnail, stream.getvalue())


def _page(folder: RunFolder) -> str:
    request = folder.plan.request
    title = escape(folder.path.resolve().name)
    figures = "\n".join(_figure(folder, spec) for spec in request.images)
    return _PAGE.format(
        title=title,
        settings=escape("; ".join(_settings(folder))),
        done=f"{len(folder.images)} of {len(request.images)} pictures",
        figures=figures,
        notices="".join(f"<li dir=auto>{escape(notice)}" for notice in folder.notices),
        choosing=_choosing(folder),
    )


def _settings(folder: RunFolder) -> Iterator[str]:
    request = folder.plan.request
    yield f"cascade {request.weights}"
    for name, value in _own_settings(request):
        yield f"{name} {value}"
    yield f"diffusers {folder.versions['diffusers']}"


def _own_settings(request: Request) -> Iterator[tuple[str, Any]]:
    """The settings that differ from the cascade's own."""
    for name in ("timesteps", "steps", "guidance_scale"):
        if value := getattr(request.sampling, name):
            words = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            yield name.replace("_", " "), words


def _figure(folder: RunFolder, spec: ImageSpec) -> str:
    largest = " disabled" if spec.size == max(catalog.SIZES) else ""
    return (
        f"<figure><label><input type=checkbox value={spec.number}{largest}> {spec.name}</label>"
        f"{_picture(folder, spec)}<figcaption><p dir=auto>{escape(spec.prompt)}</p>"
        f"{''.join(f'<p class=small dir=auto>{escape(line)}</p>' for line in _about(spec))}"
        "</figcaption></figure>"
    )


def _about(spec: ImageSpec) -> Iterator[str]:
    if spec.negative_prompt:
        yield f"not: {spec.negative_prompt}"
    if spec.style_prompt:
        yield f"style: {spec.style_prompt}"
    words = [f"seed {spec.seed}", f"{spec.size} px", spec.mode]
    if spec.strength:
        words.append(f"strength {', '.join(map(str, dict.fromkeys(spec.strength)))}")
    yield ", ".join(words)
    if spec.image:
        yield f"of {Path(spec.image.path).name}"


def _picture(folder: RunFolder, spec: ImageSpec) -> str:
    """The finished picture; else the last stage's picture, marked as unfinished."""
    picture = folder.image_file(spec)
    if is_whole_png(picture):
        thumbnail = folder.thumbnail_file(spec)
        shown = thumbnail if thumbnail.is_file() else picture
        return _image(folder, picture, shown)
    for stage in reversed(spec.stages):
        if is_whole_png(file := folder.preview_file(stage, spec)):
            return (
                _image(folder, file, file)
                + f"<p class=small>{catalog.label(stage)}: unfinished</p>"
            )
    return "<div class=waiting>waiting</div>"


def _image(folder: RunFolder, target: Path, shown: Path) -> str:
    link, source = (file.relative_to(folder.path).as_posix() for file in (target, shown))
    # The time in the address: a page that is loaded again shows the new picture under the old name.
    fresh = f"{source}?{shown.stat().st_mtime_ns // 10**6}"
    return f'<a href="{link}"><img loading=lazy src="{fresh}" alt="{shown.stem}"></a>'


def _choosing(folder: RunFolder) -> str:
    """The command that enlarges chosen pictures, without their numbers."""
    sizes = sorted({spec.size for spec in folder.plan.request.images})
    if sizes[0] == max(catalog.SIZES):
        return ""
    larger = max(catalog.SIZES)
    command = f"lowmem-if continue {quoted(folder.path)} --size {larger} --pick "
    return f'<p id=choice data-command="{escape(command)}" hidden><code></code></p>'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }}
body {{ margin: 1.5rem }}
h1 {{ font-size: 1.3rem; margin: 0 }}
.small {{ font-size: .8rem; opacity: .75 }}
#filter {{ width: min(32rem, 100%); padding: .4rem; margin: 1rem 0; font: inherit }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 1.2rem }}
figure {{ margin: 0; content-visibility: auto; contain-intrinsic-size: 210px 320px }}
figure[hidden] {{ display: none }}
img, .waiting {{ width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882 }}
img {{ image-rendering: pixelated; display: block }}
img[src^="thumbs/"] {{ image-rendering: auto }}
.waiting {{ display: grid; place-items: center; opacity: .6 }}
p {{ margin: .2rem 0; overflow-wrap: anywhere }}
#choice {{ position: sticky; bottom: 0; padding: .6rem; background: Canvas; border-top: 1px solid #888 }}
#choice[hidden] {{ display: none }}
</style>
<h1>{title}</h1>
<p class=small dir=auto>{settings}</p>
<input id=filter type=search placeholder="words of a prompt, a seed, a number"
 aria-label="show only pictures with these words">
<p class=small><span id=shown></span>{done}</p>
<main>
{figures}
</main>
<ul class=small>{notices}</ul>
{choosing}
<script>
const figures = [...document.querySelectorAll("figure")];
const texts = figures.map(figure => figure.textContent.toLowerCase());
const filter = document.getElementById("filter"), shown = document.getElementById("shown");
filter.oninput = () => {{
  const words = filter.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  figures.forEach((figure, k) => {{
    figure.hidden = !words.every(word => texts[k].includes(word));
    count += !figure.hidden;
  }});
  shown.textContent = words.length ? count + " shown, " : "";
}};
const choice = document.getElementById("choice");
document.querySelector("main").onchange = () => {{
  if (!choice) return;
  const picked = [...document.querySelectorAll("main input:checked")].map(box => box.value);
  choice.hidden = !picked.length;
  choice.firstChild.textContent = choice.dataset.command + picked.join(",");
}};
</script>
</html>
"""
