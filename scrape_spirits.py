# /// script
# requires-python = ">=3.10"
# dependencies = ["pillow>=10.1"]
# ///
"""Scrape the pictures of a web gallery into a training set, within the rules of its host.

Made for the 1,395 "spirits" of Super Smash Bros. Ultimate: on that page every element of class
`spiritDiv` holds an <a> whose href is the full picture. For other pages there is --select.

    python scrape_spirits.py --dry-run                list the pictures, fetch and write none
    python scrape_spirits.py                          the spirits, into data/spirits
    python dcgan.py --data data/spirits --size 64     ... and train on them
    python scrape_spirits.py --url https://example.org/art --select thumb --follow --out data/art

data/spirits then holds each picture once, and manifest.jsonl; data/spirits-contact.png shows the
first 2,500. The same command continues after Ctrl-C, a crash or failures; whole pictures stay.

robots.txt is obeyed (RFC 9309, Crawl-delay), also after a redirect. 408, 429, 5xx and time-outs
bring a pause, of Retry-After or of 1, 2, 4, 8, 16 s; 10 failures in a row (not 404s) end the run.
"""

import argparse
import hashlib
import http.client
import io
import json
import os
import re
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from html.parser import HTMLParser
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit
from urllib.request import BaseHandler, build_opener

from PIL import Image, ImageOps

AGENT = "scrape_spirits/1 (collects pictures for a training set; obeys robots.txt)"
RETRIES = 4  # of one request
RETRIED = {408, 429, *range(500, 600)}  # HTTP status
BACKOFF = 1.0  # seconds before the first retry; doubled for each further one
LONGEST_WAIT = 600  # seconds of a pause that a host may ask for
LONGEST_DOWNLOAD = 300  # seconds in which a file must have come
MAX_FAILURES = 10  # in a row; then the run stops
ENDINGS = {"PNG": ".png", "GIF": ".gif", "WEBP": ".webp", "BMP": ".bmp", "AVIF": ".avif"}
# a URL that ends like a picture file; with a colon it is a wiki's page about one
PICTURE_FILE = re.compile(r"(?i)[^?]+/[^/:?]+\.(png|jpe?g|gif|webp|bmp|avif)(\?|$)")
CANDIDATE = re.compile(r"(?<![^\s,])([^\s,]\S*)\s+(\d+\.?\d*)[wx]\s*(?:,|$)")  # srcset: "a.png 2x"
VOID = set("area base br col embed hr img input link meta param source track wbr".split())

# ---- Crawl ---------------------------------------------------------------------------------------


def list_pictures(web, args, failed):
    """URLs of the pictures on all pages; those of pages that fail go into `failed`."""
    pictures, pages = {}, list(args.url)  # a dict holds each URL once, in order
    while pages and len(pictures) < args.limit:
        url = pages.pop(0)
        failed.append(url)  # until it has been read
        with one_line(url, warn=True):
            body, response = get(web, url)
            links, next_page = find_links(decode_page(body, response), response.url, args.select)
            moved = "" if response.url == url else f" -> {response.url}"
            print(f"{url}{moved}: {len(links):,} pictures")
            if args.follow and next_page and set(links) - pictures.keys():
                pages.insert(0, next_page)  # a page without a new picture is the last
            pictures.update(dict.fromkeys(links))
            failed.pop()
    if not pictures and not failed:
        what = f"elements of class {' '.join(args.select)!r}" if args.select else "pictures"
        raise SystemExit(f"no {what} in the host's HTML; what scripts add is not seen")
    chosen = list(pictures)[: args.limit]
    allowed = [url for url in chosen if web.allows(url)]
    print(f"{len(chosen):,} pictures, {len(chosen) - len(allowed):,} forbidden by robots.txt")
    return allowed


