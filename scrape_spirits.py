# /// script
# requires-python = ">=3.10"
# dependencies = ["pillow>=10.1"]
# ///
"""Scrape the pictures of a web gallery into a training set, within the rules of its host.

Made for the 1,395 "spirits" of Super Smash Bros. Ultimate: on that page every element of class
`spiritDiv` holds an <a> whose href is the full picture. Other pages go by --select.

Usage
    python scrape_spirits.py --dry-run                list what would be fetched, write nothing
    python scrape_spirits.py                          the spirits, into data/spirits
    python dcgan.py --data data/spirits --size 64     ... and train on them
    python scrape_spirits.py --url https://example.org/art --select thumb --follow --out data/art

The same command continues after Ctrl-C, a crash or failures; nothing whole is fetched twice. When a
set is complete, only what has changed is fetched (ETag, Last-Modified; without either: nothing).

Writes
    data/spirits/NAME-1a2b3c4d.png    a picture as it came, with the start of its sha256; equal
                                      files are kept once, under the first name in the gallery
    data/spirits/manifest.jsonl       one line per address: file, sha256, size, status, time, ...
    data/spirits-contact.png          all pictures in one image

robots.txt is obeyed (RFC 9309, Crawl-delay). 429, 5xx and time-outs pause the host, for Retry-After
or 1, 2, 4, 8 s with jitter; 10 failures in a row stop the run. A picture is what Pillow decodes to
the end, up to 50 million pixels. Private addresses (loopback, 192.168/16, ...) are refused on the
connection itself, unless --url is at them. Exit code: 0 if every picture came, 1 if not, 2 for
wrong flags, 128 + signal (Ctrl-C: 130).
"""

import argparse
import hashlib
import http.client
import io
import ipaddress
import json
import math
import os
import random
import re
import signal
import socket
import sqlite3
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from PIL import Image, ImageOps

SCRIPT = "scrape_spirits.py"
AGENT = "scrape_spirits/1 (collects pictures for a training set; obeys robots.txt)"
RETRIES, REDIRECTS = 4, 5  # of one request
BACKOFF = 1.0  # seconds before the first retry; doubled for each further one
LONGEST_WAIT = 600  # seconds of Retry-After; a longer one stops the run
MAX_FAILURES = 10  # in a row; then the run stops
SLOWEST = 1000  # bytes per second
DAY = 86_400  # seconds in which an incomplete run continues without asking for changes
MAX_PIXELS = 50_000_000
FIELDS = "url file sha256 size width height mode status time fresh etag last_modified".split()
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "GIF": ".gif", "WEBP": ".webp"}
SUFFIXES |= {"BMP": ".bmp", "AVIF": ".avif"}  # what browsers show


class Failure(Exception):
    """An address cannot be fetched: why, and the HTTP status if that is the reason."""

    def __init__(self, reason, status=None):
        super().__init__(reason)
        self.status = status


# ---- Crawl ---------------------------------------------------------------------------------------


def list_pictures(web, args):
    """{address: (fallback address or None, side it must exceed)}, and {page: why it failed}."""
    pictures, failed, pages = {}, {}, [*args.url]
    while pages and len(pictures) < (args.limit or math.inf):
        try:
            _, headers, body, address = web.get(url := pages.pop(0))
        except Failure as error:
            failed[url] = str(error)
            continue
        html = decode_page(body, headers.get("Content-Type", ""))
        links, following, floor = find_links(html, address, args.select, args.min_side)
        show(f"{url}: {len(links):,} picture{'s' * (len(links) != 1)}")
        new = {link: (image, floor) for link, image in links.items() if link not in pictures}
        pictures |= new
        if args.follow and following and new:  # a page without a new picture is the last
            pages.insert(0, following)
    if not pictures and not failed:
        raise SystemExit("no pictures found; --select CLASS names their elements")
    return dict([*pictures.items()][: args.limit]), failed


