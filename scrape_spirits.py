# /// script
# requires-python = ">=3.10"
# dependencies = ["pillow>=10.1", "tqdm"]
# ///
"""Scrape the pictures of a web gallery into a training set, with manners.

Made for the 1,395 "spirits" of Super Smash Bros. Ultimate: on that page every element of class
`spiritDiv` holds an <a> whose href is the full picture. Other pages go by --select, or by nothing:
without such elements every <img> larger than --min-side counts.

Usage
    python scrape_spirits.py --dry-run                list what would be fetched, write nothing
    python scrape_spirits.py                          the spirits, into data/spirits
    python dcgan.py --data data/spirits --size 64     ... and train on them
    python scrape_spirits.py --url https://example.org/art --select thumb --follow --out data/art

Run it again after Ctrl-C, a crash or failures: what is whole is not fetched twice. A set that is
complete is brought up to date: pictures are asked for with their ETag or Last-Modified, and come
anew only if they changed (what came without either is taken as unchanged).

Writes to --out (default data/spirits)
    NAME-1a2b3c4d.png      a picture as it came, with the beginning of its sha256; the same bytes
                           are kept once, under the name that comes first in the gallery
    manifest.jsonl         a line per address: file, sha256, size, status, time, ...
    contact.png            all pictures at a glance; beside a manifest, training leaves it out
    .lock                  keeps a second run out of the folder

Manners
    1. robots.txt is obeyed (RFC 9309, with Crawl-delay); where it cannot be read, nothing is
       fetched. The User-Agent says what this is.
    2. --workers connections, each with --delay seconds between its requests to one host.
    3. 429, 5xx and time-outs pause the whole host: as long as Retry-After says, else 1, 2, 4, 8 s
       with jitter. After 10 failures in a row the run stops.

Safety
    A picture is what Pillow decodes to the end, whatever its name; its file name keeps letters and
    digits. Addresses are http or https. Private ones (loopback, 192.168/16, ...) are refused, but
    for those of --url itself, on the connection, so that no name can be bent towards them; for this
    reason proxies are not used. Pages, pictures and the sum of all have a largest size, pictures
    50 million pixels, and whoever sends less than 1 kB/s is left.

Exit code: 0 if every picture came, 1 if not, 2 for wrong flags, 130 after Ctrl-C.
"""

import argparse
import hashlib
import http.client
import io
import ipaddress
import json
import math
import os
import queue
import random
import re
import socket
import ssl
import sys
import threading
import time
import unicodedata
import warnings
import zlib
from collections import Counter, deque
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from PIL import Image, ImageOps

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

SCRIPT = "scrape_spirits.py"
SPIRITS = "http://smashbros-ultimate.com/spirits"
AGENT = "scrape_spirits/1 (collects pictures for a training set; obeys robots.txt)"

RETRIES = 4  # of one request
BACKOFF = 1.0  # seconds before the first retry; doubled for each further one
LONGEST_WAIT = 600  # seconds of Retry-After; who asks for more is left alone
REDIRECTS = 5
CTRL_C = "Ctrl-C"
IN_A_ROW = 10  # failures that stop the run
SLOWEST = 1000  # bytes per second
DAY = 86_400  # seconds in which an incomplete run may go on without asking again
MAX_PIXELS = 50_000_000
# What browsers show, and the suffixes under which dcgan.py finds it.
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "GIF": ".gif", "WEBP": ".webp"}
FORMATS |= {"BMP": ".bmp", "AVIF": ".avif"}


class Failure(Exception):
    """An address cannot be had: why, in words, and the HTTP status if that is the reason."""

    def __init__(self, reason, status=None):
        super().__init__(reason)
        self.status = status


class Forbidden(Failure):
    """robots.txt is against it; nothing was asked for."""


class Trouble(Exception):
    """A request went wrong in a way that may pass; `wait` is the host's Retry-After, if any."""

    def __init__(self, reason, status=None, wait=None):
        super().__init__(reason)
        self.status, self.wait = status, wait


class Stopped(Exception):
    """The run is ending."""


# ---- Manners -------------------------------------------------------------------------------------


