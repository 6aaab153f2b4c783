
"use strict";
// What is shown stands in the address behind `#`: a view can be linked to, and a plain link is a filter.
const PAGE = 200; // cards at a time
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const cards = read("facts"), labels = read("labels"), images = read("images");
const main = document.getElementById("cards"), detail = document.getElementById("detail");
const chips = [...document.querySelectorAll("button[data-key], button[data-all]")];
const fields = [...document.querySelectorAll("select[data-key], input[data-key]")];
const steps = [...document.querySelectorAll("button[data-step]")];
const states = [...document.querySelectorAll("[data-shown]")];
const NOT_FILTERS = ["order", "find", "page"];
const firstOrder = document.querySelector("select[data-key=order]").options[0].value;
cards.forEach((card, number) => { card.number = number; });

const names = new Intl.Collator(undefined, { numeric: true });
const sure = (card) => card.confidence ?? -1;
const unsure = (card) => card.confidence ?? 2;
const rank = (card) => ({ wrong: 0, right: 1 })[card.verdict] ?? 2;
const compare = {
  read: () => 0,
  down: (a, b) => sure(b) - sure(a),
  up: (a, b) => unsure(a) - unsure(b),
  path: (a, b) => names.compare(a.path, b.path),
  wrong: (a, b) => rank(a) - rank(b) || (a.verdict === "wrong" ? sure(b) - sure(a) : unsure(a) - unsure(b)),
};

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function makeDrawing(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const chooseTone = (answer) => labels.includes(answer) ? `tone${labels.indexOf(answer) % 6}` : "aside";
const shorten = (path) => path.slice(path.lastIndexOf("/") + 1);
const percent = (share) => `${(100 * share).toFixed(1)}%`;

function drawImage(card, text, number = card.image) {
  if (number === undefined) return make("div", { class: "none" }, card.error ? "?" : "gone");
  const inside = images.inside[number];
  const src = images.folder === null ? `data:image/jpeg;base64,${inside}` : `${images.folder}${number}.jpg`;
  return make("img", { src, alt: text, loading: "lazy", decoding: "async" });
}

function drawMeter(share) {
  const bar = make("i");
  bar.style.width = percent(share);
  return make("div", { class: "meter" }, bar);
}

function drawTags(card) {
  const tags = [];
  if (card.verdict === "wrong") tags.push(make("em", { class: "tag", dir: "auto" }, `expected ${card.expected}`));
  if (card.reason && card.answer !== undefined) tags.push(make("em", { class: "tag aside" }, card.reason));
  return tags;
}

function drawCaption(card) {
  const name = shorten(card.path) + (card.face === undefined ? "" : ` · ${card.face}`);
  const words = card.answer ?? card.error ?? card.reason ?? "";
  const caption = make("figcaption", {}, make("b", { dir: "auto" }, words));
  if (card.confidence !== undefined) {
    caption.append(make("span", {}, percent(card.confidence)), drawMeter(card.confidence));
  }
  if (card.message) caption.append(make("p", { class: "message" }, card.message));
  caption.append(...drawTags(card), make("small", { dir: "auto" }, name));
  return caption;
}

function drawCard(card) {
  if (card.boxes) return drawPhotograph(card);
  const words = `${card.path} — ${card.answer ?? card.error ?? card.reason}`;
  const open = make("button", { "aria-label": words, title: words }, drawImage(card, ""));
  open.onclick = () => showDetail(card);
  const tones = `card ${chooseTone(card.answer)} ${card.verdict === "wrong" ? "wrong" : ""}`;
  return make("figure", { class: tones }, open, drawCaption(card));
}

// A photograph shows what is wanted of its faces.
function drawPhotograph(card) {
  const [width, height] = card.size, size = Math.max(width, height) / 28;
  const boxes = card.image === undefined ? [] : card.boxes.filter(isWanted);
  const drawn = boxes.map(({ box: [x, top, width, height], answer, face }) => {
    const y = top > size * 1.35 ? top - size * 0.35 : top + size * 1.1; // above the box, or in it at the upper edge
    return makeDrawing("g", { class: chooseTone(answer) }, makeDrawing("rect", { x, y: top, width, height }),
      makeDrawing("text", { x, y, "font-size": size }, `${face} ${answer}`));
  });
  const frame = make("div", { class: "frame" }, drawImage(card, card.count),
    makeDrawing("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...drawn));
  const name = make("small", { dir: "auto" }, shorten(card.path));
  const caption = make("figcaption", {}, make("b", {}, card.count), name);
  return make("figure", { class: "card photo", title: card.path }, frame, caption);
}

function drawChances(card) {
  const chances = (card.probabilities ?? []).flatMap((share, index) => {
    const meter = drawMeter(share);
    meter.classList.add(chooseTone(labels[index]));
    return [make("bdi", {}, labels[index]), meter, make("span", {}, share.toFixed(3))];
  });
  return make("div", { class: "chances" }, ...chances);
}

// Buttons to the pictures before and behind one, of those that are shown, which the arrow keys press too.
function drawSteps(card) {
  const others = shown.filter((other) => !other.boxes), place = others.indexOf(card);
  const [previous, next] = [["‹ previous", -1], ["next ›", 1]].map(([text, step]) => {
    const target = others[place + step], button = make("button", {}, text);
    button.disabled = !target;
    button.onclick = () => showDetail(target);
    return button;
  });
  const close = make("button", { class: "close" }, "close");
  close.onclick = () => detail.close();
  detail.onkeydown = ({ key }) => ({ ArrowLeft: previous, ArrowRight: next })[key]?.click();
  return make("div", { class: "steps" }, previous, next, close);
}

function drawPictures(card) {
  if (card.map === undefined) return [drawImage(card, "")];
  const words = "orange speaks for the answer, blue against it; the striped part is not seen";
  const pair = make("div", { class: "pair" }, drawImage(card, ""), drawImage(card, words, card.map));
  return [pair, make("p", { class: "quiet" }, words)];
}

function showDetail(card) {
  const about = [card.answer ?? card.error ?? card.reason, card.message].filter(Boolean).join(": ");
  detail.className = card.verdict === "wrong" ? "wrong" : "";
  detail.replaceChildren(...drawPictures(card), make("p", {}, make("b", { dir: "auto" }, about), " ", ...drawTags(card)),
    drawChances(card), make("p", { class: "quiet" }, card.path), drawSteps(card));
  if (!detail.open) detail.showModal();
  detail.querySelector(".close").focus();
}
detail.onclick = (event) => { if (event.target === detail) detail.close(); };

function scrollToCards() {
  main.style.scrollMarginTop = `${document.querySelector(".bar").offsetHeight}px`; // which may stay on the screen
  main.scrollIntoView();
}

let view, filters, shown;
const isWanted = (card) =>
  filters.every(([key, value]) => key in card && (value === "" || String(card[key]) === value));

const getOrder = () => Object.hasOwn(compare, view.get("order")) ? view.get("order") : firstOrder;

function select() {
  view = new URLSearchParams(location.hash.slice(1));
  filters = [...view].filter(([key]) => !NOT_FILTERS.includes(key));
  const order = getOrder(), text = (view.get("find") ?? "").toLowerCase();
  const alone = order === "down" || order === "up"; // faces are ordered by themselves, without their photographs
  const matches = (card) => card.boxes ? !alone && card.boxes.some(isWanted) : isWanted(card);
  shown = cards.filter((card) => matches(card) && card.path.toLowerCase().includes(text));
  shown.sort((a, b) => compare[order](a, b) || a.number - b.number);
}

function show() {
  select();
  const last = Math.max(0, Math.ceil(shown.length / PAGE) - 1);
  const page = Math.min(last, Math.max(0, Math.trunc(view.get("page")) || 0)), first = page * PAGE;
  const seen = shown.slice(first, first + PAGE);
  main.replaceChildren(...seen.map(drawCard));
  main.dataset.drawn = "";
  const count = shown.filter((card) => !card.boxes).length.toLocaleString("en");
  const place = last ? `page ${page + 1} of ${last + 1} · ` : "";
  for (const state of states) state.textContent = `${place}${count} shown`;
  for (const step of steps) {
    const target = page + Number(step.dataset.step);
    step.disabled = target < 0 || target > last;
    step.hidden = last === 0;
    step.onclick = () => { change({ page: target || null }); scrollToCards(); };
  }
  showControls();
}

function showControls() {
  const isPressed = (chip) => "key" in chip.dataset && view.get(chip.dataset.key) === chip.dataset.value;
  const none = !chips.some(isPressed);
  for (const chip of chips) chip.ariaPressed = String("all" in chip.dataset ? none : isPressed(chip));
  for (const field of fields) {
    if (field.type === "search" && field === document.activeElement) continue; // nothing moves under who types
    field.value = field.dataset.key === "order" ? getOrder() : view.get(field.dataset.key) ?? "";
  }
}

// Replaces some of what the address says, and leaves out what is null; from any other change one begins at page 0.
function change(values) {
  for (const [key, value] of Object.entries({ page: null, ...values })) {
    if (value === null) view.delete(key);
    else view.set(key, value);
  }
  history.replaceState(null, "", `#${view}`);
  show();
}

const keys = chips.filter((chip) => "key" in chip.dataset).map((chip) => chip.dataset.key);
const cleared = Object.fromEntries(keys.map((key) => [key, null]));
for (const chip of chips) chip.onclick = () => {
  change("all" in chip.dataset ? cleared : { ...cleared, [chip.dataset.key]: chip.dataset.value });
};
for (const field of fields) field.oninput = () => change({ [field.dataset.key]: field.value || null });
addEventListener("hashchange", () => { show(); scrollToCards(); });
show();
