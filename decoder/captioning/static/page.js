// The page of decoder.demo: pictures go to the server, captions come back, people correct and save them.

const settings = JSON.parse(document.body.dataset.settings);
const at = (id) => document.getElementById(id);
const AT_ONCE = 2; // requests of this page; the server answers one after the other
const BUSY_TRIES = 20;
const cards = []; // as they are shown, each with its picture, its caption and its element
const waiting = [];
let running = 0;

// Requests

async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", ...options });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = text.trim();
  try { message = JSON.parse(text).error; } catch { /* refusals before the page are plain text */ }
  throw Object.assign(new Error(message || `The server refused (status ${answer.status}).`), { status: answer.status });
}

const asJson = (value) => ({ body: JSON.stringify(value), headers: { "content-type": "application/json" } });
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

// Captioning

function add(sources) {
  const before = cards.length ? cards[0].element : null;
  const added = sources.map((source) => new Card(source));
  for (const card of added) at("cards").insertBefore(card.element, before);
  cards.unshift(...added);
  if (!at("saved").classList.contains("problem")) at("saved").textContent = "";
  waiting.push(...added);
  show("captions");
  update();
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    const card = waiting.shift();
    if (card.removed) continue;
    running += 1;
    card.describe().finally(() => { running -= 1; update(); next(); });
  }
}

