// Reading the node's API: JSON, its problem documents, its pages.

export class ApiError extends Error {
  constructor(status, detail, remedy, problem = null) {
    super(detail);
    this.status = status;
    this.remedy = remedy;
    this.problem = problem;
  }
}

/** The JSON at a path of this node. Throws ApiError; status 0 where no answer came. */
export async function get(path) {
  let reply;
  try {
    reply = await fetch(path, { headers: { Accept: "application/json" }, credentials: "omit" });
  } catch {
    throw new ApiError(0, "The node does not answer", "Check that it runs; this page tries again by itself");
  }
  let body = null;
  try {
    body = await reply.json();
  } catch {
    throw new ApiError(reply.status, `The node answered ${reply.status} without JSON`, "See the node's log");
  }
  if (reply.ok) return body;
  throw new ApiError(reply.status, body.detail ?? `Error ${reply.status}`, body.remedy ?? "", body);
}

/** All items of a paged list, at most `pages` pages of 100. */
export async function collect(path, pages = 20) {
  const items = [];
  let cursor = null;
  for (let page = 0; page < pages; page += 1) {
    const found = await get(`${path}?limit=100${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
    items.push(...found.items);
    cursor = found.next;
    if (!cursor) break;
  }
  return items;
}

/**
 * Reads a growing list again and again: `read(final)` gives all of it, at most 20 pages, and asks no more for full
 * pages of what lies at or below the final height, which never change.
 */
export function readGrowing(path) {
  const kept = [];
  return async (final) => {
    const pages = [...kept];
    kept.length = 0;
    let cursor = pages.at(-1)?.next ?? null;
    while (pages.length < 20 && (cursor !== null || !pages.length)) {
      const page = await get(`${path}?limit=100${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
      pages.push(page);
      cursor = page.next;
    }
    for (const page of pages) {
      if (page.next === null || page.items.some((item) => item.height > final || item.final === false)) break;
      kept.push(page);
    }
    return pages.flatMap((page) => page.items);
  };
}

/** A page of a list that `#/…?cursor=` names. */
export function getPage(path, query, limit = 30) {
  const cursor = query.get("cursor");
  return get(`${path}?limit=${limit}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
}

/** What `promise` gives, or the fallback where the node has nothing or holds it no more. */
export async function orElse(promise, fallback) {
  try {
    return await promise;
  } catch (error) {
    if (error instanceof ApiError && error.status !== 0) return fallback;
    throw error;
  }
}
