// Pages of the chain's other work: encrypted inference and federated rounds.

import { collect, get, getPage } from "./api.js";
import { h } from "./dom.js";
import {
  account,
  badge,
  blockLink,
  bytes,
  count,
  facts,
  fold,
  hash,
  list,
  loss,
  pager,
  plural,
  progress,
  section,
  table,
  time,
} from "./format.js";
import { describe, title as show } from "./payload.js";

// --- inference --------------------------------------------------------------------------------

export function inference(_, query) {
  return {
    title: "Inference",
    live: ["job"],
    async load() {
      const [models, jobs, evaluators] = await Promise.all([
        collect("/v1/inference/models", 2),
        getPage("/v1/inference/jobs", query),
        get("/v1/inference/evaluators"),
      ]);
      return { models, jobs, evaluators: evaluators.items };
    },
    view: ({ models, jobs, evaluators }) => [
      h(
        "p",
        { class: "lead" },
        "Networks that peers evaluate on encrypted images; whoever asks holds the only key.",
      ),
      section(
        "Jobs",
        table({
          caption: "Jobs of encrypted inference",
          empty: "Nobody has asked for an encrypted inference on this chain yet.",
          key: (job) => job.id,
          columns: [
            { title: "Job", cell: (job) => hash(job.id, "inference/jobs", "job id") },
            { title: "Status", cell: (job) => badge(job.status) },
            { title: "Asked in block", number: true, cell: (job) => blockLink(job.height) },
            { title: "Fee", number: true, cell: (job) => count(job.fee) },
            {
              title: "Results shown",
              cell: (job) => progress(job.reveals, job.commits, "Results shown of those committed"),
            },
            { title: "Deadline", cell: (job) => time(job.deadline) },
          ],
          rows: jobs.items,
        }),
        pager("inference", query.get("cursor"), jobs.next),
      ),
      section(
        "Models",
        table({
          caption: "Models for encrypted inference",
          empty: "No model is registered.",
          key: (model) => model.id,
          columns: [
            {
              title: "Model",
              cell: (model) =>
                h("a", { href: `#/inference/${model.id}`, title: model.id }, show(model.label)),
            },
            { title: "Owner", cell: (model) => [model.organisation || "", " ", account(model.owner)] },
            { title: "Kind", cell: (model) => model.workload },
            { title: "Weights", cell: (model) => model.weights },
            { title: "Price", number: true, cell: (model) => count(model.price) },
            { title: "State", cell: (model) => (model.retired ? badge("retired", "warn") : badge("open")) },
          ],
          rows: models,
        }),
      ),
      section(
        "Evaluators",
        table({
          caption: "Organisations that may evaluate, and how their results were",
          empty: "No organisation may evaluate.",
          columns: [
            { title: "Organisation", cell: (item) => item.organisation },
            {
              title: "State",
              cell: (item) => (item.suspended ? badge("suspended", "bad") : badge("may evaluate", "good")),
            },
            { title: "Right", number: true, cell: (item) => count(item.right) },
            { title: "Wrong", number: true, cell: (item) => count(item.wrong) },
            { title: "Silent", number: true, cell: (item) => count(item.silent) },
          ],
          rows: evaluators,
        }),
      ),
    ],
  };
}

export function inferenceModel([id]) {
  return {
    title: `Model ${id.slice(0, 8)}`,
    live: [],
    load: () => get(`/v1/inference/models/${encodeURIComponent(id)}`),
    heading: (model) => show(model.label),
    view: (model) => [
      section(
        "Model",
        facts([
          ["Id", hash(model.id, null, "model id")],
          ["Owner", [model.organisation || "", " ", account(model.owner)]],
          ["Registered", ["block ", blockLink(model.height)]],
          ["Kind", model.workload],
          ["Weights", model.weights],
          ["Price", count(model.price)],
          ["Size", bytes(model.model.length)],
          ["A request", `${bytes(model.request_bytes)} and ${bytes(model.keys_bytes)} of keys`],
          ["A result", bytes(model.result_bytes)],
          ["Jobs until", time(model.expires)],
        ]),
      ),
      section(
        "Provenance, as its owner states it",
        h("p", {}, model.provenance || "The owner states nothing."),
      ),
    ],
  };
}

