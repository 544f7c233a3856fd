/** A service from its start to its end, as a process' main work. */
import { check, DlfsError, ErrorCode } from "../native";
import { ApiKeys } from "./access";
import { createLog, type Logger } from "./log";
import { ModelRepository } from "./model-repository";
import { openPublishing } from "./publishing";
import { InferenceService } from "./server";
import type { ServiceConfig } from "./service-config";
import type { ServiceLog } from "./service-log";

/** pino's logger as the model side writes to it. */
export const serviceLogOf = (log: Logger): ServiceLog => ({
  info: (message, fields) => log.info(fields ?? {}, message),
  warn: (message, fields) => log.warn(fields ?? {}, message),
  error: (message, fields) => log.error(fields ?? {}, message),
});

const STATUS = { SIGINT: 130, SIGTERM: 143 } as const;

/** A second signal so soon is the first again: terminals and supervisors send it to the group and to the process. */
const ONE_SIGNAL_MS = 300;

/** The first SIGTERM or SIGINT asks for the end, the second is the end. SIGHUP asks for the models to be looked at again. */
function onSignals(stop: (name: string) => void, reload: () => void): Disposable {
  let first: number | null = null;
  const ask = (name: NodeJS.Signals) => {
    const now = performance.now();
    if (first === null) {
      first = now;
      stop(name);
    } else if (now - first > ONE_SIGNAL_MS) {
      process.exit(STATUS[name as keyof typeof STATUS]);
    }
  };
  const names = Object.keys(STATUS) as (keyof typeof STATUS)[];
  for (const name of names) process.on(name, ask);
  process.on("SIGHUP", reload);
  return {
    [Symbol.dispose]() {
      for (const name of names) process.off(name, ask);
      process.off("SIGHUP", reload);
    },
  };
}

async function readText(path: string): Promise<string> {
  try {
    return await Bun.file(path).text();
  } catch (error) {
    throw new DlfsError(ErrorCode.io, path, `it cannot be read: ${(error as Error).message}`);
  }
}

/**
 * Serves until SIGTERM or SIGINT: the service answers as soon as it listens, is ready once all models have warmed up, and at its
 * end answers what is under way. SIGHUP loads what has changed on the disk.
 *
 * @param config from serviceConfigOf()
 * @returns the exit status: 0 where it ended as it was asked to
 * @throws DlfsError where settings cannot be used, or a model cannot be loaded (unless `keepGoing`)
 */
export async function runService(config: ServiceConfig): Promise<number> {
  check(config.models.length > 0, "models", () => "expected at least one model");
  const { tlsCert, tlsKey, apiKeyFile, logLevel, drainSeconds } = config;
  const fromFile = apiKeyFile === undefined ? [] : await ApiKeys.read(apiKeyFile);
  const apiKeys = [...fromFile, ...ApiKeys.parse(process.env.DLFS_API_KEYS ?? "")];
  const tls = tlsCert && tlsKey ? { cert: await readText(tlsCert), key: await readText(tlsKey) } : undefined;
  const { defaultModel, model, models } = config;
  using log = createLog(logLevel);
  await using repository = await ModelRepository.open({ models, config: model, log: serviceLogOf(log) });
  check(
    defaultModel === undefined || repository.names.includes(defaultModel),
    "defaultModel",
    () => `expected one of ${repository.names.join(", ")}, got ${JSON.stringify(defaultModel)}`,
  );
  const publish = config.publish && (await openPublishing(config.publish, repository, serviceLogOf(log)));
  await using publishing = publish ?? { backend: repository, url: null, [Symbol.asyncDispose]: async () => {} };
  const service = new InferenceService(publishing.backend, {
    ...{ ...config, apiKeys, tls, log, starting: true },
    readiness: config.keepGoing ? "any" : "all",
  });

  let ask: (signal: string) => void = () => {};
  const asked = new Promise<string>((done) => {
    ask = done;
  });
  const load = async (): Promise<DlfsError | null> => {
    const errors = [...(await repository.loadAll()).values()];
    const [first] = errors;
    return first ? new DlfsError(ErrorCode.argument, "models", errors.map(({ message }) => message).join("; ")) : null;
  };
  using _ = onSignals(ask, () => {
    log.info("looking for models again");
    void load();
  });

  const live = publishing.url === null ? {} : { live: `${publishing.url}live` };
  const shared = { url: service.url.href, metrics: service.metricsUrl, ...live, pid: process.pid };
  log.info({ ...shared, apiKeys: apiKeys.length, models: repository.names }, "listening");
  const failure = await Promise.race([load(), asked.then(() => null)]);
  try {
    if (failure && !config.keepGoing) throw failure;
    service.started();
    const ready = repository.models().filter(({ state }) => state === "ready");
    log.info({ url: service.url.href, models: ready.map(({ name, version }) => `${name}/${version}`) }, "ready");
    const signal = await asked;
    log.info({ signal, requests: service.inFlight, drainSeconds }, "ending");
  } finally {
    await service.stop(failure && !config.keepGoing ? 0 : drainSeconds);
    await repository.close(drainSeconds * 1000);
    log.info("ended");
  }
  return 0;
}
