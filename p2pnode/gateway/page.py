"""The OpenAPI document as a page to read: plain HTML, without a script, with nothing from anywhere else."""

import base64
import hashlib
import html
import json
from typing import Any

STYLE = """\
:root { color-scheme: light dark }
body { color: #222; font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
code, pre { background: #f2f2f2; font: 14px/1.4 ui-monospace, monospace; padding: 0 .2em }
pre { overflow-x: auto; padding: .6em }
details { border: 1px solid #ccc; margin: .5rem 0; padding: .5rem .8rem }
summary { cursor: pointer }
table { border-collapse: collapse; width: 100% }
td, th { border-top: 1px solid #ddd; padding: .2rem .6rem .2rem 0; text-align: left; vertical-align: top }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd } code, pre { background: #2a2a2a } details, td, th { border-color: #444 }
}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
CONTENT_SECURITY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; frame-ancestors 'none'"
METHODS = ("get", "put", "delete")
"""Shown; HEAD is wherever GET is."""


def build_page(document: dict[str, Any]) -> str:
    """Return the whole page; every text of the document is escaped."""
    about = document["info"]
    parts = [
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{html.escape(about['title'])}</title>\n<style>{STYLE}</style>",
        f"<h1>{html.escape(about['title'])} {html.escape(about['version'])}</h1>",
        _build_text(about["description"]),
        '<p>For programs: <a href="/v1/api/openapi.json">openapi.json</a></p>\n<h2>Routes</h2>',
        "<p><code>HEAD</code> answers wherever <code>GET</code> does.</p>",
    ]
    for path, operations in document["paths"].items():
        parts += [_build_operation(method, path, operations[method]) for method in METHODS if method in operations]
    parts.append("<h2>Shapes</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(
            f'<details id="{html.escape(name)}"><summary><code>{html.escape(name)}</code> '
            f"{_inline(schema.get('description', ''))}</summary>{_build_schema(schema)}</details>"
        )
    return "\n".join(parts) + "\n</html>\n"


def _build_operation(method: str, path: str, operation: dict[str, Any]) -> str:
    security = operation.get("security")
    token = "" if security is None else " (token)" if {} not in security else " (token, unless on loopback)"
    rows = [_build_row(f"{one['name']} ({one['in']})", one["description"]) for one in operation["parameters"]]
    answers = [_build_row(code, answer["description"]) for code, answer in operation["responses"].items()]
    return "\n".join(
        (
            f"<details><summary><code>{method.upper()} {html.escape(path)}</code> {_inline(operation['summary'])}"
            f"{token}</summary>",
            _build_text(operation.get("description", "")),
            f"<table>{''.join(rows)}</table>" if rows else "",
            f"<table>{''.join(answers)}</table></details>",
        )
    )


def _build_row(name: str, text: str) -> str:
    return f"<tr><th><code>{html.escape(name)}</code></th><td>{_inline(text)}</td></tr>"


def _build_schema(schema: dict[str, Any]) -> str:
    return f"<pre>{html.escape(json.dumps(schema, indent=2))}</pre>"


def _build_text(text: str) -> str:
    """Return paragraphs; a line that begins with "- " is an item of a list."""
    blocks = []
    for block in filter(None, text.split("\n\n")):
        lines = block.split("\n")
        if all(line.startswith("- ") for line in lines):
            blocks.append("<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>")
        else:
            blocks.append(f"<p>{_inline(block)}</p>")
    return "\n".join(blocks)


def _inline(text: str) -> str:
    """Return escaped text; what is between backticks becomes code."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if at % 2 else piece for at, piece in enumerate(pieces))
