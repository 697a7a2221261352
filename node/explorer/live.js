// Server-sent events with what a browser leaves out: a refused stream is tried again, a gap is told.

const KINDS = [
  "head",
  "block",
  "step",
  "opening",
  "milestone",
  "verdict",
  "finalized",
  "conflict",
  "reorg",
  "task",
  "job",
  "federation",
];
const RETRY_MS = 5000;

/** Calls `onEvent({kind, data})`, `onGap()` and `onState("live" | "waiting")` from now on. */
export function follow({ onEvent, onGap, onState }) {
  let last = null;
  let lost = false;

  let source = null;

  function open() {
    source = new EventSource(last === null ? "/v1/events" : `/v1/events?after=${last}`);
    source.addEventListener("open", () => {
      onState("live");
      // Without an id nothing can be replayed: what happened meanwhile has to be read again.
      if (lost && last === null) onGap();
      lost = false;
    });
    source.addEventListener("error", () => {
      lost = true;
      onState("waiting");
      if (source.readyState === EventSource.CLOSED) {
        source.close();
        setTimeout(open, RETRY_MS);
      }
    });
    source.addEventListener("gap", onGap);
    for (const kind of KINDS) {
      source.addEventListener(kind, (message) => {
        last = message.lastEventId || last;
        onEvent(JSON.parse(message.data));
      });
    }
  }

  open();
  // The node then need not find out by itself that this reader is gone.
  window.addEventListener("pagehide", () => source.close());
  window.addEventListener("pageshow", (event) => event.persisted && open());
}