def collect(url, fallback, floor, web, folder):
    """Bring one picture into the folder: "fetched", "unchanged", "too small"; or raise Failure.
    Where `url` is a web page, `fallback` is collected instead."""
    if fallback and folder.records.get(url, {}).get("status") == "web page":
        return collect(fallback, None, floor, web, folder)
    old = folder.settled(url, floor)
    tags = {"If-None-Match": old.get("etag"), "If-Modified-Since": old.get("last_modified")}
    tags = {name: tag for name, tag in tags.items() if tag and re.fullmatch("[ -~]+", tag)}
    if old and (not tags or time.time() - (old["fresh"] or 0) < DAY):
        return "unchanged"
    try:
        status, reply, body, _ = web.get(url, tags)
        if status == 304:
            folder.add(old)
            return "unchanged"
        if fallback and not old and re.match(rb"(?i)\W*<(!doctype )?html", body[:1000]):
            folder.add({"url": url, "status": "web page"})
            return collect(fallback, None, floor, web, folder)
        new = inspect(url, body)
    except Failure as error:
        if not old:  # otherwise the picture that was fetched before stays
            folder.add({"url": url, "status": str(error)})
        raise
    new |= {"etag": reply.get("ETag"), "last_modified": reply.get("Last-Modified")}
    if min(new["width"], new["height"]) <= floor:
        folder.add(new | {"file": None, "status": "too small"})
        return "too small"
    folder.add(new, body)
    return "unchanged" if new["sha256"] == old.get("sha256") else "fetched"


def scrape(pictures, failed, web, folder):
    """Fetch what is missing, failures into `failed`, and sum up."""
    least = len(pictures) * max(web.args.delay / web.args.workers, *web.gaps.values(), 0) / 60
    show(f"{len(pictures):,} pictures into {folder.out}, in at least {least:.1f} min")
    web.stored = sum(record["size"] for record in folder.records.values() if record["file"])
    counts, in_a_row, stop, pool = Counter(), 0, None, ThreadPoolExecutor(web.args.workers)
    tasks = {pool.submit(collect, url, *how, web, folder): url for url, how in pictures.items()}
    try:
        for task in as_completed(tasks):
            url, error = tasks[task], task.exception()
            if error and not isinstance(error, Failure):  # a full disk, or the host asks to stop
                raise error
            counts["failed" if error else task.result()] += 1
            if counts.total() % 100 == 0:
                show(f"{counts.total():,} of {len(pictures):,}")
            if error:
                failed[url] = str(error)
            in_a_row = in_a_row + (error.status != "robots.txt") if error else 0
            if in_a_row == MAX_FAILURES:
                raise SystemExit(f"stopped: {in_a_row} failures in a row, the last: {url}: {error}")
    except (SystemExit, KeyboardInterrupt) as error:
        stop = error
    finally:
        web.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)  # the folder refuses what comes later
    counts["not tried"] = len(pictures) - counts.total()
    counts["failed"] = len(failed)  # pages, too
    told = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
    show(f"{told}: {web.requests:,} requests, {web.received / 1e6:,.1f} MB")
    kept = finish(folder, pictures, not failed and not counts["not tried"])
    if kept:
        sizes = sorted((r["width"] * r["height"], f"{r['width']}x{r['height']}") for r in kept)
        modes = Counter(record["mode"] for record in kept).most_common()
        modes = ", ".join(f"{n:,} {mode}" for mode, n in modes)
        show(f"{len(kept):,} pictures of {sizes[0][1]} to {sizes[-1][1]} pixels, {modes}")
    if kept and not isinstance(stop, KeyboardInterrupt):
        show(f"contact sheet: {contact_sheet(folder.out, kept)}")
    if stop:
        raise stop


