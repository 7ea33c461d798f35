// Pages are complete without this: it adds the choice of colours, and a filter of the table of scores.
(() => {
  "use strict";
  const root = document.documentElement;
  const remembered = (change) => { try { return change(localStorage); } catch { return null; } }; // storage may be forbidden
  const chosen = remembered((storage) => storage.getItem("theme"));
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen; // before anything is painted

  function offerTheme(button) {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
    const tell = () => button.setAttribute("aria-pressed", String(dark()));
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      remembered((storage) => storage.setItem("theme", root.dataset.theme));
      tell();
    });
    system.addEventListener("change", tell);
    tell();
    button.hidden = false;
  }

  function offerFilter(table, input, shown) {
    const plain = (text) => text.toLowerCase().replaceAll("_", " ").trim();
    const filter = () => {
      const wanted = input.value.split(",").map(plain).filter(Boolean);
      const rows = [...table.tBodies[0].rows];
      for (const row of rows) {
        const name = plain(row.cells[0].dataset.value);
        row.hidden = wanted.length > 0 && !wanted.some((part) => name.includes(part));
      }
      shown.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} methods`;
    };
    input.addEventListener("input", filter);
    filter(); // a reloaded page keeps what was typed
    input.closest(".tools").hidden = false;
  }

  document.addEventListener("DOMContentLoaded", () => {
    offerTheme(document.getElementById("theme"));
    const [nav, here] = [document.querySelector("nav"), document.querySelector("nav [aria-current]")];
    nav.scrollLeft = here.offsetLeft - nav.clientWidth / 2; // on a phone the head line is one row that scrolls
    const table = document.getElementById("scores");
    if (table) {
      offerFilter(table, document.getElementById("filter"), document.getElementById("shown"));
    }
    for (const box of document.querySelectorAll(".output_subarea, .scroll, pre")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; // what scrolls must scroll by keyboard, too
    }
  });
})();