class Card {
  // A source is {file} for an upload, or {picture, name} for a picture on the server's machine.
  constructor(source) {
    this.file = source.file;
    this.picture = source.picture || "";
    this.name = source.name || source.file.webkitRelativePath || source.file.name;
    this.element = at("card").content.firstElementChild.cloneNode(true);
    this.shown = new Map(["name", "status", "caption", "sure", "edit", "actions", "copy", "correct", "undo", "remove",
      "cancel", "look", "more", "hint", "others"].map((name) => [name, this.element.querySelector(`.${name}`)]));
    this.part("name").textContent = this.name;
    this.image = this.element.querySelector("img");
    this.image.src = this.file ? URL.createObjectURL(this.file) : `api/picture/${this.picture}?large`;
    this.image.onload = () => {
      this.part("look").style.setProperty("--ratio", this.image.naturalWidth / this.image.naturalHeight);
    };
    this.say("Waiting …", "working");
    this.part("copy").onclick = () => this.copy();
    this.part("correct").onclick = () => this.startEdit();
    this.part("undo").onclick = () => this.setText(this.result.caption);
    this.part("remove").onclick = () => this.remove();
    this.part("cancel").onclick = () => this.endEdit();
    this.part("edit").onsubmit = (event) => { event.preventDefault(); this.endEdit(this.input.value); };
    this.input = this.element.querySelector("textarea");
    this.input.onkeydown = (event) => {
      if (event.isComposing || event.keyCode === 229) return; // the keys of an input method, 229 in Safari
      if (event.key === "Escape") this.endEdit();
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); this.endEdit(this.input.value); }
    };
    this.listenToWords();
  }

  part(name) { return this.shown.get(name); }

  say(text, kind = "") {
    const status = this.part("status");
    status.textContent = text;
    status.className = `status ${kind}`;
    status.hidden = !text;
  }

  async describe() {
    try {
      if (this.file && this.file.size > settings.maxUpload * 2 ** 20) {
        throw new Error(`This picture exceeds the maximum of ${settings.maxUpload} MB. Choose a smaller one.`);
      }
      const unseen = await this.image.decode().then(() => false, () => true);
      this.say("Writing a caption …", "working");
      this.result = await this.ask(unseen ? "preview&" : "");
      if (this.result.preview) this.image.src = this.result.preview;
      else if (unseen) this.image.removeAttribute("src");
      this.finish();
    } catch (error) {
      this.say(error.message, "problem");
      this.part("actions").hidden = false;
      for (const name of ["copy", "correct"]) this.part(name).hidden = true;
      if (!this.image.naturalWidth) this.part("look").hidden = true;
      speak(`${this.name}: ${error.message}`);
    }
  }

  async ask(preview) {
    const path = this.picture ? `api/caption?${preview}picture=${this.picture}` : `api/caption?${preview}`;
    for (let tries = 1; ; tries += 1) {
      try {
        return await (await request(path, { body: this.file })).json();
      } catch (error) {
        if (error.status !== 503 || tries === BUSY_TRIES) throw error;
        this.say("Other visitors come first …", "working");
        await pause(2);
      }
    }
  }

  finish() {
    this.say("");
    const { alternatives, attention } = this.result;
    const list = this.part("others").querySelector("ul");
    for (const text of alternatives) {
      const item = document.createElement("li");
      const use = button("Use this", () => this.setText(text), `Use this: ${text}`);
      item.append(Object.assign(document.createElement("span"), { textContent: text }), use);
      list.append(item);
    }
    this.part("others").hidden = !alternatives.length;
    this.part("hint").hidden = !attention;
    for (const name of ["caption", "sure", "actions", "more"]) this.part(name).hidden = false;
    this.setText(this.result.caption);
    speak(`${this.name}: ${this.text} ${this.result.sure}`);
  }

  // Correcting

  get corrected() { return this.text !== this.result.caption; }
  get unsaved() {
    if (!this.result) return false;
    const typed = !this.part("edit").hidden && this.input.value !== this.text;
    return typed || (this.corrected && this.text !== this.kept);
  }

  setText(text) {
    this.text = text.split(/\s+/).filter(Boolean).join(" ");
    this.image.alt = this.text;
    const { attention, sure, unsure } = this.result;
    const shows = attention && !this.corrected;
    this.part("caption").replaceChildren(...(shows ? this.words() : [this.text || "No text"]));
    if (shows) this.part("caption").setAttribute("role", "toolbar");
    else for (const name of ["role", "aria-label"]) this.part("caption").removeAttribute(name);
    if (shows) this.part("caption").setAttribute("aria-label", "Words of the caption");
    this.part("hint").hidden = !shows;
    this.shade(null);
    const [verdict, ...rest] = (this.corrected ? "Edited: this text is yours." : sure).split(/(?=:)/);
    const mark = Object.assign(document.createElement("b"), { textContent: verdict });
    this.part("sure").replaceChildren(...(rest.length ? [mark, rest.join("").replace(/^: ?/, " ")] : [verdict]));
    this.part("sure").classList.toggle("unsure", unsure && !this.corrected);
    this.part("undo").hidden = !this.corrected;
    update();
  }

  startEdit() {
    this.input.value = this.text;
    for (const name of ["caption", "sure", "actions", "more"]) this.part(name).hidden = true;
    this.part("edit").hidden = false;
    this.shade(null);
    this.input.focus();
  }

  endEdit(text) {
    this.part("edit").hidden = true;
    for (const name of ["caption", "sure", "actions", "more"]) this.part(name).hidden = false;
    if (text !== undefined) this.setText(text);
    this.part("correct").focus();
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.text);
    } catch { // browsers offer the clipboard to this machine and to HTTPS only
      const area = Object.assign(document.createElement("textarea"), { value: this.text });
      this.element.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    this.part("copy").textContent = "Copied";
    speak("Copied");
    setTimeout(() => { this.part("copy").textContent = "Copy"; }, 1500);
  }

  remove() {
    this.removed = true;
    if (this.file) URL.revokeObjectURL(this.image.src);
    cards.splice(cards.indexOf(this), 1);
    this.element.remove();
    update();
    at("choose").focus();
  }

  // Attention

  words() {
    const { words, columns } = this.result.attention;
    return words.flatMap(({ text, weights }, number) => {
      const word = button(text, null, `${text}: looked at the ${place(weights, columns)}`);
      word.className = "word";
      word.dataset.number = number;
      word.tabIndex = number ? -1 : 0;
      word.setAttribute("aria-pressed", "false");
      return [word, " "];
    });
  }

  listenToWords() {
    const line = this.part("caption");
    const word = (event) => event.target.closest(".word");
    const pinned = () => line.querySelector("[aria-pressed=true]");
    const back = () => this.shade(line.contains(document.activeElement) && document.activeElement.matches(":focus-visible")
      ? document.activeElement : pinned());
    line.addEventListener("pointerover", (event) => { if (word(event)) this.shade(word(event)); });
    line.addEventListener("pointerleave", back);
    line.addEventListener("focusin", (event) => this.shade(word(event)));
    line.addEventListener("focusout", () => this.shade(pinned()));
    line.addEventListener("click", (event) => {
      const chosen = word(event);
      if (!chosen) return;
      const press = chosen.getAttribute("aria-pressed") === "false";
      for (const one of line.querySelectorAll(".word")) one.setAttribute("aria-pressed", String(press && one === chosen));
      this.shade(press ? chosen : null);
    });
    line.addEventListener("keydown", (event) => {
      const words = [...line.querySelectorAll(".word")];
      const now = words.indexOf(document.activeElement);
      const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: words.length - 1 }[event.key];
      if (now < 0 || to === undefined || !words[to]) return;
      event.preventDefault();
      words.forEach((one, number) => { one.tabIndex = number === to ? 0 : -1; });
      words[to].focus();
    });
  }

  shade(word) {
    this.part("look").classList.toggle("shaded", Boolean(word));
    if (!word) return;
    const { words, columns } = this.result.attention;
    const { weights } = words[word.dataset.number];
    const rows = weights.length / columns;
    const dark = new ImageData(columns, rows);
    weights.forEach((weight, cell) => { dark.data[4 * cell + 3] = 0.72 * (255 - weight); });
    const small = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
    small.getContext("2d").putImageData(dark, 0, 0);
    const canvas = Object.assign(this.element.querySelector("canvas"), { width: 480, height: 480 });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, 480, 480);
  }

  get saved() {
    return {
      name: this.name, picture: this.picture, text: this.text, corrected: this.corrected,
      unsure: this.result.unsure, confidence: this.result.confidence,
      bytes: this.file ? this.file.size : -1, modified: this.file ? this.file.lastModified : -1,
    };
  }
}

