/** Where a service publishes a part of what it answers, as its settings say. */
import { join } from "node:path";
import { cacheFolder } from "../data";
import { makeFolder } from "../formats";
import { CollectSink, HttpSink, LiveBus, LiveServer } from "../live";
import { check } from "../native/error";
import { PublishingBackend } from "./publishing-backend";
import type { PublishConfig } from "./service-config";
import type { ServiceLog } from "./service-log";
import type { InferenceBackend } from "./types";

/** Milliseconds between figures. */
const FIGURES_MS = 10_000;

/** What publishes, between the service and its model side. */
export interface Publishing extends AsyncDisposable {
  readonly backend: InferenceBackend;
  /** Where it can be listened to; null where nobody can. */
  readonly url: string | null;
}

/**
 * Opens what a service publishes to: a folder, another system, listeners at a port.
 *
 * @throws DlfsError where a folder, a file or a port cannot be had
 */
export async function openPublishing(
  { folder, maxFolderBytes, post, port, hostname, share, perSecond, maxImageBytes }: PublishConfig,
  backend: InferenceBackend,
  log: ServiceLog,
): Promise<Publishing> {
  const warn = ({ message }: Error) => log.warn(message);
  await using owned = new AsyncDisposableStack();
  const bus = owned.use(
    new LiveBus({ onError: (reader, error) => log.error(`${reader} is given up: ${error.message}`) }),
  );
  if (folder !== undefined)
    bus.attach(await CollectSink.open(folder, { maxBytes: maxFolderBytes, onError: warn }), { maxMessages: 256 });
  if (post !== undefined) {
    // By its address, so that a service which is started again goes on with what it left.
    const hash = new Bun.CryptoHasher("sha256").update(post).digest("hex").slice(0, 16);
    const spools = folder ?? join(cacheFolder(), "publish");
    await makeFolder(spools);
    const token = process.env.DLFS_LIVE_POST_TOKEN;
    const headers: Record<string, string> = token ? { Authorization: `Bearer ${token}` } : {};
    const spool = join(spools, `spool-${hash}.dlvs`);
    bus.attach(await HttpSink.open({ url: post, headers, spool, log: (line) => log.warn(line) }), { maxMessages: 256 });
  }
  let url: string | null = null;
  if (port !== undefined) {
    const { DLFS_LIVE_TOKEN: token = "" } = process.env;
    check(token !== "", "publish.port", () => "expected DLFS_LIVE_TOKEN in the environment: what listeners must know");
    url = owned.use(new LiveServer({ port, hostname, token, bus })).url;
  }
  const publishing = new PublishingBackend(backend, { bus, share, perSecond, maxImageBytes, onError: warn });
  const timer = setInterval(() => publishing.publishFigures(), FIGURES_MS);
  timer.unref();
  owned.defer(() => clearInterval(timer));
  const moved = owned.move();
  return { backend: publishing, url, [Symbol.asyncDispose]: () => moved.disposeAsync() };
}
