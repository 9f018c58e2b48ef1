"""scrape_spirits.py against a gallery on loopback that answers in every wrong way there is."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import zlib
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from gallery import Gallery, page, pictures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import dcgan
import scrape_spirits as s

SCRIPT = Path(s.__file__)
PICTURES = pictures(12)
IMAGES = {f"/images/{name.replace(' ', '%20')}": body for name, body in PICTURES.items()}
FIRST, *_, LAST = IMAGES
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(s, "BACKOFF", 0.01)
    monkeypatch.chdir(tmp_path)
    resolve = socket.getaddrinfo

    def loopback_only(host, *args, **kwargs):
        if re.fullmatch(r"[\d.]+|localhost|::1", host):
            return resolve(host, *args, **kwargs)
        raise socket.gaierror(socket.EAI_NONAME, "no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", loopback_only)


@pytest.fixture
def gallery():
    """The report's gallery with 12 spirits; a test changes `files` to spoil it."""
    with Gallery(IMAGES | {"/spirits": page(PICTURES)}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def scraped(gallery):
    """The gallery after a whole run, its log empty."""
    assert run(gallery) == 0
    gallery.log.clear()
    return gallery


def links(*hrefs):
    """A page with a spirit per link."""
    spirits = (f'<div class="col-md-2 spiritDiv"><a href="{href}">x</a></div>' for href in hrefs)
    return "".join(spirits).encode()


def png(side=64, seed=0, height=None, kind="PNG"):
    shape = (height or side, side, 3)
    pixels, file = np.random.default_rng(seed).integers(0, 256, shape, np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def run(server, *flags, page="/spirits", out="out"):
    """Exit code of the script on the gallery."""
    try:
        s.main(["--url", server.url + page, "--out", out, "--delay", "0", *map(str, flags)])
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code)
            return 1
        return end.code or 0
    return 0


def shown(out="out"):
    """{name: bytes} of what a user sees in the folder, but for the manifest and the sheet."""
    paths = sorted(Path(out).glob("[!.]*"))
    return {p.name: p.read_bytes() for p in paths if p.name != "manifest.jsonl"}


def bodies(out="out"):
    return list(shown(out).values())


def manifest(out="out"):
    lines = (Path(out) / "manifest.jsonl").read_text().splitlines()
    return {record["url"]: record for record in map(json.loads, lines)}


def asked(server, start="/images/"):
    """[(path, status)] of the requests for pictures."""
    return [(p, status) for p, _, status in server.log if p.startswith(start)]


def statuses(server, start="/images/"):
    return sorted(status for _, status in asked(server, start))


def one(server, reply, *flags):
    """Scrape a page with one spirit behind `reply`; exit code and files."""
    server.files |= {"/spirits": links("x.png"), "/x.png": reply}
    return run(server, *flags), bodies()


def answer(status=200, body=b"", length=None, **headers):
    return lambda handler: handler.reply(status, body, length, **headers)


def turns(*answers):
    """An answer that is another one each time, the last for good."""
    left = list(answers)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def send(*pieces, pause=0.0, head=True, **headers):
    """A head, whole or not, and what follows in pieces; the connection closes at the end."""

    def reply(handler):
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers() if head else handler.flush_headers()
        with contextlib.suppress(OSError):
            for piece in pieces:
                handler.wfile.write(piece)
                time.sleep(pause)
        handler.close_connection = True

    return reply


# ---- The gallery, whole -------------------------------------------------------------------------


def test_the_gallery_of_the_report(gallery, capsys):
    assert run(gallery) == 0
    files = shown()
    assert list(files.values()) == list(PICTURES.values())  # byte for byte, in the gallery's order
    for name, original in zip(sorted(files), sorted(PICTURES)):
        assert re.fullmatch(re.escape(original[:-4].lower()) + r"-[0-9a-f]{8}\.png", name)
    seen = [p for p, _, _ in gallery.log]
    assert len(seen) == 14 and seen[:2] == ["/robots.txt", "/spirits"]  # no thumbs, no logo
    for _, headers, _ in gallery.log:
        assert headers["User-Agent"].startswith("scrape_spirits") and "robots.txt" in str(headers)
    said = capsys.readouterr().out
    images = [Image.open(io.BytesIO(body)) for body in PICTURES.values()]
    low, *_, high = sorted(image.size for image in images)
    assert "12 pictures of {}x{} to {}x{} pixels, ".format(*low, *high) in said
    assert all(image.mode in said for image in images) and "12 fetched: 14 requests" in said


def test_training_sees_the_pictures_and_nothing_else(scraped):
    with Image.open("out-contact.png") as sheet:
        assert sheet.size == (4 * 48, 3 * 48)
        assert len(np.unique(np.asarray(sheet)[:48, :48])) > 10
    shutil.make_archive("set", "zip", "out")
    shutil.copytree("out", "whole/inner")
    expected = [dcgan.to_rgb(Image.open(io.BytesIO(body)), 64) for body in PICTURES.values()]
    for data in ("out", "set.zip", "whole"):
        images, labels, names = dcgan.load_data(data, 64, cache="cache")
        assert np.array_equal(images, expected)
        assert labels.tolist() == [0] * 12 and len(names) == 1


def test_the_manifest_says_what_came_from_where(gallery):
    gallery.files["/images/gone.png"] = answer(410)
    gallery.files["/spirits"] += links("images/gone.png")
    assert run(gallery) == 1
    records = manifest()
    gone = records.pop(f"{gallery.url}/images/gone.png")
    assert gone["file"] is None and gone["status"] == "HTTP 410"
    for url, record in records.items():
        body = PICTURES[unquote(url.rpartition("/")[2])]
        assert (Path("out") / record["file"]).read_bytes() == body
        assert record["sha256"] == hashlib.sha256(body).hexdigest()
        assert record["size"] == len(body) and record["status"] == "kept"
        assert Image.open(io.BytesIO(body)).size == (record["width"], record["height"])
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["time"])


