// The run that is pointed at, or else the one whose button is pressed, stands out in the table and in every chart.
let pressed = null;

function show(run) {
  document.body.classList.toggle("chosen", run !== null);
  for (const part of document.querySelectorAll("[data-run]")) part.classList.toggle("on", part.dataset.run === run);
}

for (const part of document.querySelectorAll("[data-run]")) {
  part.addEventListener("pointerenter", () => show(part.dataset.run));
  part.addEventListener("pointerleave", () => show(pressed));
}

const buttons = document.querySelectorAll("button[data-run]");
for (const button of buttons) {
  button.addEventListener("click", () => {
    pressed = pressed === button.dataset.run ? null : button.dataset.run;
    for (const other of buttons) other.setAttribute("aria-pressed", String(other.dataset.run === pressed));
    show(pressed);
  });
}