# ---- Pages ---------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The elements of a page in order. Each knows what is around it: `group`, the closest element
    of all `classes`, `anchor`, an <a> within that, and `sources`, those of its <picture>."""

    VOID = "area base br col embed hr img input link meta param source track wbr".split()

    def __init__(self, html, classes):
        super().__init__()
        self.classes, self.nodes = classes, []
        self.open = [SimpleNamespace(tag="", group=None, anchor=None, sources=[])]
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag in ("li", "p", "tr", "td") and self.open[-1].tag == tag:
            self.open.pop()  # its end tag is optional
        node = SimpleNamespace(**vars(self.open[-1]))
        node.tag, node.attrs = tag, {name: value or "" for name, value in reversed(attrs)}
        if self.classes <= {*node.attrs.get("class", "").split()}:
            node.group, node.anchor = node, None
        node.anchor = node if tag == "a" else node.anchor
        node.sources = [] if tag == "picture" else node.sources
        self.nodes.append(node)
        if tag == "source" and not re.search("avif|jxl|svg", node.attrs.get("type", "")):
            node.sources.append(node.attrs)  # one that every Pillow reads
        if tag not in self.VOID and len(self.open) < 200:  # browsers have a limit, too
            self.open.append(node)

    def handle_endtag(self, tag):
        if tag in (tags := [node.tag for node in self.open]):  # what is open inside ends with it
            del self.open[len(tags) - tags[::-1].index(tag) - 1 :]

    def parse_marked_section(self, i, report=1):
        return self.parse_bogus_comment(i)  # as browsers do; the inherited one raises on <![x


def best_image(node):
    """The largest link of an <img> that is a picture's. What scripts load later comes before
    srcset, which may then hold a placeholder, and src is last."""

    def largest(name):
        text = " , ".join(attrs.get(name, "") for attrs in [*node.sources, node.attrs])
        found = re.findall(r"([^\s,](?:\S*[^\s,])?)(?:\s[^,]*?\b(\d+(?:\.\d+)?)[wx])?[^,]*", text)
        return [link for link, size in sorted(found, key=lambda pair: -float(pair[1] or 1))]

    *lazy, src = map(node.attrs.get, ("data-original", "data-lazy-src", "data-src", "src"))
    links = [*largest("data-srcset"), *lazy, *largest("srcset"), src]
    other = r"(?i)\s*((?!https?:)[a-z][a-z0-9+.-]*:|$)"  # data: and the like, or nothing
    return next((link for link in links if link and not re.match(other, link)), None)


def find_links(html, address, select=None, min_side=0):
    """({picture: fallback or None}, next page or None, side that a picture must exceed).
    `select` names the class, or several that an element must have; without it spirits count, and
    if there are none, every <img>."""
    nodes = Page(html, {*(select or "spiritDiv").split()}).nodes
    bases = [node.attrs["href"] for node in nodes if node.tag == "base" and node.attrs.get("href")]
    base, following, found = resolve(address, *bases[:1]) or address, None, {}
    for node in nodes:
        link = best_image(node) if node.tag == "img" else node.attrs.get("href")
        node.url = resolve(base, link) if link else None
        if "next" in node.attrs.get("rel", "").lower().split() and node.tag in ("a", "link"):
            following = following or node.url
    nodes = [n for n in nodes if n.tag in ("a", "img") and n.url not in (None, address, base)]
    full = {id(node): id(node.group) for node in nodes if node.tag == "a" and node.group}
    for node in nodes:
        if node.tag == "img" and id(node.anchor) in full:
            found[node.anchor.url] = found[node.anchor.url] or node.url
        elif node.group and (node.anchor or id(node.group) not in full.values()):
            found.setdefault(node.url)
    if select or found:
        return found, following, 0
    images = [node.url for node in nodes if node.tag == "img"]
    found = dict.fromkeys(url for url in images if not re.search(r"(?i)\.svgz?(\?|$)", url))
    return found, following, min_side


def decode_page(body, content_type):
    """The text of a page: by its header's charset, its <meta>, else UTF-8."""
    for text in (content_type, body[:2048].decode("latin-1")):
        for name in re.findall(r"(?i)charset=[\"']?([\w.:-]+)", text):
            with suppress(LookupError, ValueError):
                return body.decode(name, "replace")
    return body.decode("utf-8-sig", "replace")


