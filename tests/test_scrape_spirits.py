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
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(s, "BACKOFF", 0.01)
    monkeypatch.chdir(tmp_path)
    resolve = socket.getaddrinfo

    def loopback_only(host, *args, **kwargs):
        if host.startswith("127.") or host in ("localhost", "::1"):
            return resolve(host, *args, **kwargs)
        raise socket.gaierror(socket.EAI_NONAME, "no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", loopback_only)


@contextlib.contextmanager
def serving(files):
    with Gallery(files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def gallery():
    """The report's gallery with 12 spirits; a test changes `files` to spoil it."""
    with serving({path(name): body for name, body in PICTURES.items()}) as server:
        server.files["/spirits"] = page(PICTURES)
        yield server


def path(name):
    return f"/images/{name.replace(' ', '%20')}"


def links(*hrefs):
    """A page with a spirit per link."""
    spirits = (f'<div class="col-md-2 spiritDiv"><a href="{href}">x</a></div>' for href in hrefs)
    return "".join(spirits).encode()


def png(side=64, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def jpeg():
    file = io.BytesIO()
    Image.open(io.BytesIO(png())).save(file, "JPEG")
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


def manifest(out="out"):
    lines = (Path(out) / "manifest.jsonl").read_text().splitlines()
    return {record["url"]: record for record in map(json.loads, lines)}


def asked(server, start="/images/"):
    """[(path, status)] of the requests for pictures."""
    return [(p, status) for p, _, status in server.log if p.startswith(start)]


def one(server, answer, *flags):
    """Scrape a page with one spirit behind `answer`; exit code and files."""
    server.files |= {"/spirits": links("x.png"), "/x.png": answer}
    return run(server, *flags), list(shown().values())


def turns(*answers):
    """An answer that is another one each time, the last for good."""
    answers = list(answers)

    def answer(handler):
        now = answers.pop(0) if len(answers) > 1 else answers[0]
        now(handler) if callable(now) else handler.reply(*now)

    return answer


def send(*pieces, pause=0.0, **headers):
    """An answer in pieces, after its head; the connection closes at the end."""

    def answer(handler):
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for piece in pieces:
                handler.wfile.write(piece)
                time.sleep(pause)
        handler.close_connection = True

    return answer


# ---- The gallery, whole -------------------------------------------------------------------------


def test_the_gallery_of_the_report(gallery, capsys):
    assert run(gallery) == 0
    files = shown()
    assert list(files.values()) == list(PICTURES.values())  # byte for byte, in the gallery's order
    for name, original in zip(sorted(files), sorted(PICTURES)):
        assert re.fullmatch(re.escape(original[:-4]) + r"-[0-9a-f]{8}\.png", name)
    seen = [p for p, _, _ in gallery.log]
    assert len(seen) == 14 and seen[:2] == ["/robots.txt", "/spirits"]  # no thumbs, no logo
    for _, headers, _ in gallery.log:
        assert headers["User-Agent"].startswith("scrape_spirits") and "robots.txt" in str(headers)
    said = capsys.readouterr().out
    sizes = sorted(Image.open(io.BytesIO(body)).size for body in PICTURES.values())
    low, high = ("{}x{}".format(*size) for size in (sizes[0], sizes[-1]))
    modes = {Image.open(io.BytesIO(body)).mode for body in PICTURES.values()}
    assert f"12 pictures of {low} to {high} pixels, " in said
    assert all(mode in said for mode in modes)
    assert "12 fetched: 14 requests" in said


def test_training_sees_the_pictures_and_nothing_else(gallery):
    assert run(gallery) == 0
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
    gallery.files[path("gone.png")] = lambda handler: handler.reply(410)
    gallery.files["/spirits"] += links("images/gone.png")
    assert run(gallery) == 1
    for url, record in manifest().items():
        if url.endswith("gone.png"):
            assert record["file"] is None and record["status"] == "HTTP 410"
            continue
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
    allowed = [path(name) for name in PICTURES if not name.startswith("0003")]
    assert listed == [gallery.url + p for p in allowed]
    assert asked(gallery) == [] and not Path("out").exists()


def test_limit_takes_the_first(gallery):
    assert run(gallery, "--limit", 3) == 0
    assert list(shown().values()) == list(PICTURES.values())[:3]


def test_several_urls_and_pages_that_follow(gallery):
    a, b, c, d = (path(name) for name in list(PICTURES)[:4])
    following = b'<a rel="nofollow next" href="?page=2">more</a>'
    gallery.files |= {
        "/art": links(a) + following,
        "/art?page=2": links(b) + b'<link rel=NEXT href="/art?page=3">',
        "/art?page=3": links(a, b) + b'<a rel=next href="/art?page=4">',  # nothing new: the end
        "/art?page=4": links(c),
        "/more": links(d),
    }
    assert run(gallery, page="/art") == 0
    assert [p for p, _ in asked(gallery)] == [a]
    assert run(gallery, "--follow", "--url", gallery.url + "/art", gallery.url + "/more") == 0
    assert sorted(shown().values()) == sorted(PICTURES[unquote(p[8:])] for p in (a, b, d))
    assert "/art?page=4" not in [p for p, _, _ in gallery.log]


def test_without_spirits_every_image_larger_than_min_side(gallery):
    files = {f"/{side}.png": png(side, side) for side in (16, 32, 33, 64)}
    flat = io.BytesIO()
    Image.new("RGB", (64, 20)).save(flat, "PNG")
    gallery.files["/flat.png"] = flat.getvalue()
    tags = "".join(f"<p><img src='{p}' width=999>" for p in [*files, "/flat.png"])
    gallery.files |= files | {"/blog": f"<body>{tags}<img src=a.svg><img src=data:x,y>".encode()}
    assert run(gallery, page="/blog") == 0
    assert sorted(shown().values()) == sorted([files["/33.png"], files["/64.png"]])
    assert run(gallery, "--min-side", 20, page="/blog") == 0  # what was too small comes after all
    assert len(shown()) == 3
    assert [p for p, status in asked(gallery, "/") if status == 200].count("/32.png") == 2
    for small in ("/16.png", "/flat.png"):
        assert asked(gallery, small) == [(small, 200), (small, 304)]


@pytest.mark.parametrize("out, sheet", [(".", "../{}-contact.png"), ("a/b", "a/b-contact.png")])
def test_the_contact_sheet_lies_beside_the_folder(gallery, tmp_path, out, sheet):
    assert run(gallery, out=out) == 0
    assert Path(sheet.format(tmp_path.name)).exists()
    assert not list(Path(out).glob("*contact.png"))
    Path(sheet.format(tmp_path.name)).unlink()


def test_the_script_runs_alone(gallery):
    shutil.copy(SCRIPT, "copy.py")
    command = [sys.executable, "-I", "-W", "error", "copy.py", "--out", "out", "--delay", "0"]
    command += ["--url", gallery.url + "/spirits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and "12 fetched" in done.stdout
    assert list(shown().values()) == list(PICTURES.values())


def test_main_runs_in_a_thread(gallery):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run(gallery)))
    thread.start()
    thread.join(60)
    assert codes == [0] and len(shown()) == 12


# ---- Pages --------------------------------------------------------------------------------------


def found(html, select=None, address="http://h.test/a/b"):
    return list(s.find_links(html, address, select)[0])


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
    assert found(html + '<base href="/deep/er/"><base href="/no/">') == [
        "http://h.test/deep/er/c.png"
    ]
    assert found('<base href="https://cdn.test/x">' + html) == ["https://cdn.test/c.png"]
    assert found('<base href="javascript:1">' + html) == ["http://h.test/a/c.png"]


def test_which_elements_count():
    html = """<a href=no1><img src=no2></a>
        <li class="thumb big"><a href=one><img src=no3></a>
        <li class=thumb><b><img data-src=two src=no4></b></li><img src=no5>
        <a class=thumb href=three></a><img class="thumb" src=four></p></div>"""
    assert [
        url[-5:].rpartition("/")[2] for url in found(html, "thumb")
    ] == "one two three four".split()
    assert found(html, "thumb big") == ["http://h.test/a/one"]
    assert found(html, "thumbnail") == []
    names = [url.rpartition("/")[2] for url in found(html)]
    assert names == ["no2", "no3", "two", "no5", "four"]  # no spirits: every image
    assert found(html + links("spirit").decode()) == ["http://h.test/a/spirit"]


@pytest.mark.parametrize(
    "html, name",
    [
        ('<img src="000.png" data-lazy-src="001.png">', "001.png"),
        ('<img src="data:image/gif;base64,R0lG" data-original="002.png">', "002.png"),
        ('<img src="000.png" srcset="000.png 40w, big/000.png 400w">', "big/000.png"),
        ('<img src="000.png" data-src="1.png" srcset="000.png 40w">', "1.png"),
        ('<img src="000.png" data-src="data:,x" data-srcset="1.png 1x,2.png 1.5x">', "2.png"),
        ('<img src="0.png" srcset="a,b.png 2x , c.png, ">', "a,b.png"),
        ('<img src=" DATA:image/png;base64,AA" alt="">', None),
        ('<img src="about:blank"><img src="">', None),
        (
            '<picture><source srcset="1.webp 300w, 2.webp 900w"><img src="0.jpg"></picture>',
            "2.webp",
        ),
        (
            '<picture><source type="image/avif" srcset="1.avif 9w"><img src="0.jpg"></picture>',
            "0.jpg",
        ),
        ('<picture><source srcset="1.webp"></picture><img src="0.jpg">', "0.jpg"),
        ('<video><source src="1.mp4"></video><img src="0.jpg">', "0.jpg"),
    ],
)
def test_the_real_and_the_largest_image(html, name):
    urls = [f"http://h.test/a/{name}"] if name else []
    assert found(html) == urls
    assert found(f"<div class=spiritDiv>{html}</div>") == urls


@pytest.mark.parametrize(
    "html, expected",
    [
        ("<a href=full.png><img src=0.png></a>", {"full.png": "0.png"}),
        ("<a href='javascript:zoom()'><img src=0.png></a>", {"0.png": None}),
        ("<a href='#'><img src=0.png></a>", {"0.png": None}),
        ("<a href='mailto:a@h.test'><img src=0.png></a>", {"0.png": None}),
        ("<a href='b#top'><img src=0.png></a>", {"0.png": None}),
        ("<a><img src=0.png></a>", {"0.png": None}),
        ("<a href='#'><img src=0.png></a><a href=1.png>x</a>", {"0.png": None, "1.png": None}),
        ("<img src=0.png><a href=1.png>x</a>", {"1.png": None}),
        ("<img src=0.png><a href='#'>x</a>", {"0.png": None}),
        ("<a href=p>title</a><a href=p><img src=0.png></a>", {"p": "0.png"}),
    ],
)
def test_an_a_that_leads_to_no_picture_gives_way_to_its_image(html, expected):
    html = f"<div class=spiritDiv>{html}</div>"
    pairs = s.find_links(html, "http://h.test/a/b")[0]
    short = {None: None} | {f"http://h.test/a/{x}": x for x in ("full.png", "0.png", "1.png", "p")}
    assert {short[url]: short[fallback] for url, fallback in pairs.items()} == expected


def test_a_link_to_a_web_page_falls_back_to_its_image(gallery):
    html = b"\xef\xbb\xbf \n<!DOCTYPE HTML><p>detail</p>"
    gallery.files |= {"/0.png": png(), "/p": html, "/q": html}
    div = b"<div class=spiritDiv><a href=%s><img src=%s></a></div>"
    gallery.files["/spirits"] = div % (b"p", b"0.png")
    for statuses in ([200], [200, 304]):
        assert run(gallery) == 0 and list(shown().values()) == [png()]
        assert [status for _, status in asked(gallery, "/0")] == statuses
    assert len(asked(gallery, "/p")) == 1  # a page is not fetched twice either
    assert manifest()[f"{gallery.url}/p"]["status"] == "web page"
    gallery.files["/spirits"] = div % (b"q", b"gone.png") + div % (b"p", b"")
    assert run(gallery) == 1  # neither has an image
    assert len(asked(gallery, "/q")) == 1 and len(asked(gallery, "/p")) == 2


def test_charsets():
    for body, kind in (
        ("é".encode(), "text/html"),
        ("é".encode("latin-1"), "text/html; charset=ISO-8859-1"),
        (b"<meta charset='latin-1'>\xe9", "text/html"),
        (b"<meta charset='latin-1'>\xe9", "text/html; charset=none-such"),
        (b"<meta charset=hex>" + "é".encode(), "text/html; charset=idna"),
        ("\ufeffé".encode(), ""),
    ):
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


@pytest.mark.parametrize(
    "piece", ["<div>", "<a ", "<!--", "</", "&#", "<![x", "<a a=' ", "<script></scrip", "<p x=1 "]
)
def test_a_huge_page_is_read_in_seconds(piece):
    html = links("x.png").decode() + piece * (500_000 // len(piece)) + "</i>" * 50_000
    began = time.process_time()
    assert "http://h.test/a/x.png" in found(html)
    assert time.process_time() - began < 5


# ---- Names --------------------------------------------------------------------------------------


def assert_safe(name):
    assert (
        not re.search(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\u200b-\u202e]', name) and name.isprintable()
    )
    assert name.strip(" .-") == name and len(name.encode()) <= 120
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
    assert name == f"{NAMES[last]}-1a2b3c4d.png"
    assert_safe(name)


@given(html=HTML)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_no_page_writes_outside_the_folder(html, tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    web = types.SimpleNamespace(get=lambda url, headers: (200, {}, png(seed=len(url)), url))
    folder = s.Folder(root / "out")
    try:
        pictures = found(links("../../x.png", "%2e%2e%2fy.png", "/z/../..").decode() + html)
        for url in pictures:
            assert s.collect(url, None, 0, web, folder) in ("fetched", "unchanged")
        kept = s.finish(folder, {url: (None, 0) for url in pictures}, True)
    finally:
        folder.close()
    assert [p.name for p in root.iterdir()] == ["out"] and kept
    files = {p.name for p in (root / "out").rglob("*")}
    assert files == {r["file"] for r in kept} | {"manifest.jsonl", ".lock"}


def test_collisions_keep_both(gallery):
    gallery.files |= {"/spirits": links("a/x.png", "b/X.png", "b/x.gif")}
    gallery.files |= {f"/{p}": png(seed=i) for i, p in enumerate(["a/x.png", "b/X.png", "b/x.gif"])}
    assert run(gallery) == 0
    assert sorted(shown().values()) == sorted(png(seed=i) for i in range(3))
    assert len({name.lower() for name in shown()}) == 3
    assert all(name.endswith(".png") for name in shown())  # the content decides


# ---- Answers ------------------------------------------------------------------------------------


def bomb(side):
    """A PNG that claims side x side pixels."""
    head = struct.pack(">4sIIBBBBB", b"IHDR", side, side, 8, 6, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + head + check + b"\0\0\0\x0aIDATx"


def packed(body, coding="gzip"):
    return lambda handler: handler.reply(200, body, Content_Encoding=coding)


CUT = send(png()[:3000], Content_Length=str(len(png())))
CHUNKED = {"Transfer_Encoding": "chunked"}
GOOD = {
    "500 and 503 first": (turns((500,), (503,), (200, png())), 3),
    "408 first": (turns((408,), (200, png())), 2),
    "cut first": (turns(CUT, (200, png())), 2),
    "gzip": (packed(gzip.compress(png())), 1),
    "x-gzip": (packed(gzip.compress(png()), "x-gzip"), 1),
    "deflate": (packed(zlib.compress(png()), "Deflate"), 1),
    "longer than its length": (lambda h: h.reply(200, png() + b"x" * 999, len(png())), 1),
    "slow, but not too slow": (send(png()[:2000], png()[2000:], pause=0.6), 1),
    "odd headers": (
        send(png(), ETag="\xff\xfe", Last_Modified='"a\r\n b"', Content_Encoding=""),
        1,
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_answers_that_give_the_picture(gallery, case):
    answer, requests = GOOD[case]
    assert one(gallery, answer, "--timeout", 1) == (0, [png()])
    assert len(asked(gallery, "/x")) == requests
    assert run(gallery) == 0 and list(shown().values()) == [png()]


BAD = {
    "404": (turns((404,)), "HTTP 404", 1),
    "304 that was not asked for": (turns((304,)), "HTTP 304", 1),
    "500 for good": (turns((500,)), "HTTP 500, 5 times", 5),
    "cut for good": (CUT, "cut short after 3,000 bytes, 5 times", 5),
    "cut without a length": (send(png()[:-20]), "a damaged picture", 1),
    "shorter than its length": (lambda h: h.reply(200, png(), 9**5 // 2), "cut short", 5),
    "a page": (turns((200, b"<!DOCTYPE html><html>none")), "picture: it begins with b'<!D", 1),
    "nothing": (turns((200, b"")), "not a picture", 1),
    "EPS": (turns((200, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")), "not a picture", 1),
    "SVG": (turns((200, b"<svg xmlns='http://www.w3.org/2000/svg'/>")), "not a picture", 1),
    "damaged": (turns((200, png()[:300] + b"\xff" * 40 + png()[340:])), "a damaged picture", 1),
    "PNG without its end": (turns((200, png()[:-13])), "a damaged picture", 1),
    "JPEG without its end": (turns((200, jpeg()[:-500])), "a damaged picture", 1),
    "40,000 x 40,000": (turns((200, bomb(40_000))), "a damaged picture (Image size (1600000000", 1),
    "8,000 x 8,000": (turns((200, bomb(8_000))), "8000x8000 pixels are too many", 1),
    "cut gzip": (packed(gzip.compress(png())[:-9]), "cut short", 5),
    "no gzip": (packed(b"not gzip at all"), "while decompressing", 5),
    "another coding": (packed(gzip.compress(png()), "br"), "not a picture", 1),
    "too large": (turns((200, b"x" * 40_001)), "larger than 0.04 MB (--max-file)", 1),
    "too large by its word": (lambda h: h.reply(200, b"", 10**12), "larger than 0.04 MB", 1),
    "too large unpacked": (packed(gzip.compress(bytes(10**7))), "larger than 0.04 MB", 1),
    "endless": (send(*[b"400\r\n" + b"x" * 1024 + b"\r\n"] * 999, **CHUNKED), "larger than", 1),
    "slow body": (send(*[b"0"] * 99, pause=0.05, Content_Length="9999"), "slower than", 5),
    "slow chunk length": (send(*[b"0"] * 99, pause=0.05, **CHUNKED), "slower than", 5),
    "silence": (lambda handler: time.sleep(2), "timed out, 5 times", 5),
    "no HTTP": (lambda h: h.wfile.write(b"SSH-2.0-nothing\r\n"), "SSH", 5),
}


@pytest.mark.parametrize("case", BAD)
def test_answers_that_give_none(gallery, case, capsys, monkeypatch):
    answer, why, requests = BAD[case]
    assert one(gallery, answer, "--max-file", 0.04, "--timeout", 0.4) == (1, [])
    said = capsys.readouterr().out
    assert "1 failed" in said and why in said
    if case not in ("silence", "no HTTP"):  # which log nothing
        assert len(asked(gallery, "/x")) == requests
    record = manifest()[f"{gallery.url}/x.png"]
    assert record["file"] is None and why in record["status"]
    gallery.files["/x.png"] = png()
    assert run(gallery) == 0 and list(shown().values()) == [png()]


def test_a_head_that_drips_is_left(gallery, monkeypatch, capsys):
    def answer(handler):
        handler.send_response(200)
        handler.flush_headers()
        with contextlib.suppress(OSError):
            for _ in range(200):
                handler.wfile.write(b"0")
                time.sleep(0.05)

    monkeypatch.setattr(s, "RETRIES", 1)
    assert one(gallery, answer, "--timeout", 0.3) == (1, [])
    assert "slower than 1,000 bytes per second, 2 times" in capsys.readouterr().out


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_pauses_the_whole_host(gallery, status):
    stamps = []

    def stamp(then):
        return lambda handler: (stamps.append(time.monotonic()), then(handler))

    busy = stamp(lambda handler: handler.reply(status, Retry_After="1"))
    fine = stamp(lambda handler: handler.reply(200, png()))
    other = stamp(lambda handler: handler.reply(200, png(seed=1)))
    gallery.files |= {"/spirits": links("x.png", "y.png"), "/y.png": other}
    gallery.files["/x.png"] = turns(busy, fine)
    assert run(gallery, "--workers", 1) == 0
    assert len(stamps) == 3 and stamps[1] - stamps[0] >= 1


def test_retry_after_of_a_day_ends_the_run(gallery, capsys):
    gallery.files[list(gallery.files)[4]] = lambda h: h.reply(429, Retry_After="86400")
    assert run(gallery, "--workers", 1) == 1
    assert "asks for a pause of 86,400 s" in capsys.readouterr().out
    assert len(shown()) == 4 and len(asked(gallery)) == 5


def test_retry_after():
    for text, seconds in {"7": 7, " 0 ": 0, "soon": None, "-1": None, "": None}.items():
        assert s.seconds_to_wait(text) == seconds
    assert s.seconds_to_wait("9" * 5000) == float("inf")
    assert s.seconds_to_wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert s.seconds_to_wait("Wed, 21 Oct 99999 07:28:00 GMT") is None
    assert 55 < s.seconds_to_wait(formatdate(time.time() + 60, usegmt=True)) <= 60


def test_pauses_double_and_vary(monkeypatch):
    web, pauses = s.Web(s.parse_args(["--url", "http://127.0.0.1/", "--delay", "0"])), []
    monkeypatch.setattr(s, "BACKOFF", 100.0)
    monkeypatch.setattr(s, "LONGEST_WAIT", 10**6)
    monkeypatch.setattr(s, "request", lambda *_: (500, {}, b""))
    monkeypatch.setattr(web, "wait", lambda host: web.due.update({host: time.monotonic()}))
    monkeypatch.setattr(
        s, "show", lambda text, _: pauses.append(int(re.findall(r"(\d+) s", text)[0]))
    )
    for _ in range(20):
        with pytest.raises(s.Failure, match="HTTP 500, 5 times"):
            web.retry("http://127.0.0.1/", {})
    rows = np.array(pauses).reshape(20, s.RETRIES) / 2 ** np.arange(s.RETRIES)  # none at the end
    assert (rows.min(0) >= 74).all() and (rows.max(0) <= 151).all() and (rows.std(0) > 5).all()


def test_the_largest_total(gallery, capsys):
    total = sum(map(len, list(PICTURES.values())[:6])) / 1e6
    assert run(gallery, "--max-total", total, "--workers", 1) == 1
    assert "(--max-total)" in capsys.readouterr().out
    assert 3 <= len(shown()) < 6
    before = len(shown())
    assert run(gallery, "--max-total", total, "--workers", 1) == 1  # what is there counts as well
    assert before <= len(shown()) <= 6


def test_ten_failures_in_a_row_stop_the_run(gallery, capsys):
    gallery.files["/spirits"] = page(PICTURES) + links(*(f"gone{i}.png" for i in range(30)))
    assert run(gallery, "--workers", 1) == 1
    said = capsys.readouterr().out
    assert re.search(r"stopped: 10 failures in a row, the last: \S+gone9.png: HTTP 404", said)
    assert "12 fetched, 10 failed, 20 not tried" in said
    assert len(asked(gallery, "/gone")) <= 12 and len(shown()) == 12


def test_failures_that_are_not_in_a_row_do_not_stop_it(gallery):
    mixed = [link for i, p in enumerate(PICTURES) for link in (f"gone{i}.png", f"images/{p}")]
    gallery.files["/spirits"] = links(*mixed)
    assert run(gallery, "--workers", 1) == 1
    assert len(shown()) == 12 and len(asked(gallery, "/gone")) == 12


def test_no_pictures(gallery, capsys):
    gallery.files["/spirits"] = b"<p>soon</p>"
    assert run(gallery) == 1
    assert "no pictures found; --select CLASS" in capsys.readouterr().out
    assert run(gallery, page="/none") == 1
    assert f"{gallery.url}/none: HTTP 404" in capsys.readouterr().out


def test_a_page_that_fails_is_told_and_the_others_are_scraped(gallery, capsys):
    assert run(gallery, "--url", gallery.url + "/none", gallery.url + "/spirits") == 1
    assert len(shown()) == 12 and "/none: HTTP 404" in capsys.readouterr().out


# ---- Redirects and private addresses ------------------------------------------------------------


def redirect(location, status=302):
    return lambda handler: handler.reply(status, Location=location)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_within_http_are_followed(gallery, status):
    gallery.files |= {"/y z.png": b"", "/y%20z.png": png()}
    assert one(gallery, redirect("y z.png", status)) == (0, [png()])


def test_redirects_to_another_host_ask_for_its_robots_txt(gallery):
    """127.1 is another name of the same address."""
    elsewhere = gallery.url.replace("127.0.0.1", "127.1")
    gallery.files["/y.png"] = png()
    assert one(gallery, redirect(f"{elsewhere}/y.png")) == (0, [png()])
    hosts = [(p, headers["Host"].partition(":")[0]) for p, headers, _ in gallery.log]
    assert hosts == [
        ("/robots.txt", "127.0.0.1"),
        ("/spirits", "127.0.0.1"),
        ("/x.png", "127.0.0.1"),
        ("/robots.txt", "127.1"),
        ("/y.png", "127.1"),
    ]


@pytest.mark.parametrize(
    "location, why",
    [
        ("file:///etc/passwd", "no http(s) address"),
        ("ftp://127.0.0.1/x.png", "no http(s) address"),
        ("data:image/png;base64,AAAA", "no http(s) address"),
        ("http://user:pass@127.0.0.1/", "no http(s) address"),
        ("http://127.0.0.2/x.png", "private address 127.0.0.2"),
        ("https://127.0.0.2/x.png", "private address 127.0.0.2"),
        ("http://[::1]/x.png", "private address ::1"),
        ("http://10.0.0.1/x.png", "private address 10.0.0.1"),
        ("http://none-such.test/x.png", "no network in tests"),
        ("/x.png", "more than 5 redirects"),
    ],
)
def test_redirects_that_are_refused(gallery, location, why, capsys, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", numbers_too(socket.getaddrinfo))
    assert one(gallery, redirect(location)) == (1, [])
    assert why in capsys.readouterr().out


def numbers_too(resolve):
    def look_up(host, *args, **kwargs):
        if re.fullmatch(r"[\d.]+", host):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, args[0] if args else 0))]
        return resolve(host, *args, **kwargs)

    return look_up


def test_links_to_private_addresses_are_refused_too(gallery, capsys):
    gallery.files["/spirits"] = links("http://127.0.0.3/x.png")
    assert run(gallery) == 1
    assert "private address 127.0.0.3, --url is not" in capsys.readouterr().out


PRIVATE = """0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 169.254.169.254 172.16.0.1 192.168.0.1 224.0.0.1
    255.255.255.255 :: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 fe80::1%lo fc00::1 ff02::1""".split()


@pytest.mark.parametrize(
    "ip, own, allowed",
    [("93.184.216.34", "", True), ("2606:2800:220:1::1", "", True)]
    + [("127.0.0.1", "127.0.0.1", True), ("127.0.0.1", "127.0.0.2", False)]
    + [(ip, "", False) for ip in PRIVATE],
)
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


def test_https_goes_through_the_same_check(gallery, monkeypatch):
    web = s.Web(s.parse_args(["--url", "http://h.test/"]))
    with pytest.raises(s.Failure, match=r"private address 127\.0\.0\.1"):
        s.request(gallery.url.replace("http:", "https:") + "/", {}, web)


def test_proxies_of_the_environment_are_not_used(gallery, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert run(gallery) == 0


# ---- Robots and pauses --------------------------------------------------------------------------


def test_what_robots_txt_forbids_is_not_asked_for(gallery, capsys):
    gallery.files["/robots.txt"] = b"User-agent: *\nDisallow: /images/000*%20(No\n"
    assert run(gallery) == 1
    assert len(shown()) == 3 and len(asked(gallery)) == 3
    said = capsys.readouterr().out
    assert "9 failed" in said and "0001%20Ghost%20(No.%201).png: forbidden by robots.txt" in said


def test_a_page_that_robots_txt_forbids(gallery, capsys):
    gallery.files["/robots.txt"] = (
        b"\xef\xbb\xbfUser-Agent: Scrape_Spirits/2.0 # us\r\nDisallow: /\r\n"
    )
    assert run(gallery) == 1
    assert [p for p, _, _ in gallery.log] == ["/robots.txt"]
    assert "/spirits: forbidden by robots.txt" in capsys.readouterr().out


def test_robots_txt_holds_for_where_a_redirect_leads(gallery):
    gallery.files |= {"/robots.txt": b"User-agent: *\nDisallow: /private", "/private/y.png": png()}
    assert one(gallery, redirect("/private/y.png")) == (1, [])
    assert asked(gallery, "/private") == []


@pytest.mark.parametrize("status, free", [(404, True), (410, True), (401, False), (403, False)])
def test_robots_txt_that_is_not_there_or_not_shown(gallery, status, free):
    gallery.files["/robots.txt"] = lambda handler: handler.reply(status)
    assert run(gallery) == (0 if free else 1)
    assert (len(asked(gallery)) == 12) is free


def test_robots_txt_out_of_reach_forbids_everything(gallery, capsys):
    gallery.files["/robots.txt"] = lambda handler: handler.reply(500)
    assert run(gallery) == 1
    assert "its robots.txt cannot be read: HTTP 500, 5 times" in capsys.readouterr().out
    assert {p for p, _, _ in gallery.log} == {"/robots.txt"}


@pytest.mark.parametrize(
    "text, path, free",
    [
        ("", "/", True),
        ("User-agent: *\nDisallow:", "/x", True),
        ("User-agent: *\nDisallow: /", "/x", False),
        ("User-agent: other\nDisallow: /", "/x", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: scrape_spirits\nDisallow: /a", "/x", True),
        ("User-agent: scrape_spirits\nUser-agent: b\nDisallow: /a", "/ab", False),
        ("User-agent: scrape_spirits\nSitemap: /s\nUser-agent: b\nDisallow: /a", "/a", False),
        ("User-agent: scrape_spirits\nDisallow: /a\nUser-agent: b\nDisallow: /c", "/c", True),
        ("User-agent: scrape_spirits\nAllow: /\n\nUser-agent: scrape_spirits\nDisallow: /a", "/a",
         False),
        # RFC 9309, 5.1 and 5.2, and 2.2.3
        ("User-agent: *\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif",
         "/example/page/disallowed.gif", False),
        ("User-agent: *\nAllow: /example/page/\nDisallow: /example/page/x", "/example/page/", True),
        ("User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),
        ("User-agent: *\nDisallow: *.gif$\nAllow: /publications/", "/publications/a.gif", True),
        ("User-agent: *\nDisallow: *.gif$", "/a.gif", False),
        ("User-agent: *\nDisallow: *.gif$", "/a.gif?x", True),
        ("User-agent: *\nDisallow: /*.png", "/a/b.png?x=1", False),
        ("User-agent: *\nDisallow: /*?", "/a?x=1", False),
        ("User-agent: *\nDisallow: /[ab]", "/a", True),
        ("User-agent: *\nDisallow: /a%20b", "/a b", False),
        ("User-agent: *\nDisallow: /a b", "/a%20b", False),
        ("User-agent: *\nDisallow: /ツ", "/%E3%83%84", False),
        ("Disallow: /", "/x", True),
        ("<html>404</html>", "/x", True),
        ("User-agent: *\nDisallow: /" + "*a" * 40 + "*b", "/" + "a" * 3000, True),
    ],
)  # fmt: skip
def test_robots_rules(text, path, free):
    rules, _ = s.read_robots(text)
    assert s.may_fetch(rules, path) is free


@given(st.text(max_size=200), st.text(max_size=20))
def test_no_robots_txt_raises(text, path):
    rules, pause = s.read_robots("User-agent: *\nCrawl-delay:" + text)
    assert s.may_fetch(rules, path) in (True, False) and 0 <= pause <= s.DAY


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where the script waits."""
    now = [100.0]
    monkeypatch.setattr(s, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def sleep(seconds):
        now[0] += seconds

    def web(*flags):
        made = s.Web(s.parse_args(["--url", "http://127.0.0.1/", *flags]))
        made.stop = types.SimpleNamespace(is_set=lambda: False, wait=sleep)
        return made

    return web, lambda: now[0]


def due(web, now, hosts):
    """When the requests to the hosts, one after the other, are let through."""
    times = []
    for host in hosts:
        web.wait(host)
        times.append(now() - 100)
    return pytest.approx(times)


def test_the_pauses_between_requests(clock):
    make, now = clock
    web = make("--delay", "3", "--workers", "2")  # 3 s for each of two connections
    assert [0, 1.5, 3, 3, 4.5] == due(web, now, ["a", "a", "a", "b", "a"])


def test_crawl_delay_counts_if_it_is_longer(clock):
    make, now = clock
    web = make("--workers", "4")
    web.gaps = {"a": 2.5, "b": 0.1}
    assert [0, 2.5, 5, 5, 5.25] == due(web, now, ["a", "a", "a", "b", "b"])


def test_pauses_are_kept_by_all_workers_together(gallery):
    gallery.files["/robots.txt"] = b"User-agent: *\nCrawl-delay: 0.1\n"
    began = time.monotonic()
    assert run(gallery, "--workers", 4) == 0
    assert time.monotonic() - began > 12 * 0.1  # between the requests after robots.txt


def test_defaults_are_polite():
    args = s.parse_args([])
    assert (
        args.delay == 1
        and args.workers <= 4
        and args.url == ["http://smashbros-ultimate.com/spirits"]
    )


# ---- Again --------------------------------------------------------------------------------------


def test_a_second_run_asks_and_fetches_what_changed(gallery):
    assert run(gallery) == 0
    before, first = shown(), path(next(iter(PICTURES)))
    gallery.log.clear()
    assert run(gallery) == 0
    assert [status for _, status in asked(gallery)] == [304] * 12 and shown() == before
    gallery.files[first] = png(seed=5)
    assert run(gallery) == 0
    assert sorted(shown().values()) == sorted([*list(PICTURES.values())[1:], png(seed=5)])


def test_last_modified_is_sent_back(gallery):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"

    def answer(handler):
        same = handler.headers.get("If-Modified-Since") == date
        handler.reply(304 if same else 200, b"" if same else png(), Last_Modified=date)

    assert one(gallery, answer) == (0, [png()])
    assert run(gallery) == 0
    assert [status for _, status in asked(gallery, "/x")] == [200, 304]


def test_without_etag_and_date_nothing_is_asked_again(gallery):
    assert one(gallery, lambda h: h.reply(200, png())) == (0, [png()])
    assert run(gallery) == 0
    assert len(asked(gallery, "/x")) == 1


def test_files_that_are_missing_or_damaged_come_again(gallery):
    assert run(gallery) == 0
    before, (a, b, *_) = shown(), sorted(shown())
    (Path("out") / a).unlink()
    (Path("out") / b).write_bytes(before[b][:-1])
    gallery.log.clear()
    assert run(gallery) == 0
    assert shown() == before
    assert [status for _, status in sorted(asked(gallery))] == [200] * 2 + [304] * 10


def test_a_picture_that_is_gone_from_the_web_stays_here(gallery, capsys):
    assert run(gallery) == 0
    before, first = shown(), path(next(iter(PICTURES)))
    del gallery.files[first]
    assert run(gallery) == 1
    assert shown() == before and "HTTP 404" in capsys.readouterr().out
    gallery.files[first] = PICTURES[next(iter(PICTURES))]
    assert run(gallery) == 0 and shown() == before


def test_after_a_failure_only_what_is_missing_is_asked_for(gallery):
    last = path(list(PICTURES)[-1])
    body = gallery.files.pop(last)
    assert run(gallery) == 1
    gallery.files[last] = body
    gallery.log.clear()
    assert run(gallery) == 0 and asked(gallery) == [(last, 200)]
    gallery.log.clear()
    assert run(gallery) == 0 and len(asked(gallery)) == 12  # complete: brought up to date


def test_what_an_incomplete_run_fetched_is_asked_for_after_a_day(gallery, monkeypatch):
    del gallery.files[path(list(PICTURES)[-1])]
    assert run(gallery) == 1
    gallery.log.clear()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + s.DAY)
    assert run(gallery) == 1
    assert sorted(status for _, status in asked(gallery)) == [304] * 11 + [404]


def test_duplicates_are_kept_once_under_the_first_name(gallery):
    """Also when the first of them comes last, as the second of two workers brings it."""

    def late(handler):
        time.sleep(0.3)
        handler.reply(200, png(), ETag="x")

    gallery.files |= {
        "/spirits": links("a.png", "b.png", "c.png"),
        "/b.png": png(),
        "/c.png": png(),
    }
    gallery.files["/a.png"] = late
    for _ in range(2):
        assert run(gallery) == 0
        assert list(shown().values()) == [png()] and next(iter(shown())).startswith("a-")
        states = [record["status"] for record in manifest().values()]
        assert states == ["kept", "duplicate", "duplicate"]
    assert [status for _, status in asked(gallery, "/b")] == [200, 304]
    gallery.files["/a.png"] = png(seed=1)  # the owner changes, the others stay what they were
    assert run(gallery) == 0
    assert sorted(shown().values()) == sorted([png(), png(seed=1)])


def test_a_manifest_from_elsewhere_names_no_file_outside(gallery):
    assert run(gallery) == 0
    good = Path("out/manifest.jsonl").read_text()
    record = json.loads(good.splitlines()[0])
    Path("precious.png").write_bytes(b"precious")
    for name in ("../precious.png", str(Path("precious.png").resolve()), ".lock", "C:x", 7, ["a"]):
        bad = json.dumps(record | {"file": name, "url": f"{gallery.url}/other"})
        Path("out/manifest.jsonl").write_text(good + bad + "\nnull\n[]\n{}\n\x00\n" + bad[:40])
        assert run(gallery) == 0
        assert Path("precious.png").read_bytes() == b"precious" and len(shown()) == 12
        assert f"{gallery.url}/other" not in manifest()


def test_a_line_of_the_manifest_that_was_cut_costs_one_picture(gallery):
    assert run(gallery) == 0
    before, path = shown(), Path("out/manifest.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    gallery.log.clear()
    assert run(gallery) == 0 and shown() == before and len(manifest()) == 12
    assert sorted(status for _, status in asked(gallery)) == [200] + [304] * 11


def test_a_folder_of_other_files_is_left_alone(gallery, capsys):
    Path("out").mkdir()
    Path("out/holiday.jpg").write_bytes(b"mine")
    assert run(gallery) == 1
    assert "--out out: has files but no manifest.jsonl; name another" in capsys.readouterr().out
    assert os.listdir("out") == ["holiday.jpg"] and gallery.log == []
    Path("file").write_bytes(b"")
    assert (
        run(gallery, out="file") == 1
        and "--out file: in use, or cannot be used" in capsys.readouterr().out
    )


def test_two_runs_at_once(gallery, capsys):
    folder = s.Folder(Path("out"))
    try:
        assert run(gallery) == 1
    finally:
        folder.close()
    assert "--out out: in use" in capsys.readouterr().out
    assert gallery.log == []
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


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def halves(body):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()[:16]}"')
        handler.end_headers()
        handler.wfile.write(body[:500])
        time.sleep(0.05)
        handler.wfile.write(body[500:])

    return answer


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
    twin = list(PICTURES)[5]
    gallery.files |= {"/again.png": PICTURES[twin], "/spirits": links("again.png") + page(PICTURES)}
    assert run(gallery, out="undisturbed") == 0
    gallery.log.clear()

    slow = {p: body for p, body in gallery.files.items() if p.endswith("png")}
    for p, body in slow.items():
        gallery.files[p] = halves(body)
    child = start(gallery, "--delay", 0.02)
    wait_for(lambda: len([p for p in Path("out").glob("*.png")]) >= after)
    child.kill()
    child.communicate()
    time.sleep(0.2)  # for the answers under way
    assert child.returncode
    whole = shown()
    assert after <= len(whole) < 13
    gallery.files |= slow
    gallery.log.clear()
    assert run(gallery) == 0
    assert shown() == shown("undisturbed")
    fetched = [gallery.files[p] for p, status in asked(gallery, "/") if p in slow]
    assert len(fetched) == 13 - len(whole)  # not even asked for
    assert not list(Path("out").glob(".*.tmp"))


@POSIX
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_sums_up_and_the_same_command_goes_on(gallery, name):
    number = getattr(signal, name)
    gallery.files |= {path(name): halves(body) for name, body in PICTURES.items()}
    child = start(gallery, "--delay", 0.05)
    wait_for(lambda: len(list(Path("out").glob("*.png"))) >= 4)
    child.send_signal(number)
    said, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (128 + number, "")
    assert re.search(r"\d fetched, \d+ not tried: \d+ requests", said)
    assert said.endswith("stopped; the same command continues\n")
    gallery.files |= {path(name): body for name, body in PICTURES.items()}
    gallery.log.clear()
    done = len(shown())
    assert run(gallery) == 0 and len(asked(gallery)) == 12 - done
    assert list(shown().values()) == list(PICTURES.values())


@POSIX
def test_a_signal_that_is_ignored_stays_so(gallery, monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)  # nohup
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("a handler was set"))
    assert run(gallery) == 0


# ---- Flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--url", "smashbros-ultimate.com"], "--url smashbros-ultimate.com: not an address that"),
        (["--url", "file:///etc/passwd"], "--url file:///etc/passwd: not an address that"),
        (["--select", " "], "--select: name a class"),
        (["--limit", "0"], "must be 1e-06 or more"),
        (["--delay", "-1"], "must be 0 or more"),
        (["--delay", "inf"], "must be 0 or more"),
        (["--workers", "0"], "must be 1e-06 or more"),
        (["--timeout", "0"], "must be 1e-06 or more"),
        (["--max-file", "nan"], "must be 1e-06 or more"),
        (["--min-side", "-3"], "must be 0 or more"),
    ],
)
def test_wrong_flags(flags, line, capsys):
    with pytest.raises(SystemExit) as end:
        s.main(flags)
    assert end.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
