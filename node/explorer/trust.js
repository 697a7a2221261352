// Pages of whom the chain rests on: validators with their votes and verdicts, governance, peers.

import { collect, get, orElse } from "./api.js";
import { h } from "./dom.js";
import {
  account,
  badge,
  blockLink,
  bytes,
  count,
  facts,
  hash,
  list,
  plural,
  section,
  table,
  taskLink,
  time,
} from "./format.js";
import { title as show } from "./payload.js";
import { buildVerdicts } from "./tasks.js";

const TASKS_WITH_VERDICTS = 5;

export function validators() {
  return {
    rest: 2500,
    title: "Validators",
    live: ["finalized", "head", "verdict"],
    async load() {
      const [set, finality, votes, governance, tasks] = await Promise.all([
        get("/v1/validators"),
        get("/v1/finality"),
        get("/v1/votes"),
        get("/v1/governance"),
        collect("/v1/tasks"),
      ]);
      const judged = tasks
        .filter((task) => task.rungs_taken)
        .slice(-TASKS_WITH_VERDICTS)
        .reverse();
      const milestones = await Promise.all(
        judged.map((task) => orElse(get(`/v1/tasks/${task.id}/milestones`), null)),
      );
      return { set, finality, votes, governance, judged, milestones };
    },
    view: ({ set, finality, votes, governance, judged, milestones }) => [
      section("Finality", buildFinality(finality, set)),
      section(`Validator set ${count(set.number)}`, buildSet(set, votes, finality)),
      section("Verdicts on milestones", buildJudged(judged, milestones)),
      section("Governance", buildGovernance(governance)),
    ],
  };
}

function buildFinality(finality, set) {
  const names = new Map(
    set.items.map((item) => [item.address, item.organisation || item.address.slice(0, 8)]),
  );
  return [
    facts([
      ["Final", [blockLink(finality.finalized.height), " ", hash(finality.finalized.hash, "blocks")]],
      ["Justified", [blockLink(finality.justified.height), " ", hash(finality.justified.hash, "blocks")]],
      ["Last content", ["block ", blockLink(finality.content)]],
      [
        "Waiting",
        finality.wanted ? badge("content waits to be final", "warn") : badge("nothing waits", "good"),
      ],
    ]),
    table({
      caption: "Blocks above the final one, and the votes for them",
      empty: "No block above the final one has votes yet.",
      columns: [
        { title: "Block", number: true, cell: (item) => blockLink(item.height) },
        { title: "State", cell: (item) => (item.justified ? badge("justified", "good") : badge("open")) },
        {
          title: "Stake",
          number: true,
          cell: (item) => `${count(item.stake)} of ${count(finality.total_stake)}`,
        },
        {
          title: "Voters",
          cell: (item) =>
            item.voters.map((voter) => names.get(voter) ?? voter.slice(0, 8)).join(", ") || "none",
        },
      ],
      rows: [...finality.checkpoints].reverse(),
    }),
  ];
}

function buildSet(set, votes, finality) {
  const last = new Map(votes.items.map((item) => [item.validator, item]));
  return [
    table({
      caption: "Validators",
      empty: "The set is empty.",
      key: (item) => item.address,
      columns: [
        { title: "Organisation", cell: (item) => item.organisation || "–" },
        { title: "Address", cell: (item) => account(item.address) },
        { title: "Stake", number: true, cell: (item) => count(item.stake) },
        {
          title: "Part",
          number: true,
          cell: (item) => `${set.total_stake ? ((100 * item.stake) / set.total_stake).toFixed(1) : "0"} %`,
        },
        {
          title: "Last vote",
          cell: (item) => {
            const vote = last.get(item.address);
            if (!vote) return h("span", { class: "muted" }, `none in ${plural(votes.searched, "block")}`);
            return ["for block ", blockLink(vote.target.height), ", ", time(vote.time)];
          },
        },
        {
          title: "State",
          cell: (item) => {
            if (item.jailed) return badge("jailed", "bad");
            const vote = last.get(item.address);
            if (!vote) return badge("silent", "warn");
            return vote.target.height >= finality.finalized.height
              ? badge("voting", "good")
              : badge("behind", "warn");
          },
        },
      ],
      rows: set.items,
    }),
    set.pending
      ? h(
          "p",
          {},
          "A new set takes over when block ",
          blockLink(set.pending.height),
          ` is final: ${plural(set.pending.validators.length, "validator")}.`,
        )
      : null,
  ];
}

