/* The label map and the result that moves. Without this script both are still there, whole and still. */

function labelMap(form) {
  const entries = [...form.querySelectorAll(".lef-found li")], count = form.querySelector(".lef-count");
  const chosen = (name) => new FormData(form).get(name) || "";
  const fits = (li, labels, task, state) =>
    (!labels || li.dataset.labels.split(" ").includes(labels)) &&
    (!task || li.dataset.task === task) && (!state || li.dataset.state === state);

  function narrow() {
    const labels = chosen("labels");
    // Tasks that these labels do not lead to cannot be chosen.
    for (const option of form.querySelectorAll("input[name=task]")) {
      option.disabled = option.value && !entries.some((li) => fits(li, labels, option.value, ""));
      if (option.disabled && option.checked) form.querySelector("input[name=task]").checked = true;
    }
    const task = chosen("task"), state = chosen("state");
    for (const li of entries) li.hidden = !fits(li, labels, task, state);
    const shown = entries.filter((li) => !li.hidden);
    const written = shown.filter((li) => li.dataset.state === "written").length;
    count.textContent = shown.length === 0 ? "No chapter fits." :
      `${shown.length} ${shown.length === 1 ? "chapter fits" : "chapters fit"}, ${written} of them written.`;
    const said = new URLSearchParams(Object.entries({ labels, task, state }).filter(([, value]) => value));
    history.replaceState(null, "", said.size ? "#" + said : location.pathname + location.search);
  }

  function read() {
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      const option = [...form.querySelectorAll("input")].find((i) => i.name === name && i.value === value);
      if (option) option.checked = true;
    }
    narrow();
  }
  form.addEventListener("change", narrow);
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", read);
  read();
}

/* Draw the curves of the landing page up to the slider's epoch. */
function curves(box, slider) {
  const panels = JSON.parse(box.querySelector("script").textContent), figures = box.querySelectorAll("figure");
  const output = box.querySelector("output"), names = ["said", "memorised"];
  const line = (figure, name) => figure.querySelector("polyline." + name);
  const whole = [...figures].map((figure) => names.map((name) => line(figure, name).getAttribute("points").split(" ")));
  slider.addEventListener("input", () => {
    const epoch = Number(slider.value);
    output.textContent = epoch;
    figures.forEach((figure, k) => names.forEach((name, j) => {
      line(figure, name).setAttribute("points", whole[k][j].slice(0, epoch).join(" "));
      figure.querySelector("span." + name + " b").textContent = Math.round(100 * panels[k][name][epoch - 1]) + "%";
    }));
  });
}

/* Let a slider move by itself from its first to its last position, until it is paused or turned by hand. */
function player(box) {
  const slider = box.querySelector("input[type=range]"), button = box.querySelector("button");
  const first = Number(slider.min), last = Number(slider.max);
  let timer = null, itself = false;

  function turn(value) {
    itself = true;
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
    itself = false;
  }
  function pause() {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  }
  function play() {
    if (Number(slider.value) >= last) turn(first);
    timer = setInterval(() => {
      const now = Number(slider.value);
      if (now >= last) return pause();
      turn(Math.min(last, Math.max(now + 1, Math.round(now * 1.06))));  // curves are drawn over log(epoch)
    }, Number(box.dataset.tick));
    button.textContent = "Pause";
  }
  if (box.querySelector(".lef-panels")) curves(box, slider);
  button.addEventListener("click", () => (timer ? pause() : play()));
  slider.addEventListener("input", () => itself || pause());
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) { turn(first); play(); }
}

for (const form of document.querySelectorAll(".lef-map")) labelMap(form);
for (const box of document.querySelectorAll(".lef-hero")) player(box);

/* A formula that is wider than its column is set smaller, so that a phone need not scroll it. */
function fitFormulas() {
  const wide = [...document.querySelectorAll('mjx-container[display="true"]')];
  for (const formula of wide) formula.style.fontSize = "";
  for (const formula of wide) {
    const share = formula.clientWidth / formula.scrollWidth;
    if (share < 1) formula.style.fontSize = `${Math.floor(parseFloat(getComputedStyle(formula).fontSize) * share * 20) / 20 - .1}px`;
  }
}
window.addEventListener("load", () => window.MathJax?.startup?.promise?.then(fitFormulas));
window.addEventListener("resize", () => requestAnimationFrame(fitFormulas));
