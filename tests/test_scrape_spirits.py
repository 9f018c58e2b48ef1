"""scrape_spirits.py against a gallery on loopback that answers in every wrong way there is."""

import io
import json
import os
import re
import runpy
import signal
import ssl
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
from gallery import Gallery, page, pictures
from PIL import Image

import scrape_spirits as s

PICTURES = pictures(12)
WHOLE = list(PICTURES.values())
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
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


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


# ---- The gallery, whole --------------------------------------------------------------------------


def test_every_spirit_comes_byte_for_byte_into_manifest_and_contact_sheet(gallery, capsys):
    assert (run(gallery), bodies()) == (0, WHOLE)
    assert "12 kept\n" in capsys.readouterr().out
    assert asked(gallery, "")[:2] == ["/robots.txt", "/spirits"]
    assert len(gallery.log) == 14  # no thumbnails, no logo
    for _, headers, _ in gallery.log:
        assert headers["User-Agent"].startswith("scrape_spirits/1 (")
        assert headers["Accept"] == "*/*"
    for path, body in IMAGES.items():
        record = manifest()[gallery.url + path]
        assert Path("out", record["file"]).read_bytes() == body
        assert (record["size"], record["status"]) == (len(body), "kept")
        assert Image.open(io.BytesIO(body)).size == (record["width"], record["height"])
    with Image.open("out-contact.png") as sheet:
        cells = np.split(np.asarray(sheet), 25, axis=1)
    assert [len(np.unique(cell)) > 9 for cell in cells] == [True] * 12 + [False] * 13
    s.draw_contact_sheet({i: manifest()[gallery.url + FIRST] for i in range(2600)}, Path("out"))
    with Image.open("out-contact.png") as sheet:
        assert sheet.size == (25 * 48, 100 * 48)
        assert np.asarray(sheet)[-48:, -48:].min() < 255


def test_a_dry_run_lists_what_robots_txt_allows_and_writes_nothing(gallery, capsys):
    gallery.files["/robots.txt"] = b"User-agent: *\nDisallow: /images/0003"
    assert run(gallery, "--dry-run", "--limit", 5) == 0
    listed = capsys.readouterr().out.splitlines()[2:]
    assert listed == [gallery.url + path for path in list(IMAGES)[:5] if "/0003" not in path]
    assert asked(gallery) == [] and os.listdir() == []


def test_several_pages_and_those_that_follow(gallery, capsys):
    a, b, c, d, *_ = IMAGES
    gallery.files |= {
        "/art": spirits(a) + b'<a rel="nofollow next" href="?page=2">more</a>',
        "/art?page=2": spirits(b) + b'<link rel=NEXT href="/art?page=3">',
        "/art?page=3": spirits(a, b) + b'<a rel=next href="/art?page=4">',  # nothing new: the end
        "/art?page=4": spirits(c),
        "/more": spirits(d) + b"<a rel=next href=/none>",
    }
    assert (run(gallery, page="/art"), bodies()) == (0, [IMAGES[a]])
    assert run(gallery, "--follow", "--url", gallery.url + "/art", gallery.url + "/more") == 1
    assert bodies() == [IMAGES[a], IMAGES[b], IMAGES[d]]
    assert asked(gallery, "/art?page=4") == []
    assert f"warning: {gallery.url}/none (HTTP Error 404" in capsys.readouterr().err


def test_a_page_says_where_it_led_and_why_it_may_have_no_pictures(gallery, capsys):
    gallery.files |= {"/art": answer(302, Location="/login"), "/login": b"<script src=app.js>"}
    assert run(gallery, page="/art") == 1
    out = capsys.readouterr().out
    assert f"{gallery.url}/art -> {gallery.url}/login: 0 pictures\n" in out
    assert "no pictures in the host's HTML; what scripts add" in out
    assert run(gallery, "--select", "thumb big") == 1
    assert "no elements of class 'thumb big' in the host's HTML" in capsys.readouterr().out