def scrape(pictures, records, web, args, failed):
    """Fetch the pictures without a record, and sum up; those that fail go into `failed`."""
    missing = [url for url in pictures if url not in records]
    files = {record["sha256"]: record["file"] for record in records.values()}
    counts, failures_in_a_row = Counter(), 0
    try:
        with ThreadPool(args.workers) as pool:
            for record, body in pool.imap_unordered(web.fetch, missing):
                with one_line(f"--out {args.out}: not written; run again to continue"):
                    store(record, body, files, args)
                counts[record["status"] if body else "failed"] += 1
                if counts.total() % 100 == 0:
                    print(f"{counts.total():,} of {len(missing):,}")
                if body:
                    records[record["url"]] = record
                    failures_in_a_row = 0
                else:
                    print(f"{record['url']}: {' '.join(record['status'].split())}")
                    failed.append(record["url"])
                    if not record["status"].startswith(("HTTP Error 404", "HTTP Error 410")):
                        failures_in_a_row += 1  # a dead link says nothing of the host
                if failures_in_a_row == MAX_FAILURES:
                    raise SystemExit(f"stopped after {MAX_FAILURES} failures in a row")
    finally:
        counts["not tried"] = len(missing) - counts.total()
        counts["there already"] = len(pictures) - len(missing)
        print(", ".join(f"{count:,} {what}" for what, count in counts.items() if count))


# ---- Pages ---------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The URLs on a page, by kind: "file" is a link to a picture file, "image" an <img> outside
    such links, "link" any other link. Each element with all `classes` is a group of its own."""

    def __init__(self, html, url, classes):
        super().__init__()
        self.base = url
        self.next_page = ""  # the URL of rel=next
        self.classes, self.groups = classes, []
        self.rest = defaultdict(list)  # what is in no group
        self.open = [("", self.rest)]  # the open elements: tag, group
        self.sources = ""  # the srcsets of the open <picture>
        html = html.replace("<![", "<!")  # at "<![" HTMLParser may raise
        self.feed(re.sub(r"&(?=\w+=)", "&amp;", html))  # "&copy=1" is no ©

    def handle_starttag(self, tag, attrs):
        attrs = defaultdict(str, [(name, value) for name, value in attrs if value])
        if tag == "a":
            self.handle_endtag(tag)  # an <a> never holds another
        group = self.open[-1][1]
        if self.classes <= set(attrs["class"].split()):
            group = defaultdict(list)
            self.groups.append(group)
        url = resolve(self.base, attrs["href"])
        if "next" in attrs["rel"].lower().split():
            self.next_page = url
        if tag == "base":
            self.base = url or self.base
        elif tag == "source" and not re.search("avif|jxl|svg", attrs["type"]):
            self.sources += attrs["srcset"] + ",\n"  # in formats that every Pillow reads
        elif tag == "img":
            attrs["srcset"] = self.sources + attrs["srcset"]
            self.sources = ""
            group["image"] += image_urls(self.base, attrs)
        elif tag == "a" and PICTURE_FILE.match(url):
            group["file"].append(url)
            group = defaultdict(list)  # left out: an image inside is the thumbnail
        elif tag == "a":
            group["link"].append(url)
        if tag not in VOID:
            self.open.append((tag, group))

    def handle_endtag(self, tag):
        if any(tag == name for name, _ in reversed(self.open)):
            while self.open.pop()[0] != tag:  # what is open inside ends with it
                pass


def find_links(html, url, select=None):
    """The URLs of a page's pictures, each once, and the URL of the next page, or ""."""
    page = Page(html, url, set(select or ["spiritDiv"]))
    urls = [] if page.groups or select else page.rest["file"] + page.rest["image"]  # whole page
    for group in page.groups:
        urls += group["file"] or group["image"] or group["link"]
    return list(filter(None, dict.fromkeys(urls))), page.next_page


def image_urls(base, attrs):
    """[the largest picture of an <img>] or []: data-... first, the others may be placeholders."""
    for name in ("data-srcset", "data-original", "data-lazy-src", "data-src", "srcset", "src"):
        sizes = {link: float(size) for link, size in CANDIDATE.findall(attrs[name])}
        first = attrs[name].strip(" ,\n").split(",\n")[0]  # Page ends a <source> with ",\n"
        largest = max(sizes, key=sizes.get, default=first)
        url = resolve(base, largest)
        if url and not urlsplit(url).path.lower().endswith(".svg"):
            return [url]
    return []


def decode_page(body, response):
    """The text of a page, by the charset of its header, else of its <meta>, else UTF-8."""
    meta = re.search(rb"(?i)charset=[\"']?([\w.:-]+)", body[:2048])
    for charset in (response.headers.get_content_charset(), meta and meta[1].decode(), "utf-8-sig"):
        with suppress(TypeError, LookupError, ValueError):  # none, or one that does not exist
            return body.decode(charset, "replace")


