// Pages of committees: who makes the keys of tasks together, how far they are, who has shares of them.

import { get, getPage } from "./api.js";
import { h } from "./dom.js";
import {
  account,
  badge,
  blockLink,
  bytes,
  count,
  facts,
  hash,
  pager,
  progress,
  section,
  table,
  time,
} from "./format.js";
import { title as show } from "./payload.js";

const ROUNDS = 5;

export function committees(_, query) {
  return {
    title: "Committees",
    live: ["head"],
    load: () => getPage("/v1/ceremonies", query),
    view: (page) => [
      h(
        "p",
        { class: "lead" },
        "Hospitals that make a task's keys together: none of them can decrypt alone, enough of them open what the task allows.",
      ),
      table({
        caption: "Ceremonies of keys, oldest first",
        empty: "No committee has made keys on this chain yet.",
        key: (item) => item.id,
        columns: [
          {
            title: "Ceremony",
            cell: (item) => h("a", { href: `#/committees/${item.id}`, title: item.id }, show(item.title)),
          },
          { title: "Status", cell: (item) => badge(item.status) },
          { title: "Opens", cell: (item) => `${item.threshold} of ${item.members.length}` },
          { title: "Rounds", cell: (item) => progress(item.round, ROUNDS, `Rounds of ${show(item.title)}`) },
          { title: "Shares", cell: (item) => nameShares(item) },
          { title: "Begun in block", number: true, cell: (item) => blockLink(item.height) },
        ],
        rows: page.items,
      }),
      pager("committees", query.get("cursor"), page.next),
    ],
  };
}

function nameShares(item) {
  if (item.renewed_by) return badge("renewed");
  if (item.status !== "ready") return h("span", { class: "muted" }, "none");
  return badge("in use", "good");
}

export function committee([id]) {
  return {
    title: `Ceremony ${id.slice(0, 8)}`,
    live: ["head"],
    load: () => get(`/v1/ceremonies/${encodeURIComponent(id)}`),
    heading: (found) => show(found.title),
    view: (found) => [
      section(
        "Where it stands",
        facts([
          ["Id", hash(found.id, null, "ceremony id")],
          ["Status", badge(found.status)],
          ["Opens", `${count(found.threshold)} of ${count(found.members.length)} members together`],
          ["Rounds over", progress(found.round, ROUNDS, "Rounds that are over")],
          found.status === "running" ? ["Now", nameNow(found)] : null,
          ["Begun", ["block ", blockLink(found.height)]],
          ["Until", time(found.deadline)],
          ["Preset", found.preset],
          [
            "Keys",
            found.renews ? ["those of ", hash(found.renews, "committees", "ceremony id")] : "new ones",
          ],
          found.renewed_by ? ["Shares renewed by", hash(found.renewed_by, "committees", "ceremony id")] : null,
          found.ended_by ? ["Given up by", account(found.ended_by)] : null,
        ]),
      ),
      section("Members", buildMembers(found)),
      section("Keys", buildKeys(found)),
    ],
  };
}

function nameNow(found) {
  if (found.round_name === null) return "members confirm the keys";
  return `${found.round_name}: ${found.is_committed ? "members show what they committed to" : "members commit"}`;
}

/** What each has given, by place; the first member has place 0. */
function buildMembers(found) {
  const given = (place) => found.contributions.flatMap((round) => (round.length ? [round[place]] : []));
  return table({
    caption: "Members by place",
    empty: "There are no members.",
    columns: [
      { title: "Place", number: true, cell: (_, place) => count(place) },
      { title: "Member", cell: (member) => account(member) },
      {
        title: "Gave",
        number: true,
        cell: (_, place) => bytes(given(place).reduce((total, blob) => total + blob.length, 0)),
      },
      {
        title: "State",
        cell: (member) => {
          if (found.status !== "running") return badge(found.status);
          return found.waits_for.includes(member) ? badge("waited for", "warn") : badge("done", "good");
        },
      },
    ],
    rows: found.members,
  });
}

function buildKeys(found) {
  const blob = (item) => [bytes(item.length), " ", hash(item.root, null, "blob root")];
  return table({
    caption: "Keys that members have confirmed",
    empty: "Nobody has confirmed the keys yet.",
    columns: [
      { title: "Member", cell: (item) => account(item.member) },
      { title: "Public key", cell: (item) => blob(item.public_key) },
      { title: "Relinearisation keys", cell: (item) => blob(item.relin_keys) },
      { title: "Box key", cell: (item) => hash(item.box_key, null, "box key") },
    ],
    rows: found.confirmations,
  });
}