def test_small_pictures_are_left_out_unless_selected(gallery):
    files = {f"/{side}.png": png(side, side) for side in (16, 32, 33)}
    files["/flat.png"] = png(64, height=20)
    tags = "".join(f"<p class=x><img src='{path}' width=999></p>" for path in files)
    gallery.files |= files | {"/blog": tags.encode()}
    for fetched in (4, 0):  # they are not fetched again
        gallery.log.clear()
        assert (run(gallery, page="/blog"), bodies()) == (0, [files["/33.png"]])
        assert len(gallery.log) == 2 + fetched
    assert run(gallery, "--min-side", 20, page="/blog") == 0
    assert bodies() == [files["/32.png"], files["/33.png"]]
    assert (run(gallery, "--select", "x", page="/blog"), len(bodies())) == (0, 4)


# ---- Pages and names -----------------------------------------------------------------------------


def names(html, select=None):
    found, _ = s.find_links(html, "http://h.test/a/b", select)
    return [url.removeprefix("http://h.test/a/") for url in found]


def test_links_of_every_kind():
    for link, address in {
        "c d.png": "c%20d.png",
        "../c.png": "http://h.test/c.png",
        "HTTP://H.test:8080": "http://h.test:8080/",
        "Pok&eacute;%20x.png?a=1&amp;b=2 3": "Pok%C3%A9%20x.png?a=1&b=2%203",
        " \n c.png \t": "c.png",
        "http://bücher.test/": "http://xn--bcher-kva.test/",
        "http://[::1]:90/x": "http://[::1]:90/x",
    }.items():
        assert names(spirits(link).decode()) == [address]
    for link in """javascript:void(0) data:image/png;base64,AAAA file:///etc/passwd ftp://h.test/x
        http://user:secret@h.test/ http://h.test\\@evil.test/ http://[::1/ http://a..b/""".split():
        assert names(spirits(link, "").decode()) == []
    link = spirits("c.png").decode()
    assert names('<base href="/deep/er/">' + link) == ["http://h.test/deep/er/c.png"]
    assert names('<base href="javascript:1">' + link) == ["c.png"]


def test_which_elements_count():
    html = """<a href=no1><img src=no2></a>
        <li class="thumb big"><a href=one.png><img src=no3></a>
        <li class=thumb><b><img data-src=two src=no4></b></li><img src=no5>
        <a class=thumb href=three></a><img class="thumb" src=four></p></div>"""
    assert names(html, ["thumb"]) == ["one.png", "two", "three", "four"]
    assert names(html, ["thumb", "big"]) == ["one.png"]
    assert names(html) == ["one.png", "no2", "two", "no5", "four"]  # no spirits: the whole page
    assert names(html + spirits("spirit").decode()) == ["spirit"]


def test_an_element_gives_its_picture_files_else_its_images_else_its_links():
    for html, expected in {
        "<a href=1.png><img src=0.png></a><img src=2.png>": ["1.png"],
        "<a href=post/7><img src=0.png></a>": ["0.png"],
        "<a href=post/7><img src=zoom.svg><img src=data:,></a>": ["post/7"],
        "<img src=0.png><a href=1.JPG?size=9>x</a>": ["1.JPG?size=9"],
        "<a href=/wiki/File:1.png><img src=0.png></a>": ["0.png"],
        "<a href=1.png>x<a href=2.png>y": ["1.png", "2.png"],
    }.items():
        assert names(f"<div class=x>{html}</div><a href=no.png>", ["x"]) == expected


def test_a_page_without_spirits_gives_its_picture_files_and_its_largest_images():
    for html, expected in {
        '<a href="../">../</a><a href="1.png">1.png</a> <a href=a.txt>a</a>': ["1.png"],  # listings
        "<img src=i.gif><a href='?C=N'>Name</a><img src=i.gif> <a href=1.png>": ["1.png", "i.gif"],
        "<img src='data:image/gif;base64,R0lG' data-original=2.png>": ["2.png"],
        "<img src=0.png data-src=data:,x data-srcset='1.png 1x,2.png 1.5x'>": ["2.png"],
        "<img src=0.png srcset='a,b.png 2x , c.png, '>": ["a,b.png"],
        "<img src='pic 100x90.png'>": ["pic%20100x90.png"],
        "<img src=about:blank><img src=''><img src=logo.SVG?v=1>": [],
        "<picture><source srcset=1.png><source srcset=2><img srcset=3></picture>": ["1.png"],
        "<img src=1?id=3&timestamp=1><![endif]--><img src=2.png>": ["1?id=3&timestamp=1", "2.png"],
        f"<img src='data:image/png;base64,{'A' * 10**6}'>": [],  # in an instant
        "<picture><source srcset=1><source type=image/avif srcset=2><img></picture>": ["1"],
        "<a href=1.png><source srcset=0.png><img></a><img src=2.png>": ["1.png", "2.png"],
    }.items():
        assert names(html) == expected


