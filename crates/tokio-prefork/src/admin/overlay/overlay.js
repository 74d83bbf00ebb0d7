// Shows the error of a failed build over the page, and loads the page again when there is a new build.
// Included by: <script async src="http://ADMIN-LISTENER/overlay.js"></script>
"use strict";
(() => {
  const script = document.currentScript;
  // A page that is put together from several files includes it more than once.
  if (!script || window.preforkOverlay) return;
  window.preforkOverlay = true;
  const url = new URL("overlay/events", script.src);
  const RELOADED = "prefork-overlay-reloaded";

  // The build that the page is from.
  let loaded = null;
  let stream = null;
  let host = null;
  let dismissed = null;

  const COLOURS = ["#888", "#ff6b6b", "#69db7c", "#ffd43b", "#74a9ff", "#e599f7", "#66d9e8", "#eee"];

  // Splits text with the colours of a terminal into pieces with styles. Other control sequences are dropped.
  function parseAnsi(text) {
    const pieces = [];
    let style = {};
    const sequences = /\x1b(?:\[([0-9;:?]*)([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])|[\x00-\x08\x0b-\x1f\x7f]/g;
    let from = 0;
    for (const found of text.matchAll(sequences)) {
      if (found.index > from) pieces.push([text.slice(from, found.index), style]);
      from = found.index + found[0].length;
      if (found[2] === "m") style = nextStyle(style, found[1]);
    }
    if (from < text.length) pieces.push([text.slice(from), style]);
    return pieces;
  }

  function nextStyle(style, parameters) {
    const next = { ...style };
    const codes = parameters.split(/[;:]/).map(Number);
    for (let at = 0; at < codes.length; at++) {
      const code = codes[at];
      if (code === 0) { delete next.color; delete next.fontWeight; }
      else if (code === 1) next.fontWeight = "bold";
      else if (code === 22) delete next.fontWeight;
      else if (code === 39) delete next.color;
      else if (code >= 30 && code <= 37) next.color = COLOURS[code - 30];
      else if (code >= 90 && code <= 97) next.color = COLOURS[code - 90];
      else if (code === 38 || code === 48) {
        if (code === 38 && codes[at + 1] === 5 && codes[at + 2] < 16) next.color = COLOURS[codes[at + 2] % 8];
        at += codes[at + 1] === 5 ? 2 : 4;
      }
    }
    return next;
  }

  function element(name, style, text) {
    const made = document.createElement(name);
    Object.assign(made.style, style);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function hide() {
    if (host) host.remove();
    host = null;
  }

  function show(state) {
    hide();
    host = element("prefork-overlay", {
      all: "initial", position: "fixed", inset: "0", zIndex: "2147483647", background: "rgba(0, 0, 0, 0.66)",
    });
    const box = element("div", {
      position: "absolute", inset: "5vh 5vw", overflow: "auto", boxSizing: "border-box", padding: "1.5em", background: "#181818",
      color: "#e8e8e8", borderTop: "6px solid #ff5555", borderRadius: "6px",
      font: "14px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace",
    });
    box.setAttribute("role", "alertdialog");
    box.setAttribute("aria-label", state.title);
    const close = element("button", {
      all: "unset", float: "right", cursor: "pointer", padding: "0 0.5em", fontSize: "20px",
    }, "\u00d7");
    close.setAttribute("aria-label", "Hide");
    close.addEventListener("click", dismiss);
    const text = element("pre", { margin: "0", font: "inherit", whiteSpace: "pre-wrap", overflowWrap: "anywhere" });
    for (const [piece, style] of parseAnsi(state.text)) text.append(element("span", style, piece));
    box.append(
      close,
      element("div", { color: "#ff6b6b", fontWeight: "bold", fontSize: "17px", marginBottom: "1em" }, state.title),
      text,
      element("div", { color: "#999", marginTop: "1.5em" }, "The page comes back when the next build is good. Escape hides this."),
    );
    // In a tree of its own, so that the styles of the page do not reach it.
    host.attachShadow({ mode: "open" }).append(box);
    document.documentElement.append(host);
  }

  function dismiss() {
    dismissed = host && host.dataset.key;
    hide();
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && host) dismiss();
  });

  function reload(build) {
    // Once for each build: with a wrong clock the page would do nothing else.
    try { sessionStorage.setItem(RELOADED, build); } catch { /* Storage is off. */ }
    location.reload();
  }

  function wasReloadedFor(build) {
    try { return sessionStorage.getItem(RELOADED) === build; } catch { return true; }
  }

  function receive(state) {
    const build = state.instance + ":" + state.number;
    // Nothing is served before the first build: a page that is asked for earlier waits, and is from that build.
    const isFirst = state.number <= 1;
    if (loaded === null || (isFirst && loaded === state.instance + ":0")) {
      // The page may be from the build before, if this one came while it was loaded.
      const isOlder = !isFirst && state.changed_at_ms > performance.timeOrigin;
      if (state.state === "ok" && isOlder && !wasReloadedFor(build)) return reload(build);
      loaded = build;
    }
    if (state.state === "ok") {
      hide();
      if (loaded !== build) reload(build);
    } else if (state.state === "failed") {
      const key = build + ":" + state.changed_at_ms;
      if (dismissed === key) return;
      show(state);
      host.dataset.key = key;
    }
  }

  function connect() {
    if (stream || document.hidden) return;
    stream = new EventSource(url);
    stream.addEventListener("message", (event) => receive(JSON.parse(event.data)));
    // The browser connects again by itself, unless the answer was an error.
    stream.addEventListener("error", () => {
      if (stream.readyState === EventSource.CLOSED) {
        stream = null;
        setTimeout(connect, 1000);
      }
    });
  }

  // A browser opens six connections to a server: pages in the background need none.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && stream) {
      stream.close();
      stream = null;
    }
    connect();
  });
  // A page that the browser brings back from its cache.
  addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
  connect();
})();
