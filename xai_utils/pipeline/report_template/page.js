// Tables of the class sortable get a button in each head, and a filter where they are long or have data-filter; heads say
// with data-first which order puts the best first, cells with data-value what is compared. A page is complete without this.
(() => {
  "use strict";
  const FILTERED = 12; // rows from which on a table gets a filter
  const isGroup = (row) => row.classList.contains("group");

  function sortBy(table, heads, column) {
    const now = heads[column].getAttribute("aria-sort");
    const flipped = { ascending: "descending", descending: "ascending" };
    const order = now ? flipped[now] : heads[column].dataset.first || "ascending";
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : Number(a) - Number(b));
    for (const body of table.tBodies) { // each group of rows for itself
      const rows = [...body.rows].filter((row) => !isGroup(row)).sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // no score: always last
        return sign * compare(a, b);
      });
      body.append(...rows);
    }
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", order);
  }

  function offerSorting(table) {
    const heads = [...[...table.tHead.rows].at(-1).cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...[...head.childNodes].filter((node) => node.className !== "about"));
      button.addEventListener("click", () => sortBy(table, heads, column));
      if (button.textContent.trim()) head.prepend(button);
    });
  }

  function offerFilter(table) {
    const rows = () => [...table.tBodies].flatMap((body) => [...body.rows]).filter((row) => !isGroup(row));
    if (rows().length < FILTERED && !("filter" in table.dataset)) return;
    const [tools, label, input, shown] = ["div", "label", "input", "output"].map((name) => document.createElement(name));
    tools.className = "tools";
    Object.assign(input, { type: "search", placeholder: table.dataset.filter || "cam, random", autocomplete: "off", spellcheck: false });
    input.title = "Parts of names, separated by commas";
    const plain = (text) => text.toLowerCase().replaceAll("_", " ").trim();
    const filter = () => {
      const wanted = input.value.split(",").map(plain).filter(Boolean);
      for (const row of rows()) {
        const name = plain(row.cells[0].dataset.value || row.cells[0].textContent);
        row.hidden = wanted.length > 0 && !wanted.some((part) => name.includes(part));
      }
      for (const row of table.querySelectorAll("tr.group")) {
        row.hidden = [...row.parentElement.rows].every((other) => other === row || other.hidden);
      }
      shown.value = `${rows().filter((row) => !row.hidden).length} of ${rows().length} rows`;
    };
    input.addEventListener("input", filter);
    label.append("Show rows ", input);
    tools.append(label, shown);
    (table.closest(".scroll") || table).before(tools);
    new MutationObserver(filter).observe(table, { childList: true, subtree: true }); // rows may come later
    filter();
  }

  function openTarget() { // what a link leads to is not left in a fold
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  }

  addEventListener("hashchange", openTarget);
  document.addEventListener("DOMContentLoaded", () => {
    openTarget();
    for (const table of document.querySelectorAll("table.sortable")) {
      offerSorting(table);
      offerFilter(table);
    }
    const contents = document.querySelector("details.contents");
    const wide = matchMedia("(min-width: 75rem)"); // where there is room at the side they stand open
    if (contents) contents.open = wide.matches;
    if (contents) wide.addEventListener("change", () => { contents.open = wide.matches; });
  });
})();
