"""A drawing kit without any subject: a page, a table or a chart gets plain values.

- `document` renders HTML pages from Jinja2 templates, which lie beside the module of their page.
- `charts` and `row_charts` draw the charts of pages as inline SVG with `svg`. Our own SVG, because
  its colours follow the page (light, dark, print), its text stays text, every chart has an
  accessible name, and a page of sixty small charts stays small and is written in a second.
- `figures` draws the figures of an analysis with matplotlib, as PNG files for papers and slides:
  charts with a line per layer, and maps over images, which need matplotlib's layout.
- `panels` composes pictures of images and labels with Pillow; `embedded` puts pictures into a page.
- `terminal` prints progress and results.
"""
