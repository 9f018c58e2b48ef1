"""scrape_spirits.py against a gallery on loopback that misbehaves in every way there is."""

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
DRAWN = pictures(12)


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
    with serving({path(name): body for name, body in DRAWN.items()}) as server:
        server.files["/spirits"] = page(DRAWN)
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
    return {
        p.name: p.read_bytes() for p in paths if p.name not in ("manifest.jsonl", "contact.png")
    }


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


# ---- The gallery, whole -------------------------------------------------------------------------


def test_the_gallery_of_the_report(gallery, capsys):
    assert run(gallery) == 0
    files = shown()
    assert list(files.values()) == list(DRAWN.values())  # byte for byte, in the gallery's order
    for name, drawn in zip(sorted(files), sorted(DRAWN)):
        assert re.fullmatch(re.escape(drawn[:-4]) + r"-[0-9a-f]{8}\.png", name)
    seen = [p for p, _, _ in gallery.log]
    assert len(seen) == 14 and seen[:2] == ["/robots.txt", "/spirits"]  # no thumbs, no logo
    for _, headers, _ in gallery.log:
        assert headers["User-Agent"].startswith("scrape_spirits") and "robots.txt" in str(headers)
    said = capsys.readouterr().out
    sizes = sorted(Image.open(io.BytesIO(body)).size for body in DRAWN.values())
    low, high = ("{}x{}".format(*size) for size in (sizes[0], sizes[-1]))
    modes = {Image.open(io.BytesIO(body)).mode for body in DRAWN.values()}
    assert f"12 pictures in out: {low} to {high} pixels, " in said
    assert all(mode in said for mode in modes)
    assert "12 fetched: 14 requests" in said


def test_training_sees_the_pictures_and_nothing_else(gallery):
    assert run(gallery) == 0
    with Image.open("out/contact.png") as sheet:
        assert sheet.size == (4 * 48, 3 * 48)
        assert len(set(sheet.crop((0, 0, 48, 48)).get_flattened_data())) > 10
    shutil.make_archive("set", "zip", "out")
    shutil.copytree("out", "whole/inner")
    expected = [dcgan.square(Image.open(io.BytesIO(body)), 64) for body in DRAWN.values()]
    for data in ("out", "set.zip", "whole"):
        images, labels, names = dcgan.load_data(data, 64, cache="cache")
        assert np.array_equal(images, expected)
        assert labels.tolist() == [0] * 12 and len(names) == 1
    Path("out/manifest.jsonl").unlink()  # a picture of that name in any other folder is one
    assert len(dcgan.load_data("out", 64, cache="cache")[0]) == 13


def test_the_manifest_says_what_came_from_where(gallery):
    gallery.files[path("gone.png")] = lambda handler: handler.reply(410)
    gallery.files["/spirits"] += links("images/gone.png")
    assert run(gallery) == 1
    for url, record in manifest().items():
        if url.endswith("gone.png"):
            assert record["file"] is None and record["status"] == "HTTP 410"
            continue
        body = DRAWN[unquote(url.rpartition("/")[2])]
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
    allowed = [path(name) for name in DRAWN if not name.startswith("0003")]
    assert listed == [gallery.url + p for p in allowed]
    assert "11 pictures would be fetched" in said
    assert asked(gallery) == [] and not Path("out").exists()


def test_limit_takes_the_first(gallery):
    assert run(gallery, "--limit", 3) == 0
    assert list(shown().values()) == list(DRAWN.values())[:3]