def resolve(base, link=""):
    """The address that `link` on the page `base` means, quoted; None if it is not http(s)."""
    try:
        parts = urlsplit(urljoin(base, link.strip()))
        host, port = parts.hostname.encode("idna").decode(), parts.port
        path, query = (quote(p, safe="/%:@!$&'()*+,;=~?[]") for p in (parts.path, parts.query))
    except (AttributeError, ValueError):
        return None
    good = parts.scheme in ("http", "https") and re.fullmatch(r"[a-z0-9._:-]+", host)
    if not good or "@" in parts.netloc or len(path + query) > 4000:
        return None
    default = port in (None, {"http": 80, "https": 443}[parts.scheme])
    netloc = (f"[{host}]" if ":" in host else host) + ("" if default else f":{port}")
    return urlunsplit((parts.scheme, netloc, path or "/", query, ""))


# ---- Manners -------------------------------------------------------------------------------------


class Web:
    """GET requests within robots.txt, delays, retries and limits; all threads share one."""

    def __init__(self, args):
        self.args, self.stop, self.own = args, threading.Event(), set()
        self.lock, self.robots_lock = threading.Lock(), threading.Lock()
        self.due, self.gaps, self.rules = {}, {}, {}  # by host: next request, delay; by origin
        self.requests = self.received = self.stored = 0  # bytes received, bytes in --out
        for url in args.url:
            with suppress(OSError):
                self.own |= {info[4][0] for info in socket.getaddrinfo(urlsplit(url).hostname, 80)}

    def get(self, url, headers=None, robots=True):
        """(status 200 or 304, headers, body, address after redirects). Failure says why not."""
        for _ in range(REDIRECTS + 1):
            if robots:
                check_robots(self, url)
            status, reply, body = self.retry(url, headers or {})
            if status == 200 or (status == 304 and headers):
                return status, reply, body, url
            location = reply.get("Location", "").encode("latin-1").decode("utf-8", "replace")
            url = resolve(url, location) if status in (301, 302, 303, 307, 308) else None
            if not url:
                raise Failure(f"HTTP {status}" + ", to no http(s) address" * bool(location), status)
        raise Failure(f"more than {REDIRECTS} redirects")

    def retry(self, url, headers):
        """request(), each when the host's next one is due, until it is not busy or broken."""
        host = urlsplit(url).hostname
        for attempt in range(RETRIES + 1):
            self.wait(host)
            try:
                status, reply, body = request(url, headers, self)
                if status not in (408, 429) and status < 500:
                    return status, reply, body
                reason, pause = f"HTTP {status}", seconds_to_wait(reply.get("Retry-After", ""))
            except (OSError, http.client.HTTPException, zlib.error) as error:
                status, reason, pause = None, first_line(error), None
            if pause is None:
                pause = BACKOFF * 2**attempt * random.uniform(0.75, 1.5) * (attempt < RETRIES)
            if pause > LONGEST_WAIT:
                self.stop.set()
                raise SystemExit(f"stopped: {host} asks for a pause of {pause:,.0f} s")
            if pause >= 1:
                show(f"{host}: {reason}; next request in {pause:.0f} s", sys.stderr)
            with self.lock:
                self.due[host] = max(self.due[host], time.monotonic() + pause)
        raise Failure(f"{reason}, {RETRIES + 1} times", status)

    def wait(self, host):
        while not self.stop.is_set():
            with self.lock:
                left = self.due.get(host, 0) - time.monotonic()
                if left <= 0:
                    gap = max(self.args.delay / self.args.workers, self.gaps.get(host, 0))
                    self.due[host] = time.monotonic() + gap
                    self.requests += 1
                    return
            self.stop.wait(min(left, 1))
        raise SystemExit("stopped")


