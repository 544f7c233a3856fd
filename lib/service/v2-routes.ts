/** The Open Inference Protocol's endpoints, and those of its extensions for repositories, statistics and configurations. */

import packageJson from "../../package.json";
import { isObject } from "../native/json";
import { jsonReply, type Reply, type RequestContext } from "./request-context";
import type { ServiceParts } from "./routes";
import { shown } from "./tensors";
import { type BatchStatistics, type ModelDescription, type ModelStatistics, ServiceError } from "./types";
import { detectionOf, modelConfig, modelMetadata, outputsOf } from "./v2-detector";
import { formatV2Reply, HEADER_LENGTH, parseJson, parseV2Request } from "./v2-protocol";

const EXTENSIONS = [
  "binary_tensor_data",
  "model_configuration",
  "model_repository",
  "parameters",
  "schedule_policy",
  "statistics",
];

export const serverMetadata = (_: RequestContext, { modelControl }: ServiceParts): Reply =>
  jsonReply({
    ...{ name: "dlfs", version: packageJson.version },
    extensions: modelControl ? [...EXTENSIONS, "model_repository(unload_dependents)"] : EXTENSIONS,
  });

export const live = (): Reply => jsonReply({ live: true });

/**
 * What keeps a service from being ready; null where nothing does.
 *
 * @param readiness whether of each model that is not unloaded a version must be ready, or of any
 */
export function unreadyModels(models: readonly ModelDescription[], readiness: "all" | "any"): string | null {
  const wanted = models.filter(({ state }) => state !== "unloaded");
  if (wanted.length === 0) return "no model is loaded";
  const isReady = (name: string) => wanted.some((model) => model.name === name && model.state === "ready");
  if (readiness === "any" && wanted.some(({ name }) => isReady(name))) return null;
  const waiting = wanted.find(({ name }) => !isReady(name));
  return waiting ? `model ${JSON.stringify(waiting.name)} is ${waiting.state}` : null;
}

export function ready(_: RequestContext, { unready }: ServiceParts): Reply {
  const reason = unready();
  if (reason === null) return jsonReply({ ready: true, live: true });
  return jsonReply({ ready: false, live: true, error: reason }, 503, { "Retry-After": "1" });
}

/** @throws ServiceError 503 for a model that takes no requests at the moment */
export function expectReady({ name, state, reason }: ModelDescription): void {
  if (state === "ready") return;
  const why = reason === "" ? "" : `: ${reason}`;
  throw new ServiceError(503, `model ${JSON.stringify(name)} is ${state}${why}`, 1);
}

/** The model that the path names. @throws ServiceError 404 */
function described(context: RequestContext, { backend }: ServiceParts): ModelDescription {
  const model = backend.describe(context.params.model as string, context.params.version);
  context.model = model;
  return model;
}

const versionsOf = ({ backend }: ServiceParts, name: string): string[] =>
  backend.models().flatMap((model) => (model.name === name ? [model.version] : []));

export function modelReady(context: RequestContext, parts: ServiceParts): Reply {
  const { name, state, reason } = described(context, parts);
  if (state === "ready") return jsonReply({ name, ready: true });
  const error = reason === "" ? `model ${JSON.stringify(name)} is ${state}` : reason;
  return jsonReply({ name, ready: false, error }, 503, { "Retry-After": "1" });
}

export function metadata(context: RequestContext, parts: ServiceParts): Reply {
  const { name } = described(context, parts);
  return jsonReply(modelMetadata(name, versionsOf(parts, name)));
}

export function config(context: RequestContext, parts: ServiceParts): Reply {
  const model = described(context, parts);
  return jsonReply(modelConfig(model, versionsOf(parts, model.name)));
}

export async function infer(context: RequestContext, parts: ServiceParts): Promise<Reply> {
  const model = described(context, parts);
  expectReady(model);
  const { request } = context;
  const body = await parts.body(context);
  const parsed = parseV2Request(body, request.headers.get(HEADER_LENGTH), parts.limits.maxJsonBytes);
  const wanted = detectionOf(parsed, model, parts.limits);
  context.images = wanted.request.images.length;
  const reply = await context.timed("infer", () =>
    parts.backend.infer(model.name, context.params.version, { ...wanted.request, signal: context.abort.signal }),
  );
  context.answered(reply);
  const { body: answer, headerLength } = formatV2Reply(
    { model: reply.model, version: reply.version, id: wanted.id },
    outputsOf(reply, wanted),
  );
  const head = { status: 200, body: answer };
  if (headerLength === null) return { ...head, type: "application/json" };
  return { ...head, type: "application/octet-stream", headers: { [HEADER_LENGTH]: String(headerLength) } };
}