def test_the_script_runs_alone_without_tqdm(gallery):
    shutil.copy(SCRIPT, "copy.py")
    bare = "import sys, runpy; sys.modules['tqdm'] = None; sys.argv = sys.argv[1:];"
    bare += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-I", "-W", "error", "-c", bare, "copy.py", "--out", "out"]
    command += ["--url", gallery.url + "/spirits", "--delay", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and "12 fetched" in done.stdout
    assert list(shown().values()) == list(DRAWN.values())


def test_several_urls_and_pages_that_follow(gallery):
    a, b, c, d = (path(name) for name in list(DRAWN)[:4])
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
    assert sorted(shown().values()) == sorted(DRAWN[unquote(p[8:])] for p in (a, b, d))
    assert "/art?page=4" not in [p for p, _, _ in gallery.log]


def test_a_chain_of_pages_that_bites_its_tail_ends(gallery):
    gallery.files["/spirits"] += b"<a rel=next href=/spirits>"
    assert run(gallery, "--follow") == 0
    assert [p for p, _, _ in gallery.log].count("/spirits") == 1


def test_without_spirits_every_image_larger_than_min_side(gallery):
    files = {f"/{side}.png": png(side, side) for side in (16, 32, 33, 64)}
    tags = "".join(f"<p><img src='{p}' width=999>" for p in files)
    gallery.files |= files | {"/blog": f"<body>{tags}<img src=a.svg><img src=data:x,y>".encode()}
    assert run(gallery, page="/blog") == 0
    assert sorted(shown().values()) == sorted([files["/33.png"], files["/64.png"]])
    assert run(gallery, "--min-side", 20, page="/blog") == 0  # what was too small comes after all
    assert len(shown()) == 3
    assert [p for p, status in asked(gallery, "/") if status == 200].count("/32.png") == 2
    assert asked(gallery, "/16.png") == [("/16.png", 200), ("/16.png", 304)]


# ---- Links --------------------------------------------------------------------------------------


def found(html, select=None, address="http://h.test/a/b"):
    return s.find_links(html, address, select)[0]


@pytest.mark.parametrize(
    "href, url",
    [
        ("c d.png", "http://h.test/a/c%20d.png"),
        ("/c.png", "http://h.test/c.png"),
        ("../c.png", "http://h.test/c.png"),
        ("//other.test/c.png", "http://other.test/c.png"),
        ("https://other.test:443/c.png#top", "https://other.test/c.png"),
        ("HTTP://H.test:8080", "http://h.test:8080/"),
        (
            "Pok&eacute;mon%20x.png?a=1&amp;b=2 3",
            "http://h.test/a/Pok%C3%A9mon%20x.png?a=1&b=2%203",
        ),
        (" \n c.png \t", "http://h.test/a/c.png"),
        ("http://bücher.test/", "http://xn--bcher-kva.test/"),
        ("http://[::1]:90/x", "http://[::1]:90/x"),
        ("javascript:void(0)", None),
        ("data:image/png;base64,AAAA", None),
        ("file:///etc/passwd", None),
        ("ftp://h.test/x.png", None),
        ("http://user:secret@h.test/", None),
        ("http://h.test\\@evil.test/", None),
        ("http://[::1/", None),
        ("http://h.test:99999/", None),
        ("http://a..b/", None),
        ("x" * 5000, None),
    ],
)
def test_links_of_every_kind(href, url):
    assert found(links(href).decode()) == ([url] if url else [])


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
    "body, kind",
    [
        ("é".encode(), "text/html"),
        ("é".encode("latin-1"), "text/html; charset=ISO-8859-1"),
        ("é".encode("utf-16"), "text/html; charset=latin-1"),  # the mark is right
        (b"<meta charset='latin-1'>\xe9", "text/html"),
        (b"<meta charset='latin-1'>\xe9", "text/html; charset=none-such"),
        (b"<meta charset=hex>" + "é".encode(), "text/html; charset=punycode"),
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
    assert (Path("/out") / name).parent == Path("/out") and dcgan.is_image(name)


@given(st.text(max_size=200))
def test_names_are_safe_whatever_the_address(text):
    for url in (f"http://h.test/{text}", s.resolve("http://h.test/", text) or "http://h.test/"):
        with contextlib.suppress(ValueError):  # of the first, which no page gets through resolve()
            assert_safe(s.file_name(url, "0" * 64, ".png"))


@pytest.mark.parametrize(
    "last, stem",
    [
        ("Mario%20(Wedding).png", "Mario (Wedding)"),
        ("%2e%2e%2f%2e%2e%2fetc%2fpasswd", "_.._etc_passwd"),
        ("CON.png", "CON"),
        ("..png", "picture"),
        (".hidden.png", "hidden"),
        ("%00%0a.png", "__"),
        ("a%5Cb%3A.png", "a_b_"),
        ("Pok%C3%A9mon.png", "Pokémon"),
        ("", "picture"),
        ("x" * 400 + ".png", "x" * 100),
        ("%E2%80%AEgnp.exe", "_gnp"),
    ],
)
def test_names_that_are_meant_to_hurt(last, stem):
    name = s.file_name(f"http://h.test/a/{last}", "1a2b3c4d" + "0" * 56, ".png")
    assert name.endswith("-1a2b3c4d.png")
    assert name == f"{stem}-1a2b3c4d.png"
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
            assert s.collect(url, 0, web, folder) in ("fetched", "unchanged")
        kept = folder.finish(pictures, True)
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


# ---- Trouble ------------------------------------------------------------------------------------


def turns(*answers):
    """An answer that is another one each time, the last for good."""
    answers = list(answers)

    def answer(handler):
        now = answers.pop(0) if len(answers) > 1 else answers[0]
        now(handler) if callable(now) else handler.reply(*now)

    return answer


def cut(handler):
    handler.reply(200, png()[:3000], length=len(png()))
    handler.close_connection = True


def times(server, start="/x.png"):
    return [when for p, when in server.times if p == start]


def test_500_then_200(gallery):
    assert one(gallery, turns((500,), (503,), (200, png()))) == (0, [png()])
    assert asked(gallery, "/x") == [("/x.png", 500), ("/x.png", 503), ("/x.png", 200)]


def test_500_for_good_gives_up(gallery, capsys):
    assert one(gallery, turns((500,))) == (1, [])
    assert len(asked(gallery, "/x")) == 1 + s.RETRIES
    assert "/x.png: HTTP 500, 5 times" in capsys.readouterr().out


def test_404_is_asked_for_once(gallery, capsys):
    assert one(gallery, turns((404,))) == (1, [])
    assert len(asked(gallery, "/x")) == 1
    assert "/x.png: HTTP 404" in capsys.readouterr().out


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
    assert "asks to be left alone for 86,400 s" in capsys.readouterr().out
    assert len(shown()) == 4 and len(asked(gallery)) == 5


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("7", 7),
        (" 0 ", 0),
        (None, None),
        ("soon", None),
        ("-1", None),
        ("9" * 5000, float("inf")),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)
def test_retry_after(text, seconds):
    assert s.seconds_to_wait(text) == seconds


def test_retry_after_as_a_date():
    assert 55 < s.seconds_to_wait(formatdate(time.time() + 60, usegmt=True)) <= 60


def test_pauses_double_and_vary(gallery, monkeypatch):
    pauses, free = [], {}

    class Free(dict):
        def __setitem__(self, host, until):
            pauses.append(until - time.monotonic())

    monkeypatch.setattr(s, "BACKOFF", 1.0)
    for _ in range(20):
        web = s.Web(s.parse_args(["--delay", "0"]))
        web.free, web.request = (
            Free({"h.test": 0}),
            lambda *_: (_ for _ in ()).throw(s.Trouble("x")),
        )
        with pytest.raises(s.Failure, match="x, 5 times"):
            web.insist("http://h.test/", {})
    assert free == {}
    rows = np.array(pauses).reshape(20, s.RETRIES + 1, 2)[..., 1]  # after each request's own
    for attempt in range(s.RETRIES):
        row = rows[:, attempt] / 2**attempt
        assert 0.74 < row.min() < 1 < row.max() < 1.51
    assert rows[:, -1].max() < 0.01  # none after the last


def test_a_connection_cut_in_mid_file(gallery):
    assert one(gallery, turns(cut, (200, png()))) == (0, [png()])


def test_a_file_that_is_always_cut_never_counts(gallery, capsys):
    assert one(gallery, cut) == (1, [])
    assert "cut short after 3,000 bytes" in capsys.readouterr().out
    assert manifest()[f"{gallery.url}/x.png"]["file"] is None
    gallery.files["/x.png"] = png()
    assert run(gallery) == 0 and list(shown().values()) == [png()]


def test_a_cut_that_no_length_betrays_is_seen_in_the_picture(gallery, capsys):
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(png()[:-20])
        handler.close_connection = True

    assert one(gallery, answer) == (1, [])
    assert "a damaged picture" in capsys.readouterr().out


def test_a_body_longer_than_its_length(gallery):
    """What is announced counts: a whole picture is kept without the rest, a part of one is not."""
    assert one(gallery, lambda h: h.reply(200, png() + b"x" * 999, len(png()))) == (0, [png()])
    gallery.files["/x.png"] = lambda h: h.reply(200, png(seed=1), 999)
    assert run(gallery, out="other") == 1 and shown("other") == {}


@pytest.mark.parametrize(
    "body, why",
    [
        (
            b"<!DOCTYPE html><html>not found</html>",
            "not a picture: it begins with b'<!DOCTYPE html",
        ),
        (b"", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (png()[:300] + b"\xff" * 40 + png()[340:], "a damaged picture"),
        (png()[:-13], "a damaged picture"),
        (jpeg()[:-500], "a damaged picture"),
    ],
)
def test_what_is_no_picture(gallery, body, why, capsys):
    assert one(gallery, lambda h: h.reply(200, body, Content_Type="image/png")) == (1, [])
    assert why in capsys.readouterr().out


def test_a_png_that_claims_40000_by_40000(gallery, capsys):
    head = struct.pack(">4sIIBBBBB", b"IHDR", 40_000, 40_000, 8, 6, 0, 0, 0)
    rest = b"\0\0\0\x0aIDATx"
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + head + struct.pack(">I", zlib.crc32(head)) + rest
    assert one(gallery, lambda h: h.reply(200, bomb)) == (1, [])
    assert "a decompression bomb" in capsys.readouterr().out
    head = head.replace(struct.pack(">I", 40_000), struct.pack(">I", 8_000))  # Pillow would warn
    bomb = bomb[:12] + head + struct.pack(">I", zlib.crc32(head)) + rest
    gallery.files["/x.png"] = bomb
    assert run(gallery) == 1
    assert "a decompression bomb (8000x8000 pixels)" in capsys.readouterr().out


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", "deflate"])
def test_gzip(gallery, coding):
    pack = zlib.compress if coding == "deflate" else gzip.compress
    gallery.files["/x.png"] = lambda h: h.reply(200, pack(png()), Content_Encoding=coding)
    gallery.files["/spirits"] = lambda h: h.reply(
        200, pack(links("x.png")), Content_Encoding=coding
    )
    assert run(gallery) == 0 and list(shown().values()) == [png()]


def test_gzip_that_is_cut_damaged_or_something_else(gallery, capsys):
    whole = gzip.compress(png())
    for body, coding, why in (
        (whole[:-9], "gzip", "cut short"),
        (b"not gzip at all", "gzip", "damaged gzip"),
        (whole, "br", "Content-Encoding 'br'"),
    ):
        answer = lambda h, b=body, c=coding: h.reply(200, b, Content_Encoding=c)  # noqa: E731
        assert one(gallery, answer) == (1, [])
        assert why in capsys.readouterr().out


def test_the_largest_file(gallery, capsys):
    assert one(gallery, png(), "--max-file", len(png()) / 1e6) == (0, [png()])
    limit, why = len(png()) / 1e6 - 1e-6, "larger than"
    for answer in (
        png(seed=1),
        lambda h: h.reply(200, b"", 10**12),  # refused by its word
        lambda h: h.reply(200, gzip.compress(bytes(10**7)), Content_Encoding="gzip"),
        endless,
    ):
        gallery.files["/x.png"] = answer
        assert run(gallery, "--max-file", limit, out="other") == 1 and shown("other") == {}
        assert why in capsys.readouterr().out


def endless(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"400\r\n" + b"x" * 1024 + b"\r\n")


def test_the_largest_total(gallery, capsys):
    total = sum(map(len, list(DRAWN.values())[:6])) / 1e6
    assert run(gallery, "--max-total", total, "--workers", 1) == 1
    assert "(--max-total)" in capsys.readouterr().out
    assert 3 <= len(shown()) < 6
    before = len(shown())
    assert run(gallery, "--max-total", total, "--workers", 1) == 1  # what is there counts as well
    assert before <= len(shown()) <= 6


def drip_body(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    drip(handler)


def drip_head(handler):
    handler.send_response(200)
    handler.flush_headers()
    drip(handler)


def drip_chunk_length(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    drip(handler)


def drip(handler):
    with contextlib.suppress(OSError):
        for _ in range(200):
            handler.wfile.write(b"0")
            time.sleep(0.05)


def silence(handler):
    time.sleep(5)


@pytest.mark.parametrize("answer", [drip_body, drip_head, drip_chunk_length, silence])
def test_a_slow_drip_is_left(gallery, answer, monkeypatch, capsys):
    monkeypatch.setattr(s, "RETRIES", 1)
    began = time.monotonic()
    assert one(gallery, answer, "--timeout", 0.3) == (1, [])
    assert time.monotonic() - began < 7
    assert re.search(
        r"(slower than 1,000 bytes per second|timed out), 2 times", capsys.readouterr().out
    )


def test_a_slow_host_that_is_fast_enough_is_waited_for(gallery):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(png())))
        handler.end_headers()
        for start in range(0, len(png()), 2000):
            handler.wfile.write(png()[start : start + 2000])
            time.sleep(0.25)

    assert one(gallery, answer, "--timeout", 1) == (0, [png()])
    assert len(asked(gallery, "/x")) == 1


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-nothing\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500, b"x" * 99999],
)
def test_no_http(gallery, answer, monkeypatch):
    monkeypatch.setattr(s, "RETRIES", 1)

    def garbage(handler):
        handler.wfile.write(answer)
        handler.close_connection = True

    assert one(gallery, garbage) == (1, [])


