"""A gallery on this machine that looks like the page of the spirits, to try the scraper on:

    python tests/gallery.py --port 8000
    python scrape_spirits.py --url http://127.0.0.1:8000/spirits --delay 0.02 --out data/gallery

The 1,395 pictures are made in code: the creatures of dcgan.py's sprites before a random shape, on
a transparent ground, as PNG of 96 to 160 pixels with spaces in their names.
"""

import argparse
import html
import io
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dcgan import sprite

PAGE = """<!DOCTYPE html><meta charset="utf-8"><title>Spirits</title>
<nav><a href="/"><img src="/logo.png" alt=""></a></nav><div class="row">
{}
</div><a href="/about">About</a>"""
SPIRIT = """<div class="col-md-2 spiritDiv"><a href="{0}"><img src="thumbs/{1}.jpg"></a>
<p>{2}</p></div>"""


def pictures(n=1395):
    """{name with spaces: PNG}, always the same."""
    rng = np.random.default_rng(1395)
    made = {}
    for i in range(n):
        kind = ("Ghost", "Beetle", "Robot", "Cat")[i % 4]
        made[f"{i + 1:04} {kind} (No. {i + 1}).png"] = draw(np.asarray(sprite(64, i)), rng)
    return made


def draw(pixels, rng):
    """PNG of one creature (64, 64, 3) before a shape, with alpha; 1 in 8 is a palette image."""
    soft = Image.fromarray(pixels).filter(ImageFilter.MedianFilter(5))
    ground = np.asarray(soft, float)[:4].mean((0, 1))
    apart = abs(np.asarray(soft, float) - ground).max(-1) > 24
    side = int(rng.integers(96, 161))
    mask = Image.fromarray(apart).convert("L").filter(ImageFilter.MedianFilter(3))
    color = (*map(int, rng.integers(60, 256, 3)), int(rng.integers(90, 220)))
    image = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    edge, corners = side * rng.uniform(0.02, 0.12), int(rng.integers(2, 8))
    if corners == 2:
        ImageDraw.Draw(image).ellipse((edge, edge, side - edge, side - edge), fill=color)
    else:
        circle = (side / 2, side / 2, side / 2 - edge)
        ImageDraw.Draw(image).regular_polygon(circle, corners, rng.uniform(0, 360), color)
    creature = soft.convert("RGBA")
    creature.putalpha(mask)
    image.alpha_composite(creature.resize(image.size, Image.Resampling.BICUBIC))
    if rng.random() < 0.125:
        image = image.quantize(64)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def page(names):
    """The HTML of the gallery: relative links with spaces in them."""
    spirits = (SPIRIT.format(html.escape(f"images/{n}"), i, n[5:-4]) for i, n in enumerate(names))
    return PAGE.format("\n".join(spirits)).encode()


class Gallery(ThreadingHTTPServer):
    """Serves `files`, {path: bytes or a function of the handler}; logs (path, headers, status)."""

    daemon_threads = True

    def __init__(self, files, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.files, self.log = files, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that leaves early is no error."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.server.files.get(self.path)
        if callable(found):
            found(self)
        else:
            self.reply(404 if found is None else 200, found or b"")

    def reply(self, status, body=b"", length=None, **headers):
        """Send an answer; `length` is what Content-Length claims."""
        self.server.log.append((self.path, dict(self.headers), status))
        self.send_response_only(status)
        headers["Content-Length"] = str(len(body) if length is None else length)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default 8000)")
    parser.add_argument("--count", type=int, default=1395, help="pictures (default 1395)")
    args = parser.parse_args(argv)
    print(f"making {args.count:,} pictures", flush=True)
    made = pictures(args.count)
    files = {f"/images/{name.replace(' ', '%20')}": body for name, body in made.items()}
    with Gallery(files | {"/spirits": page(made)}, args.port) as server:
        print(f"{server.url}/spirits; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
