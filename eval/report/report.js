"use strict";
// Filters of the mistakes, and the choice of a slice view. The state is in the URL after #, so a filtered view can be shared.
// Data is only read from attributes and text, never written as markup.
(() => {
  const filters = document.getElementById("filters");
  const chooser = document.getElementById("view-chooser");
  const cards = Array.from(document.querySelectorAll(".mistake"), (element) => ({
    element,
    text: element.textContent.toLowerCase(),
    tokens: (name) => (element.dataset[name] || "").split(" "),
  }));
  const views = Array.from(document.querySelectorAll(".view"));
  const controls = Array.from(document.querySelectorAll("select[name], input[name]"));
  const shown = document.getElementById("shown");
  const nothing = document.getElementById("nothing");

  function apply() {
    const wanted = controls.filter((control) => control.value && control.name !== "view");
    let count = 0;
    for (const card of cards) {
      const keep = wanted.every((control) =>
        control.name === "q"
          ? control.value.toLowerCase().split(/\s+/).every((word) => card.text.includes(word))
          : card.tokens(control.name).includes(control.value));
      card.element.hidden = !keep;
      count += keep;
    }
    if (shown) shown.textContent = `${count} of ${cards.length} shown`;
    if (nothing) nothing.hidden = count > 0;
    const view = controls.find((control) => control.name === "view");
    if (view) for (const element of views) element.hidden = element.dataset.view !== view.value;
  }

  function remember() {
    const state = new URLSearchParams();
    for (const control of controls) {
      const usual = control.name === "view" ? control.options[0].value : "";
      if (control.value !== usual) state.set(control.name, control.value);
    }
    const hash = state.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function restore() {
    const hash = location.hash.slice(1);
    if (hash && !hash.includes("=")) return false;
    const state = new URLSearchParams(hash);
    for (const control of controls) {
      control.value = state.get(control.name) || "";
      if (control.tagName === "SELECT" && control.selectedIndex < 0) control.selectedIndex = 0;
    }
    return Array.from(state.keys()).some((name) => name !== "view");
  }

  function changed() {
    apply();
    remember();
  }

  for (const control of controls) control.addEventListener(control.tagName === "SELECT" ? "change" : "input", changed);
  const clear = document.getElementById("clear");
  if (clear) clear.addEventListener("click", () => {
    for (const control of controls) if (control.name !== "view") control.value = "";
    changed();
  });
  window.addEventListener("hashchange", () => {
    restore();
    apply();
  });
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });

  for (const part of [filters, chooser]) if (part) part.hidden = false;
  for (const view of views) view.classList.add("chosen-by-script");
  const filtered = restore();
  apply();
  if (filtered) document.getElementById("mistakes").scrollIntoView();
})();