def test_odd_headers_do_no_harm(gallery):
    def answer(handler):
        handler.send_response(200)
        for line in (
            b'ETag: "a\r\n b"',
            b"Last-Modified: \xff\xfe",
            b"Content-Encoding: ",
            b":",
            b"no",
        ):
            handler._headers_buffer.append(line + b"\r\n")
        handler.end_headers()
        handler.wfile.write(png())
        handler.close_connection = True

    assert one(gallery, answer) == (0, [png()])
    assert run(gallery) == 0  # and none of it is sent back
    assert len(asked(gallery, "/x")) == 1


def test_ten_failures_in_a_row_stop_the_run(gallery, capsys):
    gallery.files["/spirits"] = page(DRAWN) + links(*(f"gone{i}.png" for i in range(30)))
    assert run(gallery, "--workers", 1) == 1
    said = capsys.readouterr().out
    assert re.search(r"stopped: 10 failures in a row, the last: \S+gone9.png: HTTP 404", said)
    assert "12 fetched, 10 failed, 20 not tried" in said
    assert len(asked(gallery, "/gone")) <= 12 and len(shown()) == 12


def test_failures_that_are_not_in_a_row_do_not_stop_it(gallery):
    mixed = [link for i, p in enumerate(DRAWN) for link in (f"gone{i}.png", f"images/{p}")]
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
        ("http://none-such.test/x.png", "there is no such host"),
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


