// Pages of the chain: overview, blocks, a block, a transaction, search.

import { collect, get, getPage } from "./api.js";
import { h } from "./dom.js";
import {
  absolute,
  account,
  badge,
  blockLink,
  bytes,
  count,
  facts,
  hash,
  list,
  loss,
  pager,
  plural,
  progress,
  seconds,
  section,
  table,
  taskLink,
  time,
} from "./format.js";
import { describe, nameKind, summarise, title as show } from "./payload.js";

const LATEST = 12;

// --- overview ---------------------------------------------------------------------------------

export function overview() {
  return {
    title: "Overview",
    live: ["head", "block", "finalized", "task", "opening", "milestone"],
    async load() {
      const [status, blocks, tasks] = await Promise.all([
        get("/v1/status"),
        get("/v1/blocks?limit=30"),
        collect("/v1/tasks"),
      ]);
      return { status, blocks: blocks.items, tasks: tasks.reverse().slice(0, 8) };
    },
    view: ({ status, blocks, tasks }) => [
      h("div", { class: "cards" }, buildCards(status, blocks)),
      section("Tasks", buildTasks(tasks, "newest first")),
      section(
        "Latest blocks",
        buildBlocks(blocks.slice(0, LATEST)),
        h("p", {}, h("a", { href: "#/blocks" }, "All blocks")),
      ),
    ],
  };
}

function card(name, value, note) {
  return h(
    "div",
    { class: "card" },
    h("h2", {}, name),
    h("p", { class: "value" }, value),
    h("p", { class: "muted" }, note),
  );
}

function buildCards(status, blocks) {
  const { head, finalized, sync } = status;
  const behind = sync.target - head.height;
  const made = blocks.filter((block) => block.height > 0);
  const rate = made.length > 1 ? (made[0].time - made.at(-1).time) / (made.length - 1) / 1000 : null;
  return [
    card("Head", h("span", { id: "card-head" }, blockLink(head.height)), [
      time(head.time),
      " ",
      hash(head.hash, "blocks"),
    ]),
    card(
      "Final",
      h("span", { id: "card-final" }, blockLink(finalized.height)),
      `${plural(head.height - finalized.height, "block")} below the head`,
    ),
    card(
      "Behind peers",
      plural(Math.max(0, behind), "block"),
      behind > 0 ? `synchronising: ${sync.phase}` : "up to date",
    ),
    card(
      "A block every",
      rate === null ? "–" : seconds(rate),
      made.length > 1 ? `over the last ${count(made.length)} blocks` : "not enough blocks yet",
    ),
    card("Mempool", h("a", { href: "#/mempool" }, count(status.mempool)), "transactions wait for a block"),
    card("Peers", h("a", { href: "#/peers" }, count(status.peers)), "linked now"),
    card("Chain", show(status.network), hash(status.chain_id, null, "chain id")),
    card("This node", show(status.name), [
      status.roles.join(", ") || "observer",
      `, version ${status.version}`,
    ]),
  ];
}

export function buildTasks(tasks, order) {
  return table({
    caption: `Tasks, ${order}`,
    empty: "No task has been published on this chain yet.",
    key: (task) => task.id,
    columns: [
      { title: "Task", cell: (task) => taskLink(task.id, show(task.title)) },
      { title: "Status", cell: (task) => badge(task.status) },
      {
        title: "Milestones",
        cell: (task) => progress(task.rungs_taken, task.rungs, `Milestones of ${show(task.title)}`),
      },
      { title: "Step", number: true, cell: (task) => count(task.step) },
      { title: "Loss", number: true, cell: (task) => loss(task.last_loss_value) },
      { title: "Next target", number: true, cell: (task) => loss(task.next_target_value) },
    ],
    rows: tasks,
  });
}