class Web:
    """HTTP as a guest: robots.txt, pauses, retries, limits. All workers share one."""

    def __init__(self, args):
        self.args, self.lock, self.robots_lock = args, threading.Lock(), threading.Lock()
        self.stop, self.reason = threading.Event(), None
        self.free, self.gaps, self.rules = {}, {}, {}  # by host: next request, pause; by origin
        self.requests = self.received = self.stored = 0  # bytes received, bytes in --out
        self.own = {ip for url in args.url for ip in addresses(urlsplit(url).hostname)}

    def get(self, url, headers=None, robots=True):
        """(status 200 or 304, headers, body, address after redirects). Failure says why not."""
        for _ in range(REDIRECTS + 1):
            if robots:
                self.obey_robots(url)
            status, reply, body = self.insist(url, headers or {})
            if status in (301, 302, 303, 307, 308):
                place = reply.get("Location", "").encode("latin-1").decode("utf-8", "replace")
                url = resolve(url, place)
                if not url:
                    raise Failure(f"redirected to {place[:100]!a}, which is no http(s) address")
            elif status == 200 or (status == 304 and headers):
                return status, reply, body, url
            else:
                raise Failure(f"HTTP {status}", status)
        raise Failure(f"more than {REDIRECTS} redirects")

    def insist(self, url, headers):
        """request(), tried again with growing pauses while there is hope."""
        host = urlsplit(url).hostname
        for attempt in range(RETRIES + 1):
            self.wait(host)
            try:
                return self.request(url, headers)
            except Trouble as trouble:
                last, pause = trouble, trouble.wait
            if pause is None:
                pause = BACKOFF * 2**attempt * random.uniform(0.75, 1.5) * (attempt < RETRIES)
            if pause > LONGEST_WAIT:
                self.halt(f"{host} asks to be left alone for {pause:,.0f} s")
            if pause >= 1:
                print(f"{host}: {last}; next request in {pause:.0f} s", file=sys.stderr)
            with self.lock:
                self.free[host] = max(self.free[host], time.monotonic() + pause)
        raise Failure(f"{last}, {RETRIES + 1} times", last.status)

    def wait(self, host):
        """Return when the host's next request is due."""
        while not self.stop.is_set():
            with self.lock:
                left = self.free.get(host, 0) - time.monotonic()
                if left <= 0:
                    gap = self.args.delay / self.args.workers
                    self.free[host] = time.monotonic() + max(gap, self.gaps.get(host, 0))
                    self.requests += 1
                    return
            self.stop.wait(min(left, 1))
        raise Stopped

    def request(self, url, headers):
        """One request: (status, headers, body). Trouble if it is worth another try."""
        headers = {"User-Agent": AGENT, "Accept-Encoding": "gzip", **headers, "Connection": "close"}
        origin, target = split(url)
        kind = SecureConnection if origin.startswith("https") else Connection
        connection = kind(origin.partition("//")[2], timeout=self.args.timeout)
        connection.own = self.own
        try:
            connection.request("GET", target, headers=headers)
            with connection.getresponse() as response:
                status = response.status
                if status in (408, 429) or status >= 500:
                    wait = seconds_to_wait(response.headers.get("Retry-After"))
                    raise Trouble(f"HTTP {status}", status, wait)
                return status, response.headers, self.read(response) if status == 200 else b""
        except zlib.error:
            raise Failure("damaged gzip")
        except ssl.SSLCertVerificationError as error:
            raise Failure(f"its certificate is not valid ({error.verify_message})")
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
                raise Failure("there is no such host")
            raise Trouble(first_line(error))
        finally:
            connection.close()

    def read(self, response):
        """The body, whole, unpacked, and within the limits."""
        coding = response.headers.get("Content-Encoding", "").lower() or "identity"
        if coding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise Failure(f"Content-Encoding {coding[:20]!a}, which nobody asked for")
        unzip = zlib.decompressobj(47) if coding != "identity" else None
        limit, length, got, body = int(self.args.max_file * 1e6), response.length, 0, bytearray()
        while (length or 0) <= limit and (chunk := response.read1(1 << 16)):
            piece = unzip.decompress(chunk, limit + 1 - len(body)) if unzip else chunk
            got, body = got + len(chunk), body + piece
            with self.lock:
                self.received += max(len(chunk), len(piece))
            if self.stored + self.received > self.args.max_total * 1e6:
                self.halt(
                    f"--out and what came are larger than {self.args.max_total:g} MB (--max-total)"
                )
            if max(got, len(body)) > limit or self.stop.is_set():
                break
        if self.stop.is_set():
            raise Stopped
        if max(got, len(body), length or 0) > limit:
            raise Failure(f"larger than {self.args.max_file:g} MB (--max-file)")
        if got < (length or 0) or (unzip and not unzip.eof):
            raise Trouble(f"cut short after {got:,} bytes")
        return bytes(body)

    def obey_robots(self, url):
        """Forbidden if the robots.txt of the address's host is against it."""
        origin, target = split(url)
        with self.robots_lock:
            if origin not in self.rules:
                self.rules[origin] = self.robots(origin)
        rules, trouble = self.rules[origin]
        if trouble:
            raise Forbidden(trouble)
        if not may_fetch(rules, target):
            raise Forbidden("forbidden by robots.txt")

    def robots(self, origin):
        """(rules, None), or ([], why everything is forbidden)."""
        try:
            body = self.get(f"{origin}/robots.txt", robots=False)[2]
        except Failure as error:  # RFC 9309, 2.3.1: none is a permission, one out of reach is not
            none = 400 <= (error.status or 0) < 500 and error.status not in (401, 403, 429)
            return [], None if none else f"its robots.txt cannot be read: {error}"
        rules, pause = read_robots(body.decode("utf-8-sig", "replace"))
        host = urlsplit(origin).hostname
        self.gaps[host] = max(pause, self.gaps.get(host, 0))
        return rules, None

    def halt(self, reason):
        """End the run; the first reason counts."""
        with self.lock:
            self.reason = self.reason or reason
        self.stop.set()
        raise Stopped