@pytest.mark.parametrize(
    "address, own, allowed",
    [("93.184.216.34", "", True), ("2606:2800:220:1::1", "", True)]
    + [("127.0.0.1", "127.0.0.1", True), ("127.0.0.1", "127.0.0.2", False)]
    + [
        (address, "", False)
        for address in """0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 169.254.169.254 172.16.0.1
        192.168.0.1 224.0.0.1 255.255.255.255 :: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 fe80::1%lo
        fc00::1 ff02::1""".split()
    ],
)
def test_which_addresses_are_private(address, own, allowed):
    connection = s.Connection("h.test")
    connection.own = {own}
    with contextlib.nullcontext() if allowed else pytest.raises(s.Failure, match="private address"):
        connection.refuse_private(address)


def test_a_name_that_turns_to_a_private_address_after_the_look_up_gets_no_byte(monkeypatch):
    """DNS rebinding: the look-up says one thing, the connection goes elsewhere."""
    monkeypatch.setattr(s, "addresses", lambda host: {"93.184.216.34"})
    with socket.create_server(("127.0.0.1", 0)) as trap:
        port = trap.getsockname()[1]
        for kind in (s.Connection, s.SecureConnection):
            connection = kind("localhost", port, timeout=2)
            with pytest.raises(s.Failure, match=r"private address 127\.0\.0\.1"):
                connection.request("GET", "/")
            connection.close()
            visitor, _ = trap.accept()
            with visitor:
                assert visitor.recv(99) == b""


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
    assert args.delay == 1 and args.workers <= 4 and args.url == [s.SPIRITS]


