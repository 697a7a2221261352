// Pages of tasks: the list, and everything about one of them.

import { get, getPage, orElse, readGrowing } from "./api.js";
import { buildTasks } from "./chain.js";
import { drawLosses, isReached } from "./chart.js";
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
  picture,
  plural,
  progress,
  section,
  table,
  time,
} from "./format.js";
import { describe, title as show } from "./payload.js";

const SHOWN_STEPS = 50;

export function tasks(_, query) {
  return {
    title: "Tasks",
    live: ["task", "opening", "milestone"],
    load: () => getPage("/v1/tasks", query),
    view: (page) => [
      h(
        "p",
        { class: "lead" },
        "Each task is a network trained on encrypted image pairs, step by step, towards a ladder of losses. In order of publication.",
      ),
      buildTasks(page.items, "in order of publication"),
      pager("tasks", query.get("cursor"), page.next),
    ],
  };
}

export function task([id]) {
  const base = `/v1/tasks/${encodeURIComponent(id)}`;
  const readSteps = readGrowing(`${base}/steps`);
  const readOpenings = readGrowing(`${base}/openings`);
  const readConfirmations = readGrowing(`${base}/confirmations`);
  return {
    rest: 2500,
    title: `Task ${id.slice(0, 8)}`,
    live: (event) =>
      event.kind === "finalized" ||
      event.kind === "reorg" ||
      (event.data.task === id && event.kind !== "step"),
    async load() {
      const [found, status] = await Promise.all([get(base), get("/v1/status")]);
      const final = status.finalized.height;
      const [milestones, contributions, validators, draft, steps, openings, confirmations, model] =
        await Promise.all([
          get(`${base}/milestones`),
          get(`${base}/contributions`),
          get("/v1/validators"),
          orElse(get(`/v1/drafts/${found.draft}`), null),
          // A node that begins above the task holds no history of it: the page then says so.
          orElse(readSteps(final), null),
          orElse(readOpenings(final), null),
          orElse(readConfirmations(final), null),
          found.rungs_settled ? orElse(get(`/v1/models/${id}`), null) : null,
        ]);
      return { found, milestones, contributions, validators, draft, steps, openings, confirmations, model };
    },
    heading: ({ found }) => show(found.title),
    view: (data, width) => [
      section("Where it stands", buildFacts(data)),
      section("Loss against targets", buildCurve(data, width)),
      section("Milestones and verdicts", buildMilestones(data)),
      section("Model", buildModel(data)),
      section("Privacy", buildPrivacy(data)),
      section("Contributions", buildContributions(data)),
      section("Steps, who mined and who confirmed them", buildSteps(data)),
      section("Openings", buildOpenings(data)),
      section("Custody and terms", buildTerms(data)),
    ],
  };
}

/** Of a committee: how many open together; the account is that of its lead. */
function nameCommittee(committee) {
  if (!committee) return "";
  const name = `${committee.threshold} of ${committee.members.length} members`;
  return [h("a", { href: `#/committees/${committee.ceremony}` }, name), ", led by "];
}

function buildFacts({ found }) {
  return facts([
    ["Task id", hash(found.id, null, "task id")],
    ["Status", badge(found.status)],
    ["Milestones", progress(found.rungs_taken, found.rungs, "Milestones taken")],
    ["Settled", `${count(found.rungs_settled)} of ${count(found.rungs)}`],
    ["Step", count(found.step)],
    ["Last loss", loss(found.last_loss_value)],
    ["Next target", found.next_target_value === null ? "none: all met" : loss(found.next_target_value)],
    ["Published", ["block ", blockLink(found.published_height)]],
    ["Deadline", time(found.deadline)],
    [
      "Custody",
      [nameCommittee(found.committee), found.custody_organisation || "", " ", account(found.custody)],
    ],
    ["Escrow", `${count(found.escrow)}, bond ${count(found.bond)}`],
    ["Fee of a batch", count(found.batch_fee)],
  ]);
}

// --- curve ------------------------------------------------------------------------------------