def test_dry_run_lists_and_writes_nothing(gallery, capsys):
    gallery.files["/robots.txt"] = b"User-agent: *\nDisallow: /images/0003"
    assert run(gallery, "--dry-run") == 1
    said = capsys.readouterr().out.splitlines()
    listed = [line for line in said if "/images/" in line and not line.startswith(" ")]
    assert listed == [gallery.url + p for p in IMAGES if "/0003" not in p]
    assert asked(gallery) == [] and not Path("out").exists()


def test_limit_takes_the_first(gallery):
    assert run(gallery, "--limit", 3) == 0
    assert bodies() == list(PICTURES.values())[:3]


def test_several_urls_and_pages_that_follow(gallery):
    a, b, c, d, *_ = IMAGES
    gallery.files |= {
        "/art": links(a) + b'<a rel="nofollow next" href="?page=2">more</a>',
        "/art?page=2": links(b) + b'<link rel=NEXT href="/art?page=3">',
        "/art?page=3": links(a, b) + b'<a rel=next href="/art?page=4">',  # nothing new: the end
        "/art?page=4": links(c),
        "/more": links(d),
    }
    assert run(gallery, page="/art") == 0
    assert asked(gallery) == [(a, 200)]
    assert run(gallery, "--follow", "--url", gallery.url + "/art", gallery.url + "/more") == 0
    assert sorted(bodies()) == sorted(IMAGES[p] for p in (a, b, d))
    assert asked(gallery, "/art?page=4") == []


def test_without_spirits_every_image_larger_than_min_side(gallery):
    files = {f"/{side}.png": png(side, side) for side in (16, 32, 33, 64)}
    files["/flat.png"] = png(64, height=20)
    tags = "".join(f"<p><img src='{p}' width=999>" for p in files)
    gallery.files |= files | {"/blog": f"<body>{tags}<img src=a.svg><img src=data:x,y>".encode()}
    assert run(gallery, page="/blog") == 0
    assert sorted(bodies()) == sorted([files["/33.png"], files["/64.png"]])
    assert run(gallery, "--min-side", 20, page="/blog") == 0  # what was too small comes after all
    assert len(shown()) == 3 and statuses(gallery, "/32.png") == [200, 200]
    assert statuses(gallery, "/16.png") == statuses(gallery, "/flat.png") == [200, 304]


@pytest.mark.parametrize("out, sheet", [(".", "../{}-contact.png"), ("a/b", "a/b-contact.png")])
def test_the_contact_sheet_lies_beside_the_folder(gallery, tmp_path, out, sheet):
    assert run(gallery, out=out) == 0
    assert not list(Path(out).glob("*contact.png"))
    Path(sheet.format(tmp_path.name)).unlink()