# ---- Again --------------------------------------------------------------------------------------


def test_a_second_run_asks_and_fetches_what_changed(gallery):
    assert run(gallery) == 0
    before, first = shown(), path(next(iter(DRAWN)))
    gallery.log.clear()
    assert run(gallery) == 0
    assert [status for _, status in asked(gallery)] == [304] * 12 and shown() == before
    gallery.files[first] = png(seed=5)
    assert run(gallery) == 0
    assert sorted(shown().values()) == sorted([*list(DRAWN.values())[1:], png(seed=5)])


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


def test_304_that_nobody_asked_for(gallery, capsys):
    assert one(gallery, lambda h: h.reply(304)) == (1, [])
    assert "HTTP 304" in capsys.readouterr().out


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
    before, first = shown(), path(next(iter(DRAWN)))
    del gallery.files[first]
    assert run(gallery) == 1
    assert shown() == before and "HTTP 404" in capsys.readouterr().out
    gallery.files[first] = DRAWN[next(iter(DRAWN))]
    assert run(gallery) == 0 and shown() == before


def test_after_a_failure_only_what_is_missing_is_asked_for(gallery):
    last = path(list(DRAWN)[-1])
    body = gallery.files.pop(last)
    assert run(gallery) == 1
    gallery.files[last] = body
    gallery.log.clear()
    assert run(gallery) == 0 and asked(gallery) == [(last, 200)]
    gallery.log.clear()
    assert run(gallery) == 0 and len(asked(gallery)) == 12  # complete: brought up to date