def test_a_page_is_read_in_its_own_charset(gallery):
    web = s.Web(s.parse_args(["--delay", "0"]))
    for body, kind in [
        ("é".encode("latin-1"), "text/html; charset=ISO-8859-1"),
        (b"<meta charset='latin-1'>\xe9", "text/html; charset=none-such"),
        (b"<meta charset=hex>" + "é".encode(), "text/html; charset=idna"),
        ("\ufeffé".encode(), "text/html"),
    ]:
        gallery.files["/page"] = answer(200, body, Content_Type=kind)
        assert s.decode_page(*s.get(web, gallery.url + "/page"))[-1] == "é"


def test_a_name_is_safe_on_every_system():
    for last, stem in {
        "Mario%20(Wedding).png": "mario (wedding)",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd": "passwd",
        "..png": "picture",
        "a%3A%22%3Cb.png": "a___b",
        "Pok%C3%A9mon.png": "pokémon",
        "x" * 400 + ".png": "x" * 100,
    }.items():
        name = s.file_name(f"http://h.test/{last}", "1a2b3c4d" + "0" * 56, ".png")
        assert name == f"{stem}-1a2b3c4d.png"


def test_pictures_of_the_same_name_are_all_kept_and_equal_ones_once(gallery):
    files = {path: png(seed=i) for i, path in enumerate(["/a/x.png", "/b/X.png", "/b/x.gif"])}
    gallery.files |= files | {"/z.png": png(), "/spirits": spirits(*files, "z.png")}
    for _ in range(2):
        assert run(gallery, "--workers", 1) == 0 and sorted(bodies()) == sorted(files.values())
        *first, last = manifest().values()
        assert [record["status"] for record in first] == ["kept"] * 3
        assert (last["status"], last["file"]) == ("duplicate", first[0]["file"])
    assert len(list(Path("out").glob("x-*.png"))) == 3  # the content decides on the suffix
    assert asked(gallery, "/z") == ["/z.png"]


# ---- Answers, pauses, robots.txt -----------------------------------------------------------------


def stop_short(handler):
    handler.reply(200, png()[:3000], len(png()))
    handler.close_connection = True


def drip(handler):
    handler.reply(200, b"x", length=1000)
    for _ in range(500):
        handler.wfile.write(b"x")
        time.sleep(0.01)


def test_after_four_failures_the_picture_may_still_come(gallery):
    answers = iter([answer(599), answer(503), answer(408), stop_short, answer(203, png())])
    gallery.files |= {"/spirits": spirits("x.png"), "/x.png": lambda h: next(answers)(h)}
    assert (run(gallery), bodies()) == (0, [png()])
    assert len(asked(gallery, "/x.png")) == 5


