// What the page asks the server for, with the token from the address behind # or from its form.
const KEY = "dlfs-dashboard-token";
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given !== null) {
  sessionStorage.setItem(KEY, given);
  // Not in the history, nor in a picture of the screen.
  history.replaceState(null, "", location.pathname);
}
// The printed address, opened where the page is already.
addEventListener("hashchange", () => location.hash.startsWith("#token=") && location.reload());

/** No token, or a wrong one. */
export class AccessError extends Error {}

export const setToken = (token) => sessionStorage.setItem(KEY, token);

const authorization = () => ({ Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}` });

async function ask(path) {
  const answer = await fetch(path, { headers: authorization() }).catch(() => {
    throw new Error("nobody answers at this address: the training, or dlfs dashboard, has ended");
  });
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  const message = error ?? `the server answered ${answer.status}`;
  throw answer.status === 401 ? new AccessError(message) : new Error(message);
}

const runPath = (run) => `api/runs/${encodeURIComponent(run)}`;
const json = async (path) => await (await ask(path)).json();

/** { runs, edit: whether labels may be written } */
export const listRuns = () => json("api/runs");
export const states = async (runs) =>
  (await json(`api/state?${new URLSearchParams(runs.map((run) => ["run", run]))}`)).runs;
export const log = (run, before) => json(`${runPath(run)}/log${before === undefined ? "" : `?before=${before}`}`);
export const evaluations = async (run) => (await json(`${runPath(run)}/evaluations`)).evaluations;
/** A part of an evaluation: "" (what it is of), "curves", "confusion", "histograms" or "images". */
export const evaluation = (run, iteration, part, query = {}) =>
  json(`${runPath(run)}/evaluations/${iteration}${part === "" ? "" : `/${part}`}?${new URLSearchParams(query)}`);
export const dataset = (run) => json(`${runPath(run)}/dataset`);
/** An image of a run's data set, by its key. */
export const picture = (run, key) => image(run, `image?key=${encodeURIComponent(key)}`);
export const pictures = async (run) => (await json(`${runPath(run)}/pictures`)).pictures;
export const image = async (run, path) => await (await ask(`${runPath(run)}/${path}`)).blob();

/** Columns of points of curves by their names; x in a range where there is one. */
export function curves(run, names, { range, buckets, smooth }) {
  const query = new URLSearchParams(names.map((name) => ["name", name]));
  query.set("buckets", String(buckets));
  if (smooth > 0) query.set("smooth", String(smooth));
  if (range) {
    query.set("from", String(range[0]));
    query.set("to", String(range[1]));
  }
  return json(`${runPath(run)}/curves?${query}`);
}

/** The boxes of an image, and what was found on it: by the last evaluation, or by another one. */
export const annotations = (run, { key, split, iteration }) =>
  json(
    `${runPath(run)}/annotations?${new URLSearchParams({ image: key, split, ...(iteration !== undefined && { iteration }) })}`,
  );
/** What a run's model makes of an image: {iteration, boxes}. */
export const predictions = (run, query) => json(`${runPath(run)}/predictions?${new URLSearchParams(query)}`);
/** Keys of a data set's images. */
export const listImages = (run, query) => json(`${runPath(run)}/images?${new URLSearchParams(query)}`);

/** Writes labels. @returns what the server says, with its `status`; it throws where the server says nothing */
export async function writeLabels(run, message) {
  const headers = { ...authorization(), "Content-Type": "application/json" };
  const answer = await fetch(`${runPath(run)}/labels`, { method: "POST", headers, body: JSON.stringify(message) });
  const said = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  return { ...said, status: answer.status };
}

/** Tells a training that goes on something. @returns { from: the steps that are done before it counts } */
export async function tell(run, message) {
  const headers = { ...authorization(), "Content-Type": "application/json" };
  const answer = await fetch(`${runPath(run)}/control`, { method: "POST", headers, body: JSON.stringify(message) });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error ?? `the server answered ${answer.status}`);
  return said;
}