def test_what_an_incomplete_run_fetched_is_asked_for_after_a_day(gallery, monkeypatch):
    del gallery.files[path(list(DRAWN)[-1])]
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


def test_a_folder_of_other_files_is_left_alone(gallery, capsys):
    Path("out").mkdir()
    Path("out/holiday.jpg").write_bytes(b"mine")
    assert run(gallery) == 1
    assert "--out out: has files but no manifest.jsonl; name another" in capsys.readouterr().out
    assert os.listdir("out") == ["holiday.jpg"] and gallery.log == []
    Path("file").write_bytes(b"")
    assert run(gallery, out="file") == 1 and "--out file: cannot be used" in capsys.readouterr().out


def test_two_runs_at_once(gallery, capsys):
    folder = s.Folder(Path("out"))
    try:
        assert run(gallery) == 1
    finally:
        folder.close()
    assert "--out out: in use by another run" in capsys.readouterr().out
    assert gallery.log == []
    assert run(gallery) == 0


def test_the_lock_on_windows(tmp_path, monkeypatch):
    """With a stand-in for msvcrt, which is nowhere else."""
    held = []

    def locking(number, mode, count):
        if held:
            raise PermissionError
        held.append((mode, count))

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(s, "os", types.SimpleNamespace(name="nt"))
    s.lock_file(tmp_path / ".lock").close()
    assert held == [(2, 1)]
    with pytest.raises(SystemExit, match="in use by another run"):
        s.lock_file(tmp_path / ".lock")


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
    assert before.items() <= after.items() and len(after) == 7
    assert not list(Path("out").glob(".*.tmp"))
    monkeypatch.setattr(os, "fsync", sync)
    assert run(gallery) == 0 and len(shown()) == 12