class Response(http.client.HTTPResponse):
    def __init__(self, sock, *args, **options):
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(Paced(self.fp, sock.gettimeout()))


class Paced(io.RawIOBase):
    """Reads `file`; TimeoutError when it brings fewer than SLOWEST bytes per second.

    A socket's own time-out never fires while a byte comes now and then, be it of the head, of a
    chunk's length or of the body.
    """

    def __init__(self, file, timeout):
        self.file, self.end = file, time.monotonic() + timeout

    def readable(self):
        return True

    def readinto(self, buffer):
        count = self.file.readinto1(buffer)
        self.end += count / SLOWEST
        if count and time.monotonic() > self.end:
            raise TimeoutError(f"slower than {SLOWEST:,} bytes per second")
        return count

    def close(self):
        self.file.close()
        super().close()


class Connection(http.client.HTTPConnection):
    """Refuses private addresses before it connects, and again before it sends a byte, when the
    name may have turned to another one."""

    response_class = Response
    own = frozenset()

    def connect(self):
        for address in addresses(self.host):
            self.refuse_private(address)
        super().connect()
        self.refuse_private(self.sock.getpeername()[0])

    def refuse_private(self, address):
        ip = ipaddress.ip_address(address)
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if (not ip.is_global or ip.is_multicast) and address not in self.own:
            raise Failure(f"{self.host} is at the private address {address}, --url is not")


class SecureConnection(http.client.HTTPSConnection, Connection):
    """The same; Connection.connect runs before the handshake."""


def split(url):
    """An address from resolve() -> its scheme and host, and what is asked of the host."""
    slash = url.index("/", len("https://"))
    return url[:slash], url[slash:]