// Where most of the attention lies, for those who do not see it.
function place(weights, columns) {
  const cell = weights.indexOf(Math.max(...weights));
  const third = (value, count) => Math.min(2, Math.floor((3 * (value + 0.5)) / count));
  const row = ["top", "middle", "bottom"][third(Math.floor(cell / columns), weights.length / columns)];
  const column = ["left", "centre", "right"][third(cell % columns, columns)];
  return row === "middle" && column === "centre" ? "centre" : `${row} ${column}`;
}

function button(text, action, name) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text, onclick: action });
  if (name) made.setAttribute("aria-label", name);
  return made;
}

function speak(text) {
  at("spoken").textContent = text;
}

// Saving

const finished = () => cards.filter((card) => card.result);

function update() {
  document.body.classList.toggle("started", cards.length > 0);
  at("choose").textContent = cards.length ? "Add pictures" : "Choose pictures";
  const done = finished();
  const edited = done.filter((card) => card.corrected).length;
  const open = cards.filter((card) => card.part("status").classList.contains("working")).length;
  at("review").hidden = !done.length;
  at("count").textContent = [`${done.length} ${done.length === 1 ? "caption" : "captions"}`,
    edited && `${edited} edited`, open && `${open} to come`].filter(Boolean).join(", ");
  const inAlbum = settings.album && done.some((card) => card.picture);
  at("save").hidden = at("replacing").hidden = !inAlbum;
}

// Send the captions of cards and report what the answer says; a text counts as saved as it was sent.
async function report(chosen, work) {
  const sent = chosen.map((card) => card.saved);
  try {
    const { said, written } = await work(sent);
    for (const number of written) chosen[number].kept = sent[number].text;
    at("saved").textContent = said;
    at("saved").classList.remove("problem");
  } catch (error) {
    at("saved").textContent = error.message;
    at("saved").classList.add("problem");
  }
}

