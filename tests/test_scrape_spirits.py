"""scrape_spirits.py against a gallery on loopback that answers in every wrong way there is."""

import io
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError, URLError
from urllib.parse import unquote

import numpy as np
import pytest
from gallery import Gallery, page, pictures
from PIL import Image

import scrape_spirits as s

SCRIPT = Path(s.__file__)
PICTURES = pictures(12)
IMAGES = {f"/images/{name.replace(' ', '%20')}": body for name, body in PICTURES.items()}
FIRST, *_, LAST = IMAGES


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(s, "BACKOFF", 0.001)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def gallery():
    """The gallery with 12 spirits; a test changes `files` to spoil it."""
    with Gallery(IMAGES | {"/spirits": page(PICTURES)}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(server, *flags, page="/spirits", out="out"):
    """Exit code of the script on the gallery."""
    try:
        s.main(["--url", server.url + page, "--out", out, "--delay", "0", *map(str, flags)])
    except SystemExit as end:
        print(end.code)
        return 1 if isinstance(end.code, str) else end.code
    return 0


def spirits(*links):
    """A page with a spirit per link."""
    return "".join(f'<p class="a spiritDiv"><a href="{link}">x</a></p>' for link in links).encode()


def png(side=64, seed=0, height=None, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height or side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def bodies(out="out"):
    """The pictures in the folder, in the order of their names."""
    return [path.read_bytes() for path in sorted(Path(out).glob("*.png"))]


def manifest():
    records = map(json.loads, Path("out/manifest.jsonl").read_text().splitlines())
    return {record["url"]: record for record in records}


def asked(server, start="/images/"):
    return [path for path, _, _ in server.log if path.startswith(start)]


def answer(status=200, body=b"", length=None, **headers):
    return lambda handler: handler.reply(status, body, length, **headers)


def turns(*answers):
    """Another answer each time."""
    left = iter(answers)
    return lambda handler: next(left)(handler)


# ---- The gallery, whole --------------------------------------------------------------------------


def test_every_spirit_comes_byte_for_byte_under_its_own_name(gallery, capsys):
    assert run(gallery) == 0
    assert bodies() == list(PICTURES.values())
    names = sorted(path.name for path in Path("out").glob("*.png"))
    for name, original in zip(names, PICTURES):
        assert re.fullmatch(re.escape(original[:-4].lower()) + r"-[0-9a-f]{8}\.png", name)
    assert "12 kept\n" in capsys.readouterr().out
    assert asked(gallery, "")[:2] == ["/robots.txt", "/spirits"]
    assert len(gallery.log) == 14  # no thumbnails, no logo
    for _, headers, _ in gallery.log:
        assert headers["User-Agent"].startswith("scrape_spirits/1 (")
        assert headers["Accept"] == "*/*"


def test_the_manifest_says_what_came_from_where(gallery):
    gallery.files["/spirits"] += spirits("images/gone.png")
    assert run(gallery) == 1
    records = manifest()
    gone = records.pop(f"{gallery.url}/images/gone.png")
    assert gone["file"] is None and gone["status"] == "HTTP Error 404: Not Found"
    for url, record in records.items():
        body = PICTURES[unquote(url.rpartition("/")[2])]
        assert Path("out", record["file"]).read_bytes() == body
        assert record["size"] == len(body) and record["status"] == "kept"
        assert record["sha256"].startswith(record["file"][-12:-4])
        assert Image.open(io.BytesIO(body)).size == (record["width"], record["height"])


@pytest.mark.parametrize("out", [".", "a/b"])
def test_the_contact_sheet_lies_beside_the_folder(gallery, tmp_path, out):
    folder = (tmp_path / "c" / out).resolve()
    assert run(gallery, out=str(folder)) == 0
    with Image.open(f"{folder}-contact.png") as sheet:
        cells = np.split(np.asarray(sheet), 25, axis=1)
    assert [len(np.unique(cell)) > 9 for cell in cells] == [True] * 12 + [False] * 13
    assert not list(folder.glob("*contact.png"))


def test_a_dry_run_lists_what_robots_txt_allows_and_writes_nothing(gallery, capsys):
    gallery.files["/robots.txt"] = b"User-agent: *\nDisallow: /images/0003"
    assert run(gallery, "--dry-run", "--limit", 5) == 0
    listed = capsys.readouterr().out.splitlines()[2:]
    assert listed == [gallery.url + path for path in list(IMAGES)[:5] if "/0003" not in path]
    assert asked(gallery) == [] and os.listdir() == []


def test_several_pages_and_those_that_follow(gallery):
    a, b, c, d, *_ = IMAGES
    gallery.files |= {
        "/art": spirits(a) + b'<a rel="nofollow next" href="?page=2">more</a>',
        "/art?page=2": spirits(b) + b'<link rel=NEXT href="/art?page=3">',
        "/art?page=3": spirits(a, b) + b'<a rel=next href="/art?page=4">',  # nothing new: the end
        "/art?page=4": spirits(c),
        "/more": spirits(d),
    }
    assert run(gallery, page="/art") == 0
    assert bodies() == [IMAGES[a]]
    assert run(gallery, "--follow", "--url", gallery.url + "/art", gallery.url + "/more") == 0
    assert bodies() == [IMAGES[a], IMAGES[b], IMAGES[d]]
    assert asked(gallery, "/art?page=4") == []


def test_a_page_that_fails_costs_only_itself(gallery, capsys):
    gallery.files["/spirits"] += b"<a rel=next href=/none>"
    assert run(gallery, "--follow") == 1
    assert len(bodies()) == 12
    assert f"warning: {gallery.url}/none (HTTP Error 404" in capsys.readouterr().err


def test_a_redirect_to_a_login_page_shows(gallery, capsys):
    gallery.files |= {"/art": answer(302, Location="/login"), "/login": b"<img src=logo.png>"}
    run(gallery, "--dry-run", page="/art")
    expected = f"{gallery.url}/art -> {gallery.url}/login: 1 pictures\n"
    assert expected in capsys.readouterr().out


def test_a_page_without_pictures_says_what_may_be_the_reason(gallery, capsys):
    gallery.files["/app"] = b"<div id=root></div><script src=app.js></script>"
    assert run(gallery, page="/app") == 1
    assert "no pictures in the host's HTML; what a script adds" in capsys.readouterr().out
    assert run(gallery, "--select", "thumb big") == 1
    assert "no elements of class 'thumb big' in the host's HTML" in capsys.readouterr().out


def test_small_pictures_are_left_out_unless_selected(gallery):
    files = {f"/{side}.png": png(side, side) for side in (16, 32, 33)}
    files["/flat.png"] = png(64, height=20)
    tags = "".join(f"<p class=x><img src='{path}' width=999></p>" for path in files)
    gallery.files |= files | {"/blog": tags.encode()}
    assert run(gallery, page="/blog") == 0
    assert bodies() == [files["/33.png"]]
    gallery.log.clear()
    assert run(gallery, page="/blog") == 0
    assert len(gallery.log) == 2  # known to be too small: not fetched again
    assert run(gallery, "--min-side", 20, page="/blog") == 0
    assert bodies() == [files["/32.png"], files["/33.png"]]
    assert run(gallery, "--select", "x", page="/blog") == 0
    assert len(bodies()) == 4


@pytest.mark.parametrize("script", ["copy.py", "-"])
def test_the_script_runs_alone_and_from_standard_input(gallery, script):
    shutil.copy(SCRIPT, "copy.py")
    command = [sys.executable, "-I", "-W", "error", script, "--delay", "0", "--out", "out"]
    command += ["--url", gallery.url + "/spirits"]
    source = SCRIPT.read_text(encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, input=source, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and "12 kept\n" in done.stdout
    assert bodies() == list(PICTURES.values())


def test_it_runs_in_a_thread_and_with_any_kind_of_output(gallery, monkeypatch):
    with ThreadPoolExecutor() as pool:
        assert pool.submit(run, gallery).result(60) == 0
    for stdout in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run(gallery) == 0


# ---- Pages ---------------------------------------------------------------------------------------


def found(html, select=None):
    return s.find_links(html, "http://h.test/a/b", select)[0]


def names(html, select=None):
    return [url.removeprefix("http://h.test/a/") for url in found(html, select)]


LINKS = {
    "c d.png": "http://h.test/a/c%20d.png",
    "/c.png": "http://h.test/c.png",
    "../c.png": "http://h.test/c.png",
    "https://other.test/c.png#top": "https://other.test/c.png",
    "HTTP://H.test:8080": "http://h.test:8080/",
    "Pok&eacute;%20x.png?a=1&amp;b=2 3": "http://h.test/a/Pok%C3%A9%20x.png?a=1&b=2%203",
    " \n c.png \t": "http://h.test/a/c.png",
    "http://bücher.test/": "http://xn--bcher-kva.test/",
    "http://[::1]:90/x": "http://[::1]:90/x",
}
NO_LINKS = """javascript:void(0) data:image/png;base64,AAAA file:///etc/passwd ftp://h.test/x.png
    http://user:secret@h.test/ http://h.test\\@evil.test/ http://[::1/ http://a..b/""".split()


def test_links_of_every_kind():
    for link, address in LINKS.items():
        assert found(spirits(link).decode()) == [address]
    for link in [*NO_LINKS, ""]:
        assert found(spirits(link).decode()) == []


def test_the_base_of_a_page_counts_if_it_is_an_address():
    link = spirits("c.png").decode()
    assert found('<base href="/deep/er/">' + link) == ["http://h.test/deep/er/c.png"]
    assert found('<base href="javascript:1">' + link) == ["http://h.test/a/c.png"]


def test_which_elements_count():
    html = """<a href=no1><img src=no2></a>
        <li class="thumb big"><a href=one.png><img src=no3></a>
        <li class=thumb><b><img data-src=two src=no4></b></li><img src=no5>
        <a class=thumb href=three></a><img class="thumb" src=four></p></div>"""
    assert names(html, ["thumb"]) == ["one.png", "two", "three", "four"]
    assert names(html, ["thumb", "big"]) == ["one.png"]
    assert names(html, ["thumbnail"]) == []
    assert names(html) == ["one.png", "no2", "two", "no5", "four"]  # no spirits: the whole page
    assert names(html + spirits("spirit").decode()) == ["spirit"]


ELEMENTS = {  # what an element holds, and what is taken of it
    "<a href=1.png><img src=0.png></a><img src=2.png>": ["1.png"],
    "<a href=post/7><img src=0.png></a>": ["0.png"],
    "<a href='javascript:zoom()'><img src=0.png></a>": ["0.png"],
    "<img src=0.png><a href=1.JPG?size=9>x</a>": ["1.JPG?size=9"],
    "<a href=File:1.png><img src=0.png></a>": ["0.png"],
    "<a href=7>x</a>": ["7"],
    "<a href=1.png>x<a href=2.png>y": ["1.png", "2.png"],
}


def test_an_element_gives_its_picture_files_else_its_images_else_its_links():
    for html, expected in ELEMENTS.items():
        assert names(f"<div class=x>{html}</div><a href=no.png>", ["x"]) == expected


LISTINGS = {  # nginx; Apache, plain and with icons that are links
    '<a href="../">../</a><a href="1.png">1.png</a> <a href="2.JPEG">2</a><a href=a.txt>a</a>': 2,
    '<img src="/icons/i.gif"><a href="?C=N;O=D">Name</a><img src=/icons/i.gif> <a href=1.png>': 2,
    "<a href=1.png><img src=/icons/i.gif></a> <a href=1.png>1.png</a>": 1,
}


def test_a_directory_listing_is_a_gallery():
    for html, count in LISTINGS.items():
        assert names(html)[0] == "1.png" and len(names(html)) == count


IMAGE_TAGS = {
    "<img src=0.png data-lazy-src=1.png>": ["1.png"],
    "<img src='data:image/gif;base64,R0lG' data-original=2.png>": ["2.png"],
    "<img src=0.png srcset='0.png 40w, b/0.png 400w'>": ["b/0.png"],
    "<img src=0.png data-src=1.png srcset='0.png 40w'>": ["1.png"],
    "<img src=0.png data-src=data:,x data-srcset='1.png 1x,2.png 1.5x'>": ["2.png"],
    "<img src=0.png srcset='a,b.png 2x , c.png, '>": ["a,b.png"],
    "<img src='pic 100x90.png'>": ["pic%20100x90.png"],
    "<img src=' DATA:image/png;base64,AA' alt=''>": [],
    "<img src=about:blank><img src=''><img src=logo.svg>": [],
    "<picture><source srcset='1.png 3w, 2.png 9w'><img src=0.jpg></picture>": ["2.png"],
    "<picture><source type=image/avif srcset=1.avif><img src=0.jpg></picture>": ["0.jpg"],
    "<picture><source srcset=1.webp><img></picture><img src=0.jpg>": ["1.webp", "0.jpg"],
    "<a href=1.png><picture><source srcset=0.png><img></picture></a><img src=2.png>": [
        "1.png",
        "2.png",
    ],
}


def test_the_largest_picture_that_an_image_stands_for():
    for html, expected in IMAGE_TAGS.items():
        assert names(html) == expected


PAGES = [
    ("é".encode(), "text/html"),
    ("é".encode("latin-1"), "text/html; charset=ISO-8859-1"),
    (b"<meta charset='latin-1'>\xe9", "text/html"),
    (b"<meta charset='latin-1'>\xe9", "text/html; charset=none-such"),
    (b"<meta charset=hex>" + "é".encode(), "text/html; charset=idna"),
    ("\ufeffé".encode(), "text/html"),
]


def test_a_page_is_read_in_its_own_charset(gallery):
    web = s.Web(s.parse_args(["--delay", "0"]))
    for body, kind in PAGES:
        gallery.files["/page"] = answer(200, body, Content_Type=kind)
        assert s.decode_page(*s.get(web, gallery.url + "/page"))[-1] == "é"


# ---- Names ---------------------------------------------------------------------------------------

NAMES = {
    "Mario%20(Wedding).png": "mario (wedding)",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd": "passwd",
    "CON.png": "con",
    "..png": "picture",
    ".hidden.png": "hidden",
    "%00%0a.png": "__",
    "a%3A%22%3Cb.png": "a___b",
    "Pok%C3%A9mon.png": "pokémon",
    "": "picture",
    "x" * 400 + ".png": "x" * 100,
    "%E2%80%AEgnp.exe": "_gnp",
}


def test_a_name_is_safe_on_every_system():
    for last, stem in NAMES.items():
        name = s.file_name(f"http://h.test/{last}", "1a2b3c4d" + "0" * 56, ".png")
        assert name == f"{stem}-1a2b3c4d.png"


def test_pictures_of_the_same_name_are_both_kept(gallery):
    files = {path: png(seed=i) for i, path in enumerate(["/a/x.png", "/b/X.png", "/b/x.gif"])}
    gallery.files |= files | {"/spirits": spirits(*files)}
    assert run(gallery) == 0
    assert sorted(bodies()) == sorted(files.values())
    assert len(list(Path("out").glob("x-*.png"))) == 3  # the content decides on the suffix


# ---- Answers -------------------------------------------------------------------------------------


def stop_short(handler):
    handler.reply(200, png()[:3000], len(png()))
    handler.close_connection = True


FINE = answer(200, png())
GOOD = {
    "500, 503 and 408 first": (lambda: turns(answer(500), answer(503), answer(408), FINE), 4),
    "cut first": (lambda: turns(stop_short, FINE), 2),
    "203": (lambda: answer(203, png()), 1),
    "longer than its length": (lambda: answer(200, png() + b"x" * 999, len(png())), 1),
    "redirect": (lambda: answer(302, Location="y z.png"), 1),
}


@pytest.mark.parametrize("case", GOOD)
def test_answers_that_give_the_picture(gallery, case):
    reply, requests = GOOD[case]
    gallery.files |= {"/y%20z.png": png(), "/x.png": reply(), "/spirits": spirits("x.png")}
    assert run(gallery) == 0 and bodies() == [png()]
    assert len(asked(gallery, "/x")) == requests


BAD = {
    "404": (answer(404), "HTTP Error 404", 1),
    "500 for good": (answer(500), "HTTP Error 500", 5),
    "cut for good": (stop_short, "cut short after 3,000 bytes", 5),
    "a page": (answer(200, b"<!DOCTYPE html><html>none"), "it begins with b'<!DOCTYPE html>'", 1),
    "nothing": (answer(200, b""), "not a whole picture: cannot identify image file; ", 1),
    "EPS": (answer(200, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "identify", 1),
    "damaged": (answer(200, png()[:300] + b"\xff" * 40 + png()[340:]), "not a whole", 1),
    "PNG without its end": (answer(200, png()[:-13]), "not a whole picture", 1),
    "JPEG without its end": (answer(200, png(kind="JPEG")[:-500]), "not a whole picture", 1),
    "too large": (answer(200, b"x" * 40_001), "more than 0.04 MB (--max-file)", 1),
    "silence": (lambda handler: time.sleep(0.3), "timed out", 0),
    "no HTTP": (lambda handler: handler.wfile.write(b"SSH-2.0-nothing\r\n"), "SSH", 0),
    "to a file": (answer(302, Location="file:///etc/passwd"), "not allowed", 1),
    "to a password": (answer(302, Location="http://a:b@127.0.0.1/"), "", 1),
    "a circle": (answer(302, Location="/x.png"), "infinite loop", 5),
    "a pause of a day": (answer(429, Retry_After="86400"), "asks for a pause of 86,400 s", 1),
}


@pytest.mark.parametrize("case", BAD)
def test_answers_that_give_none(gallery, case, capsys):
    reply, why, requests = BAD[case]
    gallery.files |= {"/spirits": spirits("x.png"), "/x.png": reply}
    assert run(gallery, "--max-file", 0.04, "--timeout", 0.1) == 1 and bodies() == []
    assert len(asked(gallery, "/x")) == requests
    assert why in capsys.readouterr().out
    assert why in manifest()[f"{gallery.url}/x.png"]["status"]
    gallery.files["/x.png"] = png()
    assert run(gallery) == 0 and bodies() == [png()]


def test_a_file_that_drips_is_given_up(gallery, monkeypatch):
    def drip(handler):
        handler.reply(200, b"x", length=1000)
        while time.monotonic() < end:
            handler.wfile.write(b"x")
            time.sleep(0.01)

    end = time.monotonic() + 5
    monkeypatch.setattr(s, "LONGEST_FILE", 0.1)
    gallery.files |= {"/spirits": spirits("x.png"), "/x.png": drip}
    assert run(gallery) == 1 and time.monotonic() < end
    assert "or 0.1 s" in manifest()[f"{gallery.url}/x.png"]["status"]


# ---- Pauses and robots.txt -----------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only where the script sleeps."""
    clock = SimpleNamespace(now=1e5, time=time.time, monotonic=lambda: clock.now)
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(s, "time", clock)
    return clock


def http_error(status, retry_after):
    return HTTPError("http://h.test/", status, "", {"Retry-After": retry_after}, None)


def test_a_retry_waits_as_long_as_the_host_asks():
    waits = {"7": 7, " 0 ": 0, "9" * 5000: float("inf"), "Wed, 21 Oct 2015 07:28:00 GMT": 0}
    for text, seconds in waits.items():
        assert s.seconds_to_wait(http_error(429, text), 0) == seconds
    date = formatdate(time.time() + 60, usegmt=True)
    assert 55 < s.seconds_to_wait(http_error(503, date), 0) <= 60


@pytest.mark.parametrize("text", ["soon", "-1", "", "Wed, 21 Oct 99999 07:28:00 GMT"])
def test_else_each_pause_is_twice_the_one_before(monkeypatch, text):
    monkeypatch.setattr(s, "BACKOFF", 1.0)
    waits = [s.seconds_to_wait(http_error(429, text), attempt) for attempt in range(4)]
    assert waits == [1, 2, 4, 8] and s.seconds_to_wait(TimeoutError(), 3) == 8


CERTIFICATE = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
TRIES = [  # an error, how often it is tried, seconds until the next request of anybody
    (http_error(429, "7"), 5, 7),
    (URLError(ConnectionRefusedError(111, "refused")), 5, 0.008),
    (URLError(CERTIFICATE), 1, 0),
    (http_error(418, "7"), 1, 0),
]


@pytest.mark.parametrize("error, tries, pause", TRIES)
def test_only_what_may_pass_is_tried_again_and_pauses_everybody(clock, error, tries, pause):
    def fail(url, timeout):
        tried.append(url)
        raise error

    web, tried = s.Web(s.parse_args([])), []
    web.due, web.opener.open = clock.now, fail
    with pytest.raises(type(error)):
        s.get(web, "http://h.test/")
    assert len(tried) == tries and web.due - clock.now == pytest.approx(pause)


def test_all_connections_together_keep_the_delay(clock):
    web = s.Web(s.parse_args(["--delay", "3", "--workers", "2"]))
    web.rules = {"http://h.test": [], "http://other.test": []}
    request, other = (SimpleNamespace(full_url=f"{origin}/x") for origin in web.rules)
    starts = []
    for each in (request, request, other):
        web.http_request(each)
        starts.append(clock.now - 1e5)
    assert starts == [0, 1.5, 3]
    web.due = clock.now + 600
    web.http_request(request)
    assert clock.now - 1e5 == 603
    web.due = clock.now + 601
    with pytest.raises(ValueError, match="the host asks for a pause of 601 s"):
        web.http_request(request)


# robots.txt, a path, whether it is free; RFC 9309, 5.1, 5.2 and 2.2.3
GROUPS = [
    ("", "/", True),
    ("User-agent: other\nDisallow: /", "/x", True),
    ("User-agent: *\nDisallow: /\n\nUser-agent: scrape_spirits\nDisallow: /a", "/x", True),
    ("User-agent: scrape_spirits\nUser-agent: b\nDisallow: /a", "/ab", False),
    ("User-agent: scrape_spirits\nSitemap: /s\nUser-agent: b\nDisallow: /a", "/a", False),
    ("User-agent: scrape_spirits\nDisallow: /a\nUser-agent: b\nDisallow: /c", "/c", True),
    ("User-agent: scrape_spirits\nAllow: /\nUser-agent: scrape_spirits\nDisallow: /a", "/a", False),
    ("\ufeffUser-Agent: Scrape_Spirits/2.0 # us\r\ndisallow : /\r\n", "/a", False),
    ("Disallow: /", "/x", True),
    ("<html>404</html>", "/x", True),
]
RULES = [
    ("Disallow:", "/x", True),
    ("Allow: /page/\nDisallow: /page/no.gif", "/page/no.gif", False),
    ("Allow: /page/\nDisallow: /page/x", "/page/", True),
    ("Disallow: /a\nAllow: /a", "/a", True),
    ("Disallow: *.gif$\nAllow: /publications/", "/publications/a.gif", True),
    ("Disallow: *.gif$", "/a.gif", False),
    ("Disallow: *.gif$", "/a.gif?x", True),
    ("Disallow: /*.png", "/a/b.png?x=1", False),
    ("Disallow: /*?", "/a?x=1", False),
    ("Disallow: /[ab]", "/a", True),
    ("Disallow: /a%20b", "/a b", False),
    ("Disallow: /ツ", "/%E3%83%84", False),
    ("Disallow: /" + "*a" * 40 + "*b", "/" + "a" * 3000, True),
]
RULES = [(f"User-agent: *\n{lines}", path, free) for lines, path, free in RULES]


@pytest.mark.parametrize("text, path, free", GROUPS + RULES)
def test_robots_txt_is_obeyed(monkeypatch, text, path, free):
    monkeypatch.setattr(s, "get", lambda web, url: (text.encode(), None))
    assert s.Web(s.parse_args([])).allows("http://h.test" + path) is free


@pytest.mark.parametrize("delay, gap", [("2.5", 2.5), ("0.1", 0.5), ("soon", 0.5), ("-3", 0.5)])
def test_a_crawl_delay_lengthens_the_delay(monkeypatch, delay, gap):
    robots = f"User-agent: *\nCrawl-delay: {delay}\n"
    monkeypatch.setattr(s, "get", lambda web, url: (robots.encode(), None))
    web = s.Web(s.parse_args([]))
    assert web.allows("http://h.test/") and web.gap == gap


@pytest.mark.parametrize("status, code", [(404, 0), (410, 0), (401, 1), (403, 1), (500, 1)])
def test_without_robots_txt_all_is_allowed_and_with_an_unreadable_one_nothing(
    gallery, capsys, status, code
):
    gallery.files["/robots.txt"] = answer(status)
    assert run(gallery) == code
    assert len(asked(gallery, "/spirits")) == 1 - code
    assert (f"robots.txt: HTTP Error {status}" in capsys.readouterr().out) == code


def test_a_robots_txt_may_lie_elsewhere(gallery):
    gallery.files["/robots.txt"] = answer(301, Location="/others/robots.txt")
    gallery.files["/others/robots.txt"] = b"User-agent: *\nDisallow: /images/0001"
    assert run(gallery) == 0 and bodies() == list(PICTURES.values())[1:]


def test_a_redirect_leads_only_where_robots_txt_allows(gallery):
    elsewhere = gallery.url.replace("127.0.0.1", "127.1")  # another name of the same address
    gallery.files["/robots.txt"] = b"User-agent: *\nDisallow: /secret"
    gallery.files |= {"/y.png": png(), "/secret/z.png": png(seed=1)}
    gallery.files["/spirits"] = spirits("x.png", "z.png")
    gallery.files["/x.png"] = answer(302, Location=f"{elsewhere}/y.png")
    gallery.files["/z.png"] = answer(302, Location="/secret/z.png")
    assert run(gallery, "--workers", 1) == 1 and bodies() == [png()]
    assert manifest()[f"{gallery.url}/z.png"]["status"] == "forbidden by robots.txt"
    hosts = [headers["Host"].partition(":")[0] + path for path, headers, _ in gallery.log]
    assert hosts[2:5] == ["127.0.0.1/x.png", "127.1/robots.txt", "127.1/y.png"]
    assert asked(gallery, "/secret") == []


def test_ten_failures_in_a_row_stop_the_run(gallery, capsys):
    gone = [f"gone{i}.png" for i in range(30)]
    gallery.files["/spirits"] = spirits(*gone)
    assert run(gallery, "--delay", 0.02, "--workers", 1) == 1
    out = capsys.readouterr().out
    assert "10 failed, 20 not tried\n" in out and "stopped after 10 failures in a row" in out
    assert len(asked(gallery, "/gone")) < 20
    mixed = [link for pair in zip(gone, IMAGES) for link in pair]
    gallery.files["/spirits"] = spirits(*mixed)
    assert run(gallery, "--workers", 1) == 1 and len(bodies()) == 12


# ---- Again ---------------------------------------------------------------------------------------


def test_what_is_there_whole_is_never_fetched_again(gallery, capsys):
    assert run(gallery) == 0
    gallery.log.clear()
    gallery.files[FIRST] = png(seed=5)
    del gallery.files[LAST]
    assert run(gallery) == 0
    assert asked(gallery) == [] and bodies() == list(PICTURES.values())
    assert "12 there already\n" in capsys.readouterr().out


def test_what_is_missing_or_cut_comes_again(gallery):
    assert run(gallery) == 0
    gallery.log.clear()
    first, second, *_ = sorted(Path("out").glob("*.png"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-20])
    with open("out/manifest.jsonl", "a") as file:
        file.write('{"url": "http://h.te')
    assert run(gallery) == 0 and bodies() == list(PICTURES.values())
    assert sorted(asked(gallery)) == list(IMAGES)[:2] and len(manifest()) == 12


def test_equal_pictures_are_kept_once(gallery):
    gallery.files |= {"/a.png": png(), "/b.png": png(), "/c.png": png()}
    gallery.files["/spirits"] = spirits("a.png", "b.png", "c.png")
    for _ in range(2):
        assert run(gallery, "--workers", 1) == 0 and bodies() == [png()]
        records = manifest().values()
        assert [record["status"] for record in records] == ["kept", "duplicate", "duplicate"]
        assert {record["file"][:2] for record in records} == {"a-"}
    assert asked(gallery, "/b") == ["/b.png"]


def test_a_manifest_of_an_earlier_version_counts_and_damaged_lines_do_not(gallery):
    assert run(gallery) == 0
    gallery.log.clear()
    records = [record | {"etag": None, "fresh": 1.5} for record in manifest().values()]
    failed = {"url": f"{gallery.url}/x", "file": None, "sha256": None, "status": "web page"}
    lines = [json.dumps(record) for record in [*records, failed]]
    lines += ["null", "[]", "{}", "\x00", '{"url": "http']
    Path("out/manifest.jsonl").write_text("\n".join(lines))
    assert run(gallery) == 0 and asked(gallery) == []
    assert list(manifest().values()) == records


def test_a_folder_of_other_files_is_left_alone(gallery, capsys):
    Path("out").mkdir()
    Path("out/holiday.jpg").write_bytes(b"mine")
    assert run(gallery) == 1
    assert "out: cannot be used (has files but no manifest.jsonl; name" in capsys.readouterr().out
    assert os.listdir("out") == ["holiday.jpg"] and gallery.log == []
    assert run(gallery, out="out/holiday.jpg") == 1
    assert "holiday.jpg: cannot be used (" in capsys.readouterr().out


def test_a_full_disk_costs_the_new_file_alone(gallery, monkeypatch, capsys):
    def full(number):
        left.pop()
        sync(number)

    sync, left = os.fsync, [1, 2, 3, 4]  # the manifest and three pictures
    monkeypatch.setattr(os, "fsync", full)
    assert run(gallery, "--workers", 1) == 1
    assert "not written; run again to continue (pop from empty list)" in capsys.readouterr().out
    assert bodies() == list(PICTURES.values())[:3]
    assert not list(Path("out").glob(".*.tmp"))
    monkeypatch.setattr(os, "fsync", sync)
    assert run(gallery) == 0 and bodies() == list(PICTURES.values())


# ---- Output and signals --------------------------------------------------------------------------


def start(server, *flags, **env):
    command = [sys.executable, str(SCRIPT), "--url", server.url + "/spirits", "--delay", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *flags], env=os.environ | env, **pipes)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_run_that_was_stopped_goes_on_where_it_was(gallery, name):
    def hold(handler):
        reached.set()
        released.wait(30)

    reached, released = threading.Event(), threading.Event()
    gallery.files[LAST] = hold
    with start(gallery, "--workers", "1", "--out", "out") as child:
        assert reached.wait(30)
        child.send_signal(getattr(signal, name))
        out, errors = child.communicate(timeout=30)
    released.set()
    if name == "SIGINT":
        assert (child.returncode, errors) == (130, "")
        assert re.search(r"\d+ kept, \d+ not tried\nstopped; the same command continues\n$", out)
    Path("out/.x.png.1.tmp").write_bytes(b"")
    Path(".out-contact.png.1.tmp").write_bytes(b"")
    there = len(bodies())
    gallery.files |= IMAGES
    gallery.log.clear()
    assert there > 0 and run(gallery) == 0
    assert bodies() == list(PICTURES.values()) and len(asked(gallery)) == 12 - there
    assert not list(Path().rglob(".*.tmp"))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_dry_run_into_a_closed_pipe_ends_quietly(gallery):
    with start(gallery, "--dry-run") as child:
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == -signal.SIGPIPE


def test_a_console_may_lack_letters(gallery):
    with start(gallery, "--limit", "1", "--out", "\u0416", PYTHONIOENCODING="cp1252") as child:
        out, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, "") and "?-contact.png" in out


# ---- Flags ---------------------------------------------------------------------------------------

WRONG = {
    "--url=smashbros-ultimate.com": "--url smashbros-ultimate.com: not http(s)://HOST/...",
    "--url=file:///etc/passwd": "--url file:///etc/passwd: not http(s)://HOST/...",
    "--url=http://me:secret@h.test/": "(NAME:PASSWORD@ is not supported)",
    "--limit=0": "--limit: must be 1 or more",
    "--delay=-1": "--delay: must be 0 or more",
    "--delay=inf": "--delay: must be 0 or more",
    "--workers=0": "--workers: must be 1 or more",
    "--timeout=0": "--timeout: must be 0.1 or more",
    "--max-file=nan": "--max-file: must be 0.01 or more",
    "--min-side=-3": "--min-side: must be 0 or more",
    "--work=3": "unrecognized arguments",
}


@pytest.mark.parametrize("flag", WRONG)
def test_wrong_flags_end_in_two_lines_and_exit_2(flag, capsys):
    with pytest.raises(SystemExit) as end:
        s.main([flag])
    assert end.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert "see --help" in usage and "main([])" in usage and WRONG[flag] in error


def test_defaults_are_polite():
    args = s.parse_args([])
    assert args.delay == 1 and args.workers <= 2 and s.Web(args).gap == 0.5
    assert args.url == ["http://smashbros-ultimate.com/spirits"]


def test_a_tilde_in_out_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert s.parse_args(["--out=~/art"]).out == tmp_path / "art"
