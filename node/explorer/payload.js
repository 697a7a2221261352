// Transactions in words: what each kind is called, what matters in it, and every field of it.

import {
  account,
  absolute,
  bytes,
  count,
  facts,
  fold,
  hash,
  list,
  loss,
  relative,
  shorten,
} from "./format.js";
import { h } from "./dom.js";

const NAMES = {
  transfer: "Transfer",
  draft: "Draft of a task",
  contribute: "Contribution",
  publish: "Task published",
  available: "Data available",
  "open-gradient": "Gradient opened",
  "open-loss": "Loss opened",
  expire: "Task expired",
  verdict: "Verdict",
  settle: "Milestone settled",
  "report-votes": "Evidence: votes",
  "report-openings": "Evidence: openings",
  accuse: "Accusation",
  govern: "Governance",
  "register-model": "Model registered",
  "retire-model": "Model retired",
  "request-inference": "Inference asked",
  "commit-result": "Result committed",
  "close-commits": "Commitments closed",
  "reveal-result": "Result shown",
  "expire-job": "Job expired",
  "create-federation": "Federation created",
  "submit-update": "Update submitted",
  "attest-updates": "Updates attested",
  "close-round": "Round closed",
  "confirm-sum": "Sum confirmed",
  "open-sum": "Sum opened",
  "judge-round": "Round judged",
  "settle-round": "Round settled",
  "end-federation": "Federation ended",
  "create-ceremony": "Ceremony begun",
  "commit-round": "Contribution committed",
  "reveal-round": "Contribution shown",
  "confirm-ceremony": "Keys confirmed",
  "end-ceremony": "Ceremony given up",
};

export const nameKind = (kind) => NAMES[kind] ?? kind;

// Where a field of 32 bytes leads to; others are shown as hashes.
const TARGETS = {
  task: "tasks",
  federation: "federations",
  ceremony: "committees",
  renews: "committees",
  member: "accounts",
  job: "inference/jobs",
  block: "blocks",
  parent: "blocks",
  to: "accounts",
  miner: "accounts",
  validator: "accounts",
  sender: "accounts",
  address: "accounts",
  custody: "accounts",
  owner: "accounts",
  requester: "accounts",
};
const TIMES = new Set(["deadline", "expires", "commit_until", "time", "release"]);
const DURATIONS = new Set(["train_ms", "open_ms", "judge_ms"]);
const MANY = 24;

export const title = (text) => (text && text.trim() ? text : "untitled");

function build(name, value) {
  if (value === null) return h("span", { class: "muted" }, "none");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") {
    if (TIMES.has(name) && value <= 8.64e15) return `${absolute(value)} (${relative(value)})`;
    if (DURATIONS.has(name)) return `${value / 1000} s`;
    return name === "length" ? bytes(value) : count(value);
  }
  if (typeof value === "string") {
    if (/^[0-9a-f]{64}$/.test(value)) return hash(value, TARGETS[name] ?? null, name.replaceAll("_", " "));
    if (/^[0-9a-f]{24,}$/.test(value)) return hash(value, null, name.replaceAll("_", " "));
    return value === "" ? h("span", { class: "muted" }, "empty") : value;
  }
  if (Array.isArray(value)) return buildList(name, value);
  return describe(value);
}

function buildList(name, items) {
  if (!items.length) return h("span", { class: "muted" }, "none");
  const inner = items.slice(0, MANY).map((item) => build(name.replace(/s$/, ""), item));
  const more = items.length > MANY ? [`and ${count(items.length - MANY)} more`] : [];
  if (items.every((item) => typeof item === "number")) {
    const text = items.slice(0, MANY).map(count).join(", ") + (more.length ? `, ${more[0]}` : "");
    return items.length > 8
      ? fold(`${count(items.length)} numbers`, h("p", { class: "numbers" }, text))
      : text;
  }
  return items.length > 3 ? fold(`${count(items.length)} entries`, list([...inner, ...more])) : list(inner);
}

/** Every field of a record, its lists folded. */
export function describe(record) {
  const entries = Object.entries(record).filter(
    ([name]) => name !== "kind" || typeof record.kind !== "string",
  );
  return facts(entries.map(([name, value]) => [name.replaceAll("_", " "), build(name, value)]));
}

/** What a transaction does, in one line. */
export function summarise(payload) {
  const step = () => `step ${count(payload.step)}`;
  switch (payload.kind) {
    case "transfer":
      return [`${count(payload.amount)} to `, account(payload.to)];
    case "draft":
      return [title(payload.draft.title)];
    case "contribute": {
      const batches = payload.training.length + payload.validation.length;
      return [`${count(batches)} encrypted batches`];
    }
    case "publish":
      return [
        `${count(payload.ladder.length)} milestones, ${count(payload.contributions.length)} contributions`,
      ];
    case "open-gradient":
      return [`${step()}, ${count(payload.claims.length)} batches, task `, link("tasks", payload.task)];
    case "open-loss":
      return [`${step()}, task `, link("tasks", payload.task)];
    case "verdict":
      return [payload.accept ? "accepts" : "rejects", " a milestone of task ", link("tasks", payload.task)];
    case "govern":
      return [
        payload.governance.action.kind.replaceAll("-", " "),
        `, ${count(payload.approvals.length)} approvals`,
      ];
    case "register-model":
      return [payload.label];
    case "create-federation":
      return [title(payload.title), `, ${count(payload.participants.length)} participants`];
    case "judge-round":
      return [
        `round ${count(payload.round)}: loss ${loss(payload.before / 1e6)} to ${loss(payload.after / 1e6)}`,
      ];
  }
  if (payload.federation)
    return [`round ${count(payload.round ?? 0)}, federation `, link("federations", payload.federation)];
  if (payload.kind === "create-ceremony")
    return [title(payload.title), `, ${count(payload.threshold)} of ${count(payload.members.length)} open`];
  if (payload.ceremony) return ["ceremony ", link("committees", payload.ceremony)];
  if (payload.job) return ["job ", link("inference/jobs", payload.job)];
  if (payload.task) return ["task ", link("tasks", payload.task)];
  return [];
}

const link = (target, text) => h("a", { href: `#/${target}/${text}`, title: text }, shorten(text));