at("download").onclick = () => report(finished(), async (captions) => {
  const answer = await request(`api/download/${at("kind").value}`, asJson({ captions }));
  const name = answer.headers.get("content-disposition").split('"')[1];
  const link = Object.assign(document.createElement("a"), { download: name, href: URL.createObjectURL(await answer.blob()) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  return { said: `${name} is in your downloads. Keep it with the pictures.`, written: captions.keys() };
});

at("save").onclick = () => report(finished().filter((card) => card.picture), async (captions) => {
  const answer = await request(`api/save/${at("kind").value}`, asJson({ captions, replace: at("replace").checked }));
  return answer.json();
});

const unsaved = () => cards.some((card) => card.unsaved);

at("clear").onclick = () => {
  if (unsaved() && !confirm("Remove all captions? Those that you edited are not saved.")) return;
  for (const card of [...cards]) card.remove();
  at("saved").textContent = "";
};

window.addEventListener("beforeunload", (event) => {
  if (unsaved()) event.preventDefault();
});

// Choosing, dropping and pasting

const upload = (files) => { if (files.length) add([...files].map((file) => ({ file }))); };

at("choose").onclick = () => at("files").click();
at("files").onchange = () => {
  upload(at("files").files);
  at("files").value = ""; // the same picture may be chosen again
};
const holdsFiles = (event) => [...event.dataTransfer.types].includes("Files");
// Text may be dropped into a field; elsewhere it could open another page.
const isForField = (event) => !holdsFiles(event) && [...document.querySelectorAll("textarea, #query")].includes(event.target);
document.addEventListener("dragover", (event) => {
  if (isForField(event)) return;
  event.preventDefault();
  at("dropping").hidden = !holdsFiles(event);
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("dropping").hidden = true; });
document.addEventListener("drop", (event) => {
  if (isForField(event)) return;
  event.preventDefault();
  at("dropping").hidden = true;
  upload(event.dataTransfer.files);
});
let pasted = 0;
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  if (!files.length) return;
  event.preventDefault();
  upload(files.map((file) => new File([file], `pasted ${++pasted}.${file.type.split("/")[1]}`, file)));
});

for (const name of settings.samples) {
  const image = Object.assign(new Image(), { src: `samples/${name}.jpg`, alt: `Drawing: ${name}` });
  const item = document.createElement("li");
  const sample = button("", async () => {
    const content = await (await fetch(image.src)).blob();
    add([{ file: new File([content], `${name}.jpg`, { type: "image/jpeg" }) }]);
  });
  sample.append(image);
  item.append(sample);
  at("samples").append(item);
}

// Tabs and search

const tabs = ["captions", "search"];

function show(name) {
  for (const one of tabs) {
    at(one).hidden = one !== name;
    at(`tab-${one}`).setAttribute("aria-selected", String(one === name));
    at(`tab-${one}`).tabIndex = one === name ? 0 : -1;
  }
}

if (settings.search) {
  at("tabs").hidden = false;
  at("what").textContent = `What to look for in the ${settings.search.count.toLocaleString("en")} ${settings.search.count === 1 ? "picture" : "pictures"} of ${settings.search.name}`;
  for (const name of tabs) {
    at(name).setAttribute("role", "tabpanel");
    at(`tab-${name}`).onclick = () => show(name);
    at(`tab-${name}`).onkeydown = (event) => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      const other = tabs.find((one) => one !== name);
      show(other);
      at(`tab-${other}`).focus();
    };
  }
}

at("find").onsubmit = async (event) => {
  event.preventDefault();
  const note = at("found-note");
  note.classList.remove("problem");
  note.textContent = "Searching …";
  try {
    const found = await (await request("api/search", asJson({ sentence: at("query").value }))).json();
    const count = found.pictures.length === 1 ? "1 picture" : `${found.pictures.length} pictures, the best match first`;
    note.textContent = [`${count}.`, found.unknown].join(" ");
    at("found").replaceChildren(...found.pictures.map(result));
  } catch (error) {
    note.textContent = error.message;
    note.classList.add("problem");
    at("found").replaceChildren();
  }
};

function result({ picture, name, match }) {
  const item = document.createElement("li");
  const image = Object.assign(new Image(), { src: `api/picture/${picture}`, alt: "", loading: "lazy" });
  image.onerror = () => image.replaceWith("The picture is no longer there.");
  const line = (kind, text) => Object.assign(document.createElement("span"), { className: kind, textContent: text });
  item.append(image, line("match", match[0].toUpperCase() + match.slice(1)), line("name", name),
    button("Caption", () => add([{ picture, name }]), `Caption ${name}`));
  return item;
}
