// The rater's page. An answer is shown as given at once, and is sent until it is recorded: under one id, which the server knows again.
"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const offline = window.RGLCD_STUDY; // set by a static study's own file
  const prefix = `rglcd:${offline ? offline.rater : location.pathname}:`;
  const SMALL = 128; // pixels: such pictures are enlarged without blur
  let tasks = [], done = [], at = 0, shownAt = null, sending = false;
  let queue = []; // entries that are not recorded yet, in order

  // --- what this browser keeps: entries that are not recorded yet; of a static study, all of them -------------------------------

  const keep = (key, value) => { try { localStorage.setItem(key, JSON.stringify(value)); return true; } catch { return false; } };
  const drop = (key) => { try { localStorage.removeItem(key); } catch { /* nothing was kept */ } };
  const kept = () => {
    try {
      const keys = Object.keys(localStorage).filter((key) => key.startsWith(prefix)).sort();
      return keys.map((key) => ({ key, entry: JSON.parse(localStorage.getItem(key)) }));
    } catch { return []; }
  };
  const nextKey = (id) => {
    const last = [...kept(), ...queue].reduce((most, one) => Math.max(most, Number(one.key.slice(prefix.length).split(":")[0])), 0);
    return `${prefix}${String(last + 1).padStart(9, "0")}:${id}`;
  };
  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

  // --- the server, or what takes its place ---------------------------------------------------------------------------------------

  const given = async () => {
    if (!offline) {
      const response = await fetch("tasks");
      if (!response.ok) throw new Error(response.status);
      return response.json();
    }
    const answered = new Map();
    for (const { entry } of kept()) {
      if (entry.kind === "vote") answered.set(entry.id, entry.task); else answered.delete(entry.vote);
    }
    return { tasks: offline.tasks, answered: [...answered].map(([vote, task]) => [task, vote]) };
  };
  const post = (entry) =>
    fetch("votes", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(entry), keepalive: true });
  const pause = (seconds) => new Promise((resume) => setTimeout(resume, 1000 * seconds));

  const send = async () => {
    if (sending) return;
    sending = true;
    let wait = 0.5;
    while (queue.length) {
      const { key, entry } = queue[0];
      say("saved", "Saving…");
      let status = 0, said = null;
      try { const response = await post(entry); status = response.status; said = await response.json(); } catch { /* no connection: below */ }
      // Only the server's own words settle an answer: while it is away a proxy answers in its place, with any status and a page.
      const isRefused = said && typeof said.error === "string" && status >= 400 && status < 500 && status !== 429;
      if (isRefused || (said && said.recorded === entry.id)) {
        queue.shift();
        drop(key);
        wait = 0.5;
        if (isRefused) await disagreed(status, said.error);
      } else {
        say("saved", "No connection: your answers are kept here, and sent again.");
        await pause(wait);
        wait = Math.min(10, 2 * wait);
      }
    }
    sending = false;
    say("saved", "Saved");
  };
  const disagreed = async (status, why) => { // answered in another tab, or undone there: what the server has is what counts
    queue.forEach(({ key }) => drop(key));
    queue = [];
    try { accept(await given()); } catch { /* the next answer will find out */ }
    warn(status === 404 ? "This link is not valid any more." : `An answer was not taken: ${why}. The page shows what is recorded.`);
  };

  const record = (entry) => {
    const key = nextKey(entry.id);
    const isKept = keep(key, entry);
    if (offline) {
      say("saved", isKept ? "Kept in this browser" : "");
      if (!isKept) warn("This browser keeps nothing: download your answers before you close the page.");
      if (!isKept) offline.unkept = [...(offline.unkept || []), entry];
    } else {
      queue.push({ key, entry });
      send();
    }
  };

  // --- what is shown -------------------------------------------------------------------------------------------------------------

  const say = (id, text) => { if (element(id).textContent !== text) element(id).textContent = text; };
  const warn = (text) => { say("message", text); element("message").hidden = !text; };

  const accept = ({ tasks: all, answered }) => {
    tasks = all;
    done = answered.map(([task, vote]) => ({ task, vote }));
    toNext();
  };
  const toNext = () => {
    const answered = new Set(done.map(({ task }) => task));
    at = tasks.findIndex(({ id }) => !answered.has(id));
    show();
  };
  const show = () => {
    const task = tasks[at];
    element("asking").hidden = element("tie").hidden = !task;
    element("end").hidden = !!task;
    element("undo").disabled = !done.length;
    element("progress").max = tasks.length || 1;
    element("progress").value = done.length;
    say("where", task ? `${done.length + 1} of ${tasks.length}` : `${done.length} of ${tasks.length}`);
    shownAt = null;
    if (!task) {
      say("farewell", offline ? "Please download your answers and send the file back." : "You may close this page once it says “Saved” above.");
      return;
    }
    say("question", task.question);
    say("prompt", task.prompt);
    lock(true);
    for (const side of ["left", "right"]) if (frame(side).dataset.name !== task[side]) frame(side).replaceChildren();
    Promise.all([put("left", task), put("right", task)]).then(
      () => {
        if (tasks[at] !== task) return;
        lock(false);
        shownAt = performance.now();
        tasks.slice(at + 1, at + 4).forEach(({ left, right }) => { picture(left); picture(right); });
      },
      () => { if (tasks[at] === task) { warn("A picture could not be loaded; trying again."); pause(2).then(() => { if (tasks[at] === task) { warn(""); show(); } }); } },
    );
  };

  const loaded = new Map(); // a few pictures ahead, and no more than those: pictures are large
  const picture = (name) => {
    if (!loaded.has(name)) {
      const image = new Image();
      image.src = `pictures/${name}`;
      const ready = image.decode().then(() => { image.className = image.naturalWidth <= SMALL ? "small" : ""; return image; });
      ready.catch(() => loaded.delete(name));
      loaded.set(name, ready);
      if (loaded.size > 12) loaded.delete(loaded.keys().next().value);
    }
    return loaded.get(name);
  };
  const put = async (side, task) => {
    const image = await picture(task[side]);
    if (tasks[at] !== task) return;
    // Both sides may show one file, and an element stands in one place: the second gets a copy.
    const own = image.parentElement && image.parentElement !== frame(side) ? image.cloneNode() : image;
    own.alt = side === "left" ? "Picture 1" : "Picture 2";
    frame(side).dataset.name = task[side];
    frame(side).replaceChildren(own);
  };
  const frame = (side) => element(side).querySelector(".frame");
  const lock = (isLocked) => ["left", "right", "tie"].forEach((id) => element(id).setAttribute("aria-disabled", String(isLocked)));

  // --- what a rater does ---------------------------------------------------------------------------------------------------------

  const vote = (answer) => {
    const task = tasks[at];
    if (!task || shownAt === null) return; // both pictures must have been seen
    warn("");
    const entry = { kind: "vote", id: newId(), task: task.id, answer, milliseconds: Math.min(86400000, Math.round(performance.now() - shownAt)) };
    done.push({ task: task.id, vote: entry.id });
    record(entry);
    toNext();
  };
  const undo = () => {
    const last = done.pop();
    if (!last) return;
    warn("");
    record({ kind: "undo", id: newId(), vote: last.vote });
    at = tasks.findIndex(({ id }) => id === last.task);
    show();
  };
  const download = () => {
    const entries = [...kept().map(({ entry }) => entry), ...(offline.unkept || [])];
    const lines = [{ kind: "rater", study: offline.study, rater: offline.rater }, ...entries].map((line) => `${JSON.stringify(line)}\n`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.download = `answers-${offline.rater.slice(0, 8)}.jsonl`;
    link.click();
    pause(60).then(() => URL.revokeObjectURL(link.href));
  };

  const KEYS = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", 0: "tie", t: "tie", T: "tie", u: "undo", U: "undo", Backspace: "undo" };
  document.addEventListener("keydown", (event) => {
    const action = KEYS[event.key];
    if (!action || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (action === "undo") undo(); else vote(action);
  });
  ["left", "right", "tie"].forEach((answer) => element(answer).addEventListener("click", () => vote(answer)));
  element("undo").addEventListener("click", undo);
  if (offline) element("download").addEventListener("click", download);

  const start = async () => {
    if (!offline) {
      queue = kept();
      await send();
      say("saved", "");
    }
    for (let wait = 0.5; ; wait = Math.min(10, 2 * wait)) {
      try { accept(await given()); warn(""); return; } catch (error) {
        warn(error.message === "404" ? "This link is not valid." : "No connection to the study; trying again.");
      }
      await pause(wait);
    }
  };
  start();
})();
