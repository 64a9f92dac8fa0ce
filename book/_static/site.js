// One switch a page for the cells whose code is folded away; the choice holds on every page that has some.
const FOLDED = ".cell:not(.tag_injected-parameters) > details.above-input";

function showCode(shown) {
  document.documentElement.dataset.code = shown ? "shown" : "hidden"; // site.css hides and prints by it
  document.querySelectorAll(FOLDED).forEach((cell) => (cell.open = shown));
}

document.addEventListener("DOMContentLoaded", () => {
  const folded = document.querySelectorAll(FOLDED).length;
  const bar = document.querySelector(".article-header-buttons");
  if (!folded || !bar) return;
  const some = document.querySelectorAll(".cell_input").length > folded;
  const button = document.createElement("button");
  button.className = "btn btn-sm code-switch";
  button.title = some ? "Show the rest of the code" : "Show the code";
  button.setAttribute("aria-label", button.title);
  button.innerHTML = '<i class="fa-solid fa-code"></i><span>Code</span>';
  const press = (shown) => {
    showCode(shown);
    button.setAttribute("aria-pressed", shown);
  };
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    localStorage.setItem("code", shown ? "shown" : "hidden");
    press(shown);
  });
  press(localStorage.getItem("code") === "shown");
  bar.prepend(button);
});