const STATES = { ready: "READY", loading: "LOADING", unavailable: "UNAVAILABLE", unloaded: "UNAVAILABLE" } as const;

/** A body that is JSON, or nothing. */
async function optionalJson(context: RequestContext, parts: ServiceParts): Promise<Record<string, unknown>> {
  const body = await parts.body(context);
  if (body.length === 0) return {};
  const json = parseJson(body, parts.limits.maxJsonBytes);
  if (!isObject(json)) throw new ServiceError(400, `request: expected an object, got ${shown(json)}`);
  return json;
}

export async function repositoryIndex(context: RequestContext, parts: ServiceParts): Promise<Reply> {
  const { ready: onlyReady = false } = await optionalJson(context, parts);
  if (typeof onlyReady !== "boolean") {
    throw new ServiceError(400, `ready: expected true or false, got ${shown(onlyReady)}`);
  }
  const models = parts.backend.models().filter(({ state }) => !onlyReady || state === "ready");
  return jsonReply(
    models.map(({ name, version, state, reason }) => ({
      ...{ name, version, state: STATES[state] },
      reason: reason === "" && state === "unloaded" ? "unloaded" : reason,
    })),
  );
}

/** Loading and unloading, where clients may. */
export async function control(context: RequestContext, parts: ServiceParts, action: "load" | "unload"): Promise<Reply> {
  if (!parts.modelControl) throw new ServiceError(403, `models cannot be ${action}ed here: see --model-control`);
  const { parameters = {} } = await optionalJson(context, parts);
  const allowed = action === "unload" ? ["unload_dependents"] : [];
  const names = isObject(parameters) ? Object.keys(parameters) : [shown(parameters)];
  const other = names.find((name) => !allowed.includes(name));
  if (other !== undefined) throw new ServiceError(400, `parameters: ${shown(other)} is not taken by ${action}`);
  const name = context.params.model as string;
  await parts.backend[action](name);
  context.model = parts.backend.models().find((model) => model.name === name) ?? null;
  return jsonReply({ name, state: action === "load" ? "READY" : "UNAVAILABLE" });
}

const ns = (count: number, seconds: number) => ({ count, ns: Math.round(seconds * 1e9) });

/** Statistics as Triton gives them; its compute_input is here the transfer to the engine and decoding. */
function tritonStatistics(stats: ModelStatistics): unknown {
  const { name, version, lastInference, success, failures, requestSeconds, failureSeconds } = stats;
  const failed = Object.values(failures).reduce((sum, count) => sum + count, 0);
  const compute = (count: number, stages: BatchStatistics["stages"]) => ({
    compute_input: ns(count, stages.transfer + stages.decode),
    compute_infer: ns(count, stages.infer),
    compute_output: ns(count, stages.postprocess),
  });
  return {
    ...{ name, version, last_inference: lastInference },
    ...{ inference_count: stats.inferences, execution_count: stats.executions },
    inference_stats: {
      ...{ success: ns(success, requestSeconds.total), fail: ns(failed, failureSeconds) },
      queue: ns(success, requestSeconds.queue),
      ...compute(success, requestSeconds),
      ...{ cache_hit: ns(0, 0), cache_miss: ns(0, 0) },
    },
    batch_stats: stats.batches.map(({ size, executions, stages }) => ({
      batch_size: size,
      ...compute(executions, stages),
    })),
    memory_usage: stats.engines.map(({ index, backend, memory }) => ({
      ...{ type: backend === "cuda" ? "GPU" : "CPU", id: index, byte_size: memory.allocated },
    })),
  };
}

export function statistics(context: RequestContext, parts: ServiceParts): Reply {
  const { model: name, version } = context.params;
  if (name !== undefined) described(context, parts);
  const chosen = parts.backend
    .statistics()
    .filter(
      (stats) => (name === undefined || stats.name === name) && (version === undefined || stats.version === version),
    );
  return jsonReply({ model_stats: chosen.map(tritonStatistics) });
}
