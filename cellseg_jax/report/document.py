"""The HTML shell and tables of reports: style and script inline, nothing loaded.

For screen, phone and paper, in light and dark; every link and table head takes the keyboard.
"""

import re
from html import escape

NAV = "NAV"  # a section that becomes links to the headings

STYLE = """
:root{color-scheme:light dark;--ink:#1c1f23;--soft:#555d66;--paper:#fff;--line:#d9dde2;
 --faint:#e9ecef;--fill:#f5f6f8;--bar:#9ecae9;--dot:#00456b;--link:#0060a8;--error:#a40000;
 --warning:#8a5300}
@media screen and (prefers-color-scheme:dark){
 :root{--ink:#e8eaed;--soft:#aab2bb;--paper:#15181c;--line:#3b424a;--faint:#2a3037;--fill:#20252b;
  --bar:#2f6690;--dot:#a6d8ff;--link:#7cc0ff;--error:#ff9d92;--warning:#ffc46b}
 svg [stroke="#0072b2"]{stroke:#56b4e9}svg [fill="#0072b2"]{fill:#56b4e9}
 svg [stroke="#d55e00"]{stroke:#f0803a}svg [stroke="#009e73"]{stroke:#2fc79b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:1.5rem 1rem 4rem;color:var(--ink);
 background:var(--paper);overflow-wrap:anywhere;
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem}
h2{font-size:1.25rem;margin:2.4rem 0 .8rem;padding-top:1rem;border-top:1px solid var(--line);
 scroll-margin-top:.5rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
p{margin:.4rem 0;max-width:46rem}
a{color:var(--link)}
:focus-visible{outline:3px solid #e69f00;outline-offset:2px}
nav{display:flex;flex-wrap:wrap;gap:.2rem .4rem;margin:1.2rem 0 0;font-size:.875rem}
nav a{padding:.3rem .6rem;border-radius:6px;background:var(--fill);text-decoration:none}
.small{color:var(--soft);font-size:.875rem}
td .small{font-size:.85em}
.error{color:var(--error)}.warning{color:var(--warning)}.note{color:var(--soft)}
.cards{display:flex;flex-wrap:wrap;gap:.75rem;margin:1.2rem 0 0;padding:0}
.card{flex:1 1 9.5rem;border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}
.card b{display:block;font-size:1.7rem;line-height:1.2;font-variant-numeric:tabular-nums}
.card .small{display:block}
.grid3{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr))}
.grid3 h3{margin:0}
figure{margin:0}
figcaption{font-size:.875rem;color:var(--soft);margin:.2rem 0 0;max-width:46rem}
svg{display:block;width:100%;height:auto;max-width:560px}
svg text{font-size:12px;fill:var(--ink);fill-opacity:.85}
svg .grid{stroke:var(--faint)}
svg .mark{stroke:var(--ink);stroke-dasharray:2 3}
svg .range{stroke:var(--ink);stroke-width:1.5;fill:none}
svg .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg .bar{fill:var(--bar)}
svg .dot{fill:var(--dot);fill-opacity:.55}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;margin:.6rem 0}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.35rem .8rem;vertical-align:top;border-bottom:1px solid var(--faint)}
td{overflow-wrap:break-word}
tr:last-child td{border-bottom:0}
th{background:var(--fill);white-space:nowrap}
th button{font:inherit;color:inherit;background:none;border:0;padding:.15rem 0;margin:-.15rem 0;
 cursor:pointer}
th button::after{content:"\\2195";opacity:.45;padding-left:.3em}
th[aria-sort=ascending] button::after{content:"\\2191";opacity:1}
th[aria-sort=descending] button::after{content:"\\2193";opacity:1}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.wide{min-width:20rem}
.picture{overflow-x:auto;margin:.4rem 0 1.2rem}
.picture img{display:block;width:100%;min-width:700px;height:auto;border-radius:6px}
pre{background:var(--fill);border-radius:8px;padding:.8rem 1rem;margin:.6rem 0;overflow-x:auto;
 font:.875rem/1.5 ui-monospace,Menlo,Consolas,monospace;overflow-wrap:normal}
summary{cursor:pointer;font-weight:600;padding:.3rem 0}
@media screen and (max-width:600px){
 th,td{padding:.35rem .5rem}
 .stack tr{display:flex;flex-wrap:wrap;border-bottom:1px solid var(--faint)}
 .stack th,.stack td{flex:1;min-width:0;border:0;white-space:normal}
 .stack .n{flex:0 0 5.8rem;overflow-wrap:normal}
 .stack th.wide,.stack .wide:empty{display:none}
 .stack .wide{flex:0 0 100%;padding-top:0;color:var(--soft);font-size:.8rem}}
@media print{nav,th button::after{display:none}
 body{max-width:none;padding:0;font-size:11pt}
 *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
 h2,h3{break-after:avoid}figure,.card,tr{break-inside:avoid}
 table{font-size:7.5pt}th,td{padding:.1rem .3rem}th{white-space:normal}
 td{overflow-wrap:anywhere}.wide{min-width:0}
 .picture img{min-width:0}.scroll,.picture,pre{overflow:visible}
 pre{white-space:pre-wrap}}
"""