function buildBlocks(blocks) {
  return table({
    caption: "Blocks, newest first",
    empty: "There are no blocks here.",
    key: (block) => block.hash,
    columns: [
      { title: "Height", cell: (block) => blockLink(block.height) },
      { title: "Time", cell: (block) => time(block.time) },
      { minor: true, title: "Hash", cell: (block) => hash(block.hash, "blocks") },
      { title: "Proposer", cell: (block) => (block.height ? account(block.proposer) : "genesis") },
      { title: "Work", cell: nameWork },
      { title: "Transactions", number: true, cell: (block) => count(block.transactions) },
      { minor: true, title: "Votes", number: true, cell: (block) => count(block.votes) },
      { minor: true, title: "Size", number: true, cell: (block) => bytes(block.size) },
    ],
    rows: blocks,
  });
}

function nameWork({ work, height }) {
  if (work) {
    const rungs =
      work.first_rung === work.last_rung ? `${work.first_rung}` : `${work.first_rung}–${work.last_rung}`;
    return h("a", { href: `#/tasks/${work.task}`, class: "badge good" }, `work: rung ${rungs}`);
  }
  return h("span", { class: "muted" }, height ? "carrier" : "genesis");
}

// --- blocks -----------------------------------------------------------------------------------

export function blocks(_, query) {
  return {
    title: "Blocks",
    live: query.get("cursor") ? [] : ["head", "reorg"],
    load: () => getPage("/v1/blocks", query),
    view: (page) => [
      buildBlocks(page.items),
      pager("blocks", query.get("cursor"), page.next, ["Newest blocks", "Older blocks"]),
    ],
  };
}

export function block([name]) {
  return {
    title: `Block ${name.length > 18 ? name.slice(0, 8) : name}`,
    live: ["finalized", "reorg"],
    async load() {
      const [found, status] = await Promise.all([
        get(`/v1/blocks/${encodeURIComponent(name)}`),
        get("/v1/status"),
      ]);
      return { found, status };
    },
    heading: ({ found }) => `Block ${count(found.header.height)}`,
    view({ found, status }) {
      const { header, work, votes, transactions } = found;
      const isFinal = header.height <= status.finalized.height;
      return [
        h(
          "p",
          { class: "pager" },
          header.height
            ? h("a", { href: `#/blocks/${header.height - 1}`, rel: "prev" }, "Block before")
            : null,
          header.height < status.head.height
            ? h("a", { href: `#/blocks/${header.height + 1}`, rel: "next" }, "Block after")
            : null,
        ),
        section(
          "Header",
          facts([
            ["Hash", hash(found.hash, null, "block hash")],
            ["State", isFinal ? badge("final", "good") : badge("not final yet", "warn")],
            ["Time", [time(header.time), " ", h("span", { class: "muted" }, absolute(header.time))]],
            ["Proposer", header.height ? account(header.proposer) : "genesis: nobody"],
            ["Parent", header.height ? hash(header.parent, "blocks") : "none"],
            ["Size", bytes(found.size)],
            ["Protocol version", count(header.version)],
            ["State root", hash(header.state_root, null, "state root")],
          ]),
        ),
        work === null
          ? null
          : section(
              "Work",
              h("p", {}, "This block took a milestone of a task by a model that meets its target."),
              facts([
                ["Task", hash(work.task, "tasks", "task id")],
                [
                  "Rungs",
                  work.first_rung === work.last_rung
                    ? count(work.first_rung)
                    : `${work.first_rung} to ${work.last_rung}`,
                ],
                ["Step", count(work.step)],
                ["Loss, opened units", count(work.loss)],
                ["Loss opening", hash(work.loss_opening, null, "opening")],
                ["Weights", plural(work.weights.length, "number")],
                [
                  "Credits",
                  list(
                    work.credits.map((credit) => [
                      account(credit.miner),
                      ` ${plural(credit.batches, "batch", "batches")}`,
                    ]),
                  ),
                ],
              ]),
            ),
        section("Transactions", buildTransactions(transactions, "This block carries no transactions.")),
        section(
          "Votes",
          table({
            caption: "Finality votes that this block carries",
            empty: "This block carries no votes.",
            columns: [
              { title: "Validator", cell: (vote) => account(vote.validator) },
              { title: "From", number: true, cell: (vote) => blockLink(vote.source.height) },
              { title: "For", number: true, cell: (vote) => blockLink(vote.target.height) },
            ],
            rows: votes,
          }),
        ),
      ];
    },
  };
}