function buildCurve({ found, openings, milestones }, width) {
  if (openings === null)
    return h(
      "p",
      { class: "empty" },
      "This node does not hold the blocks of this task's openings; ask one that was there.",
    );
  const losses = openings
    .filter((item) => item.kind === "loss")
    .map((item) => ({
      step: item.step,
      value: item.loss_value,
      height: item.height,
      recomputed: item.recomputed,
    }));
  if (!losses.length)
    return h("p", { class: "empty" }, "No loss has been opened yet: the curve begins with the first one.");
  const reached = found.ladder.filter(isReached).length;
  const summary =
    `From ${loss(losses[0].value)} at step ${losses[0].step} to ${loss(losses.at(-1).value)} at step ` +
    `${losses.at(-1).step}; ${reached} of ${plural(found.ladder.length, "rung")} reached.`;
  const taken = new Set(milestones.items.filter((item) => item.state !== "void").map((item) => item.step));
  return [
    h("p", {}, summary),
    h(
      "ul",
      { class: "legend", "aria-hidden": "true" },
      h("li", { class: "curve" }, "validation loss"),
      h("li", { class: "milestone" }, "milestone taken"),
      h("li", { class: "reached" }, "target reached"),
      h("li", { class: "ahead" }, "target ahead"),
      found.ladder.some((rung) => rung.state === "void") && h("li", { class: "void" }, "target void"),
    ),
    h(
      "div",
      { class: "figure" },
      drawLosses({ losses, ladder: found.ladder, milestones: taken, width, summary }),
    ),
    fold(
      "The same as a table",
      table({
        caption: "Validation losses",
        empty: "",
        columns: [
          { title: "Step", number: true, cell: (item) => count(item.step) },
          { title: "Loss", number: true, cell: (item) => loss(item.value) },
          { title: "Block", number: true, cell: (item) => blockLink(item.height) },
          { title: "Recomputed here", cell: (item) => nameRecomputed(item.recomputed) },
        ],
        rows: losses,
      }),
    ),
  ];
}

function nameRecomputed(recomputed) {
  if (recomputed === null) return h("span", { class: "muted" }, "not by this node");
  return recomputed ? badge("same ciphertext", "good") : badge("another ciphertext", "bad");
}

// --- milestones -------------------------------------------------------------------------------

function buildMilestones({ found, milestones }) {
  const ladder = table({
    caption: "The ladder of targets",
    empty: "This task has no ladder.",
    columns: [
      { title: "Rung", number: true, cell: (rung) => count(rung.rung) },
      { title: "Target", number: true, cell: (rung) => loss(rung.target_value) },
      { title: "Reward", number: true, cell: (rung) => count(rung.reward) },
      { title: "State", cell: (rung) => badge(rung.state) },
      { title: "Loss", number: true, cell: (rung) => loss(rung.loss_value) },
      { title: "Step", number: true, cell: (rung) => (rung.step === null ? "–" : count(rung.step)) },
      { title: "Block", number: true, cell: (rung) => (rung.height === null ? "–" : blockLink(rung.height)) },
      { title: "Taken by", cell: (rung) => (rung.proposer ? account(rung.proposer) : "–") },
    ],
    rows: found.ladder,
  });
  return [ladder, milestones.items.map((item) => buildVerdicts(item, milestones.total_stake))];
}

export function nameRungs(item) {
  return item.first_rung === item.last_rung
    ? `Rung ${item.first_rung}`
    : `Rungs ${item.first_rung} to ${item.last_rung}`;
}

export function buildVerdicts(item, total) {
  return h(
    "div",
    { class: "sub" },
    h("h3", {}, `${nameRungs(item)}, step ${count(item.step)} `, badge(item.state)),
    h(
      "p",
      { class: "muted" },
      `Accepted by ${count(item.accepted_stake)} and rejected by ${count(item.rejected_stake)} of ${count(total)} stake. `,
      item.settles ? ["Silence settles it ", time(item.settles), "."] : null,
    ),
    table({
      caption: `Verdicts on ${nameRungs(item).toLowerCase()}`,
      empty: "No validator has given a verdict: those without private pairs give none.",
      columns: [
        {
          title: "Validator",
          cell: (verdict) => [verdict.organisation || "", " ", account(verdict.validator)],
        },
        {
          title: "Verdict",
          cell: (verdict) => (verdict.accept ? badge("accepts", "good") : badge("rejects", "bad")),
        },
        { title: "Private loss before", number: true, cell: (verdict) => loss(verdict.before_value) },
        { title: "Private loss after", number: true, cell: (verdict) => loss(verdict.after_value) },
        { title: "Block", number: true, cell: (verdict) => blockLink(verdict.height) },
      ],
      rows: item.verdicts,
    }),
  );
}