# ---- Killed -------------------------------------------------------------------------------------


AS_ON_A_TERMINAL = (  # a background job's children are born deaf to Ctrl-C
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def start(server, *flags):
    command = [sys.executable, "-c", AS_ON_A_TERMINAL, str(SCRIPT)]
    command += ["--url", server.url + "/spirits", "--out", "out"]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, flags)], env=env, **pipes)


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("after", [3, 7])
def test_sigkill_and_again_is_an_undisturbed_run(gallery, after):
    """The same files, and nothing whole fetched twice."""
    twin = list(DRAWN)[5]
    gallery.files |= {"/again.png": DRAWN[twin], "/spirits": links("again.png") + page(DRAWN)}
    assert run(gallery, out="undisturbed") == 0
    gallery.log.clear()

    slow = {p: body for p, body in gallery.files.items() if p.endswith("png")}
    for p, body in slow.items():
        gallery.files[p] = halves(body)
    child = start(gallery, "--delay", 0.02)
    wait_for(lambda: len([p for p in Path("out").glob("*.png")]) >= after)
    child.kill()
    child.communicate()
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


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_sums_up_and_the_same_command_goes_on(gallery):
    for p, body in list(gallery.files.items()):
        if p.endswith("png"):
            gallery.files[p] = halves(body)
    gallery.files[path(list(DRAWN)[8])] = lambda handler: time.sleep(9)  # the exit waits for none
    child = start(gallery, "--delay", 0.05)
    wait_for(lambda: len(list(Path("out").glob("*.png"))) >= 4)
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    said, errors = child.communicate()
    assert time.monotonic() - began < 8 and child.returncode == 130
    assert (
        re.search(r"\d fetched, \d+ not tried: \d+ requests", said) and "the same command" in said
    )
    assert "Traceback" not in errors
    gallery.files |= {path(name): body for name, body in DRAWN.items()}
    gallery.log.clear()
    done = len(shown())
    assert run(gallery) == 0 and len(asked(gallery)) == 12 - done
    assert list(shown().values()) == list(DRAWN.values())


# ---- Flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--url", "smashbros-ultimate.com"], "--url smashbros-ultimate.com: not an address that"),
        (["--url", "file:///etc/passwd"], "--url file:///etc/passwd: not an address that"),
        (["--select", " "], "--select: name a class"),
        (["--limit", "0"], "0 is less than 1"),
        (["--delay", "-1"], "-1 is not 0 or more"),
        (["--delay", "inf"], "inf is not 0 or more"),
        (["--workers", "0"], "0 is less than 1"),
        (["--timeout", "0"], "0 is not above 0"),
        (["--max-file", "nan"], "nan is not above 0"),
        (["--min-side", "-3"], "-3 is less than 0"),
    ],
)
def test_wrong_flags(flags, line, capsys):
    with pytest.raises(SystemExit) as end:
        s.main(flags)
    assert end.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