def resolve(base, link):
    """The URL that `link` on the page `base` means, quoted; "" if it is not http(s)."""
    with suppress(ValueError):
        parts = urlsplit(urljoin(base, link.strip()))
        host = parts.netloc.lower().encode("idna").decode()
        url = urlunsplit((parts.scheme, host, parts.path or "/", parts.query, ""))
        if link and re.match(r"https?://[\w.:[\]-]+/", url):
            return quote(url, safe="/%:@!$&'()*+,;=~?[]")
    return ""


# ---- Requests and robots.txt ---------------------------------------------------------------------


class Web(BaseHandler):
    """Rate limit and robots.txt of all threads: urllib calls http_request before each request."""

    def __init__(self, args):
        self.args = args
        self.gap = args.delay / args.workers  # seconds between two requests
        self.due = 0.0  # when the next one may start
        self.rules = {}  # origin: [(length, allow, glob), ...]
        self.lock = threading.RLock()
        self.https_request = self.ftp_request = self.http_request  # urllib looks for these names
        self.opener = build_opener(self)
        self.opener.addheaders = [("User-Agent", AGENT), ("Accept", "*/*")]

    def http_request(self, request):
        if not self.allows(request.full_url):
            raise ValueError("forbidden by robots.txt")
        with self.lock:
            while (seconds := self.due - time.monotonic()) > 0:
                if seconds > LONGEST_WAIT:
                    raise ValueError(f"the host asks for a pause of {seconds:,.0f} s")
                time.sleep(seconds)  # meanwhile another thread's get may move `due`
            self.due = max(self.due, time.monotonic() + self.gap)
        return request

    def allows(self, url):
        """Whether the robots.txt of the host allows the URL: the longest rule that matches."""
        origin = "/".join(url.split("/")[:3])
        with self.lock:
            if origin not in self.rules:
                self.rules[origin] = []  # so that robots.txt itself is allowed
                self.rules[origin], delay = read_robots(self, origin)
                self.gap = max(self.gap, delay)
                self.due += delay  # robots.txt was a request, too
        path = unquote(url.removeprefix(origin))
        matching = [rule for rule in self.rules[origin] if fnmatchcase(path, rule[2])]
        return path == "/robots.txt" or max([(0, True, ""), *matching])[1]  # longest, then allow

    def fetch(self, url):
        """(record, body) of a picture; if it fails, the body is None and the status says why."""
        record = {"url": url, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        try:
            body, _ = get(self, url)
            return record | inspect(url, body), body
        except Exception as error:
            return record | {"file": None, "sha256": None, "status": str(error)}, None


def get(web, url):
    """(body, response); raises what went wrong with the last try."""
    for attempt in range(RETRIES + 1):
        try:
            with web.opener.open(url, timeout=web.args.timeout) as response:
                return read_body(response, web.args.max_file), response
        except (OSError, http.client.HTTPException) as error:
            status = getattr(error, "code", 500)  # where there is none, the network failed
            with suppress(AttributeError):  # only an HTTPError holds an open response
                error.close()
            if status not in RETRIED or "CERTIFICATE" in str(error):
                raise
            seconds = seconds_to_wait(error, attempt)
            web.due = max(web.due, time.monotonic() + seconds)  # http_request waits, in all threads
            if attempt == RETRIES:
                raise
            print(f"{url}: {error}; waiting {seconds:.0f} s", file=sys.stderr)


def seconds_to_wait(error, attempt):
    """Seconds that Retry-After asks for (a number or a date), else BACKOFF * 2**attempt."""
    asked = getattr(error, "headers", {}).get("Retry-After", "").strip()
    if asked.isdecimal():
        return float(asked)
    with suppress(TypeError, ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    return BACKOFF * 2**attempt


def read_body(response, megabytes):
    body = bytearray()
    end = time.monotonic() + LONGEST_DOWNLOAD
    while chunk := response.read1(1 << 16):
        body += chunk
        if len(body) > megabytes * 1e6 or time.monotonic() > end:
            raise ValueError(f"more than {megabytes:g} MB (--max-file) or {LONGEST_DOWNLOAD} s")
    if response.length:  # bytes that did not come
        raise OSError(f"cut short after {len(body):,} bytes")
    return bytes(body)


def read_robots(web, origin):
    """([(length, allow, glob), ...], crawl delay in seconds) of a host (RFC 9309)."""
    try:
        text = get(web, f"{origin}/robots.txt")[0].decode("utf-8-sig", "replace")
    except Exception as error:
        text = ""  # there is none: everything is allowed
        if getattr(error, "code", None) not in (404, 410):
            print(f"{origin}/robots.txt: {error}; so nothing is allowed")
            text = "User-agent: *\nDisallow: /"
    groups, agents, last = defaultdict(list), [], ""
    lines = r"(?im)(?:^|\r)[ \t]*(user-agent|allow|disallow|crawl-delay)[ \t]*:([^#\r\n]*)"
    for key, value in re.findall(lines, text):
        key, value = key.lower(), value.strip()
        if key == "user-agent":
            agents = agents if last == key else []  # agents in a row share their rules
            agents.append(value.lower().partition("/")[0])
        for agent in agents:
            groups[agent].append((key, value))
        last = key
    rules, delay = [], 0.0
    for key, value in groups.get(AGENT.partition("/")[0], groups["*"]):
        if key in ("allow", "disallow"):
            glob = re.sub(r"[?[]", r"[\g<0>]", unquote(value) + "*")  # ? and [ mean themselves
            rules.append((len(value), key == "allow", glob.removesuffix("$*")))  # $: the URL's end
        elif re.fullmatch(r"\d+(\.\d*)?", value):
            delay = float(value)
    return rules, delay


# ---- Pictures and folder -------------------------------------------------------------------------


def inspect(url, body):
    """The record of a whole picture; ValueError says why it is not one."""
    formats = list({"JPEG", *ENDINGS} & {*Image.registered_extensions().values()})
    stream = io.BytesIO(body)
    try:
        Image.open(stream, formats=formats).verify()  # checksums, which load() does not look at
        image = Image.open(stream, formats=formats)
        image.load()
    except Exception as error:  # on a damaged file Pillow raises nearly anything
        reason = str(error).partition(" <")[0]  # leave out "<_io.BytesIO object ...>"
        raise ValueError(f"not a whole picture: {reason}; it begins with {body[:15]!r}")
    sha256 = hashlib.sha256(body).hexdigest()
    name = file_name(url, sha256, ENDINGS.get(image.format, ".jpg"))  # JPEG, MPO
    record = {"file": name, "sha256": sha256, "size": len(body), "status": "kept"}
    return record | {"width": image.width, "height": image.height, "mode": image.mode}


def file_name(url, sha256, suffix):
    """A file name for any URL, on any system: never a device, hidden, or another picture's."""
    stem = re.sub(r"[^\w .()'&+,!-]", "_", Path(unquote(urlsplit(url).path)).stem).strip(" .-")
    stem = stem.encode()[:100].decode(errors="ignore") or "picture"
    return f"{stem}-{sha256[:8]}{suffix}".lower()  # many systems take A and a for the same


def read_manifest(args):
    """{URL: record} of what is whole or known to be too small; the rest leaves the manifest."""
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    if not args.manifest.exists() and any(path.name[0] != "." for path in out.iterdir()):
        raise ValueError(f"has files but no {args.manifest.name}; name another folder")
    args.manifest.touch()
    for leftover in [*out.glob(".*.tmp"), *out.parent.glob(f".{out.name}-contact.png.*.tmp")]:
        leftover.unlink()  # of a run that was killed
    records = {}
    for line in args.manifest.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, TypeError, KeyError, OSError):  # damaged, or there is no file
            record = json.loads(line)
            small = record["status"] == f"at most {args.min_side} px"
            if small or (out / record["file"]).stat().st_size == record["size"]:
                records[record["url"]] = record
    with atomic(args.manifest, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records.values())
    return records


def store(record, body, files, args):
    """Complete and write a record, then the file: without its file a record counts for nothing."""
    if body and min(record["width"], record["height"]) <= args.min_side:
        record.update(file=None, status=f"at most {args.min_side} px")
    elif record["sha256"] in files:
        record.update(file=files[record["sha256"]], status="duplicate")
    with open(args.manifest, "a", encoding="utf-8") as manifest:
        print(json.dumps(record), file=manifest)
    if record["status"] == "kept":
        files[record["sha256"]] = record["file"]
        with atomic(args.out / record["file"]) as file:
            file.write(body)


def draw_contact_sheet(records, out, side=48, columns=25):
    """Draw center squares of the pictures, at most 2,500, into one image beside the folder."""
    kept = [record for record in records.values() if record["status"] == "kept"][:2500]
    rows = 1 + (len(kept) - 1) // columns
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for i, record in enumerate(kept):
        with Image.open(out / record["file"]) as image:
            cell = ImageOps.fit(image.convert("RGBA"), (side, side))
        sheet.paste(cell, (i % columns * side, i // columns * side), cell)
    with atomic(f"{out}-contact.png") as file:
        sheet.save(file, "PNG")
    print(f"contact sheet: {out}-contact.png")


@contextmanager
def one_line(what, warn=False):
    """Turn whatever the block raises into one line, `what` (cause): an exit, or only a warning."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        if not warn:
            raise SystemExit(f"{what} ({cause})")
        print(f"warning: {what} ({cause})", file=sys.stderr)


@contextmanager
def atomic(path, mode="wb"):
    """A file to write that becomes `path` when the block ends: whole and on the disk, or not at
    all. If the block or the disk fails, the old file stays and the caller gets the exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- Options, main -------------------------------------------------------------------------------


# fmt: off
def build_parser():
    parser = argparse.ArgumentParser(usage="%(prog)s [flags]; --help lists them",
        allow_abbrev=False, description=__doc__.partition("\n\n    ")[0])
    add = parser.add_argument_group("which pictures").add_argument
    add("--url", nargs="+", default=["http://smashbros-ultimate.com/spirits"],
        help="pages of the gallery (default: the spirits)")
    add("--select", type=str.split, metavar="CLASS", help="class of the elements that hold a "
        "picture each (default spiritDiv; on a page without it, all pictures count)")
    add("--follow", action="store_true", help="pages that rel=next leads to are scraped, too")
    add("--limit", type=int, default=10**9, help="number of pictures (default: all)")
    add("--min-side", type=int, help="shorter side to exceed, in px (default 32; 0 with --select)")
    add = parser.add_argument_group("limits and output").add_argument
    add("--delay", type=float, default=1.0, help="seconds between a worker's requests (default 1)")
    add("--workers", type=int, default=2, help="number of connections (default 2)")
    add("--timeout", type=float, default=30, help="seconds of silence before a retry (default 30)")
    add("--max-file", type=float, default=32, help="largest file in MB (default 32)")
    add("--out", default="data/spirits", help="folder of the pictures (default data/spirits)")
    add("--dry-run", action="store_true", help="list the pictures; fetch and write none")
    return parser


# fmt: on
def parse_args(argv=None):
    if argv is None and sys.argv[0].endswith("kernel_launcher.py"):  # a notebook's own flags
        argv = []
    parser = build_parser()
    args = parser.parse_args(argv)
    for i, url in enumerate(args.url):
        args.url[i] = resolve("", url)
        if not args.url[i]:
            parser.error(f"--url {url}: not http(s)://HOST/... (NAME:PASSWORD@ is not supported)")
    if args.min_side is None:
        args.min_side = 0 if args.select else 32
    lowest = {"limit": 1, "workers": 1, "min_side": 0, "delay": 0, "timeout": 0.1, "max_file": 0.01}
    for name, low in lowest.items():
        if not low <= getattr(args, name) <= 10**9:
            parser.error(f"--{name.replace('_', '-')}: must be {low} or more")
    args.out = Path(args.out).expanduser().resolve()
    args.manifest = args.out / "manifest.jsonl"
    return args


def main(argv=None):
    args = parse_args(argv)
    web, failed = Web(args), []
    if args.dry_run:
        print(*list_pictures(web, args, failed), sep="\n")
    else:
        with one_line(f"--out {args.out}: cannot be used"):
            records = read_manifest(args)
        scrape(list_pictures(web, args, failed), records, web, args, failed)
        if records:
            with one_line("no contact sheet", warn=True):
                draw_contact_sheet(records, args.out)
    if failed:
        raise SystemExit(f"{len(failed):,} failed; the same command tries them again")


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; the same command continues")
        sys.exit(130)
    except BrokenPipeError:  # of `| head`
        os._exit(1)