// --- model, privacy, contributions --------------------------------------------------------------

function buildModel({ found, model }) {
  if (model === null) {
    return h(
      "p",
      { class: "empty" },
      found.rungs_settled
        ? "This node does not hold the block of the settled model."
        : "No milestone is settled yet, so there is no model to show.",
    );
  }
  return [
    h(
      "p",
      {},
      `Settled at step ${count(model.step)} with a validation loss of ${loss(model.loss_value)}; ${plural(model.weights.length, "weight")}.`,
    ),
    picture(
      `/v1/models/${found.id}/preview.png?digest=${model.weights_digest}`,
      {
        alt: "Three synthetic head slices side by side: as in CT, as in MRI, and fused by this model",
        width: 588,
        height: 192,
      },
      h("figcaption", {}, h("span", {}, "CT-like"), h("span", {}, "MR-like"), h("span", {}, "Fused")),
      "This node could not make the model's picture; reload the page to ask again.",
    ),
    h(
      "p",
      { class: "muted" },
      "Made by this node, in clear, of a synthetic phantom that belongs to nobody and is the same for every model.",
    ),
    facts([
      ["Weights digest", hash(model.weights_digest, null, "weights digest")],
      ["Block", [blockLink(model.height), " ", hash(model.block, "blocks")]],
      ["Kind", h("code", {}, model.kind)],
    ]),
  ];
}

/** Three digits of what is small; of what means nothing any more, how large it is. */
const epsilon = (value) => (value < 1000 ? value.toPrecision(3) : count(Math.round(value)));

function buildPrivacy({ found }) {
  const { privacy, gradient_openings: gradients, loss_openings: losses } = found;
  const unit = privacy?.unit ?? "patch";
  return [
    facts([
      [
        "ε spent",
        privacy === null
          ? "not computed by this node"
          : privacy.epsilon === null
            ? "no bound that means anything"
            : [
                h("span", { class: "strong" }, epsilon(privacy.epsilon)),
                ` a ${unit}, at δ = ${privacy.delta.toExponential()}`,
              ],
      ],
      [
        "Gradients opened",
        progress(gradients.spent, gradients.most, "Gradient openings spent of the budget"),
      ],
      ["Losses opened", progress(losses.spent, losses.most, "Loss openings spent of the budget")],
    ]),
    privacy ? h("p", {}, privacy.statement) : null,
    found.privacy_statement && found.privacy_statement !== privacy?.statement
      ? h("p", { class: "muted" }, "The custody's statement: ", found.privacy_statement)
      : null,
  ];
}

function buildContributions({ found, contributions }) {
  return [
    h(
      "p",
      {},
      `${plural(found.training_patches, "training patch", "training patches")}, ${count(found.validation_patches)} for validation; ` +
        `${bytes(contributions.bytes)} of ciphertexts.`,
    ),
    table({
      caption: "Contributions",
      empty: "There are no contributions.",
      columns: [
        { title: "Hospital", cell: (item) => [item.organisation || "", " ", account(item.contributor)] },
        { title: "Patients", number: true, cell: (item) => count(item.patients) },
        { title: "Training", cell: (item) => namePart(item.training) },
        { title: "Validation", cell: (item) => namePart(item.validation) },
        { title: "Bytes", number: true, cell: (item) => bytes(item.training.bytes + item.validation.bytes) },
        { title: "Transaction", cell: (item) => hash(item.id, "transactions", "transaction id") },
      ],
      rows: contributions.items,
    }),
  ];
}

const namePart = (part) =>
  `${plural(part.batches, "batch", "batches")}, ${plural(part.patches, "patch", "patches")}`;

// --- steps and openings -------------------------------------------------------------------------

