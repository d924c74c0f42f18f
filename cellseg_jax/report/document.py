"""The HTML shell and tables of reports: inline style, nothing loaded, phone, print and screen."""

from html import escape

STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:1.5rem 1rem 4rem;color:#1c1f23;background:#fff;
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
 overflow-wrap:anywhere}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem}
h2{font-size:1.25rem;margin:2.4rem 0 .8rem;padding-top:1rem;border-top:1px solid #d9dde2}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
p{margin:.4rem 0;max-width:46rem}
.small{color:#555d66;font-size:.875rem}
.cards{display:flex;flex-wrap:wrap;gap:.75rem;margin:1.2rem 0 0;padding:0}
.card{flex:1 1 9.5rem;border:1px solid #d9dde2;border-radius:8px;padding:.7rem .9rem}
.card b{display:block;font-size:1.7rem;line-height:1.2;font-variant-numeric:tabular-nums}
.grid3{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr))}
.grid3 h3{margin:0}
figure{margin:0}
figcaption{font-size:.875rem;color:#555d66;margin:.2rem 0 0}
svg{display:block;width:100%;height:auto;max-width:560px}
svg text{font-size:12px;fill:#40464d}
svg .grid{stroke:#e4e7eb}
svg .mark{stroke:#1c1f23;stroke-dasharray:2 3}
svg .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg .bar{fill:#9ecae9}
svg .dot{fill:#00456b;fill-opacity:.55}
.scroll{overflow-x:auto;border:1px solid #d9dde2;border-radius:8px;margin:.6rem 0}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.35rem .8rem;vertical-align:top;border-bottom:1px solid #edeff2}
td{overflow-wrap:break-word}
tr:last-child td{border-bottom:0}
th{background:#f5f6f8;white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.wide{min-width:20rem}
.picture{overflow-x:auto;margin:.4rem 0 1.2rem}
.picture img{display:block;width:100%;min-width:700px;height:auto}
pre{background:#f5f6f8;border-radius:8px;padding:.8rem 1rem;margin:.6rem 0;overflow-x:auto;
 font:.875rem/1.5 ui-monospace,Menlo,Consolas,monospace}
summary{cursor:pointer;font-weight:600}
@media screen and (max-width:600px){
 th,td{padding:.35rem .5rem}
 .stack tr{display:flex;flex-wrap:wrap;border-bottom:1px solid #edeff2}
 .stack th,.stack td{flex:1;border:0;white-space:normal}
 .stack .n{flex:0 0 5.8rem;overflow-wrap:normal}
 .stack th.wide,.stack .wide:empty{display:none}
 .stack .wide{flex:0 0 100%;padding-top:0;color:#555d66;font-size:.8rem}}
@media print{body{max-width:none;padding:0;font-size:11pt}
 *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
 h2,h3{break-after:avoid}figure,.card,tr{break-inside:avoid}
 table{font-size:7.5pt}th,td{padding:.1rem .3rem}th{white-space:normal}
 td{overflow-wrap:anywhere}.wide{min-width:0}
 .picture img{min-width:0}.scroll,.picture,pre{overflow:visible}
 pre{white-space:pre-wrap}}
"""


def document(title: str, sections) -> str:
    """A whole page around HTML sections; empty ones are left out. Only `title` is escaped."""
    body = "\n".join(filter(None, sections))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def table(head, rows, numeric=(), wide=()) -> str:
    """A table that scrolls inside its box; `numeric` columns align right, `wide` ones are long.

    On a phone the wide cells of a row go below the others.
    """
    kind = lambda n: ' class="n"' if n in numeric else ' class="wide"' if n in wide else ""
    cells = lambda tag, row: "".join(
        f"<{tag}{kind(n)}>{escape(str(cell))}</{tag}>" for n, cell in enumerate(row))
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    name = ' class="stack"' if wide else ""
    return (f'<div class="scroll"><table{name}><thead><tr>{cells("th", head)}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")
