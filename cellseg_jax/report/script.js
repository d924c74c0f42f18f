/* A box over each table of a `.filter` shows the rows that hold all its words; -word: those without. */
for (const area of document.querySelectorAll(".filter")) {
  const rows = [...area.querySelectorAll("tbody tr")], box = document.createElement("input");
  const line = document.createElement("label"), shown = document.createElement("output");
  box.type = "search";
  box.placeholder = "words, -without";
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(word => word && word !== "-");
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => word[0] === "-" ? !text.includes(word.slice(1)) :
                                text.includes(word));
    }
    shown.textContent = words.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : "";
  };
  box.addEventListener("input", filter);
  line.className = "search";
  line.append("Filter rows ", box, " ", shown);
  area.before(line);
}
/* Heads of sortable tables become buttons. Numbers are sorted as such, what is missing comes last. */
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, n) => {
    const button = document.createElement("button"), number = head.classList.contains("n");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const key = row => {
      const text = row.cells[n].innerText.trim().replace("\u2212", "-");
      const value = number ? parseFloat(text.replace(/,/g, "")) : text;
      return text === "" || text === "\u2013" || Number.isNaN(value) ? null : value;
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