@pytest.mark.parametrize("reply, why, requests", [  # the latter is how often it is asked for
    (answer(404), "HTTP Error 404", 1),
    (stop_short, "cut short after 3,000 bytes", 5),
    (drip, "or 1 s", 1),
    (answer(200, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "image file; it ", 1),
    (answer(200, png()[:300] + b"\xff" * 40 + png()[340:]), "not a whole picture", 1),
    (answer(200, png(kind="JPEG")[:-500]), "not a whole picture: image file is truncated", 1),
    (answer(200, b"x" * 40_001), "more than 0.04 MB (--max-file)", 1),
    (lambda handler: time.sleep(5), "timed out", 0),  # an answer without a head is not logged
    (answer(302, Location="file:///etc/passwd"), "not allowed", 1),
    (answer(429, Retry_After="86400"), "asks for a pause of 86,400 s", 1),
])  # fmt: skip
def test_answers_that_give_none(gallery, monkeypatch, capsys, reply, why, requests):
    monkeypatch.setattr(s, "LONGEST_DOWNLOAD", 1)
    gallery.files |= {"/spirits": spirits("x.png"), "/x.png": reply}
    timeout = 0.5 if why == "timed out" else 30
    assert (run(gallery, "--max-file", 0.04, "--timeout", timeout), bodies()) == (1, [])
    assert len(asked(gallery, "/x")) == requests
    assert why in manifest()[f"{gallery.url}/x.png"]["status"]
    assert re.search(rf"x.png: .*{re.escape(why)}.*\n1 failed\n", capsys.readouterr().out)


def http_error(status, retry_after):
    return HTTPError("http://h.test/", status, "", {"Retry-After": retry_after}, None)


def test_a_retry_waits_as_long_as_the_host_asks_else_twice_as_long_each_time(monkeypatch):
    monkeypatch.undo()  # BACKOFF is the script's own
    date = formatdate(time.time() + 60, usegmt=True)
    assert 55 < s.seconds_to_wait(http_error(503, date), 0) <= 60
    waits = {" 0 ": 0, "9" * 5000: float("inf"), "Wed, 21 Oct 2015 07:28:00 GMT": 0}
    waits |= {"soon": 8, "-1": 8, "": 8, "Wed, 21 Oct 99999 07:28:00 GMT": 8}
    for text, seconds in waits.items():
        assert s.seconds_to_wait(http_error(429, text), 3) == seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only where the script sleeps."""
    clock = SimpleNamespace(now=1e5, time=time.time, monotonic=lambda: clock.now)
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(s, "time", clock)
    return clock


def test_only_what_may_pass_is_tried_again_and_pauses_everybody(clock):
    certificate = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
    for error, tries, pause in [
        (http_error(429, "7"), 5, 7),
        (URLError(ConnectionRefusedError(111, "refused")), 5, 0.016),
        (URLError(certificate), 1, 0),
    ]:
        web, opener = s.Web(s.parse_args([])), Mock(side_effect=error)
        web.due, web.opener.open = clock.now, opener
        with pytest.raises(type(error)):
            s.get(web, "http://h.test/")
        assert opener.call_count == tries
        assert web.due - clock.now == pytest.approx(pause)


def test_all_connections_together_keep_the_delay(clock):
    web = s.Web(s.parse_args(["--delay", "3", "--workers", "2"]))
    web.rules = {"http://h.test": [], "http://other.test": []}
    for origin, start in (("http://h.test", 0), ("http://h.test", 1.5), ("http://other.test", 3)):
        web.http_request(SimpleNamespace(full_url=f"{origin}/x"))
        assert clock.now - 1e5 == start
    for scheme in ("http", "https", "ftp"):
        assert web in web.opener.process_request[scheme]


def robots(monkeypatch, text):
    monkeypatch.setattr(s, "get", lambda web, url: (text.encode(), None))
    return s.Web(s.parse_args([]))


def test_robots_txt_is_obeyed(monkeypatch):
    ours = "User-agent: scrape_spirits\n"
    for text, path, free in [  # RFC 9309, 5.1, 5.2 and 2.2.3
        ("User-agent: *\nDisallow: /\n\n" + ours + "Disallow: /a", "/x", True),
        (ours + "Sitemap: /s\nUser-agent: b\nDisallow: /a", "/ab", False),
        (ours + "Disallow: /a\nUser-agent: b\nDisallow: /c", "/c", True),
        (ours + "Allow: /\n" + ours + "Disallow: /a", "/a", False),
        ("\ufeffUser-Agent: Scrape_Spirits/2.0 # us\r\ndisallow : /\r\n", "/a", False),
        (ours + "Disallow:", "/x", True),
        (ours.replace("\n", "\r") + "Disallow: /a\r", "/a", False),
        (ours + "Disallow: /", "/robots.txt", True),
        (ours + "Allow: /page/\nDisallow: /page/no.gif", "/page/no.gif", False),
        (ours + "Disallow: /a\nAllow: /a", "/a", True),
        (ours + "Disallow: *.gif$\nAllow: /publications/", "/publications/a.gif", True),
        (ours + "Disallow: *.gif$", "/a.gif?x", True),
        (ours + "Disallow: /*?", "/a?x=1", False),
        (ours + "Disallow: /[ab]", "/a", True),
        (ours + "Disallow: /a%20b", "/a b", False),
        (ours + "Disallow: /" + "*a" * 40 + "*b", "/" + "a" * 3000, True),
    ]:
        assert robots(monkeypatch, text).allows("http://h.test" + path) is free
    for delay, gap, first in [("2.5", 2.5, 2.5), ("0.1", 0.5, 0.1), ("soon", 0.5, 0)]:
        web = robots(monkeypatch, f"User-agent: *\nCrawl-delay: {delay}\n")
        assert web.allows("http://h.test/") and (web.gap, web.due) == (gap, first)


def test_without_robots_txt_all_is_allowed_and_where_it_is_not_read_nothing(gallery, capsys):
    for status, code in {401: 1, 403: 1, 500: 1, 404: 0, 410: 0}.items():
        gallery.files["/robots.txt"] = answer(status)
        gallery.log.clear()
        assert run(gallery) == code
        assert len(asked(gallery, "/spirits")) == 1 - code
        assert (f"robots.txt: HTTP Error {status}" in capsys.readouterr().out) == code


def test_a_redirect_leads_only_where_robots_txt_allows(gallery):
    elsewhere = gallery.url.replace("127.0.0.1", "127.1")  # another name of the same address
    gallery.files["/robots.txt"] = answer(301, Location="/others/robots.txt")
    gallery.files["/others/robots.txt"] = b"User-agent: *\nDisallow: /secret"
    gallery.files |= {"/spirits": spirits("x.png", "z.png"), "/y.png": png()}
    gallery.files["/x.png"] = answer(302, Location=f"{elsewhere}/y.png")
    gallery.files["/z.png"] = answer(302, Location="/secret/z.png")
    assert run(gallery, "--workers", 1) == 1 and bodies() == [png()]
    assert manifest()[f"{gallery.url}/z.png"]["status"] == "forbidden by robots.txt"
    hosts = [headers["Host"].partition(":")[0] + path for path, headers, _ in gallery.log]
    assert hosts[3:5] == ["127.0.0.1/x.png", "127.1/robots.txt"]
    assert "127.1/y.png" in hosts and asked(gallery, "/secret") == []


def test_ten_failures_in_a_row_stop_the_run(gallery, capsys):
    gone = [f"gone{i}.png" for i in range(30)]
    gallery.files["/spirits"] = spirits(*gone)
    assert run(gallery, "--workers", 1) == 1
    assert "30 failed\n" in capsys.readouterr().out  # dead links say nothing of the host
    gallery.log.clear()
    gallery.files |= {f"/{name}": answer(403) for name in gone[::2]}
    gallery.files |= {f"/{name}": b"none" for name in gone[1::2]}
    gallery.files["/gone4.png"] = answer(410)
    assert run(gallery, "--delay", 0.02, "--workers", 1) == 1
    out = capsys.readouterr().out
    assert "11 failed, 19 not tried\n" in out and "stopped after 10 failures in a row" in out
    assert len(asked(gallery, "/gone")) < 20
    gallery.files["/spirits"] = spirits(*gone[:9], FIRST, *gone[9:18], LAST)
    assert run(gallery, "--workers", 1) == 1 and bodies() == [IMAGES[FIRST], IMAGES[LAST]]


def test_what_is_there_whole_is_never_fetched_again_and_the_rest_is(gallery, capsys):
    assert run(gallery) == 0
    gallery.files |= {FIRST: png(seed=5), LAST: answer(404)}
    gallery.log.clear()
    records = [record | {"etag": None} for record in manifest().values()]  # of an older version
    failed = {"url": f"{gallery.url}/x", "file": None, "sha256": None, "status": "web page"}
    lines = "".join(json.dumps(record) + "\n" for record in [*records, failed])
    Path("out/manifest.jsonl").write_text(lines + 'null\n[]\n{}\n\x00\n{"url": "http')
    for leftover in ("out/.x.png.1.tmp", ".out-contact.png.1.tmp"):  # of a run that was killed
        Path(leftover).write_bytes(b"")
    assert (run(gallery), asked(gallery), bodies()) == (0, [], WHOLE)
    assert "12 there already\n" in capsys.readouterr().out
    assert list(manifest().values()) == records
    assert not list(Path().rglob(".*.tmp"))
    _, second, third, *_ = sorted(Path("out").glob("*.png"))
    second.unlink()
    third.write_bytes(third.read_bytes()[:-20])
    assert (run(gallery), bodies()) == (0, WHOLE)
    assert sorted(asked(gallery)) == list(IMAGES)[1:3] and len(manifest()) == 12


def test_a_folder_of_other_files_is_left_alone(gallery, capsys):
    Path("out").mkdir()
    Path("out/holiday.jpg").write_bytes(b"mine")
    assert run(gallery) == 1
    assert "out: cannot be used (has files but no manifest.jsonl; name" in capsys.readouterr().out
    assert os.listdir("out") == ["holiday.jpg"] and gallery.log == []
    assert run(gallery, out="out/holiday.jpg") == 1
    assert "holiday.jpg: cannot be used (" in capsys.readouterr().out


def test_a_full_disk_costs_the_new_file_alone(gallery, monkeypatch, capsys):
    full = OSError(28, "No space left on device")  # after the manifest and three pictures
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Mock(side_effect=[None] * 4 + [full]))
        assert run(gallery, "--workers", 1) == 1
    assert "not written; run again to continue ([Errno 28] No" in capsys.readouterr().out
    assert bodies() == WHOLE[:3] and not list(Path("out").glob(".*.tmp"))
    assert (run(gallery), bodies()) == (0, WHOLE)


def start(server, *flags, script=s.__file__, **env):
    command = [sys.executable, script, "--url", server.url + "/spirits", "--delay", "0", *flags]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env=os.environ | env, text=True, **pipes)


def test_the_script_runs_alone_from_standard_input_and_without_letters(gallery):
    source = Path(s.__file__).read_text(encoding="utf-8")
    env = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    with start(gallery, "--out", "a/\u0416", script="-", **env) as child:
        out, errors = child.communicate(source, timeout=60)
    assert (child.returncode, errors) == (0, "") and "12 kept\n" in out and "?-contact.png" in out
    assert bodies("a/\u0416") == WHOLE


@pytest.mark.parametrize("stdout", [None, io.StringIO()])
def test_it_runs_in_a_notebook_and_without_a_console(gallery, monkeypatch, stdout):
    monkeypatch.setattr(sys, "stdout", stdout)
    flags = ["--url", gallery.url + "/spirits", "--delay", "0", "--out", "out"]
    monkeypatch.setattr(sys, "argv", [s.__file__, *flags])
    runpy.run_path(s.__file__, run_name="__main__")  # as %run does
    assert len(bodies()) == 12
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    assert s.parse_args().limit == 10**9


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_run_that_was_stopped_goes_on_where_it_was(gallery):
    def hold(handler):
        reached.set()
        time.sleep(30)

    reached = threading.Event()
    gallery.files[LAST] = hold
    with start(gallery, "--workers", "1", "--out", "out") as child:
        assert reached.wait(30)
        child.send_signal(signal.SIGPIPE)  # of a lost connection: it goes on
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (130, "")
    assert re.search(r"\d+ kept, \d+ not tried\nstopped; the same command continues\n$", out)
    there = len(bodies())
    gallery.files |= IMAGES
    gallery.log.clear()
    assert (run(gallery), bodies()) == (0, WHOLE)
    assert len(asked(gallery)) == 12 - there < 12


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_dry_run_into_a_closed_pipe_ends_without_a_traceback(gallery):
    with start(gallery, "--dry-run") as child:
        child.stdout.close()
        assert "Traceback" not in child.stderr.read()
    assert child.returncode == 1


def test_wrong_flags_end_in_two_lines_and_exit_2(capsys):
    for flag, message in {
        "--url=smashbros-ultimate.com": "--url smashbros-ultimate.com: not http(s)://HOST/...",
        "--url=http://me:secret@h.test/": "(NAME:PASSWORD@ is not supported)",
        "--limit=0": "--limit: must be 1 or more",
        "--timeout=nan": "--timeout: must be 0.1 or more",
        "--work=3": "unrecognized arguments",
    }.items():
        with pytest.raises(SystemExit) as end:
            s.main([flag])
        usage, error = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and "--help" in usage and message in error


def test_defaults_are_polite_and_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    args = s.parse_args(["--out=~/art"])
    assert args.out == tmp_path / "art"
    assert (s.LONGEST_WAIT, s.LONGEST_DOWNLOAD) == (600, 300)
    assert args.delay == 1 and args.workers <= 2 and s.Web(args).gap == 0.5
