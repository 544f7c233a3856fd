/** The files of deploy/: settings that dlfs serve takes, and values that fit each other. */
import { expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { modelConfigSchema, readServiceFile, serviceConfigOf, serviceConfigSchema } from "../../lib/service";
import { InferenceService } from "../../lib/service/server";
import { FakeBackend } from "./fake-backend";

const root = fileURLToPath(new URL("../../", import.meta.url));
const read = (file: string) => readFileSync(`${root}${file}`, "utf8");

test("settings are those of dlfs serve, and the service's documentation has each of them", async () => {
  const config = serviceConfigOf({ value: await readServiceFile(`${root}deploy/serve.yaml`), at: "serve.yaml" });
  expect(config).toMatchObject({ models: ["/models"], port: 8000, metricsPort: 9090 });
  const docs = read("docs/service.md");
  const { properties } = serviceConfigSchema as unknown as { properties: Record<string, { properties?: object }> };
  const names = Object.keys(properties).flatMap((name) =>
    name === "limits" ? Object.keys(properties.limits?.properties ?? {}).map((limit) => `limits.${limit}`) : [name],
  );
  expect(names.length).toBeGreaterThan(25);
  expect(names.filter((name) => !docs.includes(`\`${name}\``))).toEqual([]);
});

test("the schemas for editors are those of the tables", () => {
  const schemas = { serve: serviceConfigSchema, "served-model": modelConfigSchema };
  for (const [name, schema] of Object.entries(schemas)) {
    const written: unknown = JSON.parse(read(`schemas/${name}.schema.json`));
    // Out of date: bun run scripts/generate-schemas.ts
    expect(written).toEqual(JSON.parse(JSON.stringify(schema)));
  }
});

test("the documentation has each metric", async () => {
  const backend = new FakeBackend();
  backend.stats = [
    {
      ...{
        name: "shapes",
        version: "1",
        lastInference: 0,
        success: 1,
        inferences: 1,
        executions: 1,
        failureSeconds: 0,
      },
      failures: { REJECTED: 0, CANCELED: 0, BACKEND: 0, OTHER: 0 },
      requestSeconds: { total: 1, queue: 0, transfer: 0, decode: 0, infer: 0, postprocess: 0 },
      queueTimes: { bounds: [1], counts: [1, 0], sum: 0, count: 1 },
      stageTimes: Object.fromEntries(
        ["transfer", "decode", "infer", "postprocess"].map((stage) => [
          stage,
          { bounds: [1], counts: [1, 0], sum: 0, count: 1 },
        ]),
      ) as never,
      batchSizes: { bounds: [1], counts: [1, 0], sum: 1, count: 1 },
      ...{ batches: [], queued: [0], queuedBytes: 0, running: 0 },
      engines: [
        {
          ...{ index: 0, ready: true, pid: 1, backend: "cpu", device: "", processMemory: 1, running: 0, restarts: 0 },
          ...{ memory: { allocated: 1, free: 1, total: 1 }, shared: { used: 0, total: 1 } },
        },
      ],
    },
  ];
  await using service = new InferenceService(backend, { port: 0 });
  await fetch(new URL("/predict", service.url), { method: "POST", body: "x" });
  const text = await (await fetch(service.metricsUrl)).text();
  const names = [...text.matchAll(/^# TYPE (\S+) /gm)].map(([, name]) => name as string);
  expect(names.length).toBeGreaterThan(30);
  const docs = read("docs/service.md");
  expect(names.filter((name) => !docs.includes(`\`${name}\``))).toEqual([]);
  await service.stop(0);
});

test("the manifest asks where the service answers, and waits as long as it may take to end", () => {
  const documents = read("deploy/kubernetes.yaml")
    .split("\n---\n")
    .map((text) => Bun.YAML.parse(text) as never);
  // biome-ignore lint/suspicious/noExplicitAny: fields are looked at one by one
  const [settings, deployment, service] = documents as any[];
  const config = serviceConfigOf({ value: Bun.YAML.parse(settings.data["serve.yaml"]), at: "serve.yaml" });
  const pod = deployment.spec.template;
  const [container] = pod.spec.containers;
  const ports = Object.fromEntries(
    container.ports.map(({ name, containerPort }: { name: string; containerPort: number }) => [name, containerPort]),
  );
  expect(ports).toEqual({ http: config.port, metrics: config.metricsPort });
  expect(pod.metadata.annotations["prometheus.io/port"]).toBe(String(config.metricsPort));
  for (const probe of ["startupProbe", "readinessProbe", "livenessProbe"])
    expect(container[probe].httpGet.port).toBe("http");
  expect(container.readinessProbe.httpGet.path).toBe("/v2/health/ready");
  expect(container.livenessProbe.httpGet.path).toBe("/v2/health/live");
  const { terminationGracePeriodSeconds: grace } = pod.spec;
  expect(grace).toBeGreaterThan(container.lifecycle.preStop.sleep.seconds + config.drainSeconds);
  expect(container.resources.limits["nvidia.com/gpu"]).toBe(1);
  expect(service.spec.selector).toEqual(deployment.spec.selector.matchLabels);
});

test("images copy files that are there, and that Docker is let see", () => {
  const seen = read(".dockerignore")
    .split("\n")
    .filter((line) => line.startsWith("!"))
    .map((line) => line.slice(1));
  for (const file of ["deploy/Dockerfile", "deploy/Dockerfile.cuda"]) {
    const copies = [...read(file).matchAll(/^COPY (?!--from)(.+)$/gm)].flatMap(([, line]) =>
      line!.split(" ").slice(0, -1),
    );
    expect(copies.length).toBeGreaterThan(6);
    expect(copies.filter((path) => !existsSync(`${root}${path}`))).toEqual([]);
    expect(copies.filter((path) => !seen.some((known) => path === known || path.startsWith(`${known}/`)))).toEqual([]);
    // Bun is the one that the project is tested with.
    expect(read(file)).toContain("bun@1.4.5");
  }
});