export function job([id]) {
  return {
    title: `Job ${id.slice(0, 8)}`,
    live: (event) => event.kind === "job" && event.data.job === id,
    load: () => get(`/v1/inference/jobs/${encodeURIComponent(id)}`),
    heading: () => "Job of encrypted inference",
    view: (found) => [
      section(
        "Where it stands",
        facts([
          ["Id", hash(found.id, null, "job id")],
          ["Status", badge(found.status)],
          ["Model", hash(found.model, "inference", "model id")],
          ["Asked by", account(found.requester)],
          ["Asked in block", blockLink(found.height)],
          ["Fee", `${count(found.fee)}, in escrow ${count(found.escrow)}`],
          ["Committed", `${count(found.committed_stake)} of ${count(found.total_stake)} stake`],
          ["Commitments until", time(found.commit_until)],
          ["Deadline", time(found.deadline)],
          ["Request", [bytes(found.request.length), " ", hash(found.request.root, null, "blob root")]],
          [
            "Result",
            found.result
              ? [bytes(found.result.length), " ", hash(found.result.root, null, "blob root")]
              : "none yet",
          ],
        ]),
      ),
      section(
        "Evaluations",
        table({
          caption: "Who committed to a result, and what it was",
          empty: "No organisation has committed to a result yet.",
          columns: [
            { title: "Organisation", cell: (item) => item.organisation },
            { title: "Evaluator", cell: (item) => account(item.evaluator) },
            {
              title: "Result",
              cell: (item) =>
                item.result ? hash(item.result, null, "result") : h("span", { class: "muted" }, "not shown"),
            },
            {
              title: "Judgement",
              cell: (item) => {
                if (!found.result) return badge("open");
                if (!item.result) return badge("silent", "warn");
                return item.result === found.result.root ? badge("agrees", "good") : badge("differs", "bad");
              },
            },
          ],
          rows: found.evaluations,
        }),
      ),
      found.receipt
        ? section(
            "Receipt",
            facts([
              ["Confirmed in block", blockLink(found.receipt.height)],
              ["Settled", time(found.receipt.time)],
              ["Paid", list(found.receipt.evaluators.map(account))],
              ["Caught", found.receipt.caught.length ? list(found.receipt.caught.map(account)) : "nobody"],
              ["Silent", found.receipt.silent.length ? list(found.receipt.silent.map(account)) : "nobody"],
            ]),
          )
        : null,
    ],
  };
}

// --- federations ------------------------------------------------------------------------------

const SHOWN_ROUNDS = 20;
const UNIT = 1e-6;

export function federations(_, query) {
  return {
    title: "Federations",
    live: ["federation"],
    load: () => getPage("/v1/federations", query),
    view: (page) => [
      h(
        "p",
        { class: "lead" },
        "Hospitals that train a network together: updates are encrypted, only their noised sum is opened.",
      ),
      table({
        caption: "Federations, oldest first",
        empty: "There is no federation on this chain yet.",
        key: (item) => item.id,
        columns: [
          {
            title: "Federation",
            cell: (item) => h("a", { href: `#/federations/${item.id}`, title: item.id }, show(item.title)),
          },
          { title: "Status", cell: (item) => badge(item.status) },
          {
            title: "Round",
            cell: (item) => progress(item.round, item.rounds, `Rounds of ${show(item.title)}`),
          },
          { title: "Phase", cell: (item) => item.phase },
          { title: "Accepted", number: true, cell: (item) => count(item.accepted) },
          { title: "Participants", number: true, cell: (item) => count(item.participants) },
          { title: "Deadline", cell: (item) => time(item.deadline) },
        ],
        rows: page.items,
      }),
      pager("federations", query.get("cursor"), page.next),
    ],
  };
}