function buildJudged(judged, milestones) {
  const parts = judged.flatMap((task, place) => {
    const found = milestones[place];
    if (found === null || !found.items.length) return [];
    return [
      h("h3", {}, taskLink(task.id, show(task.title))),
      [...found.items]
        .reverse()
        .slice(0, 3)
        .map((item) => h("div", { class: "nest" }, lower(buildVerdicts(item, found.total_stake)))),
    ];
  });
  return parts.length
    ? parts
    : h("p", { class: "empty" }, "No milestone has been taken yet, so there is nothing to judge.");
}

/** The same under a heading one level lower. */
function lower(element) {
  for (const heading of element.querySelectorAll("h3"))
    heading.replaceWith(h("h4", {}, [...heading.childNodes]));
  return element;
}

function buildGovernance(governance) {
  const { protocol } = governance;
  return facts([
    ["Changes so far", count(governance.sequence)],
    ["Treasury", count(governance.treasury)],
    ["May mine", governance.mining_organisations.join(", ") || "nobody"],
    [
      "Suspended",
      governance.suspended.length ? governance.suspended.map((name) => badge(name, "bad")) : "nobody",
    ],
    ["Jailed", governance.jailed.length ? list(governance.jailed.map(account)) : "nobody"],
    ["Locked", governance.locks.length ? plural(governance.locks.length, "sum") : "nothing"],
    protocol
      ? [
          "Protocol",
          [
            `version ${protocol.version}`,
            protocol.supported ? null : [" ", badge("replace this node's software", "bad")],
          ],
        ]
      : null,
  ]);
}

// --- peers ------------------------------------------------------------------------------------

export function peers() {
  return {
    title: "Peers",
    live: ["head"],
    load: async () => ({ peers: (await get("/v1/peers")).items, status: await get("/v1/status") }),
    view: ({ peers: items, status }) => [
      h(
        "p",
        { class: "lead" },
        `${count(items.filter((peer) => peer.connected).length)} of ${plural(items.length, "peer")} linked. This node listens for peers at `,
        h("code", {}, status.peer_address),
        ".",
      ),
      table({
        caption: "Peers",
        empty: "This node knows no peers.",
        key: (peer) => peer.address,
        columns: [
          {
            title: "Node",
            cell: (peer) => [
              h("span", { class: "strong" }, peer.organisation || "–"),
              " ",
              h("code", { class: "long" }, peer.address),
            ],
          },
          {
            title: "Link",
            cell: (peer) => (peer.connected ? badge("linked", "good") : badge("away", "warn")),
          },
          {
            title: "Height",
            number: true,
            cell: (peer) => (peer.height === null ? "–" : blockLink(peer.height)),
          },
          {
            title: "Answers in",
            number: true,
            cell: (peer) => (peer.latency_ms === null ? "–" : `${peer.latency_ms.toFixed(1)} ms`),
          },
          { title: "Received", number: true, cell: (peer) => bytes(sum(peer.received_bytes)) },
          { title: "Sent", number: true, cell: (peer) => bytes(sum(peer.sent_bytes)) },
        ],
        rows: items,
      }),
      section("Traffic by kind", buildTraffic(items)),
    ],
  };
}

const sum = (counts) => Object.values(counts).reduce((total, value) => total + value, 0);

function buildTraffic(items) {
  const kinds = new Map();
  for (const peer of items) {
    for (const [side, counts] of [
      [0, peer.received_bytes],
      [1, peer.sent_bytes],
    ]) {
      for (const [kind, value] of Object.entries(counts)) {
        const found = kinds.get(kind) ?? [0, 0];
        found[side] += value;
        kinds.set(kind, found);
      }
    }
  }
  const rows = [...kinds].sort((one, other) => other[1][0] + other[1][1] - one[1][0] - one[1][1]);
  return table({
    caption: "Bytes by kind of message, of all peers",
    empty: "Nothing has been sent or received yet.",
    key: ([kind]) => kind,
    columns: [
      { title: "Kind", cell: ([kind]) => h("code", {}, kind) },
      { title: "Received", number: true, cell: ([, [received]]) => bytes(received) },
      { title: "Sent", number: true, cell: ([, [, sent]]) => bytes(sent) },
    ],
    rows,
  });
}
