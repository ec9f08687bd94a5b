"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const chosen = { family: "", objective: "" };
  const views = new Map(); // element -> promise of its Vega view

  function draw(element) {
    if (views.has(element)) return;
    const options = { actions: false, renderer: "svg", tooltip: { theme: "custom" } };
    views.set(element, vegaEmbed(element, charts[element.id], options).then(({ view }) => {
      return filter(element, view).then(() => { element.dataset.drawn = ""; return view; });
    }));
  }

  // A width decides how many names a legend has side by side; only a second layout knows the height of their rows.
  window.addEventListener("resize", () => setTimeout(() => {
    for (const [element, view] of views) view.then((drawn) => fit(element, drawn));
  }));

  async function fit(element, view) {
    await view.resize().runAsync();
    const room = element.clientWidth;
    // Vega takes no notice of a new width that the plot within the axes happens to have already
    if (room && element.querySelector("svg").clientWidth > room) await view.width(room - 1).runAsync();
  }

  function filter(element, view) {
    const none = emptied(charts[element.id]);
    element.classList.toggle("emptied", none);
    element.nextElementSibling.hidden = !none;
    if (none) return Promise.resolve(); // axes of no rows have no ends
    for (const [name, value] of Object.entries(chosen)) view.signal(name, value);
    return fit(element, view);
  }

  // Whether the filters leave none of the study's own rows. Their tests are written in what Vega and JavaScript share.
  function emptied({ layer, usermeta: { ours } }) {
    return ours.length > 0 && ours.every((at) => {
      const tests = layer[at].transform.map((t) => new Function("datum", ...Object.keys(chosen), `return ${t.filter};`));
      return !layer[at].data.values.some((row) => tests.every((test) => test(row, ...Object.values(chosen))));
    });
  }

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "600px" });
  document.querySelectorAll(".chart").forEach((element) => near.observe(element));
  window.addEventListener("beforeprint", () => document.querySelectorAll("article:not([hidden]) .chart").forEach(draw));

  function filterTables() {
    for (const row of document.querySelectorAll("tbody tr")) {
      row.hidden = ["family", "objective"].some(
        (name) => chosen[name] && name in row.dataset && row.dataset[name] !== chosen[name]);
    }
  }

  function show(study) {
    document.querySelectorAll("article").forEach((article) => { article.hidden = article.dataset.study !== study; });
    window.dispatchEvent(new Event("resize"));
  }

  document.querySelectorAll("[data-filter]").forEach((select) => {
    select.addEventListener("change", () => {
      if (select.dataset.filter === "study") { show(select.value); return; }
      chosen[select.dataset.filter] = select.value;
      filterTables();
      const whole = Object.values(chosen).every((value) => !value);
      document.querySelectorAll(".whole").forEach((element) => { element.hidden = whole; });
      for (const [element, view] of views) view.then((drawn) => filter(element, drawn));
    });
  });

  document.querySelectorAll("th button").forEach((button) => {
    button.addEventListener("click", () => sort(button.parentElement));
  });

  function sort(head) {
    const descending = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const at = head.cellIndex;
    const rows = [...body.rows].map((row) => [key(row.cells[at]), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // missing last, either way
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return descending ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
  }

  function key(cell) {
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.textContent === "" ? null : cell.textContent;
  }

  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
})();
