"""Checks a page that a browser has printed: printed_pages.py PAGE.html PAGE.pdf

On A4, in black on white; nothing is cut off, no caption or heading ends a page, and the links to the parts of the page are left out.
Prints the number of sheets, or what is wrong and exits with status 1. Needs pdftotext and pdftoppm of poppler-utils.
"""

import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from html.parser import HTMLParser

A4_POINTS = (595, 842)
# Elements whose text must be on paper word by word. Long words of others may be broken between lines.
WHOLE_TEXT = {"td", "th", "figcaption", "h1", "h2", "li", "text", "pre"}
# Elements that may not end a sheet, and how many lines must be below them on it: a table needs some rows, a plot its labels.
LINES_BELOW = {"h2": 1, "figcaption": 3}
VOID = {"meta", "link", "br"}


class PageText(HTMLParser):
    """The words of a page that must be on paper, the captions, and the links that must not."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.headings, self.links = [], Counter(), [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag in LINES_BELOW:
            self.headings.append([tag, ""])
        if tag == "a" and "nav" in self.open:
            self.links.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "nav" in self.open:
            if "a" in self.open:
                self.links[-1] += data
        elif WHOLE_TEXT & set(self.open):
            self.words.update(tokens(data))
        if LINES_BELOW.keys() & set(self.open) and "small" not in self.open:
            self.headings[-1][1] += data


def tokens(text):
    """Splits where a browser may break a line, and more often."""
    return re.findall(r"[0-9A-Za-z]+", text)


def run(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=True).stdout


def sheets_of(pdf):
    """Returns the size of each sheet, and its lines as (left, top, right, bottom, text)."""
    sheets = []
    # Control characters of a font without names are no XML.
    text = re.sub(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]", b"", run("pdftotext", "-bbox-layout", pdf, "-"))
    space = "{http://www.w3.org/1999/xhtml}"
    for page in xml.fromstring(text).iter(f"{space}page"):
        lines = []
        for line in page.iter(f"{space}line"):
            box = [float(line.get(name)) for name in ("xMin", "yMin", "xMax", "yMax")]
            lines.append((*box, " ".join(word.text or "" for word in line)))
        sheets.append((float(page.get("width")), float(page.get("height")), lines))
    return sheets


def check(page, pdf):
    wanted = PageText()
    with open(page, encoding="utf-8") as file:
        wanted.feed(re.sub(r"<style>.*?</style>", "", file.read(), flags=re.DOTALL))
    sheets = sheets_of(pdf)
    found, faults = Counter(), []
    lines_below = {heading.strip(): LINES_BELOW[tag] for tag, heading in wanted.headings}
    for number, (width, height, lines) in enumerate(sheets, 1):
        if abs(width - A4_POINTS[0]) > 2 or abs(height - A4_POINTS[1]) > 2:
            faults.append(f"sheet {number} is {width:.0f} x {height:.0f} points, not A4")
        for left, top, right, bottom, text in lines:
            found.update(tokens(text))
            if left < 0 or right > width or bottom > height:
                faults.append(f"sheet {number}: {text!r} is cut off at {right:.0f} x {bottom:.0f} points")
            below = [one for one in lines if one[1] >= bottom - 2 and one[0] < right and one[2] > left]
            if len(below) < lines_below.get(text.strip(), 0):
                faults.append(f"sheet {number} ends soon after {text!r}")
    missing = wanted.words - found
    if missing:
        faults.append(f"not on paper: {', '.join(sorted(missing)[:10])} ({missing.total()} words)")
    text = " ".join(line[4] for _, _, lines in sheets for line in lines)
    links = [link for link in wanted.links if "their" in link and link in text]
    if links:
        faults.append(f"the links to the parts are printed: {links[0]}")
    gray = run("pdftoppm", "-gray", "-r", "20", "-f", "1", "-l", "1", pdf)
    pixels = sorted(gray[-len(gray) // 2 :])
    if pixels[len(pixels) // 2] < 250:
        faults.append("the first sheet is not white")
    return len(sheets), faults


def main():
    sheets, faults = check(*sys.argv[1:3])
    if faults or not sheets:
        sys.exit("; ".join(faults) or "nothing was printed")
    print(sheets)


main()