def check_robots(web, url):
    """Failure if the robots.txt of the address's host forbids it or cannot be read."""
    host, origin = urlsplit(url).hostname, url[: url.index("/", 8)]
    with web.robots_lock:
        if origin not in web.rules:
            rules, reason = [], "forbidden by robots.txt"
            try:
                body = web.get(f"{origin}/robots.txt", robots=False)[2]
                rules, gap = read_robots(body.decode("utf-8-sig", "replace"))
                web.gaps[host] = max(gap, web.gaps.get(host, 0))
            except Failure as error:  # RFC 9309, 2.3.1: if there is none, everything is allowed
                if not 400 <= (error.status or 0) < 500 or error.status in (401, 403, 429):
                    rules, reason = [(False, "/")], f"its robots.txt cannot be read: {error}"
            web.rules[origin] = rules, reason
    rules, reason = web.rules[origin]
    if not may_fetch(rules, url.removeprefix(origin)):
        raise Failure(reason, "robots.txt")


def read_robots(text):
    """([(allow, pattern), ...], crawl delay in seconds) for this script (RFC 9309)."""
    groups, names, closed = {}, [], True
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        if (key := key.lower()) == "user-agent":
            names = [*([] if closed else names), value.partition("/")[0].strip().lower()]
            groups.setdefault(names[-1], [])
            closed = False
        elif key in ("allow", "disallow", "crawl-delay"):
            for name in names:
                groups[name].append((key, value))
            closed = True
    lines = groups.get(AGENT.partition("/")[0], groups.get("*", []))
    rules = [(key == "allow", unquote(v)) for key, v in lines if v and key != "crawl-delay"]
    delays = [float(v) for k, v in lines if k == "crawl-delay" and re.fullmatch(r"\d+(\.\d*)?", v)]
    return rules, min(max(delays, default=0.0), DAY)


def may_fetch(rules, path):
    """Whether the longest rule that matches the path and query allows it; allow wins ties."""
    path, best = unquote(path), (0, True)
    for allow, pattern in rules:
        glob = re.sub(r"[?[]", r"[\g<0>]", pattern.removesuffix("$"))
        if fnmatchcase(path, glob if pattern.endswith("$") else glob + "*"):
            best = max(best, (len(pattern), allow))
    return best[1]