export function buildTransactions(transactions, empty) {
  return table({
    caption: "Transactions",
    empty,
    key: (item) => item.id,
    columns: [
      {
        title: "Kind",
        cell: (item) => h("span", { class: "strong" }, nameKind(item.payload?.kind ?? item.kind)),
      },
      { title: "What", cell: (item) => (item.payload ? summarise(item.payload) : "") },
      { title: "Sender", cell: (item) => account(item.sender) },
      { minor: true, title: "Nonce", number: true, cell: (item) => count(item.nonce) },
      { title: "Id", cell: (item) => hash(item.id, "transactions", "transaction id") },
    ],
    rows: transactions,
  });
}

export function transaction([id]) {
  return {
    title: `Transaction ${id.slice(0, 8)}`,
    live: ["block", "finalized", "reorg"],
    async load() {
      const [found, status] = await Promise.all([
        get(`/v1/transactions/${encodeURIComponent(id)}`),
        get("/v1/status"),
      ]);
      return { found, status };
    },
    heading: ({ found }) => nameKind(found.transaction.payload.kind),
    view({ found, status }) {
      const { transaction: item, inclusion } = found;
      const isFinal = inclusion !== null && inclusion.height <= status.finalized.height;
      return [
        section(
          "Transaction",
          facts([
            ["Id", hash(item.id, null, "transaction id")],
            [
              "Status",
              [badge(found.status), " ", isFinal ? badge("final", "good") : badge("not final yet", "warn")],
            ],
            inclusion ? ["Block", [blockLink(inclusion.height), `, place ${count(inclusion.index)}`]] : null,
            ["Sender", account(item.sender)],
            ["Nonce", count(item.nonce)],
            ["Kind", h("code", {}, item.payload.kind)],
          ]),
        ),
        section("Payload", describe(item.payload)),
      ];
    },
  };
}

export function mempool(_, query) {
  return {
    title: "Mempool",
    live: ["block"],
    load: () => getPage("/v1/mempool", query),
    view: (page) => [
      buildTransactions(page.items, "No transaction waits."),
      pager("mempool", query.get("cursor"), page.next),
    ],
  };
}

// --- search -----------------------------------------------------------------------------------

const PLACES = {
  block: "blocks",
  transaction: "transactions",
  task: "tasks",
  model: "inference",
  job: "inference/jobs",
  federation: "federations",
  ceremony: "committees",
  account: "accounts",
  draft: null,
};

export const getPlace = (item) => (PLACES[item.kind] ? `#/${PLACES[item.kind]}/${item.id}` : null);

export function search(_, query) {
  const text = (query.get("q") ?? "").trim().toLowerCase().replace(/^0x/, "").replaceAll(/[ ,]/g, "");
  const isSearchable = /^([0-9a-f]{64}|0|[1-9][0-9]{0,15})$/.test(text);
  return {
    title: "Search",
    live: [],
    async load() {
      const found = isSearchable ? await get(`/v1/search?q=${text}`) : { items: [] };
      if (found.items.length === 1 && getPlace(found.items[0])) location.replace(getPlace(found.items[0]));
      return found;
    },
    view: ({ items }) => [
      h("p", { class: "lead" }, ["For ", h("code", { class: "long" }, text || "nothing")]),
      items.length
        ? list(
            items.map((item) => [
              badge(item.kind),
              " ",
              getPlace(item) ? h("a", { href: getPlace(item) }, show(item.label)) : show(item.label),
            ]),
          )
        : h(
            "p",
            { class: "empty" },
            isSearchable
              ? "Nothing of this name is on the chain or waits, as far as this node knows."
              : "Give a block's height, or the 64 hexadecimal digits of a hash, an address or an id.",
          ),
    ],
  };
}