def test_the_script_runs_alone(gallery):
    shutil.copy(SCRIPT, "copy.py")
    command = [sys.executable, "-I", "-W", "error", "copy.py", "--out", "out", "--delay", "0"]
    command += ["--url", gallery.url + "/spirits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and "12 fetched" in done.stdout
    assert bodies() == list(PICTURES.values())


def test_main_runs_in_a_thread(gallery):
    with ThreadPoolExecutor() as pool:
        assert pool.submit(run, gallery).result(60) == 0 and len(shown()) == 12


# ---- Pages --------------------------------------------------------------------------------------


def found(html, select=None):
    return list(s.find_links(html, "http://h.test/a/b", select)[0])


def names_of(urls):
    return [url.rpartition("/")[2] for url in urls]


LINKS = {
    "c d.png": "http://h.test/a/c%20d.png",
    "/c.png": "http://h.test/c.png",
    "../c.png": "http://h.test/c.png",
    "//other.test/c.png": "http://other.test/c.png",
    "https://other.test:443/c.png#top": "https://other.test/c.png",
    "HTTP://H.test:8080": "http://h.test:8080/",
    "Pok&eacute;%20x.png?a=1&amp;b=2 3": "http://h.test/a/Pok%C3%A9%20x.png?a=1&b=2%203",
    " \n c.png \t": "http://h.test/a/c.png",
    "http://bücher.test/": "http://xn--bcher-kva.test/",
    "http://[::1]:90/x": "http://[::1]:90/x",
}
NO_LINKS = """javascript:void(0) data:image/png;base64,AAAA file:///etc/passwd ftp://h.test/x.png
    http://user:secret@h.test/ http://h.test\\@evil.test/ http://[::1/ http://h.test:99999/
    http://a..b/""".split()


@pytest.mark.parametrize("href", [*LINKS, *NO_LINKS, "x" * 5000])
def test_links_of_every_kind(href):
    assert found(links(href).decode()) == ([LINKS[href]] if href in LINKS else [])


def test_base_counts_once_and_only_if_it_is_an_address():
    html = links("c.png").decode()
    deep = found(html + '<base href="/deep/er/"><base href="/no/">')
    assert deep == ["http://h.test/deep/er/c.png"]
    assert found('<base href="https://cdn.test/x">' + html) == ["https://cdn.test/c.png"]
    assert found('<base href="javascript:1">' + html) == ["http://h.test/a/c.png"]


def test_which_elements_count():
    html = """<a href=no1><img src=no2></a>
        <li class="thumb big"><a href=one><img src=no3></a>
        <li class=thumb><b><img data-src=two src=no4></b></li><img src=no5>
        <a class=thumb href=three></a><img class="thumb" src=four></p></div>"""
    assert names_of(found(html, "thumb")) == ["one", "two", "three", "four"]
    assert names_of(found(html, "thumb big")) == ["one"]
    assert found(html, "thumbnail") == []
    images = names_of(found(html))  # no spirits: every image
    assert images == ["no2", "no3", "two", "no5", "four"]
    assert names_of(found(html + links("spirit").decode())) == ["spirit"]


PAGES = {  # {picture: what is taken where that turns out to be a page}
    "<img src=000.png data-lazy-src=001.png>": {"001.png": None},
    "<img src='data:image/gif;base64,R0lG' data-original=002.png>": {"002.png": None},
    "<img src=000.png srcset='000.png 40w, big/000.png 400w'>": {"big/000.png": None},
    "<img src=000.png srcset='000.png 4h 40w, 1.png 5h 400w'>": {"1.png": None},
    "<img src=000.png data-src=1.png srcset='000.png 40w'>": {"1.png": None},
    "<img src=000.png data-src=data:,x data-srcset='1.png 1x,2.png 1.5x'>": {"2.png": None},
    "<img src=0.png srcset='a,b.png 2x , c.png, '>": {"a,b.png": None},
    "<img src=' DATA:image/png;base64,AA' alt=''>": {},
    "<img src=about:blank><img src=''>": {},
    "<picture><source srcset='1.png 3w, 2.png 9w'><img src=0.jpg></picture>": {"2.png": None},
    "<picture><source type=image/avif srcset=1.avif><img src=0.jpg></picture>": {"0.jpg": None},
    "<picture><source srcset=1.webp></picture><img src=0.jpg>": {"0.jpg": None},
    "<video><source src=1.mp4></video><img src=0.jpg>": {"0.jpg": None},
    "<a href='javascript:zoom()'><img src=0.png></a>": {"0.png": None},
    "<a href='#'><img src=0.png></a>": {"0.png": None},
    "<a href='mailto:a@h.test'><img src=0.png></a>": {"0.png": None},
    "<a href='/#top'><img src=0.png></a>": {"0.png": None},
    "<a><img src=0.png></a>": {"0.png": None},
    "<img src=0.png><a href='#'>x</a>": {"0.png": None},
}
ANCHORS = {  # within an element that counts
    "<a href=full.png><img src=0.png></a>": {"full.png": "0.png"},
    "<a href='#'><img src=0.png></a><a href=1.png>x</a>": {"0.png": None, "1.png": None},
    "<img src=0.png><a href=1.png>x</a>": {"1.png": None},
    "<a href=p>title</a><a href=p><img src=0.png></a>": {"p": "0.png"},
}


@pytest.mark.parametrize("html", [*PAGES, *ANCHORS])
def test_the_picture_that_a_link_or_an_image_stands_for(html):
    for text in [f"<div class=spiritDiv>{html}</div>", *([html] if html in PAGES else [])]:
        pairs = s.find_links(text, "http://h.test/")[0].items()
        pairs = {url[14:]: image and image[14:] for url, image in pairs}
        assert pairs == (PAGES | ANCHORS)[html]


def test_a_link_to_a_web_page_falls_back_to_its_image(gallery):
    html = b"\xef\xbb\xbf \n<!DOCTYPE HTML><p>detail</p>"
    gallery.files |= {"/0.png": png(), "/p": html, "/q": html}
    div = b"<div class=spiritDiv><a href=%s><img src=%s></a></div>"
    gallery.files["/spirits"] = div % (b"p", b"0.png")
    for expected in ([200], [200, 304]):
        assert run(gallery) == 0 and bodies() == [png()]
        assert statuses(gallery, "/0") == expected
    assert len(asked(gallery, "/p")) == 1  # a page is not fetched twice either
    assert manifest()[f"{gallery.url}/p"]["status"] == "web page"
    gallery.files["/spirits"] = div % (b"q", b"gone.png") + div % (b"p", b"")
    assert run(gallery) == 1  # neither has an image
    assert len(asked(gallery, "/q")) == 1 and len(asked(gallery, "/p")) == 2


@pytest.mark.parametrize(
    "body, kind",
    [
        ("é".encode(), "text/html"),
        ("é".encode("latin-1"), "text/html; charset=ISO-8859-1"),
        (b"<meta charset='latin-1'>\xe9", "text/html"),
        (b"<meta charset='latin-1'>\xe9", "text/html; charset=none-such"),
        (b"<meta charset=hex>" + "é".encode(), "text/html; charset=idna"),
        ("\ufeffé".encode(), ""),
    ],
)
def test_charsets(body, kind):
    assert s.decode_page(body, kind)[-1] == "é"


TAGS = st.sampled_from(
    """<div class="col-md-2 spiritDiv"> </div> <a href=" "> </a> <img src= > <base href=http://[
    <![CDATA[ <![x ]]> <!-- --> <!DOCTYPE <? &#xD800; &#0; &#99999999; &notin <script> </script> < >
    = ' javascript: ../../../etc/passwd ..%2f..%2fx file:///etc/passwd C:\\x.png CON.png \x00 \ud800
    http:// //h.test/ a.png %00 %ff \u202e <a/href= rel=next <li class=spiritDiv> é """.split()
)
HTML = st.lists(TAGS | st.text(max_size=8) | st.just(" "), max_size=40).map("".join)


@given(html=HTML, select=st.none() | st.text(max_size=5))
@settings(deadline=None, max_examples=400)
def test_no_html_raises_and_every_link_is_http(html, select):
    pictures, following, _ = s.find_links(html, "http://h.test/a/b", select)
    for url in [*pictures, *filter(None, [following])]:
        parts = urlsplit(url)
        assert parts.scheme in ("http", "https") and parts.hostname and url.isascii()
        assert not re.search(r"[\s\x00-\x1f\\\"<>]", url)


@given(body=st.binary(max_size=300), kind=st.text(max_size=20).map("text/html; charset={}".format))
@settings(deadline=None)
def test_no_bytes_raise(body, kind):
    s.find_links(s.decode_page(body, kind), "http://h.test/")


HUGE = ["<div>", "<a ", "<!--", "</", "&#", "<![x", "<a a=' ", "<script></scrip", "<p x=1 "]


@pytest.mark.parametrize("piece", HUGE)
def test_a_huge_page_is_read_in_seconds(piece):
    html = links("x.png").decode() + piece * (500_000 // len(piece)) + "</i>" * 50_000
    began = time.process_time()
    assert "http://h.test/a/x.png" in found(html)
    assert time.process_time() - began < 5


# ---- Names --------------------------------------------------------------------------------------


def assert_safe(name):
    assert not re.search(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\u200b-\u202e]', name)
    assert name.isprintable() and name.strip(" .-") == name and len(name.encode()) <= 120
    assert name.partition(".")[0].upper() not in ("CON", "PRN", "AUX", "NUL", "COM1", "LPT1")
    assert (Path("/out") / name).parent == Path("/out") and name.endswith(".png")


@given(st.text(max_size=200))
def test_names_are_safe_whatever_the_address(text):
    for url in (f"http://h.test/{text}", s.resolve("http://h.test/", text) or "http://h.test/"):
        with contextlib.suppress(ValueError):  # of the first, which no page gets through resolve()
            assert_safe(s.file_name(url, "0" * 64, ".png"))


NAMES = {
    "Mario%20(Wedding).png": "Mario (Wedding)",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd": "_.._etc_passwd",
    "CON.png": "CON",
    "..png": "picture",
    ".hidden.png": "hidden",
    "%00%0a.png": "__",
    "a%5Cb%3A.png": "a_b_",
    "Pok%C3%A9mon.png": "Pokémon",
    "": "picture",
    "x" * 400 + ".png": "x" * 100,
    "%E2%80%AEgnp.exe": "_gnp",
}


@pytest.mark.parametrize("last", NAMES)
def test_names_of_every_kind(last):
    name = s.file_name(f"http://h.test/a/{last}", "1a2b3c4d" + "0" * 56, ".png")
    assert name == f"{NAMES[last].lower()}-1a2b3c4d.png"
    assert_safe(name)


@given(html=HTML)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_no_page_writes_outside_the_folder(html, tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    web = types.SimpleNamespace(get=lambda url, headers: (200, {}, png(seed=len(url)), url))
    with contextlib.closing(s.Folder(root / "out")) as folder:
        pictures = found(links("../../x.png", "%2e%2e%2fy.png", "/z/../..").decode() + html)
        for url in pictures:
            assert s.collect(url, None, 0, web, folder) in ("fetched", "unchanged")
        kept = s.finish(folder, {url: (None, 0) for url in pictures}, True)
    assert [p.name for p in root.iterdir()] == ["out"] and kept
    files = {p.name for p in (root / "out").rglob("*")}
    assert files == {r["file"] for r in kept} | {"manifest.jsonl", ".lock"}


def test_collisions_keep_both(gallery):
    files = {p: png(seed=i) for i, p in enumerate(["/a/x.png", "/b/X.png", "/b/x.gif"])}
    gallery.files |= files | {"/spirits": links(*files)}
    assert run(gallery) == 0
    assert sorted(bodies()) == sorted(files.values())
    assert len({name.lower() for name in shown()}) == 3
    assert all(name.endswith(".png") for name in shown())  # the content decides


# ---- Answers ------------------------------------------------------------------------------------


def bomb(side):
    """A PNG that claims side x side pixels."""
    head = struct.pack(">4sIIBBBBB", b"IHDR", side, side, 8, 6, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + head + check + b"\0\0\0\x0aIDATx"


def packed(body, coding="gzip"):
    return answer(200, body, Content_Encoding=coding)


CUT = send(png()[:3000], Content_Length=str(len(png())))
CHUNKED = {"Transfer_Encoding": "chunked"}
FINE = answer(200, png())
ODD = {"ETag": "\xff\xfe", "Last_Modified": '"a\r\n b"', "Content_Encoding": ""}
GOOD = {
    "500 and 503 first": (turns(answer(500), answer(503), FINE), 3),
    "408 first": (turns(answer(408), FINE), 2),
    "cut first": (turns(CUT, FINE), 2),
    "gzip": (packed(gzip.compress(png())), 1),
    "x-gzip": (packed(gzip.compress(png()), "x-gzip"), 1),
    "deflate": (packed(zlib.compress(png()), "Deflate"), 1),
    "longer than its length": (answer(200, png() + b"x" * 999, len(png())), 1),
    "slow, but not too slow": (send(png()[:2000], png()[2000:], pause=0.6), 1),
    "odd headers": (send(png(), **ODD), 1),
}
GOOD |= {code: (answer(code, Location="y z.png"), 1) for code in (301, 302, 303, 307, 308)}


@pytest.mark.parametrize("case", GOOD)
def test_answers_that_give_the_picture(gallery, case):
    reply, requests = GOOD[case]
    gallery.files |= {"/y z.png": b"", "/y%20z.png": png()}
    assert one(gallery, reply, "--timeout", 1) == (0, [png()])
    assert len(asked(gallery, "/x")) == requests
    assert run(gallery) == 0 and bodies() == [png()]


DRIP = [b"0"] * 99
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
JPEG = png(kind="JPEG")
BAD = {
    "404": (answer(404), "HTTP 404", 1),
    "304 that was not asked for": (answer(304), "HTTP 304", 1),
    "500 for good": (answer(500), "HTTP 500, 5 times", 5),
    "cut for good": (CUT, "cut short after 3,000 bytes, 5 times", 5),
    "cut without a length": (send(png()[:-20]), "a damaged picture", 1),
    "shorter than its length": (answer(200, png(), 9**5 // 2), "cut short", 5),
    "a page": (answer(200, b"<!DOCTYPE html><html>none"), "picture: it begins with b'<!D", 1),
    "nothing": (answer(200, b""), "not a picture", 1),
    "EPS": (answer(200, EPS), "not a picture", 1),
    "SVG": (answer(200, b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not a picture", 1),
    "damaged": (answer(200, png()[:300] + b"\xff" * 40 + png()[340:]), "a damaged picture", 1),
    "PNG without its end": (answer(200, png()[:-13]), "a damaged picture", 1),
    "JPEG without its end": (answer(200, JPEG[:-500]), "a damaged picture", 1),
    "40,000 x 40,000": (answer(200, bomb(40_000)), "a damaged picture (Image size (160000", 1),
    "8,000 x 8,000": (answer(200, bomb(8_000)), "8000x8000 pixels are too many", 1),
    "cut gzip": (packed(gzip.compress(png())[:-9]), "cut short", 5),
    "no gzip": (packed(b"not gzip at all"), "while decompressing", 5),
    "another coding": (packed(gzip.compress(png()), "br"), "not a picture", 1),
    "too large": (answer(200, b"x" * 40_001), "larger than 0.04 MB (--max-file)", 1),
    "too large by its word": (answer(200, b"", 10**12), "larger than 0.04 MB", 1),
    "too large unpacked": (packed(gzip.compress(bytes(10**7))), "larger than 0.04 MB", 1),
    "endless": (send(*[b"400\r\n" + b"x" * 1024 + b"\r\n"] * 999, **CHUNKED), "larger than", 1),
    "slow head": (send(*DRIP, pause=0.05, head=False), "slower than 1,000 bytes per second", 5),
    "slow body": (send(*DRIP, pause=0.05, Content_Length="9999"), "slower than", 5),
    "slow chunk length": (send(*DRIP, pause=0.05, **CHUNKED), "slower than", 5),
    "silence": (lambda handler: time.sleep(2), "timed out, 5 times", 5),
    "no HTTP": (lambda h: h.wfile.write(b"SSH-2.0-nothing\r\n"), "SSH", 5),
}
REDIRECTS = {
    "file:///etc/passwd": "no http(s) address",
    "ftp://127.0.0.1/x.png": "no http(s) address",
    "data:image/png;base64,AAAA": "no http(s) address",
    "http://user:pass@127.0.0.1/": "no http(s) address",
    "http://127.0.0.2/x.png": "private address 127.0.0.2",
    "https://127.0.0.2/x.png": "private address 127.0.0.2",
    "http://[::1]/x.png": "private address ::1",
    "http://10.0.0.1/x.png": "private address 10.0.0.1",
    "http://none-such.test/x.png": "no network in tests",
}
BAD |= {to: (answer(302, Location=to), why, 1) for to, why in REDIRECTS.items()}
BAD["a circle"] = answer(302, Location="/x.png"), "more than 5 redirects", 6


@pytest.mark.parametrize("case", BAD)
def test_answers_that_give_none(gallery, case, capsys):
    reply, why, requests = BAD[case]
    assert one(gallery, reply, "--max-file", 0.04, "--timeout", 0.4) == (1, [])
    said = capsys.readouterr().out
    assert "1 failed" in said and why in said
    if case not in ("silence", "no HTTP"):  # which log nothing
        assert len(asked(gallery, "/x")) == requests
    record = manifest()[f"{gallery.url}/x.png"]
    assert record["file"] is None and why in record["status"]
    gallery.files["/x.png"] = png()
    assert run(gallery) == 0 and bodies() == [png()]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_pauses_the_whole_host(gallery, status):
    stamps = []

    def stamped(reply):
        return lambda handler: (stamps.append(time.monotonic()), reply(handler))

    gallery.files["/spirits"] = links("x.png", "y.png")
    gallery.files["/x.png"] = stamped(turns(answer(status, Retry_After="1"), FINE))
    gallery.files["/y.png"] = stamped(answer(200, png(seed=1)))
    assert run(gallery, "--workers", 1) == 0
    assert len(stamps) == 3 and stamps[1] - stamps[0] >= 1


def test_retry_after():
    for text, seconds in {"7": 7, " 0 ": 0, "soon": None, "-1": None, "": None}.items():
        assert s.seconds_to_wait(text) == seconds
    assert s.seconds_to_wait("9" * 5000) == float("inf")
    assert s.seconds_to_wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert s.seconds_to_wait("Wed, 21 Oct 99999 07:28:00 GMT") is None
    assert 55 < s.seconds_to_wait(formatdate(time.time() + 60, usegmt=True)) <= 60


def test_pauses_double_and_vary(monkeypatch):
    web, said = s.Web(s.parse_args(["--url", "http://127.0.0.1/", "--delay", "0"])), []
    monkeypatch.setattr(s, "BACKOFF", 100.0)
    monkeypatch.setattr(s, "LONGEST_WAIT", 10**6)
    monkeypatch.setattr(s, "request", lambda *_: (500, {}, b""))
    monkeypatch.setattr(web, "wait", lambda host: web.due.update({host: time.monotonic()}))
    monkeypatch.setattr(s, "show", lambda text, _: said.append(text))
    for _ in range(20):
        with pytest.raises(s.Failure, match="HTTP 500, 5 times"):
            web.retry("http://127.0.0.1/", {})
    pauses = [int(re.search(r"(\d+) s$", text)[1]) for text in said]
    rows = np.array(pauses).reshape(20, s.RETRIES) / 2 ** np.arange(s.RETRIES)  # none at the end
    assert (rows.min(0) >= 74).all() and (rows.max(0) <= 151).all() and (rows.std(0) > 5).all()


def test_the_largest_total(gallery, capsys):
    total = sum(map(len, list(PICTURES.values())[:6])) / 1e6
    assert run(gallery, "--max-total", total, "--workers", 1) == 1
    assert "(--max-total)" in capsys.readouterr().out
    before = len(shown())
    assert 3 <= before < 6
    assert run(gallery, "--max-total", total, "--workers", 1) == 1  # what is there counts as well
    assert before <= len(shown()) <= 6


ROBOTS, WITH_X = b"User-agent: *\nDisallow: ", {"/spirits": links("x.png")}
BY_NAME = "\ufeffUser-Agent: Scrape_Spirits/2.0 # us\r\nDisallow: /\r\n".encode()
GONE = [f"gone{i}.png" for i in range(30)]
MIXED = [link for pair in zip(GONE, IMAGES) for link in pair]
UNREAD = "/spirits: its robots.txt cannot be read: HTTP "
SPOILED = {  # what is served, what is said, how many pictures and requests
    "some forbidden": ({"/robots.txt": ROBOTS + b"/images/000*%20(No"},
        r"9 failed.*0001%20Ghost%20\(No.%201\).png: forbidden by robots.txt", 3, {5}),
    "12 forbidden": ({"/robots.txt": ROBOTS + b"/images"}, "12 failed; run again", 0, {2}),
    "all forbidden": ({"/robots.txt": BY_NAME}, "/spirits: forbidden by robots.txt", 0, {1}),
    "robots.txt 404": ({"/robots.txt": answer(404)}, "12 fetched: ", 12, {14}),
    "robots.txt 410": ({"/robots.txt": answer(410)}, "12 fetched: ", 12, {14}),
    "robots.txt 401": ({"/robots.txt": answer(401)}, UNREAD + "401", 0, {1}),
    "robots.txt 403": ({"/robots.txt": answer(403)}, UNREAD + "403", 0, {1}),
    "robots.txt 500": ({"/robots.txt": answer(500)}, UNREAD + "500, 5 times", 0, {5}),
    "a redirect to what is forbidden": (WITH_X | {"/robots.txt": ROBOTS + b"/y",
        "/x.png": answer(302, Location="/y"), "/y": png()}, "forbidden by robots.txt", 0, {3}),
    "a private address": ({"/spirits": links("http://127.0.0.3/x.png")},
        "private address 127.0.0.3, --url is not", 0, {2}),
    "a pause of a day": ({list(IMAGES)[4]: answer(429, Retry_After="86400")},
        "4 fetched, 8 not tried.*asks for a pause of 86,400 s", 4, {7}),
    "30 failures in a row": ({"/spirits": page(PICTURES) + links(*GONE)}, "12 fetched, 10 failed, "
        r"20 not tried.*stopped: 10 failures in a row, the last: \S+gone9.png: HTTP 404", 12,
        {24, 25, 26}),
    "12 failures not in a row": ({"/spirits": links(*MIXED)}, "12 failed; run again", 12, {26}),
    "no pictures": ({"/spirits": b"<p>soon"}, "no pictures found; --select CLASS", 0, {2}),
    "no page": ({"/spirits": answer(404)}, "1 failed.*/spirits: HTTP 404", 0, {2}),
    "no second page": ({"/spirits": page(PICTURES) + b"<a rel=next href=/none>"},
        "12 fetched, 1 failed: .*/none: HTTP 404", 12, {15}),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_gallery(gallery, case, capsys):
    files, expected, kept, requests = SPOILED[case]
    gallery.files |= files
    assert run(gallery, "--follow", "--workers", 1) == ("12 fetched: " not in expected)
    assert re.search(expected, capsys.readouterr().out, re.DOTALL)
    assert len(shown()) == kept and len(gallery.log) in requests


# ---- Redirects and private addresses ------------------------------------------------------------


def test_redirects_to_another_host_ask_for_its_robots_txt(gallery):
    """127.1 is another name of the same address."""
    elsewhere = gallery.url.replace("127.0.0.1", "127.1")
    gallery.files["/y.png"] = png()
    assert one(gallery, answer(302, Location=f"{elsewhere}/y.png")) == (0, [png()])
    places = [headers["Host"].partition(":")[0] + p for p, headers, _ in gallery.log]
    first, second = "robots.txt spirits x.png".split(), "robots.txt y.png".split()
    assert places == [f"127.0.0.1/{p}" for p in first] + [f"127.1/{p}" for p in second]


PRIVATE = """0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 169.254.169.254 172.16.0.1 192.168.0.1 224.0.0.1
    255.255.255.255 :: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 fe80::1%lo fc00::1 ff02::1""".split()
OWN = [("127.0.0.1", "127.0.0.1", True), ("127.0.0.1", "127.0.0.2", False)]
PUBLIC = [("93.184.216.34", "", True), ("2606:2800:220:1::1", "", True)]


@pytest.mark.parametrize("ip, own, allowed", [*PUBLIC, *OWN, *((ip, "", False) for ip in PRIVATE)])
def test_a_connection_goes_to_the_address_that_was_looked_at(monkeypatch, ip, own, allowed):
    """And to no other one that the name may have by then (DNS rebinding)."""
    info = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: info)
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: address)
    if allowed:
        assert s.connect({own}, ("h.test", 80), 1) == (ip, 80)
    else:
        with pytest.raises(s.Failure, match=r"h\.test is at the private address"):
            s.connect({own}, ("h.test", 80), 1)


def test_proxies_of_the_environment_are_not_used(gallery, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert run(gallery) == 0


# ---- Robots and pauses --------------------------------------------------------------------------


# Groups, and rules of "User-agent: *"; RFC 9309, 5.1, 5.2 and 2.2.3
GROUPS = [
    ("", "/", True),
    ("User-agent: other\nDisallow: /", "/x", True),
    ("User-agent: *\nDisallow: /\n\nUser-agent: scrape_spirits\nDisallow: /a", "/x", True),
    ("User-agent: scrape_spirits\nUser-agent: b\nDisallow: /a", "/ab", False),
    ("User-agent: scrape_spirits\nSitemap: /s\nUser-agent: b\nDisallow: /a", "/a", False),
    ("User-agent: scrape_spirits\nDisallow: /a\nUser-agent: b\nDisallow: /c", "/c", True),
    ("User-agent: scrape_spirits\nAllow: /\nUser-agent: scrape_spirits\nDisallow: /a", "/a", False),
    ("Disallow: /", "/x", True),
    ("<html>404</html>", "/x", True),
]
RULES = [
    ("Disallow:", "/x", True),
    ("Disallow: /", "/x", False),
    ("Allow: /example/page/\nDisallow: /example/page/no.gif", "/example/page/no.gif", False),
    ("Allow: /example/page/\nDisallow: /example/page/x", "/example/page/", True),
    ("Disallow: /a\nAllow: /a", "/a", True),
    ("Disallow: *.gif$\nAllow: /publications/", "/publications/a.gif", True),
    ("Disallow: *.gif$", "/a.gif", False),
    ("Disallow: *.gif$", "/a.gif?x", True),
    ("Disallow: /*.png", "/a/b.png?x=1", False),
    ("Disallow: /*?", "/a?x=1", False),
    ("Disallow: /[ab]", "/a", True),
    ("Disallow: /a%20b", "/a b", False),
    ("Disallow: /a b", "/a%20b", False),
    ("Disallow: /ツ", "/%E3%83%84", False),
    ("Disallow: /" + "*a" * 40 + "*b", "/" + "a" * 3000, True),
]


@pytest.mark.parametrize(
    "text, path, free", [*GROUPS, *(("User-agent: *\n" + text, *rest) for text, *rest in RULES)]
)
def test_robots_rules(text, path, free):
    rules, _ = s.read_robots(text)
    assert s.may_fetch(rules, path) is free


@given(st.text(max_size=200), st.text(max_size=20))
def test_no_robots_txt_raises(text, path):
    rules, pause = s.read_robots("User-agent: *\nCrawl-delay:" + text)
    assert s.may_fetch(rules, path) in (True, False) and 0 <= pause <= s.DAY


# 3 s for each of two connections; or the crawl delay of a host, where it is longer
@pytest.mark.parametrize(
    "flags, gaps, hosts, expected",
    [
        ("--delay 3 --workers 2", {}, "aaaba", [0, 1.5, 3, 3, 4.5]),
        ("--workers 4", {"a": 2.5, "b": 0.1}, "aaabb", [0, 2.5, 5, 5, 5.25]),
    ],
)
def test_the_pauses_between_requests(monkeypatch, flags, gaps, hosts, expected):
    """On a clock that moves only where the script waits: when each request is let through."""
    web, now, times = s.Web(s.parse_args(["--url", "http://127.0.0.1/", *flags.split()])), [0], []
    monkeypatch.setattr(s, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    sleep = lambda seconds: now.append(now.pop() + seconds)  # noqa: E731
    web.stop, web.gaps = types.SimpleNamespace(is_set=lambda: False, wait=sleep), gaps
    for host in hosts:
        web.wait(host)
        times.append(now[0])
    assert times == pytest.approx(expected)


def test_pauses_are_kept_by_all_workers_together(gallery):
    gallery.files["/robots.txt"] = b"User-agent: *\nCrawl-delay: 0.1\n"
    began = time.monotonic()
    assert run(gallery, "--workers", 4) == 0
    assert time.monotonic() - began > 12 * 0.1  # between the requests after robots.txt


# ---- Again --------------------------------------------------------------------------------------


def test_a_second_run_asks_and_fetches_what_changed(scraped, capsys):
    before, body = shown(), scraped.files.pop(FIRST)
    assert run(scraped) == 1 and "HTTP 404" in capsys.readouterr().out
    assert statuses(scraped) == [304] * 11 + [404] and shown() == before  # what is gone stays here
    scraped.files[FIRST] = body
    assert run(scraped) == 0 and shown() == before
    scraped.files[FIRST] = png(seed=5)
    assert run(scraped) == 0
    assert sorted(bodies()) == sorted([*list(PICTURES.values())[1:], png(seed=5)])


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize("headers, asks", [({"Last_Modified": DATE}, [200, 304]), ({}, [200])])
def test_last_modified_is_sent_back_and_without_it_nothing_is_asked(gallery, headers, asks):
    def reply(handler):
        same = handler.headers.get("If-Modified-Since") == DATE
        handler.reply(304 if same else 200, b"" if same else png(), **headers)

    assert one(gallery, reply) == (0, [png()])
    assert run(gallery) == 0 and statuses(gallery, "/x") == asks


@pytest.mark.parametrize("name", [0, 1, "manifest.jsonl"])
def test_what_is_missing_or_damaged_comes_again(scraped, name):
    """A picture that is gone or cut, and the manifest whose last line was cut."""
    before = shown()
    spoiled = Path("out") / (sorted(before)[name] if name in (0, 1) else name)
    spoiled.write_bytes(spoiled.read_bytes()[:-20])
    if name == 0:
        spoiled.unlink()
    assert run(scraped) == 0 and shown() == before and len(manifest()) == 12
    assert statuses(scraped) == [200] + [304] * 11


@pytest.mark.parametrize("days, asks", [(0, [404]), (1, [304] * 11 + [404])])
def test_after_a_failure_only_what_is_missing_is_asked_for(gallery, monkeypatch, days, asks):
    """And after a day the others, too; a complete set is brought up to date at once."""
    body, now = gallery.files.pop(LAST), time.time
    assert run(gallery) == 1
    monkeypatch.setattr(time, "time", lambda: now() + days * s.DAY)
    gallery.log.clear()
    assert run(gallery) == 1 and statuses(gallery) == asks
    gallery.files[LAST] = body
    assert run(gallery) == 0 and len(shown()) == 12
    gallery.log.clear()
    assert run(gallery) == 0 and statuses(gallery) == [304] * 12


def test_duplicates_are_kept_once_under_the_first_name(gallery):
    """Also when the first of them comes last, as the second of two workers brings it."""
    late = lambda handler: (time.sleep(0.3), handler.reply(200, png(), ETag="x"))  # noqa: E731
    gallery.files |= {"/a.png": late, "/b.png": png(), "/c.png": png()}
    gallery.files["/spirits"] = links("a.png", "b.png", "c.png")
    for _ in range(2):
        assert run(gallery) == 0
        assert bodies() == [png()] and next(iter(shown())).startswith("a-")
        states = [record["status"] for record in manifest().values()]
        assert states == ["kept", "duplicate", "duplicate"]
    assert statuses(gallery, "/b") == [200, 304]
    gallery.files["/a.png"] = png(seed=1)  # the owner changes, the others stay what they were
    assert run(gallery) == 0
    assert sorted(bodies()) == sorted([png(), png(seed=1)])


def test_a_manifest_from_elsewhere_names_no_file_outside(scraped):
    good = Path("out/manifest.jsonl").read_text()
    record, other = json.loads(good.splitlines()[0]), f"{scraped.url}/other"
    Path("precious.png").write_bytes(b"precious")
    for name in ("../precious.png", str(Path("precious.png").resolve()), ".lock", "C:x", 7, ["a"]):
        bad = json.dumps(record | {"file": name, "url": other})
        Path("out/manifest.jsonl").write_text(good + bad + "\nnull\n[]\n{}\n\x00\n" + bad[:40])
        assert run(scraped) == 0
        assert Path("precious.png").read_bytes() == b"precious" and len(shown()) == 12
        assert other not in manifest()


def test_a_record_after_a_line_that_was_cut_counts_also_after_a_kill():
    Path("out").mkdir()
    Path("out/manifest.jsonl").write_bytes(b'{"url": "http://h.te')
    with contextlib.closing(s.Folder(Path("out"))) as folder:
        folder.add({"url": "http://h.test/x", "status": "HTTP 404"})
    with contextlib.closing(s.Folder(Path("out"))) as folder:
        assert list(folder.records) == ["http://h.test/x"]


def test_a_folder_of_other_files_is_left_alone(gallery, capsys):
    Path("out").mkdir()
    Path("out/holiday.jpg").write_bytes(b"mine")
    assert run(gallery) == 1
    assert "--out out: has files but no manifest.jsonl; name another" in capsys.readouterr().out
    assert os.listdir("out") == ["holiday.jpg"] and gallery.log == []
    Path("file").write_bytes(b"")
    assert run(gallery, out="file") == 1
    assert "--out file: in use, or cannot be used" in capsys.readouterr().out


def test_two_runs_at_once(gallery, capsys):
    with contextlib.closing(s.Folder(Path("out"))):
        assert run(gallery) == 1
    assert "--out out: in use" in capsys.readouterr().out and gallery.log == []
    assert run(gallery) == 0


def test_a_full_disk_costs_the_new_file_alone(gallery, monkeypatch, capsys):
    assert run(gallery, "--limit", 5) == 0
    before, sync, left = shown(), os.fsync, [3]

    def full(number):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    assert run(gallery, "--workers", 1) == 1
    assert "No space left on device" in capsys.readouterr().out
    after = shown()
    assert before.items() <= after.items() and len(after) == 8
    assert not list(Path("out").glob(".*.tmp"))
    monkeypatch.setattr(os, "fsync", sync)
    assert run(gallery) == 0 and len(shown()) == 12


# ---- Output and signals --------------------------------------------------------------------------


AS_ON_A_TERMINAL = (  # a background job's children are born deaf to Ctrl-C
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def start(server, *flags, out="out", stderr=subprocess.PIPE, **env):
    command = [sys.executable, "-c", AS_ON_A_TERMINAL, str(SCRIPT)]
    command += ["--url", server.url + "/spirits", "--out", out]
    env = os.environ | {"PYTHONUNBUFFERED": "1"} | env
    pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True}
    return subprocess.Popen([*command, *map(str, flags)], env=env, **pipes)


def wait_for_pictures(n):
    end = time.monotonic() + 30
    while len(list(Path("out").glob("*.png"))) < n:
        assert time.monotonic() < end
        time.sleep(0.002)


def halves(body):
    headers = {"Content_Length": str(len(body)), "ETag": hashlib.sha256(body).hexdigest()[:16]}
    return send(body[:500], body[500:], pause=0.05, **headers)


def test_a_console_without_the_letters_of_an_address(gallery):
    gallery.files["/spirits"] = links("none.png")
    child = start(gallery, "--delay", 0, out="\u0416\u4e2d", PYTHONIOENCODING="cp1252")
    said, errors = child.communicate(timeout=60)
    assert child.returncode == 1 and "Traceback" not in errors
    assert "1 pictures into ??" in said and "none.png: HTTP 404" in errors


@POSIX
@pytest.mark.parametrize("both", [False, True])
def test_a_closed_pipe_does_not_stop_the_run(gallery, both, capfd):
    with start(gallery, "--delay", 0, stderr=subprocess.STDOUT if both else None) as child:
        child.stdout.close()
    assert child.returncode == 0 and len(shown()) == 12
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("after", [3, 7])
def test_sigkill_and_again_is_an_undisturbed_run(gallery, after):
    """The same files, and nothing whole fetched twice."""
    whole = IMAGES | {"/again.png": list(IMAGES.values())[5]}
    gallery.files |= whole | {"/spirits": links("again.png") + page(PICTURES)}
    assert run(gallery, out="undisturbed") == 0
    gallery.files |= {p: halves(body) for p, body in whole.items()}
    child = start(gallery, "--delay", 0.02)
    wait_for_pictures(after)
    child.kill()
    child.communicate()
    time.sleep(0.2)  # for the answers under way
    done = len(shown())
    assert child.returncode and after <= done < 13
    gallery.files |= whole
    gallery.log.clear()
    assert run(gallery) == 0
    assert shown() == shown("undisturbed")
    assert len([p for p, _, _ in gallery.log if p in whole]) == 13 - done  # not even asked for
    assert not list(Path("out").glob(".*.tmp"))


@POSIX
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_sums_up_and_the_same_command_goes_on(gallery, name):
    number = getattr(signal, name)
    gallery.files |= {p: halves(body) for p, body in IMAGES.items()}
    child = start(gallery, "--delay", 0.05)
    wait_for_pictures(4)
    child.send_signal(number)
    said, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (128 + number, "")
    assert re.search(r"\d fetched, \d+ not tried: \d+ requests", said)
    assert said.endswith("stopped; the same command continues\n")
    gallery.files |= IMAGES
    gallery.log.clear()
    done = len(shown())
    assert run(gallery) == 0 and len(asked(gallery)) == 12 - done
    assert bodies() == list(PICTURES.values())


@POSIX
def test_a_signal_that_is_ignored_stays_so(gallery, monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)  # nohup
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("a handler was set"))
    assert run(gallery) == 0


# ---- Flags --------------------------------------------------------------------------------------

WRONG = {
    "--url=smashbros-ultimate.com": "--url smashbros-ultimate.com: not an address that",
    "--url=file:///etc/passwd": "--url file:///etc/passwd: not an address that",
    "--select= ": "--select: name a class",
    "--limit=0": "--limit 0: must be 1e-06 or more",
    "--delay=-1": "--delay -1.0: must be 0 or more",
    "--delay=inf": "--delay inf: must be 0 or more",
    "--workers=0": "--workers 0: must be 1e-06 or more",
    "--timeout=0": "--timeout 0.0: must be 1e-06 or more",
    "--max-file=nan": "--max-file nan: must be 1e-06 or more",
    "--min-side=-3": "--min-side -3: must be 0 or more",
}


def test_defaults_are_polite():
    args = s.parse_args([])
    assert args.delay == 1 and args.workers <= 4
    assert args.url == ["http://smashbros-ultimate.com/spirits"]


@pytest.mark.parametrize("flag", WRONG)
def test_wrong_flags(flag, capsys):
    with pytest.raises(SystemExit) as end:
        s.main([flag])
    assert end.value.code == 2
    assert WRONG[flag] in capsys.readouterr().err.splitlines()[-1]