def request(url, headers, web):
    """One request: (status, headers, body: whole, unpacked, within the limits). Another try may
    help after OSError, HTTPException and zlib.error."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    with closing(kind(parts.netloc, timeout=web.args.timeout)) as connection:
        connection.response_class = Response
        connection._create_connection = lambda *address: connect(web.own, *address)
        fixed = {"User-Agent": AGENT, "Accept-Encoding": "gzip", "Connection": "close"}
        connection.request("GET", urlunsplit(("", "", *parts[2:])), headers=fixed | headers)
        with connection.getresponse() as response:
            body = read_body(response, web) if response.status == 200 else b""
            return response.status, response.headers, body


def read_body(response, web):
    """The body, whole, unpacked, and within the limits."""
    coding = response.headers.get("Content-Encoding", "").lower()
    unzip = zlib.decompressobj(47) if coding in ("gzip", "x-gzip", "deflate") else None
    limit, body = int(web.args.max_file * 1e6), bytearray()
    while max(len(body), response.length or 0) <= limit and (chunk := response.read1(1 << 16)):
        body += unzip.decompress(chunk, limit + 1) if unzip else chunk
        with web.lock:
            web.received += len(chunk)
        if web.stored + web.received > web.args.max_total * 1e6:
            raise SystemExit(f"stopped: more than {web.args.max_total:g} MB (--max-total)")
        if web.stop.is_set():
            raise SystemExit("stopped")
    if max(len(body), response.length or 0) > limit:
        raise Failure(f"larger than {web.args.max_file:g} MB (--max-file)")
    if response.length or (unzip and not unzip.eof):
        raise OSError(f"cut short after {len(body):,} bytes")
    return bytes(body)


class Response(http.client.HTTPResponse):
    """TimeoutError when the host sends fewer than SLOWEST bytes per second. A socket's own
    time-out never fires while a byte comes now and then, of the head, a length or the body."""

    def __init__(self, sock, *args, **options):
        super().__init__(sock, *args, **options)
        self.receive, self.end = self.fp.raw.readinto, time.monotonic() + sock.gettimeout()
        self.fp.raw.readinto = self.receive_paced

    def receive_paced(self, buffer):
        count = self.receive(buffer)
        self.end += count / SLOWEST
        if count and time.monotonic() > self.end:
            raise TimeoutError(f"slower than {SLOWEST:,} bytes per second")
        return count


def seconds_to_wait(text):
    """Seconds of a Retry-After header, a number or a date; None if it is neither."""
    with suppress(TypeError, ValueError, OverflowError):
        if text.strip().isdigit():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())


def connect(own, address, timeout, source=None):
    """A socket to (host, port). It goes to an IP address that was looked at, so that no name can
    change on the way; Failure if that is private and none of `own`."""
    failure = OSError("the host has no address")
    for *_, (ip, port, *_) in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        number = ipaddress.ip_address(ip)
        number = getattr(number, "ipv4_mapped", None) or number
        if (not number.is_global or number.is_multicast) and ip not in own:
            raise Failure(f"{address[0]} is at the private address {ip}, --url is not")
        try:
            return socket.create_connection((ip, port), timeout)
        except OSError as error:
            failure = error
    raise failure


# ---- Pictures and folder -------------------------------------------------------------------------


def inspect(url, body):
    """The record of a whole picture. Failure says why it is none."""
    Image.init()
    formats = [name for name in SUFFIXES if name in Image.OPEN]
    try:
        for check in ("verify", "load"):  # the checksums, which load() does not look at; the pixels
            with Image.open(io.BytesIO(body), formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels are too many")
                getattr(image, check)()
    except Image.UnidentifiedImageError:
        raise Failure(f"not a picture: it begins with {body[:20]!r}")
    except Exception as error:  # on a damaged file Pillow raises nearly anything
        raise Failure(f"a damaged picture ({first_line(error)})")
    sha256 = hashlib.sha256(body).hexdigest()
    name = file_name(url, sha256, SUFFIXES[image.format])
    record = {"url": url, "file": name, "sha256": sha256, "size": len(body), "status": "kept"}
    return record | {"width": image.width, "height": image.height, "mode": image.mode}


def file_name(url, sha256, suffix):
    """A file name for any address, on any system: letters, digits, a few signs, part of the hash,
    because of which it is never a device, hidden, or another picture's name."""
    stem = re.sub(r"\.\w{1,5}$", "", unquote(urlsplit(url).path.rpartition("/")[2]))
    stem = re.sub(r"[^\w .()'&+,!-]", "_", stem).strip(" .-")
    stem = stem.encode()[:100].decode(errors="ignore") or "picture"
    return f"{stem}-{sha256[:8]}{suffix}".lower()  # many systems take A and a for the same