function buildSteps({ found, steps, confirmations, validators }) {
  if (steps === null || confirmations === null)
    return h("p", { class: "empty" }, "This node does not hold the blocks of this task's steps.");
  const names = new Map(validators.items.map((item) => [item.address, item.organisation]));
  const seen = new Map(confirmations.map((item) => [item.opening, item]));
  const newest = [...steps].reverse();
  return [
    table({
      caption: "Training steps, newest first",
      empty: "No step has been mined yet.",
      key: (step) => step.step,
      columns: [
        { title: "Step", number: true, cell: (step) => count(step.step) },
        { title: "Loss before", number: true, cell: (step) => loss(step.loss_value) },
        { title: "Mined by", cell: (step) => buildMiners(step, found.status) },
        { title: "Block", number: true, cell: (step) => blockLink(step.height) },
        { title: "Time", cell: (step) => time(step.time) },
        {
          title: "Confirmed by",
          cell: (step) => buildVoters(seen.get(step.opening), names, validators.total_stake),
        },
      ],
      rows: newest.slice(0, SHOWN_STEPS),
    }),
    newest.length > SHOWN_STEPS
      ? h(
          "p",
          { class: "muted" },
          `The newest ${SHOWN_STEPS} of ${count(newest.length)} steps; all are at `,
          h("code", {}, `/v1/tasks/${found.id}/steps`),
          ".",
        )
      : null,
    found.credits.length
      ? [
          h("h3", {}, "Batches by miner"),
          table({
            caption: "Batches credited to each miner",
            empty: "",
            columns: [
              { title: "Miner", cell: (item) => [item.organisation || "", " ", account(item.miner)] },
              { title: "Batches", number: true, cell: (item) => count(item.batches) },
            ],
            rows: found.credits,
          }),
        ]
      : null,
  ];
}

function buildMiners(step, status) {
  if (!step.miners.length)
    return h("span", { class: "muted" }, status === "open" ? "being mined" : "not mined");
  return list(
    step.miners.map((item) => [account(item.miner), ` ${plural(item.batches, "batch", "batches")}`]),
  );
}

function buildVoters(confirmation, names, total) {
  if (!confirmation) return h("span", { class: "muted" }, "–");
  const who = confirmation.voters.map((voter) => names.get(voter) || voter.slice(0, 8)).join(", ");
  return [
    confirmation.final ? badge("final", "good") : badge("not final yet", "warn"),
    ` ${count(confirmation.stake)} of ${count(total)} stake`,
    who ? h("span", { class: "muted" }, `: ${who}`) : null,
  ];
}

function buildOpenings({ openings, confirmations }) {
  if (openings === null)
    return h("p", { class: "empty" }, "This node does not hold the blocks of this task's openings.");
  const seen = new Map((confirmations ?? []).map((item) => [item.opening, item]));
  const newest = [...openings].reverse();
  return fold(
    `${plural(openings.length, "opening")}: what the custody opened and signed`,
    table({
      caption: "Openings, newest first",
      empty: "Nothing has been opened yet.",
      key: (item) => item.hash,
      columns: [
        { title: "Kind", cell: (item) => (item.kind === "loss" ? "Loss" : "Gradient") },
        { title: "Step", number: true, cell: (item) => count(item.step) },
        { title: "Value", number: true, cell: (item) => (item.kind === "loss" ? loss(item.loss_value) : "") },
        {
          title: "Recomputed here",
          cell: (item) => (item.kind === "loss" ? nameRecomputed(item.recomputed) : ""),
        },
        { title: "Block", number: true, cell: (item) => blockLink(item.height) },
        {
          title: "Proposer",
          cell: (item) => (seen.has(item.hash) ? account(seen.get(item.hash).proposer) : "–"),
        },
        { title: "Transaction", cell: (item) => hash(item.transaction, "transactions", "transaction id") },
      ],
      rows: newest.slice(0, 2 * SHOWN_STEPS),
    }),
  );
}

function buildTerms({ found, draft }) {
  return [
    facts([
      ["Organisation", found.custody_organisation || "none"],
      ["Address", account(found.custody)],
      ["Draft", hash(found.draft, null, "draft")],
      ["Available", `at validators with ${count(found.available_stake)} stake`],
      ["Batches a step", `${count(found.batches_per_step)} of ${count(found.batches)}`],
      ["Weights now", hash(found.weights, null, "weights digest")],
      draft ? ["Encryption", h("code", {}, draft.draft.preset)] : null,
      draft ? ["Clipping", draft.draft.clipping] : null,
    ]),
    draft ? fold("Every term of the draft", describe({ ...draft.draft, sender: draft.sender })) : null,
  ];
}
