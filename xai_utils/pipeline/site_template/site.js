// Pages are complete without this: it adds the choice of colours.
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

  document.addEventListener("DOMContentLoaded", () => {
    offerTheme(document.getElementById("theme"));
    const [nav, here] = [document.querySelector("nav"), document.querySelector("nav [aria-current]")];
    nav.scrollLeft = here.offsetLeft - nav.clientWidth / 2; // on a phone the head line is one row that scrolls
    for (const box of document.querySelectorAll(".output_subarea, .scroll, pre")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; // what scrolls must scroll by keyboard, too
    }
  });
})();