def contact_sheet(out, records, side=48):
    """Draw center squares of the pictures, 50 x 50 at most, into one image beside the folder."""
    columns = math.ceil(math.sqrt(len(records := records[:2500])))
    sheet = Image.new("RGB", (columns * side, math.ceil(len(records) / columns) * side), "white")
    for i, record in enumerate(records):
        with suppress(Exception), Image.open(out / record["file"]) as image:
            cell = ImageOps.fit(image.convert("RGBA"), (side, side))
            sheet.paste(cell, (i % columns * side, i // columns * side), cell)
    out = out if out.name.strip(".") else out.resolve()
    path = out.parent / f"{out.name}-contact.png"
    atomic_write(path, lambda file: sheet.save(file, "PNG"))
    return path


class Folder:
    """--out and its manifest: a line per address, the last one counts. A line is written before
    its file; one whose file is not there, or has another hash, does not count."""

    def __init__(self, out):
        self.out, self.path, self.lock = out, out / "manifest.jsonl", threading.Lock()
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not self.path.exists() and any(p.name[0] != "." for p in out.iterdir()):
                raise SystemExit(f"--out {out}: has files but no {self.path.name}; name another")
            self.guard = sqlite3.connect(out / ".lock", timeout=0)
            self.guard.execute("BEGIN EXCLUSIVE")  # SQLite knows how every system locks
            self.file = open(self.path, "a+b", buffering=0)
        except (OSError, sqlite3.Error) as error:
            with suppress(AttributeError):
                self.guard.close()
            raise SystemExit(f"--out {out}: in use, or cannot be used ({first_line(error)})")
        self.file.seek(0)
        records = [record for record in map(read_record, self.file.readlines()) if record]
        self.records = {record["url"]: record for record in records}
        self.names = {record["file"] for record in records if record["file"]}
        self.file.write(b"\n")  # ends a line that was cut
        sheets = out.resolve().parent.glob(f".{out.resolve().name}-contact.png.*.tmp")
        for leftover in [*out.glob(".*.tmp"), *sheets]:  # of a run that was killed
            leftover.unlink()

    def settled(self, url, floor=0):
        """The record of a picture that is whole, or known to be too small; else {}."""
        record, whole = self.records.get(url) or dict.fromkeys(FIELDS), False
        if record["file"]:
            with suppress(OSError):
                body = (self.out / record["file"]).read_bytes()
                whole = hashlib.sha256(body).hexdigest() == record["sha256"]
        elif record["width"]:
            whole = min(record["width"], record["height"]) <= floor
        return record if whole else {}

    def add(self, record, body=None):
        """Write a record, with the time, and its file, all or nothing."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        record = dict.fromkeys(FIELDS) | record | {"time": stamp, "fresh": time.time()}
        with self.lock:
            self.file.write(json.dumps(record).encode() + b"\n")  # closed when the run has ended
            if body is not None:
                atomic_write(self.out / record["file"], lambda file: file.write(body))
                self.names.add(record["file"])
            self.records[record["url"]] = record

    def close(self):
        self.file.close()
        self.guard.close()


def finish(folder, pictures, complete):
    """Keep each picture once, under the first of its addresses; the records of those kept.
    After a complete run no record is fresh any more: the next one asks the hosts again."""
    order = dict.fromkeys(url for link, (image, _) in pictures.items() for url in (link, image))
    with folder.lock:
        records, kept = [record for record in (order | folder.records).values() if record], {}
        for record in records:
            record["fresh"] = None if complete else record["fresh"]
            if record["file"] and (folder.out / record["file"]).exists():
                first = kept.setdefault(record["sha256"], record)
                status = "kept" if record is first else "duplicate"
                record |= {"file": first["file"], "status": status}
        text = "".join(json.dumps(record) + "\n" for record in records).encode()
        folder.file.write(text)  # before the files of duplicates are removed
        folder.file.close()
    for name in folder.names - {record["file"] for record in records}:
        (folder.out / name).unlink(missing_ok=True)
    atomic_write(folder.path, lambda file: file.write(text))
    return list(kept.values())


def read_record(line):
    """The record of a line of the manifest; None if it is damaged, or names a file elsewhere."""
    with suppress(ValueError, TypeError, AttributeError):
        record = json.loads(line)
        good = record.keys() >= set(FIELDS) and re.fullmatch("https?://.+", record["url"])
        return record if good and re.fullmatch(r"[^./\\:][^/\\:]*", record["file"] or "-") else None


# ---- Tools and options ---------------------------------------------------------------------------


def show(text, stream=None):
    """print, which a reader that has gone does not stop."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())


def first_line(error):
    """An exception's message as one line, or its type where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def atomic_write(path, write):
    """Let write(file) fill `path` whole or not at all; what was there before survives a failure."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        with suppress(PermissionError):  # on Windows, while another program reads it
            return os.replace(partial, path)
        time.sleep(2)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save turns the first into the second
        kept = "the previous version is intact" if path.exists() else "no file is left"
        raise SystemExit(f"{path}: not written ({first_line(error.__context__ or error)}); {kept}")
    finally:
        with suppress(OSError):
            partial.unlink()


# fmt: off
def build_parser():
    parser = argparse.ArgumentParser(
        prog=SCRIPT, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--url", nargs="+", default=["http://smashbros-ultimate.com/spirits"], metavar="URL",
        help="pages of the gallery (default: the spirits)")
    add("--select", metavar="CLASS", help="take the <a href>, or where it is no picture the <img>, "
        "in elements of this class, or of all of \"a b\" (default spiritDiv, else every <img>)")
    add("--follow", action="store_true", help="go on to rel=next until a page has no new picture")
    add("--limit", type=int, metavar="N", help="take only the first N pictures (default all)")
    add("--min-side", type=int, default=32, metavar="PX", help="where every <img> counts, leave "
        "out those whose shorter side is not larger than this (default 32)")
    add("--dry-run", action="store_true", help="print what would be fetched, and write nothing")
    add("--delay", type=float, default=1.0, metavar="S", help="seconds between two requests of one "
        "connection to one host; 0 only for a host of your own (default 1)")
    add("--workers", type=int, default=2, metavar="N", help="connections at a time (default 2)")
    add("--timeout", type=float, default=30.0, metavar="S", help="seconds without a byte, or "
        "behind 1 kB/s, after which a request is given up (default 30)")
    add("--max-file", type=float, default=32, metavar="MB", help="largest picture (default 32 MB)")
    add("--max-total", type=float, default=4000, metavar="MB", help="stop when --out and what this "
        "run received exceed it (default 4000 MB)")
    add("--out", default="data/spirits", metavar="DIR", help="folder of the pictures, new or with "
        "the manifest of an earlier run (default data/spirits)")
    return parser


# fmt: on
def parse_args(argv=None):
    """The checked flags, addresses quoted."""
    parser = build_parser()
    args = parser.parse_args(argv)
    addresses = {resolve("", url): url for url in args.url}
    if None in addresses:
        parser.error(f"--url {addresses[None]}: not an address that begins with http(s)://")
    args.url = [*addresses]
    if args.select is not None and not args.select.split():
        parser.error("--select: name a class")
    for name in ("limit", "workers", "min_side", "delay", "timeout", "max_file", "max_total"):
        value, low = getattr(args, name), {"min_side": 0, "delay": 0}.get(name, 1e-6)
        if value is not None and not low <= value < 1e9:
            parser.error(f"--{name.replace('_', '-')} {value}: must be {low:g} or more")
    return args


def main(argv=None):
    args, folder = parse_args(argv), None

    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    in_main = threading.current_thread() is threading.main_thread()
    numbers = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    numbers = [n for n in numbers if in_main and signal.getsignal(n) == signal.SIG_DFL]  # no nohup
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        folder, web = None if args.dry_run else Folder(Path(args.out)), Web(args)
        pictures, failed = list_pictures(web, args)
        if folder:
            scrape(pictures, failed, web, folder)
        for url in () if folder else pictures:
            try:
                check_robots(web, url)
                show(url)
            except Failure as error:
                failed[url] = str(error)
    except OSError as error:  # of the manifest, on a full disk
        raise SystemExit(f"--out {args.out}: {first_line(error)}; run again to continue")
    except KeyboardInterrupt as stop:
        show("stopped; the same command continues")
        raise SystemExit(128 + (stop.args or (signal.SIGINT,))[0])
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        if folder:
            folder.close()
    if failed:
        lines = [f"\n    {url}: {reason}" for url, reason in failed.items()]
        lines[20:] = [f"\n    and {len(lines) - 20:,} more"] * (len(lines) > 20)
        raise SystemExit(f"{len(failed):,} failed; run again to retry:{''.join(lines)}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # it may lack a letter, as on Windows
    main()