export function federation([id]) {
  const base = `/v1/federations/${encodeURIComponent(id)}`;
  return {
    title: `Federation ${id.slice(0, 8)}`,
    live: (event) => event.kind === "federation" && event.data.federation === id,
    async load() {
      const found = await get(base);
      const first = Math.max(0, found.round - SHOWN_ROUNDS + 1);
      const numbers = Array.from({ length: found.round - first }, (_, place) => first + place);
      const ended = await Promise.all(numbers.map((number) => get(`${base}/rounds/${number}`)));
      return { found, rounds: [...ended, found.current].reverse() };
    },
    heading: ({ found }) => show(found.title),
    view: ({ found, rounds }) => [
      section(
        "Where it stands",
        facts([
          ["Id", hash(found.id, null, "federation id")],
          ["Status", badge(found.status)],
          ["Custody", account(found.custody)],
          ["Round", progress(found.round, found.rounds, "Rounds")],
          ["Accepted", count(found.accepted)],
          ["Sums opened", progress(found.openings, found.max_openings, "Sums opened of the budget")],
          ["Milestones", progress(found.next_rung, found.ladder.length, "Milestones met")],
          ["Parameters", count(found.parameters)],
          ["An update", bytes(found.update_bytes)],
          ["Escrow", count(found.escrow)],
          ["Deadline", time(found.deadline)],
        ]),
        h("p", {}, found.statement),
      ),
      section("Participants", buildMembers(found)),
      section(
        "Rounds",
        rounds.map((round) => buildRound(round, found)),
      ),
      section("Terms", fold("Every term", describe(pickTerms(found)))),
    ],
  };
}

function pickTerms(found) {
  const names = [
    "min_participants",
    "train_ms",
    "open_ms",
    "judge_ms",
    "clip",
    "noise_std",
    "slack",
    "ladder",
    "network",
    "initial_model",
    "model",
    "keys",
  ];
  return Object.fromEntries(names.map((name) => [name, found[name]]));
}

function buildMembers(found) {
  return table({
    caption: "Participants",
    empty: "There are no participants.",
    columns: [
      { title: "Participant", cell: (member) => account(member.address) },
      { title: "Weight", number: true, cell: (member) => count(member.weight) },
      {
        title: "Standing",
        cell: (member) => {
          if (found.suspects.includes(member.address)) return badge("left out", "bad");
          return found.probation.includes(member.address)
            ? badge("on probation", "warn")
            : badge("takes part", "good");
        },
      },
    ],
    rows: found.members,
  });
}

function buildRound(round, found) {
  const judgements = table({
    caption: `Judgements of round ${round.number}`,
    empty: "No validator has judged this round.",
    columns: [
      { title: "Validator", cell: (item) => account(item.validator) },
      { title: "Loss before", number: true, cell: (item) => loss(item.before * UNIT) },
      { title: "Loss after", number: true, cell: (item) => loss(item.after * UNIT) },
    ],
    rows: round.judgements,
  });
  return h(
    "div",
    { class: "sub", "data-key": round.number },
    h("h3", {}, `Round ${count(round.number)} `, badge(round.outcome ?? round.phase)),
    facts([
      ["Began", time(round.started)],
      [
        "Updates",
        progress(round.submissions.length, found.members.length, `Updates of round ${round.number}`),
      ],
      ["Listed", round.listed.length ? plural(round.listed.length, "update") : "not fixed yet"],
      ["Sums confirmed", `by ${plural(round.sums.length, "validator")}`],
      ["Opened", round.opened ? time(round.opened_time) : "not yet"],
      ["Left out on trial", round.left_out ? account(round.left_out) : "nobody"],
      round.ended_height ? ["Ended", ["block ", blockLink(round.ended_height)]] : null,
    ]),
    judgements,
  );
}
