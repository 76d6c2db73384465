"""Prose from the docstrings of Python's standard library: texts that no sentiment or entailment data set resembles."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

# Fixed, so that the texts depend on nothing but the Python version. All exist from Python 3.10 on.
MODULES = (
    "argparse", "ast", "asyncio.base_events", "bdb", "calendar", "cmd", "codecs", "collections", "configparser",
    "contextlib", "csv", "datetime", "dataclasses", "difflib", "doctest", "email.message", "enum", "fractions",
    "ftplib", "functools", "heapq", "http.client", "http.cookiejar", "http.server", "imaplib", "inspect", "ipaddress",
    "json.decoder", "locale", "logging", "logging.handlers", "mailbox", "multiprocessing.pool", "optparse", "os",
    "pathlib", "pdb", "pickletools", "pprint", "random", "shlex", "shutil", "smtplib", "socket", "socketserver",
    "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "trace", "turtle", "typing",
    "unittest.case", "unittest.mock", "urllib.parse", "urllib.request", "weakref", "wsgiref.handlers",
    "xml.sax.handler", "xmlrpc.client", "zipfile",
)  # fmt: skip
MIN_WORDS, MAX_WORDS = 8, 60
LEAST_SHARE_OF_LETTERS = 0.9  # of the characters that are not spaces; below it a paragraph is code or a table


def docstring_paragraphs() -> list[str]:
    """The prose paragraphs of the modules' docstrings, in source order, each once."""
    found: dict[str, None] = {}
    for module in MODULES:
        found.update(dict.fromkeys(filter(is_prose, paragraphs(module))))
    return list(found)


def paragraphs(module: str) -> Iterator[str]:
    """Every paragraph of every docstring of a module, on one line. The module is parsed, not imported."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return
    origin = Path(spec.origin)
    if not origin.is_file():  # some modules are frozen into the interpreter, but their source lies beside others
        origin = Path(ast.__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.walk(ast.parse(origin.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                yield " ".join(paragraph.split())


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph reads as one or more English sentences."""
    letters = sum(character.isalpha() or character in ",.'" for character in paragraph)
    return (
        MIN_WORDS <= len(paragraph.split()) <= MAX_WORDS
        and paragraph[0].isupper()
        and paragraph.endswith(".")
        and ">>>" not in paragraph
        and letters >= LEAST_SHARE_OF_LETTERS * sum(not character.isspace() for character in paragraph)
    )
