// Tables of the class sortable get a button in each head; heads say with data-first which order puts the best first,
// cells with data-value what is compared. A page is complete without this.
(() => {
  "use strict";
  function sortBy(table, heads, column) {
    const now = heads[column].getAttribute("aria-sort");
    const flipped = { ascending: "descending", descending: "ascending" };
    const order = now ? flipped[now] : heads[column].dataset.first;
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => row.cells[column].dataset.value;
    const compare = column === 0 ? (a, b) => a.localeCompare(b) : (a, b) => Number(a) - Number(b);
    const rows = [...table.tBodies[0].rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // no score: always last
      return sign * compare(a, b);
    });
    table.tBodies[0].append(...rows);
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", order);
  }

  function offerSorting(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sortBy(table, heads, column));
      head.append(button);
    });
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("table.sortable").forEach(offerSorting));
})();
