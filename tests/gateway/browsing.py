"""What a browser makes of a gateway's answers, which no header tells: for `scripts/browser`, not for pytest.

Chromium loads each page, runs what may run, and prints the document that came of it. The network is in memory.
"""

import base64
import html
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import trio
from starlette.responses import HTMLResponse

from economics.blob import build_blob_id_text
from p2pnode.content.manifest import FolderBlob, FolderFile, Manifest
from tests.gateway.raw import serving
from tests.gateway.shelf import Shelf, open_shelf

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--host-resolver-rules=MAP elsewhere.example 127.0.0.1",
)  # fmt: skip
LOAD_S = 50
STORED_PAGE = b"""<!doctype html><title>quiet</title><body onload="document.title = 'ran'"><p>shown</p>
<script>document.title = 'ran'</script><img src="data:," onerror="document.title = 'ran'">"""
DRAWING = b"""<svg xmlns="http://www.w3.org/2000/svg" onload="document.documentElement.id = 'ran'"><text>shown</text>
<script>document.documentElement.id = 'ran'</script></svg>"""
PIXEL = base64.b64decode("R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==")
FOREIGN_PAGE = """<!doctype html><script>
function ask(method, url) {
  const request = new XMLHttpRequest(); request.open(method, url, false)
  try { request.send(method === 'PUT' ? 'x' : null) } catch { return 'refused' }
  return request.status + ' ' + request.responseText
}
document.write(ask('GET', 'BASE/ID') + '; PUT ' + ask('PUT', 'BASE?epochs=1') + '; DELETE ' + ask('DELETE', 'BASE/ID'))
</script>"""
TEXT = "Grüße, 世界"
CLAIMS: tuple[tuple[str, str, Callable[[str, str], bool]], ...] = (
    ("its page breaks no rule of its own", "{own}/", lambda page, errors: "GET" in page and not errors),
    ("nor does the API's", "{own}/v1/api", lambda page, errors: "Routes" in page and not errors),
    ("a stored page is shown and runs nothing", "{own}/v1/blobs/{page}",
     lambda page, errors: "<title>quiet</title>" in page and "<p>shown</p>" in page),
    ("so is a drawing", "{own}/v1/blobs/{drawing}",
     lambda page, errors: ">shown<" in page and 'id="ran"' not in page),
    ("an image is shown", "{own}/v1/blobs/{pixel}", lambda page, errors: "(1\N{MULTIPLICATION SIGN}1)</title>" in page),
    ("text is read as UTF-8", "{own}/v1/blobs/{text}", lambda page, errors: TEXT in page),
    ("a folder of any name is found", "{own}/v1/blobs/by-folder-id/{folder}/x%3Ay%3F",
     lambda page, errors: "<h1>/x:y?/</h1>" in page and "./100%25%20%C3%BC" in page),
    ("a page of another origin reads, and can do no more", "127.0.0.1:{foreign}/",
     lambda page, errors: f"200 {TEXT}; PUT refused; DELETE refused" in page),
    ("a name that points here is refused", "elsewhere.example:{port}/", lambda page, errors: '"code":421' in page),
)  # fmt: skip
"""What is claimed, where it is seen, and whether a document and the browser's complaints show it."""


async def load(browser: str, url: str) -> tuple[str, str]:
    """Return the document that a page became, and what the browser complained of."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, trio.fail_after(LOAD_S):
        command = [browser, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", url]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    errors = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return html.unescape(done.stdout.decode()), "\n".join(errors)


async def check_all(browser: str, path: Path) -> int:
    """Load every page and say what was found; returns how many were not as they must be."""
    shelf = Shelf()
    files = (FolderFile("x:y?/100% ü", 1, False, bytes(32), 0, 0),)
    folder = Manifest((FolderBlob(shelf.put(b"x"), 1),), files).encode()
    stored = {
        name: build_blob_id_text(shelf.put(data, content_type=kind))
        for name, data, kind in (
            ("page", STORED_PAGE, "text/html"), ("drawing", DRAWING, "image/svg+xml"), ("pixel", PIXEL, "image/gif"),
            ("text", TEXT.encode(), "text/plain"), ("folder", folder, ""),
        )
    }  # fmt: skip
    wrong = 0
    for claim, address, is_so in CLAIMS:
        async with open_shelf(shelf, path) as opened:
            base = f"http://127.0.0.1:{opened.port}/v1/blobs"
            foreign_page = HTMLResponse(FOREIGN_PAGE.replace("BASE", base).replace("ID", stored["text"]))
            async with serving(foreign_page) as foreign:
                url = "http://" + address.format(
                    own=f"127.0.0.1:{opened.port}", port=opened.port, foreign=foreign, **stored
                )
                page, errors = await load(browser, url)
        holds = is_so(page, errors)
        wrong += not holds
        print("ok   " if holds else "WRONG", claim, flush=True)
        if not holds:
            print(re.sub(r"(?m)^", "      ", f"{url}\n{page[:2000]}\n{errors}"))
    return wrong


def main() -> int:
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        print(f"skipped: none of {', '.join(NAMES)} is installed")
        return 0
    with tempfile.TemporaryDirectory() as path:
        return min(1, trio.run(check_all, browser, Path(path)))


if __name__ == "__main__":
    sys.exit(main())
