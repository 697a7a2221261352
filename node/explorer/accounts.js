// Pages of accounts: those known by their part, and one of them with its proof.

import { collect, get } from "./api.js";
import { h } from "./dom.js";
import {
  account,
  badge,
  blockLink,
  count,
  facts,
  fold,
  hash,
  plural,
  section,
  table,
  time,
} from "./format.js";
import { describe } from "./payload.js";

const MOST_ACCOUNTS = 60;

export function accounts() {
  return {
    title: "Accounts",
    live: ["finalized"],
    async load() {
      const [status, validators, tasks] = await Promise.all([
        get("/v1/status"),
        get("/v1/validators"),
        collect("/v1/tasks"),
      ]);
      const stakes = new Map(validators.items.map((item) => [item.address, item.stake]));
      const custodies = new Set(tasks.map((task) => task.custody));
      const addresses = [...new Set([status.address, ...stakes.keys(), ...custodies])].slice(
        0,
        MOST_ACCOUNTS,
      );
      const items = await Promise.all(addresses.map((address) => get(`/v1/accounts/${address}`)));
      return { status, stakes, custodies, items };
    },
    view: ({ status, stakes, custodies, items }) => [
      h(
        "p",
        { class: "lead" },
        "Validators, custodies of tasks, and this node. Search for any other address.",
      ),
      table({
        caption: "Accounts known by their part",
        empty: "No account is known.",
        key: (item) => item.address,
        columns: [
          { title: "Address", cell: (item) => account(item.address) },
          { title: "Organisation", cell: (item) => item.organisation || "–" },
          {
            title: "Part",
            cell: (item) =>
              [
                stakes.has(item.address) && "validator",
                custodies.has(item.address) && "custody",
                item.mines && "may mine",
                item.address === status.address && "this node",
              ]
                .filter(Boolean)
                .join(", ") || "–",
          },
          { title: "Balance", number: true, cell: (item) => count(item.balance) },
          {
            title: "Stake",
            number: true,
            cell: (item) => (stakes.has(item.address) ? count(stakes.get(item.address)) : "–"),
          },
          { minor: true, title: "Nonce", number: true, cell: (item) => count(item.nonce) },
        ],
        rows: items,
      }),
    ],
  };
}

export function accountPage([address]) {
  return {
    title: `Account ${address.slice(0, 8)}`,
    live: ["block"],
    async load() {
      const [found, validators, governance] = await Promise.all([
        get(`/v1/accounts/${encodeURIComponent(address)}`),
        get("/v1/validators"),
        get("/v1/governance"),
      ]);
      const stake = validators.items.find((item) => item.address === found.address);
      const locks = governance.locks.filter((lock) => lock.owner === found.address);
      return { found, stake, locks };
    },
    heading: ({ found }) => (found.organisation ? `Account of ${found.organisation}` : "Account"),
    view: ({ found, stake, locks }) => [
      section(
        "State",
        facts([
          ["Address", hash(found.address, null, "address")],
          ["Organisation", found.organisation || "none"],
          ["Balance", count(found.balance)],
          ["Nonce", count(found.nonce)],
          ["May mine", found.mines ? "yes" : "no"],
          [
            "Stake",
            stake
              ? [count(stake.stake), stake.jailed ? [" ", badge("jailed", "bad")] : null]
              : "not a validator",
          ],
          ["Read at block", [blockLink(found.height), " ", hash(found.block, "blocks")]],
        ]),
      ),
      locks.length
        ? section(
            "Locked",
            table({
              caption: "Money within reach of evidence",
              empty: "",
              columns: [
                { title: "Amount", number: true, cell: (lock) => count(lock.amount) },
                { title: "Released", cell: (lock) => time(lock.release) },
                {
                  title: "Task",
                  cell: (lock) => (lock.task ? hash(lock.task, "tasks", "task id") : "stake"),
                },
              ],
              rows: locks,
            }),
          )
        : null,
      section(
        "Proof",
        h(
          "p",
          {},
          `${plural(found.proof.steps.length, "step")} of a Merkle proof under the state root lead to this account; a client checks them with `,
          h("code", {}, "bmif light account"),
          " and need not trust this node.",
        ),
        fold("The proof", describe(found.proof)),
      ),
    ],
  };
}