# Heads of sortable tables become buttons. Numbers are sorted as such, what is missing comes last.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, n) => {
    const button = document.createElement("button"), number = head.classList.contains("n");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const key = row => {
      const text = row.cells[n].innerText.trim().replace("\\u2212", "-");
      const value = number ? parseFloat(text.replace(/,/g, "")) : text;
      return text === "" || text === "\\u2013" || Number.isNaN(value) ? null : value;
    };
    button.addEventListener("click", () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.ariaSort = sign > 0 ? "ascending" : "descending";
      const rows = [...body.rows].map(row => [key(row), row]);
      rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) :
                sign * (number ? a - b : a.localeCompare(b, undefined, {numeric: true})));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
"""


class Html(str):
    """A cell of a table that is HTML already."""


def document(title: str, sections) -> str:
    """A whole page around HTML sections; empty ones are left out. Only `title` is escaped.

    Sections that begin with a `heading` are linked to from where a section is NAV.
    """
    sections = list(filter(None, sections))
    found = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', "".join(sections))
    links = "".join(f'<a href="#{name}">{text}</a>' for name, text in found)
    body = "\n".join(f'<nav aria-label="Sections">{links}</nav>' if s == NAV else s
                     for s in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head>\n<body><main>\n{body}\n</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def heading(text: str) -> str:
    """The title of a section, which NAV links to; escaped here."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return f'<h2 id="{name}">{escape(text)}</h2>'


def table(head, rows, numeric=(), wide=(), *, sortable=False, name="") -> str:
    """A table that scrolls inside its box; `numeric` columns align right, `wide` ones are long.

    On a phone the wide cells of a row go below the others. Cells are escaped unless they are Html.

    Args:
      sortable: a click on the head of a column sorts by it.
      name: of the table, for those who hear the page.
    """
    kind = lambda n: ' class="n"' if n in numeric else ' class="wide"' if n in wide else ""
    text = lambda cell: cell if isinstance(cell, Html) else escape(str(cell))
    cells = lambda tag, row: "".join(
        f"<{tag}{kind(n)}>{text(cell)}</{tag}>" for n, cell in enumerate(row))
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    classes = " ".join(["stack"] * bool(wide) + ["sortable"] * sortable)
    classes = f' class="{classes}"' if classes else ""
    label = f' role="region" aria-label="{escape(name, quote=True)}"' if name else ""
    return (f'<div class="scroll" tabindex="0"{label}><table{classes}><thead><tr>'
            f"{cells('th', head)}</tr></thead><tbody>{body}</tbody></table></div>")