def addresses(host):
    """The IP addresses of a host name; none if it is unknown."""
    try:
        return {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def seconds_to_wait(text):
    """Seconds of a Retry-After header, a number or a date; None if it makes no sense."""
    try:
        if text.strip().isdigit():
            return float(text)
        left = parsedate_to_datetime(text) - datetime.now(timezone.utc)
        return max(0.0, left.total_seconds())
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


def read_robots(text):
    """([(allow, pattern), ...], seconds between requests) for this script (RFC 9309)."""
    groups, names, closed = {}, [], True
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        key = key.lower()
        if key == "user-agent":
            names = [] if closed else names
            names.append(value.partition("/")[0].strip().lower())
            groups.setdefault(names[-1], [])
            closed = False
        elif key in ("allow", "disallow", "crawl-delay"):
            for name in names:
                groups[name].append((key, value))
            closed = True
    lines = groups.get(AGENT.partition("/")[0], groups.get("*", []))
    rules = [(key == "allow", unquote(value)) for key, value in lines if key != "crawl-delay"]
    pauses = [float(v) for k, v in lines if k == "crawl-delay" and re.fullmatch(r"\d+(\.\d*)?", v)]
    return [rule for rule in rules if rule[1]], min(max(pauses, default=0.0), DAY)


def may_fetch(rules, path):
    """Whether the longest of the rules that match the path and query allows it."""
    path, best = unquote(path), (0, True)
    for allow, pattern in rules:
        glob = re.sub(r"[?[]", r"[\g<0>]", pattern.removesuffix("$"))
        if fnmatchcase(path, glob if pattern.endswith("$") else glob + "*"):
            best = max(best, (len(pattern), allow))
    return best[1]


# ---- Pages ---------------------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page links to: <a> and <img> within elements of all `classes`, every <img>, rel=next.

    Links are collected as they are written; `groups` has one dict per chosen element.
    """

    VOID = "area base br col embed hr img input link meta param source track wbr".split()

    def __init__(self, classes):
        super().__init__()
        self.classes, self.base, self.next = classes, "", ""
        self.open, self.count = [], Counter()  # the open elements, each with its group
        self.groups, self.images = [], []

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in reversed(attrs)}  # of two the first counts
        if tag in ("li", "p", "tr", "td") and self.open and self.open[-1][0] == tag:
            self.handle_endtag(tag)  # nobody has to write it
        group = self.open[-1][1] if self.open else None
        if self.classes <= set(attrs.get("class", "").split()):
            group = {"a": [], "img": []}
            self.groups.append(group)
        link = attrs.get("href", "") if tag != "img" else attrs.get("data-src") or attrs.get("src")
        if tag == "base":
            self.base = self.base or link
        if tag in ("a", "link") and "next" in attrs.get("rel", "").lower().split():
            self.next = self.next or link
        elif tag in ("a", "img") and link:
            if group is not None:
                group[tag].append(link)
            if tag == "img":
                self.images.append(link)
        if tag not in self.VOID:
            self.open.append((tag, group))
            self.count[tag] += 1

    def handle_endtag(self, tag):
        while self.count[tag]:  # what was left open inside ends with it
            inner = self.open.pop()[0]
            self.count[inner] -= 1
            if inner == tag:
                break

    def parse_marked_section(self, i, report=1):
        return self.parse_bogus_comment(i)  # as browsers do; the inherited one raises on <![x


def find_links(html, address, select=None):
    """(addresses of the pictures, next page or None, whether elements of a class were found).

    `select` names the class, or several that an element must have; without it spirits count, and
    where there are none, every <img>.
    """
    page = Links(set((select or "spiritDiv").split()))
    start = 0
    while start < len(html):  # in growing pieces, for a tag without an end is scanned in each
        piece = max(1 << 16, len(page.rawdata))
        page.feed(html[start : start + piece])
        start += piece
    base = resolve(address, page.base) or address
    chosen = [link for group in page.groups for link in group["a"] or group["img"]]
    by_class = bool(select or chosen)
    if not by_class:  # drawings have no pixels
        chosen = [link for link in page.images if not re.search(r"(?i)\.svgz?([?#]|$)", link)]
    found = [resolve(base, link) for link in chosen]
    following = resolve(base, page.next) if page.next else None
    return list(dict.fromkeys(filter(None, found))), following, by_class


def decode_page(body, content_type):
    """The text of a page: by its byte order mark, its header's charset, its <meta>, else UTF-8."""
    names = ["utf-16"] if body[:2] in (b"\xff\xfe", b"\xfe\xff") else []
    for text in (content_type, body[:2048].decode("latin-1")):
        names += re.findall(r"(?i)charset=[\"']?([\w.:-]+)", text)
    for name in names:
        try:
            if not re.match(r"(?i)idna|puny|.*unicode.escape", name):  # codecs, but no charsets
                return body.decode(name, "replace")
        except (LookupError, ValueError):
            pass
    return body.decode("utf-8-sig", "replace")


def resolve(base, link):
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
    host = f"[{host}]" if ":" in host else host
    default = port in (None, {"http": 80, "https": 443}[parts.scheme])
    netloc = host if default else f"{host}:{port}"
    return urlunsplit((parts.scheme, netloc, path or "/", query, ""))


# ---- Pictures ------------------------------------------------------------------------------------


def inspect(body):
    """(suffix, width, height, mode) of a whole picture. Failure says why it is none."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(body), formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
            image.verify()  # checksums, which load() does not look at
        with Image.open(io.BytesIO(body), formats=formats) as image:
            image.load()
            return FORMATS[image.format], image.width, image.height, image.mode
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Failure(f"a decompression bomb ({first_line(error)})")
    except Image.UnidentifiedImageError:
        raise Failure(f"not a picture: it begins with {body[:20]!r}")
    except Exception as error:  # on a damaged file Pillow raises nearly anything
        raise Failure(f"a damaged picture ({first_line(error)})")


def file_name(url, sha256, suffix):
    """A file name for any address, on any system: letters, digits, a few signs, part of the hash.

    The hash keeps it from being a device, hidden, or another picture's name.
    """
    name = unicodedata.normalize("NFC", unquote(urlsplit(url).path.rpartition("/")[2]))
    stem = re.sub(r"\.\w{1,5}$", "", name)
    stem = re.sub(r"[^\w .()'&+,!-]", "_", stem).strip(" .-")
    stem = stem.encode()[:100].decode(errors="ignore") or "picture"
    return f"{stem}-{sha256[:8]}{suffix}"


def contact_sheet(files, side=48):
    """One RGB image with the pictures in `files`, centre squares on white, 50 x 50 at most."""
    files = files[:2500]
    columns = math.isqrt(len(files) - 1) + 1
    sheet = Image.new("RGB", (columns * side, -(-len(files) // columns) * side), "white")
    for i, file in enumerate(files):
        try:
            with Image.open(file) as image:
                cell = ImageOps.fit(image.convert("RGBA"), (side, side))
        except Exception as error:  # on a damaged file Pillow raises nearly anything
            raise SystemExit(f"{file}: no longer readable ({first_line(error)}); run again")
        sheet.paste(cell, (i % columns * side, i // columns * side), cell)
    return sheet


# ---- Folder --------------------------------------------------------------------------------------

FIELDS = {"url": str, "file": str, "sha256": str, "size": int, "width": int, "height": int}
FIELDS |= {"mode": str, "status": str, "time": str, "fresh": float, "etag": str}
FIELDS |= {"last_modified": str}  # of a record of the manifest; all but url may be null


class Folder:
    """--out and its manifest: a line per address, the last one counts.

    A line is written before its file, so every whole file has a line; a line whose file is not
    there, or has another hash, does not count.
    """

    def __init__(self, out):
        self.out, self.path, self.lock = out, out / "manifest.jsonl", threading.Lock()
        try:
            out.mkdir(parents=True, exist_ok=True)
            if any(not p.name.startswith(".") for p in out.iterdir()) and not self.path.exists():
                raise SystemExit(f"--out {out}: has files but no {self.path.name}; name another")
            self.guard = lock_file(out / ".lock")
            for partial in out.glob(".*.tmp"):  # of a run that was killed
                partial.unlink()
            text = self.path.read_text("utf-8", "replace") if self.path.exists() else ""
        except OSError as error:
            raise SystemExit(f"--out {out}: cannot be used ({first_line(error)})")
        records = [record for record in map(read_record, text.splitlines()) if record]
        self.records = {record["url"]: record for record in records}
        self.names = {record["file"] for record in records if record["file"]}
        self.tidy()
        self.file = open(self.path, "ab", buffering=0)

    def tidy(self):
        """Remove the files that no record has any more, and all lines but the last of each."""
        for name in self.names - {record["file"] for record in self.records.values()}:
            try:
                (self.out / name).unlink(missing_ok=True)
            except OSError as error:
                raise SystemExit(f"{self.out / name}: cannot be removed ({first_line(error)})")
        text = "".join(json.dumps(record) + "\n" for record in self.records.values())
        write_file(self.path, lambda f: f.write(text.encode()))

    def settled(self, url, floor=0):
        """The record of a picture that is here and whole, or known to be too small; else None."""
        record = self.records.get(url)
        if not record or not record["file"]:
            small = record and record["width"] and min(record["width"], record["height"]) <= floor
            return record if small else None
        try:
            body = (self.out / record["file"]).read_bytes()
        except OSError:
            return None
        return record if hashlib.sha256(body).hexdigest() == record["sha256"] else None

    def add(self, record, body=None):
        """Book a record and write its file, all or nothing."""
        with self.lock:
            if self.file.closed:  # the run has ended meanwhile
                raise Stopped
            try:
                self.file.write(json.dumps(record).encode() + b"\n")
            except OSError as error:
                raise SystemExit(f"{self.path}: cannot be written ({first_line(error)})")
            if body is not None:
                write_file(self.out / record["file"], lambda f: f.write(body))
                self.names.add(record["file"])
            self.records[record["url"]] = record

    def finish(self, order, complete):
        """Keep every picture once, under its first address in `order`; the records of those kept.

        After a complete run no record is fresh any more: the next one asks the hosts again.
        """
        rank, kept = {url: i for i, url in enumerate(order)}, {}
        for url in sorted(self.records, key=lambda url: rank.get(url, len(rank))):
            record = self.records.pop(url)  # and back, in order
            self.records[url] = record
            if record["file"] and (self.out / record["file"]).exists():
                owner = kept.setdefault(record["sha256"], record)
                if record is not owner:
                    self.add(record | {"file": owner["file"], "status": "duplicate"})
                elif record["status"] != "kept":
                    self.add(record | {"status": "kept"})
        with self.lock:
            self.file.close()
        if complete:
            self.records = {u: record | {"fresh": None} for u, record in self.records.items()}
        self.tidy()
        return list(kept.values())

    def close(self):
        with self.lock:
            self.file.close()
            self.guard.close()


def read_record(line):
    """The record of a line of the manifest; None if it is damaged, or names a file elsewhere."""
    try:
        record = json.loads(line)
        good = all(isinstance(record[k], (kind, type(None))) for k, kind in FIELDS.items())
        name = record["file"] or "none"
        good = good and record["url"] and (record["sha256"] or not record["file"])
        return record if good and re.fullmatch(r"[^./\\:][^/\\:]*", name) else None
    except (ValueError, LookupError, TypeError):
        return None


def lock_file(path):
    """The open file `path`, locked until it is closed or the process ends, however it does."""
    file = open(path, "ab")
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise SystemExit(f"--out {path.parent}: in use by another run ({first_line(error)})")
    return file


# ---- Run -----------------------------------------------------------------------------------------


def list_pictures(web, args):
    """{address: side it must exceed} of the pictures on the pages, and {page: why it failed}."""
    pictures, failed, seen, pages = {}, {}, set(), deque(args.url)
    while pages and not (args.limit and len(pictures) >= args.limit):
        url = pages.popleft()
        if url in seen:
            continue
        seen.add(url)
        try:
            _, headers, body, address = web.get(url)
        except Failure as error:
            failed[url] = str(error)
            continue
        html = decode_page(body, headers.get("Content-Type", ""))
        links, following, by_class = find_links(html, address, args.select)
        print(f"{url}: {len(links):,} picture{'s' * (len(links) != 1)}", flush=True)
        new = [link for link in links if link not in pictures]
        pictures |= dict.fromkeys(new, 0 if by_class else args.min_side)
        if args.follow and following and new:  # a page without a new picture ends the chain
            pages.appendleft(following)
    if not pictures:
        reasons = "".join(f"\n    {url}: {reason}" for url, reason in failed.items())
        advice = "; --select CLASS says in which elements they are"
        raise SystemExit(f"no pictures found{reasons or advice}")
    return dict(list(pictures.items())[: args.limit]), failed


def collect(url, floor, web, folder):
    """Bring one picture into the folder: "fetched", "unchanged", "too small"; or raise Failure."""
    record = folder.settled(url, floor) or {}
    pairs = {"If-None-Match": record.get("etag"), "If-Modified-Since": record.get("last_modified")}
    headers = {k: v for k, v in pairs.items() if v and v.isascii() and v.isprintable()}
    fresh = record.get("fresh") or 0
    if record and (not headers or time.time() - fresh < DAY):
        return "unchanged"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    new = dict.fromkeys(FIELDS) | {"url": url, "time": now, "fresh": time.time()}
    try:
        status, reply, body, _ = web.get(url, headers)
        if status == 304:
            folder.add(record | {"time": now, "fresh": time.time()})
            return "unchanged"
        suffix, width, height, mode = inspect(body)
    except Failure as error:
        if not record:  # a picture that was here before stays
            folder.add(new | {"status": str(error)})
        raise
    sha256 = hashlib.sha256(body).hexdigest()
    new |= {"sha256": sha256, "size": len(body), "width": width, "height": height, "mode": mode}
    new |= {"etag": reply.get("ETag"), "last_modified": reply.get("Last-Modified")}
    if min(width, height) <= floor:
        folder.add(new | {"status": "too small"})
        return "too small"
    folder.add(new | {"status": "kept", "file": file_name(url, sha256, suffix)}, body)
    return "unchanged" if sha256 == record.get("sha256") else "fetched"


def collect_all(pictures, web, folder, workers):
    """collect() for all, in threads: {address: outcome or Failure}, until Ctrl-C or halt()."""
    todo, results, outcomes = iter(pictures.items()), queue.SimpleQueue(), {}
    turn, bar = threading.Lock(), progress(len(pictures), "picture")

    def work():
        fault = None
        try:
            while not web.stop.is_set():
                with turn:
                    url, floor = next(todo)
                try:
                    results.put((url, collect(url, floor, web, folder)))
                except Failure as failure:
                    results.put((url, failure))
        except (StopIteration, Stopped):
            pass
        except BaseException as error:  # a full disk, or a fault of this script
            fault = error
        results.put((None, fault))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    in_a_row, running = 0, workers
    try:
        while running:
            try:
                url, outcome = results.get(timeout=0.2)  # on Windows Ctrl-C waits for an end of it
            except queue.Empty:
                continue
            if url is None:
                running -= 1
                if outcome:
                    raise outcome
                continue
            outcomes[url] = outcome
            bar.update(1)
            if not isinstance(outcome, Forbidden):
                in_a_row = in_a_row + 1 if isinstance(outcome, Failure) else 0
            if in_a_row == IN_A_ROW:
                web.halt(f"{IN_A_ROW} failures in a row, the last: {url}: {outcome}")
    except KeyboardInterrupt:
        web.reason = CTRL_C
    except Stopped:
        pass
    finally:
        web.stop.set()
        bar.close()
        for thread in threads:
            thread.join(1)  # one that waits for a host is left behind; what it brings is refused
    return outcomes


def summary(outcomes, missing, failed, web, seconds):
    """One line: what became of the pictures, and what it took."""
    counts = Counter(outcome for outcome in outcomes.values() if isinstance(outcome, str))
    told = [f"{n:,} {outcome}" for outcome, n in sorted(counts.items())]
    told += [f"{len(failed):,} failed"] * bool(failed) + [f"{missing:,} not tried"] * bool(missing)
    work = f"{web.requests:,} requests, {web.received / 1e6:,.1f} MB, {seconds:,.0f} s"
    return f"{', '.join(told)}: {work}"


def describe(records, out):
    """One line: count, sizes and modes of the pictures."""
    sizes = sorted((r["width"] * r["height"], f"{r['width']}x{r['height']}") for r in records)
    modes = Counter(record["mode"] for record in records).most_common()
    modes = ", ".join(f"{n:,} {mode}" for mode, n in modes)
    spread = f"{sizes[0][1]} to {sizes[-1][1]} pixels"
    size = sum(record["size"] for record in records) / 1e6
    return f"{len(records):,} pictures in {out}: {spread}, {modes}, {size:,.1f} MB"


# ---- Tools (same in dcgan.py) --------------------------------------------------------------------


def first_line(error):
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_file(path, write):
    """Let write(file) fill `path`, in one piece or not at all; what was there before stays."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into the latter
        kept = "what was there is whole" if os.path.exists(path) else "nothing is left of it"
        raise SystemExit(f"{path}: cannot be written ({first_line(error)}); {kept}")
    finally:
        if os.path.exists(partial):
            partial.unlink()


def progress(total, unit, done=0):
    """A tqdm bar on a terminal; something silent without either, and in all processes but one."""
    if tqdm and os.environ.get("RANK", "0") == "0":
        return tqdm(total=total, initial=done, unit=unit, disable=None, dynamic_ncols=True)
    silent = dict.fromkeys(("update", "set_postfix_str", "clear", "close"), lambda *_, **__: None)
    return SimpleNamespace(**silent)


# ---- Options -------------------------------------------------------------------------------------
# fmt: off


def build_parser():
    parser = argparse.ArgumentParser(
        prog=SCRIPT, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--url", nargs="+", default=[SPIRITS], metavar="URL",
        help=f"pages whose pictures are wanted (default {SPIRITS})")
    add("--select", metavar="CLASS",
        help="take the <a href> in elements of this class, or where one has none its <img>; "
             "\"a b\" asks for both classes (default spiritDiv, else every <img> on the page)")
    add("--follow", action="store_true",
        help="go on to the next page (rel=next) until one has no new picture")
    add("--limit", type=positive, metavar="N",
        help="take the first N pictures alone (default all)")
    add("--min-side", type=not_negative, default=32, metavar="PX",
        help="where every <img> counts, leave out those whose shorter side is not larger than this "
             "(default 32)")
    add("--dry-run", action="store_true",
        help="print the addresses that would be fetched, and write nothing")
    add("--delay", type=not_below_zero, default=1.0, metavar="S",
        help="seconds between two requests of one connection to one host; 0 for a host of your "
             "own (default 1)")
    add("--workers", type=positive, default=2, metavar="N",
        help="connections at a time, so N/S requests a second; more than 4 are rude (default 2)")
    add("--timeout", type=above_zero, default=30.0, metavar="S",
        help="seconds without a byte, or behind 1 kB/s, after which a request is given up "
             "(default 30)")
    add("--max-file", type=above_zero, default=32, metavar="MB",
        help="size of the largest picture or page, unpacked, in megabytes (default 32)")
    add("--max-total", type=above_zero, default=4000, metavar="MB",
        help="stop when --out and what this run received come to more megabytes than this "
             "(default 4000)")
    add("--out", default="data/spirits", metavar="DIR",
        help="folder of the pictures; one with a manifest is gone on with (default data/spirits)")
    return parser


# fmt: on
def parse_args(argv=None):
    """The checked flags, addresses quoted."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for url in args.url:
        if not resolve("", url):
            parser.error(f"--url {url}: not an address that begins with http:// or https://")
    args.url = [resolve("", url) for url in args.url]
    if args.select is not None and not args.select.split():
        parser.error("--select: name a class")
    return args


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def not_negative(text):
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return int(text)


def above_zero(text):
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def not_below_zero(text):
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return float(text)


# ---- main ----------------------------------------------------------------------------------------


def main(argv=None):
    args = parse_args(argv)
    web, folder = Web(args), None if args.dry_run else Folder(Path(args.out))
    try:
        pictures, failed = list_pictures(web, args)
        if folder:
            scrape(pictures, failed, web, args, folder)
        else:
            list_only(pictures, failed, web)
    except Stopped:
        raise SystemExit(f"stopped: {web.reason}")
    finally:
        if folder:
            folder.close()
    if failed:
        lines = [f"\n    {url}: {reason}" for url, reason in failed.items()]
        lines[20:] = [f"\n    and {len(lines) - 20:,} more"] * (len(lines) > 20)
        raise SystemExit(f"{len(failed):,} failed; run again to try once more:{''.join(lines)}")


def list_only(pictures, failed, web):
    """--dry-run: the addresses, a line each."""
    for url in pictures:
        try:
            web.obey_robots(url)
            print(url)
        except Forbidden as error:
            failed[url] = str(error)
    print(f"{len(pictures.keys() - failed):,} pictures would be fetched")


def scrape(pictures, failed, web, args, folder):
    """Fetch what is missing, tidy up, and say what came; `failed` grows."""
    begun, workers = time.monotonic(), min(args.workers, len(pictures))
    least = len(pictures) * max(args.delay / args.workers, *web.gaps.values(), 0)
    least = f"{least // 60:.0f}:{least % 60:02.0f} min or more" if least else "without a pause"
    print(f"{SCRIPT}: {len(pictures):,} pictures into {folder.out}, {least}", flush=True)
    web.stored = sum(record["size"] for record in folder.records.values() if record["file"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about images that inspect() judges itself
        outcomes = collect_all(pictures, web, folder, workers)
        failed |= {url: str(out) for url, out in outcomes.items() if isinstance(out, Failure)}
        missing = len(pictures) - len(outcomes)
        kept = folder.finish(pictures, not failed and not missing)
        print(summary(outcomes, missing, failed, web, time.monotonic() - begun))
        if kept:
            print(describe(kept, folder.out), flush=True)
        if kept and web.reason != CTRL_C:
            sheet = contact_sheet([folder.out / record["file"] for record in kept])
            write_file(folder.out / "contact.png", lambda f: sheet.save(f, "PNG"))
            print(f"all at a glance: {folder.out / 'contact.png'}", flush=True)
    if web.reason == CTRL_C:
        print("stopped by Ctrl-C; the same command goes on")
        raise SystemExit(130)
    if web.reason:
        raise SystemExit(f"stopped: {web.reason}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
